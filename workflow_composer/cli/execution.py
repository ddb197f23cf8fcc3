"""The run behind ``execute``: profile, data sets, plans, then each data set through each strategy, and the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.batch.replaying import RecordedAnswers
from workflow_composer.cli.output import print_json
from workflow_composer.cli.replay_profile import of_recording, with_votes
from workflow_composer.cli.state import State
from workflow_composer.errors import ConfigError, InputError
from workflow_composer.markers import is_routing_string

if TYPE_CHECKING:
    from workflow_composer.batch.planning import PlanTable
    from workflow_composer.batch.strategies import BatchStrategy, PlanningContext
    from workflow_composer.cli.batch_run import BatchRun
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.plugins import PluginHost
    from workflow_composer.strategy import StrategyConfig

SOME_FAILED = 1


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; see ``execute --help``."""

    strategies: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    probing_dataset: str | None = None
    probe: Path | None = None
    data_dir: Path = Path("data")
    output: Path = Path("results")
    replay: Path | None = None
    dry_run: bool = False
    baselines: bool = False
    limit: int | None = None
    probing_rows: int = 400
    k: int = 8
    k_max: int = 9
    target: float = 0.9
    measure: str | None = None
    accept: float | None = None
    stopping: str | None = None
    level: float | None = None
    draw: str = "as_needed"
    extract: tuple[str, ...] = ()
    compare: str | None = None
    system: str | None = None
    contexts: tuple[str, ...] = ()
    max_tokens: int | None = None
    budget: float | None = None
    timeout: float | None = None
    in_flight: int | None = None
    no_texts: bool = False

    @property
    def votes(self) -> dict[str, Any]:
        """Settings of the cascade router that were given, by their names there."""
        given = {
            "measure": self.measure,
            "target": self.accept,
            "stopping": self.stopping,
            "level": self.level,
            "draw": self.draw,
            "extract": list(self.extract) or None,
            "compare": self.compare,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of every row's request."""
        given = {name: getattr(self, name) for name in ("system", "max_tokens", "budget", "timeout")}
        given["context"] = self.contexts or None
        return {name: value for name, value in given.items() if value is not None}


@dataclass(slots=True)
class Execution:
    """One ``execute``. `run` returns the exit code."""

    state: State
    options: Options
    recorded: RecordedAnswers | None = None
    plugins: PluginHost | None = None

    def run(self) -> int:
        """Plan everything, then (unless it is a dry run) run it, resuming what earlier runs have left."""
        options = self.options
        if options.replay is not None:
            self.recorded = RecordedAnswers(options.replay)
        with self._orchestrator() as orchestrator:
            config = orchestrator.config
            sets = self._datasets()
            context, tokens = self._context(orchestrator, config)
            strategies = self._strategies(orchestrator, context)
            planned = {rows.name: self._plan(rows, strategies, context, tokens) for rows in sets}
            for tables in planned.values():
                self._check_routes(orchestrator, tables)
            if options.dry_run:
                self._show(planned)
                return 0
            return self.batch(orchestrator, options.limit).run({rows.name: (rows, planned[rows.name]) for rows in sets})

    def batch(self, orchestrator: ModelOrchestrator, limit: int | None) -> BatchRun:
        """What runs planned data sets with this orchestrator, the first ``limit`` rows of each."""
        from workflow_composer.cli.batch_run import BatchRun

        return BatchRun(self.state, self.options, orchestrator, self.recorded, limit)

    # ------------------------------------------------------------------------------------------------------- the parts

    def _orchestrator(self) -> ModelOrchestrator:
        """An orchestrator whose votes are as the options say, over the recording where there is one."""
        state = self.state
        if self.recorded is not None:
            config = of_recording(self.recorded.path, self.recorded.models, state.profile())
        else:
            with state.open(state, None) as chosen:
                config, self.plugins = chosen.config, chosen.plugins
        from workflow_composer.cli.decisions import DecisionLog

        state.log = state.log or DecisionLog()
        return self.voting_orchestrator(config)

    def voting_orchestrator(self, config: StrategyConfig, **votes: Any) -> ModelOrchestrator:
        """An orchestrator under this profile, its votes as the options say, or else as ``votes`` do."""
        from workflow_composer.orchestrator import ModelOrchestrator

        changed = with_votes(config, {**self.options.votes, **votes})
        return ModelOrchestrator(changed, plugins=self.plugins, environ=self.state.environ, log=self.state.log)

    def _datasets(self) -> list[Any]:
        from workflow_composer.batch.datasets import find

        options = self.options
        if not options.datasets:
            assert self.recorded is not None  # the command line asks for one of the two
            return [self.recorded]
        found = [find(name, options.data_dir) for name in dict.fromkeys(options.datasets)]
        names = [rows.name for rows in found]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"{', '.join(sorted(twice))} is named twice", hint="run the splits of a data set one by one")
        return found

    def _context(self, orchestrator: ModelOrchestrator, config: StrategyConfig) -> tuple[PlanningContext, Any]:
        from workflow_composer.batch.costs import TokenAssumption
        from workflow_composer.batch.strategies import PlanningContext, PlanningTier

        options = self.options
        tiers = []
        for name, spec in config.tiers.items():
            model = config.resolve(name)[0]
            tiers.append(PlanningTier(name, model.input_price, model.output_price, spec.greedy_only))
        if not tiers:
            if options.strategies or options.baselines:
                raise ConfigError(
                    f"profile {config.profile_name!r} has no tiers", hint="add tiers to it, or name --routes instead"
                )
            tiers = [PlanningTier(name) for name in dict.fromkeys(options.routes) if not is_routing_string(name)]
            tiers = tiers or [PlanningTier("model")]
        context = PlanningContext(
            tuple(tiers),
            target=options.target,
            k=options.k,
            k_max=options.k_max,
            parse=lambda route: orchestrator.plan("?", model=route),
        )
        if options.probe is None and options.probing_dataset is None:
            return context, TokenAssumption()
        from dataclasses import replace

        from workflow_composer.cli.probing import predictor_of

        predictor, tokens = predictor_of(self, orchestrator, context)
        return replace(context, predictor=predictor), tokens

    def _strategies(self, orchestrator: ModelOrchestrator, context: PlanningContext) -> dict[str, BatchStrategy]:
        from workflow_composer.batch.strategies import baseline_routes, make_strategy

        factories = {name: offer.value for name, offer in orchestrator.plugins.registry.batch_strategies.items()}
        found = {name: make_strategy(name, factories) for name in dict.fromkeys(self.options.strategies)}
        routes = dict.fromkeys(self.options.routes)
        if self.options.baselines:
            routes |= dict.fromkeys(baseline_routes(context))
        return found | {route: Everywhere(route) for route in routes}

    def _plan(
        self, rows: Any, strategies: Mapping[str, BatchStrategy], context: PlanningContext, tokens: Any
    ) -> dict[str, PlanTable]:
        from workflow_composer.batch.planning import plan_all

        return plan_all(limited(rows.chunks(), self.options.limit), strategies, context, tokens=tokens)

    def _check_routes(self, orchestrator: ModelOrchestrator, tables: Mapping[str, PlanTable]) -> None:
        """Make the plan of every route that will be used: what cannot run is an error before anything is paid for."""
        for table in tables.values():
            for route in table.frame["route_to"].cat.categories:
                orchestrator.plan("?", model=route)

    def _show(self, planned: Mapping[str, Mapping[str, PlanTable]]) -> None:
        from workflow_composer.batch.planning import breakdown_text

        if self.state.json:
            print_json(
                {
                    name: {strategy: table.breakdown.to_dict() for strategy, table in tables.items()}
                    for name, tables in planned.items()
                }
            )
            return
        for name, tables in planned.items():
            click.echo(f"{name}: {len(next(iter(tables.values())).frame)} questions")
            click.echo(breakdown_text(table.breakdown for table in tables.values()))


class Everywhere:
    """The batch strategy that sends every question by one route."""

    def __init__(self, route: str) -> None:
        self.route = route

    def routes(self, questions: Any, context: PlanningContext) -> list[str]:
        """The same for every question."""
        return [self.route] * len(questions)


def limited(chunks: Iterator[Any], limit: int | None) -> Iterator[Any]:
    """The first ``limit`` rows of the chunks."""
    left = limit
    for chunk in chunks:
        if left is None:
            yield chunk
            continue
        if left <= 0:
            return
        yield chunk.slice(0, left)
        left -= chunk.num_rows
