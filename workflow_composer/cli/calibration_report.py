"""The result of a calibration as tables and plots."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workflow_composer.calibration.certificate import Certificate, Group, TierGuarantee
from workflow_composer.cli.output import dollars, percent, print_table
from workflow_composer.types import ANY_TASK

if TYPE_CHECKING:
    from workflow_composer.calibration.assessing import Assessment
    from workflow_composer.calibration.pairs import CalibrationTable


def shortfall(certificate: Certificate, coverage: float | None) -> list[str]:
    """Return one line for each target that was not reached."""
    groups = certificate.groups
    if not any(group.accepted for group in groups.values()):
        return [f"nothing could be certified: {needed(group)}{_of(name)}" for name, group in groups.items()]
    if coverage is None:
        return []
    return [
        f"{percent(group.coverage)} of the requests{_of(name)} would be accepted, less than the target {percent(coverage)}"
        for name, group in groups.items()
        if group.coverage < coverage
    ]


def needed(group: Group) -> str:
    """Return how many more labels would probably suffice for some tier."""
    counts = [tier.labels_needed for tier in group.tiers if tier.labels_needed is not None]
    if not counts:
        return "more labels would not help; try another score or a stronger model"
    return f"about {min(counts):,} more graded requests would probably suffice"


def _of(name: str) -> str:
    return "" if name == ANY_TASK else f" (group {name})"


def show(certificate: Certificate, assessments: Mapping[str, Assessment]) -> None:
    """Print the certificate's tables, each followed by the group's assessment."""
    for name, group in certificate.groups.items():
        title = f"{'all requests' if name == ANY_TASK else f'group {name}'}: {group.rows} calibration rows"
        tiers = certificate.tiers[group.first :]
        rows = [_row(tier.name, found) for tier, found in zip(tiers, group.tiers, strict=True)]
        print_table(_HEADERS, rows, title=title)
        for tier, found in zip(tiers, group.tiers, strict=True):
            _show_details(tier.name, found)
        click.echo(f"accepted: {percent(group.coverage)} of the requests; {group.wrong} of {group.accepted} wrong")
        click.echo(
            f"all answers, including exhausted requests: {group.returned_wrong} of {group.rows} wrong; at most "
            f"{percent(group.returned_bound)} with the same confidence"
        )
        if name in assessments:
            _show_assessment(assessments[name], tiers[-1].name)
        click.echo()
    click.echo(certificate.statement)
    for note in certificate.notes:
        click.echo(f"note: {note}")


_HEADERS = ("tier", "threshold", "reached", "accepted", "wrong", "coverage", "bound", "level")


def _row(name: str, tier: TierGuarantee) -> tuple[object, ...]:
    if tier.threshold is None:
        return name, "none", tier.reached, 0, 0, percent(0.0), "-", f"{tier.level:.2g}"
    threshold = "any score" if tier.threshold == -math.inf else f"{tier.threshold:.4f}"
    return (
        name, threshold, tier.reached, tier.accepted, tier.wrong, percent(tier.coverage), f"{tier.bound:.4f}",
        f"{tier.level:.2g}",
    )  # fmt: skip


def _show_details(name: str, tier: TierGuarantee) -> None:
    if tier.threshold is None:
        more = f"; about {tier.labels_needed:,} more graded requests would probably suffice" if tier.labels_needed else ""
        click.echo(f"  {name}: accepts nothing: {tier.reason}{more}")
    if tier.straight_up is not None:
        click.echo(f"  {name}: scores below {tier.straight_up:.4f} escalate directly to the last tier")


def _show_assessment(found: Assessment, last: str) -> None:
    if found.spending is not None:
        spent, always = found.spending.cascade, found.spending.always_last
        share = f", {percent(found.spending.saved)} saved" if found.spending.saved is not None else ""
        click.echo(f"cost: {dollars(spent * 1000)} per 1,000 requests; always {last}: {dollars(always * 1000)}{share}")
    rows = [
        (q.tier, f"{q.known} of {q.rows}", percent(q.error), _figure(q.auroc), _figure(q.aurc), _figure(q.calibration_error))
        for q in found.scores
    ]
    print_table(("scores", "known", "wrong", "AUROC", "AURC", "calibration error"), rows)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# ------------------------------------------------------------------------------------------------------------- drawings


def draw(certificate: Certificate, table: CalibrationTable, folder: Path) -> list[Path]:
    """Plot each tier of each group on the rows that reached it: risk against coverage, reliability, and the threshold.

    If scores are not probabilities, only the first. Return the files.
    """
    from workflow_composer.calibration import plots
    from workflow_composer.calibration.assessing import are_probabilities, evidence

    drawn: list[Path] = []
    for found in evidence(certificate, table):
        if not found.known:
            continue
        group = "" if found.group == ANY_TASK else f"{found.group}, "
        title = f"{group}{found.tier}: {len(found.scores)} requests"
        begin = folder / _slug("-".join(part for part in (found.group, found.tier) if part != ANY_TASK))
        guarantee = found.guarantee

        def place(kind: str, begin: Path = begin) -> Path:
            drawn.append(begin.with_name(f"{begin.name}-{kind}.svg"))
            return drawn[-1]

        plots.risk_against_coverage(
            place("risk"), found.scores, found.correct, alpha=certificate.alpha, threshold=guarantee.threshold,
            bound=guarantee.bound, title=title,
        )  # fmt: skip
        if are_probabilities(found.scores):
            plots.reliability(place("reliability"), found.scores, found.correct, title=title)
            plots.threshold_among_answers(
                place("threshold"), found.scores, found.correct, threshold=guarantee.threshold, title=title
            )
    return drawn


def _slug(name: str) -> str:
    """A readable file name, unique per name."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".")
    return plain if plain == name and len(plain) <= 80 else f"{plain[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
