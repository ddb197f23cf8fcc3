"""The run behind ``calibrate``: read graded answers, calibrate, report the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from workflow_composer.calibration.certificate import ModelIdentity, RequestForm, digest_of
from workflow_composer.cli.calibration_report import draw, shortfall, show
from workflow_composer.cli.output import print_json
from workflow_composer.cli.state import State
from workflow_composer.errors import ConfigError, InputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workflow_composer.calibration.pairs import CalibrationTable, Price
    from workflow_composer.profiles.models import ModelSpec
    from workflow_composer.strategy import StrategyConfig

NOTHING_CERTIFIED = 1


@dataclass(frozen=True, slots=True)
class Options:
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


@dataclass(frozen=True, slots=True)
class Calibration:
    """One run of ``calibrate``. `run` returns the exit code."""

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
        from workflow_composer.snapshot import contexts_of
        from workflow_composer.types import ANY_TASK

        environ = self.state.environ
        contexts = contexts_of(config, environ) if config else Contexts.of({}, environ=environ)
        return contexts.of_request(self.options.contexts or None, ANY_TASK).system(self.options.system)

    def _table(self, config: StrategyConfig | None) -> CalibrationTable:
        options = self.options
        tiers = options.tiers or tuple(config.tiers if config else ())
        if options.pairs is not None:
            from workflow_composer.calibration.pairs import from_pairs

            return from_pairs(options.pairs, tiers)
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
            f"calibration needs {error.name}, which is not installed", hint="pip install 'workflow-composer[calibration]'"
        ) from None


def read_recording(
    path: Path, tiers: Mapping[str, Sequence[str | None]], prices: Mapping[str, Price | None] | None = None
) -> CalibrationTable:
    """Build the table from a recording. ``tiers``: tier -> names it may be recorded under; empty: every model is a tier.

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
        raise InputError(error.message, hint="docs/recordings.md describes the file format") from None


def _spec(config: StrategyConfig, tier: str) -> ModelSpec:
    return config.resolve(tier)[0]


def _price(spec: ModelSpec) -> Price | None:
    """Dollars per million prompt and completion tokens; None if tokens have no price."""
    if spec.input_price is None and spec.output_price is None:
        return None
    return spec.input_price or 0.0, spec.output_price or 0.0


def _floors(texts: Sequence[str]) -> dict[str, str]:
    found = dict(text.partition("=")[::2] for text in texts)
    if wrong := [task for task, tier in found.items() if not task or not tier]:
        raise ConfigError(f"invalid floor {wrong[0]!r}; write TASK=TIER", hint="for example --floor legal=large")
    return found
