"""The run behind ``calibrate``: reading graded answers, calibrating, and saying what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from workflow_composer.calibration.certificate import (
    Certificate,
    Group,
    ModelIdentity,
    RequestForm,
    TierGuarantee,
    digest_of,
)
from workflow_composer.cli.output import dollars, percent, print_json, print_table
from workflow_composer.cli.state import State
from workflow_composer.errors import ConfigError, InputError, ModelError
from workflow_composer.types import ANY_TASK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workflow_composer.calibration.assessing import Assessment
    from workflow_composer.calibration.pairs import CalibrationTable, Price
    from workflow_composer.profiles.models import ModelSpec
    from workflow_composer.strategy import StrategyConfig

NOTHING_CERTIFIED = 1


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; see ``calibrate --help``."""

    pairs: Path | None = None
    replay: Path | None = None
    alpha: float = 0.1
    delta: float = 0.1
    tiers: tuple[str, ...] = ()
    group_by: str | None = None
    floors: tuple[str, ...] = ()
    escalation: Literal["next", "predicted"] = "next"
    coverage: float | None = None
    method: str = "fixed_sequence"
    fit_share: float = 0.3
    seed: int = 0
    temperature: float = 0.0
    top_logprobs: int | None = None
    system: str | None = None
    max_tokens: int | None = None
    output: Path = Path("certificate.json")
    plots: Path | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """One ``calibrate``. `run` returns the exit code."""

    state: State
    options: Options

    def run(self) -> int:
        """Read, calibrate, write the certificate, report."""
        with libraries():
            from workflow_composer.calibration.assessing import assess
            from workflow_composer.calibration.calibrating import calibrate

            options = self.options
            config = self.state.profile()
            table = self._table(config)
            certificate = calibrate(
                table,
                alpha=options.alpha,
                delta=options.delta,
                method=options.method,
                group_by=options.group_by,
                task_floors=_floors(options.floors),
                escalation=options.escalation,
                coverage=options.coverage,
                identities=[self._identity(config, table, at) for at in range(len(table.tiers))],
                request=RequestForm(system=digest_of(options.system), max_tokens=options.max_tokens),
                fit_share=options.fit_share,
                seed=options.seed,
            )
            certificate.save(options.output)
            assessments = assess(certificate, table)
        lacking = shortfall(certificate, options.coverage)
        if self.state.json:
            found = {name: asdict(assessment) for name, assessment in assessments.items()}
            print_json({**certificate.to_dict(), "assessments": found, "file": str(options.output), "shortfall": lacking})
        else:
            show(certificate, assessments)
            click.echo()
            click.echo(f"certificate: {options.output} ({certificate.digest})")
        for line in lacking:
            click.echo(line, err=True)
        return NOTHING_CERTIFIED if lacking else 0

    # -------------------------------------------------------------------------------------------------------- the parts

    def _table(self, config: StrategyConfig | None) -> CalibrationTable:
        options = self.options
        tiers = options.tiers or tuple(config.tiers if config else ())
        if options.pairs is not None:
            from workflow_composer.calibration.pairs import from_pairs

            return from_pairs(options.pairs, tiers)
        assert options.replay is not None  # the command line asks for one of the two
        specs = {tier: _spec(config, tier) for tier in tiers} if config else {}
        names = {tier: (tier, spec.model, spec.name) if (spec := specs.get(tier)) else (tier,) for tier in tiers}
        return read_recording(options.replay, names, {tier: _price(spec) for tier, spec in specs.items()})

    def _identity(self, config: StrategyConfig | None, table: CalibrationTable, at: int) -> ModelIdentity:
        options, tier = self.options, table.tiers[at]
        top = options.top_logprobs or tier.top_logprobs
        if config is None:
            return ModelIdentity(tier.name, top_logprobs=top, temperature=options.temperature)
        spec = _spec(config, tier.name)
        mode = getattr(spec, "logprobs_mode", None)
        return ModelIdentity(tier.name, spec.model, spec.backend, mode, top, options.temperature)


@contextmanager
def libraries() -> Iterator[None]:
    """Where a library is not installed, say which extra brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("numpy", "scipy", "sklearn", "matplotlib"):
            raise
        raise ConfigError(
            f"calibration needs {error.name}, which is not installed", hint="pip install 'workflow-composer[calibration]'"
        ) from None


def read_recording(
    path: Path, tiers: Mapping[str, Sequence[str | None]], prices: Mapping[str, Price | None] | None = None
) -> CalibrationTable:
    """The table of a recording. ``tiers``: tier -> names under which it may have been recorded; none: every model is a tier.

    Raises `InputError`.
    """
    from workflow_composer.backends.recordings import open_recording
    from workflow_composer.calibration.pairs import from_records

    try:
        recording = open_recording(path)
        there = recording.models
        wanted = {
            tier: next((name for name in names if name is not None and name in there), tier) for tier, names in tiers.items()
        }
        known = {tier: price for tier, price in (prices or {}).items() if price is not None}
        return from_records(recording.records(), wanted or {name: name for name in there}, path=path, prices=known)
    except ModelError as error:
        raise InputError(error.message, hint="docs/recordings.md says what the file holds") from None


def _spec(config: StrategyConfig, tier: str) -> ModelSpec:
    return config.resolve(tier)[0]


def _price(spec: ModelSpec) -> Price | None:
    """Dollars per million tokens of prompt and answer; None where tokens have no price."""
    if spec.input_price is None and spec.output_price is None:
        return None
    return spec.input_price or 0.0, spec.output_price or 0.0


def _floors(texts: Sequence[str]) -> dict[str, str]:
    found = dict(text.partition("=")[::2] for text in texts)
    if wrong := [task for task, tier in found.items() if not task or not tier]:
        raise ConfigError(f"a floor is written TASK=TIER, not {wrong[0]!r}", hint="--floor legal=large")
    return found


# ------------------------------------------------------------------------------------------------------------ reporting


def shortfall(certificate: Certificate, coverage: float | None) -> list[str]:
    """What was wanted and is not there, a line each."""
    groups = certificate.groups
    if not any(group.accepted for group in groups.values()):
        return [f"nothing could be certified: {needed(group)}{_of(name)}" for name, group in groups.items()]
    if coverage is None:
        return []
    return [
        f"{percent(group.coverage)} of the requests{_of(name)} would be accepted, not the wanted {percent(coverage)}"
        for name, group in groups.items()
        if group.coverage < coverage
    ]


def needed(group: Group) -> str:
    """How many more labels would probably do for some tier."""
    counts = [tier.labels_needed for tier in group.tiers if tier.labels_needed is not None]
    if not counts:
        return "no number of labels would do; another score, or a stronger model, might"
    return f"about {min(counts):,} more graded requests would probably do"


def _of(name: str) -> str:
    return "" if name == ANY_TASK else f" (group {name})"


def show(certificate: Certificate, assessments: Mapping[str, Assessment]) -> None:
    """Print the certificate's tables, and beneath each what else is known of the group."""
    for name, group in certificate.groups.items():
        title = f"{'all requests' if name == ANY_TASK else f'group {name}'}: {group.rows} calibration rows"
        tiers = certificate.tiers[group.first :]
        rows = [_row(tier.name, found) for tier, found in zip(tiers, group.tiers, strict=True)]
        print_table(_HEADERS, rows, title=title)
        for tier, found in zip(tiers, group.tiers, strict=True):
            _show_details(tier.name, found)
        click.echo(f"accepted: {percent(group.coverage)} of the requests; {group.wrong} of {group.accepted} wrong")
        click.echo(
            f"all answers, exhausted requests' included: {group.returned_wrong} of {group.rows} wrong; at most "
            f"{percent(group.returned_bound)} (confidence {1 - group.returned_level:.4g})"
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
        more = f"; about {tier.labels_needed:,} more graded requests would probably do" if tier.labels_needed else ""
        click.echo(f"  {name}: nothing is accepted: {tier.reason}{more}")
    if tier.straight_up is not None:
        click.echo(f"  {name}: below {tier.straight_up:.4f} straight to the last tier")


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
