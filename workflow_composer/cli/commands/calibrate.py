"""``calibrate``: find thresholds with a guarantee from graded answers."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from workflow_composer.batch.datasets.columns import Columns
from workflow_composer.calibration.certify.certificate import (
    Certificate,
    Group,
    ModelIdentity,
    RequestForm,
    TierGuarantee,
    digest_of,
)
from workflow_composer.cli.commands.execute import spread
from workflow_composer.cli.options import (
    column_options,
    columns_of,
    common_options,
    context_option,
    examples,
    profile_option,
)
from workflow_composer.cli.output import dollars, percent, print_json, print_table
from workflow_composer.cli.state import State
from workflow_composer.errors import ConfigError, InputError, ModelError
from workflow_composer.support.installing import install_command
from workflow_composer.types import ANY_TASK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workflow_composer.calibration.certify.assessment import Assessment
    from workflow_composer.calibration.certify.pairs import CalibrationTable, Price
    from workflow_composer.config.profile_models import ModelSpec
    from workflow_composer.config.strategy import StrategyConfig


# ------------------------------------------------------------------------------------------------------ calibration report
#
# The result of a calibration as tables and plots.


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
    else:
        click.echo("cost: unknown, because a tier has no price and its answers no recorded cost")
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
    from workflow_composer.calibration.certify import plots
    from workflow_composer.calibration.certify.assessment import are_probabilities, evidence

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


# ------------------------------------------------------------------------------------------------------------- calibration
#
# The run behind ``calibrate``: read graded answers, calibrate, report the result.


NOTHING_CERTIFIED = 1


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """The command-line options; see ``calibrate --help``."""

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
    contexts: tuple[str, ...] = ()
    max_tokens: int | None = None
    output: Path = Path("certificate.json")
    plots: Path | None = None
    columns: Columns = field(default_factory=Columns)


@dataclass(frozen=True, slots=True)
class Calibration:
    """One run of ``calibrate``. `run` returns the exit code."""

    state: State
    options: CalibrationOptions

    def run(self) -> int:
        """Read, calibrate, write the certificate, report."""
        with libraries():
            from workflow_composer.calibration.certify.assessment import assess
            from workflow_composer.calibration.certify.calibrate import calibrate

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
                request=RequestForm(system=digest_of(self._system(config)), max_tokens=options.max_tokens),
                fit_share=options.fit_share,
                seed=options.seed,
            )
            certificate.save(options.output)
            assessments = assess(certificate, table)
            drawn = draw(certificate, table, options.plots) if options.plots is not None else []
        lacking = shortfall(certificate, options.coverage)
        if self.state.json:
            found = {name: asdict(assessment) for name, assessment in assessments.items()}
            print_json(
                {
                    **certificate.to_dict(),
                    "assessments": found,
                    "file": str(options.output),
                    "shortfall": lacking,
                    "plots": [str(path) for path in drawn],
                }
            )
        else:
            show(certificate, assessments)
            click.echo()
            click.echo(f"certificate: {options.output} ({certificate.digest})")
            if drawn:
                click.echo(f"plots: {len(drawn)} in {options.plots}")
        for line in lacking:
            click.echo(line, err=True)
        return NOTHING_CERTIFIED if lacking else 0

    # -------------------------------------------------------------------------------------------------------- the parts

    def _system(self, config: StrategyConfig | None) -> str | None:
        """The complete system message of the answers' requests: the context (named, or the profile's) and the text."""
        from workflow_composer.contexts.applying import Contexts
        from workflow_composer.runtime.snapshot import contexts_of
        from workflow_composer.types import ANY_TASK

        environ = self.state.environ
        contexts = contexts_of(config, environ) if config else Contexts.of({}, environ=environ)
        return contexts.of_request(self.options.contexts or None, ANY_TASK).system(self.options.system)

    def _table(self, config: StrategyConfig | None) -> CalibrationTable:
        options = self.options
        tiers = options.tiers or tuple(config.tiers if config else ())
        if options.pairs is not None:
            from workflow_composer.batch.datasets.pairs_table import read_pairs
            from workflow_composer.calibration.certify.pairs import from_pairs

            pairs = read_pairs(options.pairs, options.columns)
            if not self.state.json:
                click.echo(f"{options.pairs}: {pairs.describe()}", err=True)
            return from_pairs(options.pairs, tiers, rows=pairs.rows())
        assert options.replay is not None  # the command line requires one of the two
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
    """Turn the import error of an optional library into an error that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("numpy", "scipy", "sklearn", "matplotlib"):
            raise
        raise ConfigError(
            f"calibration needs {error.name}, which is not installed", hint=install_command("calibration")
        ) from None


def read_recording(
    path: Path, tiers: Mapping[str, Sequence[str | None]], prices: Mapping[str, Price | None] | None = None
) -> CalibrationTable:
    """Build the table from a recording. ``tiers``: tier -> names it may be recorded under; empty: every model is a tier.

    Raises `InputError`.
    """
    from workflow_composer.backends.recordings import open_recording
    from workflow_composer.calibration.certify.pairs import from_records

    try:
        recording = open_recording(path)
        there = recording.models
        wanted = {
            tier: next((name for name in names if name is not None and name in there), tier) for tier, names in tiers.items()
        }
        known = {tier: price for tier, price in (prices or {}).items() if price is not None}
        return from_records(recording.records(), wanted or {name: name for name in there}, path=path, prices=known)
    except ModelError as error:
        raise InputError(error.message, hint="docs/recordings.md describes the file format") from None


def _spec(config: StrategyConfig, tier: str) -> ModelSpec:
    return config.resolve(tier)[0]


def _price(spec: ModelSpec) -> Price | None:
    """Dollars per million prompt and completion tokens; None if one of them has no price."""
    if spec.input_price is None or spec.output_price is None:
        return None
    return spec.input_price, spec.output_price


def _floors(texts: Sequence[str]) -> dict[str, str]:
    found = dict(text.partition("=")[::2] for text in texts)
    if wrong := [task for task, tier in found.items() if not task or not tier]:
        raise ConfigError(f"invalid floor {wrong[0]!r}; write TASK=TIER", hint="for example --floor legal=large")
    return found


_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


class _WithTiers(click.Command):
    """``--tiers small medium``, or ``--tiers small --tiers medium``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, as click requires."""
        return super().parse_args(ctx, spread(args, ("--tiers", "--floor")))


@click.command(
    cls=_WithTiers,
    epilog=examples(
        "calibrate --replay answers.jsonl --tiers small medium large --alpha 0.1 --delta 0.1 -o certificate.json",
        "calibrate --pairs scores.csv --alpha 0.05 --coverage 0.6",
        "calibrate --pairs judged.parquet --label-column is_right --id-column question",
        "-s development calibrate --replay answers.jsonl --group-by group --floor legal=large --plots plots",
    ),
)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    help="Table of scores and grades (JSONL, CSV, Parquet, ...); see docs/calibration.md.",
)
@column_options("question", "label", "id")
@click.option("--replay", type=click.Path(path_type=Path), help="Recorded, graded answers (JSONL); see docs/recordings.md.")
@click.option(
    "--alpha",
    type=_SHARE,
    default=0.1,
    show_default=True,
    help="Largest allowed share of wrong answers among those accepted.",
)
@click.option(
    "--delta",
    type=_SHARE,
    default=0.1,
    show_default=True,
    help="Probability that the guarantee fails; confidence 1 - delta.",
)
@click.option(
    "--tiers", multiple=True, metavar="NAME...", help="Tiers, cheapest first. Default: the profile's, or the file's."
)
@click.option("--group-by", type=click.Choice(["group"]), help="Certify each group (task type) separately; delta is split.")
@click.option("--floor", "floors", multiple=True, metavar="TASK=TIER...", help="Tier at which a task's requests start.")
@click.option(
    "--escalation",
    type=click.Choice(["next", "predicted"]),
    default="next",
    show_default=True,
    help="Escalate one tier at a time, or directly to the last tier if that is predicted to be cheaper.",
)
@click.option(
    "--coverage", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE", help="Required share of accepted requests."
)
@click.option(
    "--method",
    type=click.Choice(["fixed_sequence", "holm"]),
    default="fixed_sequence",
    show_default=True,
    help="Multiple-testing procedure for the thresholds.",
)
@click.option(
    "--fit-share",
    type=_SHARE,
    default=0.3,
    show_default=True,
    help="Share of the rows for learning scores; the rest tests thresholds.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the split.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="Sampling temperature used for the answers.")
@click.option(
    "--top-logprobs",
    type=click.IntRange(min=1),
    metavar="K",
    help="Alternatives requested per token. Default: from the data.",
)
@context_option
@click.option("--system", metavar="TEXT", help="System message used for the answers; only its digest is stored.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Token limit used for the answers.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="certificate.json",
    show_default=True,
    help="Certificate file to write.",
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write plots of risk, reliability and scores to this folder.",
)
@profile_option("$BIOPIPELINES_STRATEGY, else none: then models and prices are not stated")
@common_options
@click.pass_context
def calibrate(context: click.Context, /, **options: Any) -> None:
    """Find thresholds that keep the error of accepted answers below a limit.

    Of the answers whose score reaches the tier's threshold, at most a share alpha is wrong, with confidence 1 - delta. One
    part of the graded answers is used to learn each tier's score (from the log-probabilities of its tokens, unless the file
    already has scores), the rest to choose thresholds. For every tier and group, the certificate states the threshold, how
    many answers it accepts and how many of them are wrong.

    With a profile (-s), the certificate also names the models, so that it is rejected after a change, and prices show the
    savings. Exit codes: 0 something was certified; 1 nothing was, or less than --coverage; 2 wrong usage or input.
    """
    if (options["pairs"] is None) == (options["replay"] is None):
        raise click.UsageError("specify either --pairs or --replay")
    columns = columns_of(options)
    context.exit(Calibration(context.ensure_object(State), CalibrationOptions(**options, columns=columns)).run())
