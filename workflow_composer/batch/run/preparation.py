"""What ``execute`` prepares before any call is paid for: the rows, and the route of every row under each policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.batch.datasets.columns import Columns
from workflow_composer.batch.datasets.recorded_answers import RecordedAnswers
from workflow_composer.errors import ConfigError, InputError
from workflow_composer.markers import is_routing_string

if TYPE_CHECKING:
    from workflow_composer.batch.planning.plan_table import PlanTable
    from workflow_composer.batch.planning.policies import BatchStrategy, PlanningContext
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.plan import Plan


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line; see ``execute --help``."""

    policies: tuple[str, ...] = ()
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
    vote_by: str | None = None
    system: str | None = None
    contexts: tuple[str, ...] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    budget: float | None = None
    run_budget: float | None = None
    timeout: float | None = None
    in_flight: int | None = None
    no_texts: bool = False
    columns: Columns = field(default_factory=Columns)
    shard: str | None = None
    keep: tuple[str, ...] = ()
    train_probe: bool = False

    @property
    def votes(self) -> dict[str, Any]:
        """The given settings of the cascade router, by name."""
        given = {
            "measure": self.measure,
            "target": self.accept,
            "stopping": self.stopping,
            "level": self.level,
            "draw": self.draw,
            "extract": list(self.extract) or None,
            "compare": self.compare,
            "vote_by": self.vote_by,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of every row's request."""
        given = {name: getattr(self, name) for name in ("system", "max_tokens", "stop", "budget", "timeout")}
        given["context"] = self.contexts or None
        return {name: value for name, value in given.items() if value is not None}


class Preparation:
    """Finds the rows of an ``execute`` run and plans their routes, under one profile.

    ``parse`` turns a route into a plan; ``factories`` are the available batch policies by name. ``has_probe`` is set once
    there are predictions by a probe.
    """

    def __init__(
        self,
        options: Options,
        config: StrategyConfig,
        *,
        parse: Callable[[str], Plan],
        factories: Mapping[str, Any],
        recorded: RecordedAnswers | None,
    ) -> None:
        self.options = options
        self.config = config
        self.recorded = recorded
        self.has_probe = False
        self._parse = parse
        self._factories = factories

    def datasets(self) -> list[Any]:
        """Return the named data sets, or else the recording. Raises `InputError`."""
        from workflow_composer.batch.datasets.dataset import find

        options = self.options
        if not options.datasets:
            assert self.recorded is not None  # the command line asks for one of the two
            return [self.recorded]
        found = [
            find(name, options.data_dir, columns=options.columns, keep=options.keep)
            for name in dict.fromkeys(options.datasets)
        ]
        names = [rows.name for rows in found]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"data set {', '.join(sorted(twice))} is named twice", hint="run one split at a time")
        return found

    def context(self) -> PlanningContext:
        """Return what policies know besides the questions. Raises `ConfigError` if they need tiers and there are none."""
        from workflow_composer.batch.planning.policies import PlanningContext, PlanningTier

        options, config = self.options, self.config
        tiers = []
        for name, spec in config.tiers.items():
            model = config.resolve(name)[0]
            tiers.append(PlanningTier(name, model.input_price, model.output_price, spec.greedy_only))
        if not tiers:
            if options.policies or options.baselines:
                raise ConfigError(
                    f"profile {config.profile_name!r} has no tiers", hint="add tiers to it, or use --routes instead"
                )
            tiers = [PlanningTier(name) for name in dict.fromkeys(options.routes) if not is_routing_string(name)]
            tiers = tiers or [PlanningTier("model")]
        return PlanningContext(tuple(tiers), target=options.target, k=options.k, k_max=options.k_max, parse=self._parse)

    def policies(self, context: PlanningContext) -> dict[str, BatchStrategy]:
        """Return the named policies and routes, and the baselines."""
        from workflow_composer.batch.planning.policies import baseline_routes, make_policy

        options = self.options
        if options.dry_run and not options.policies and not options.routes and not options.baselines:
            return self._possible(context)
        found = {name: make_policy(name, self._factories) for name in dict.fromkeys(options.policies)}
        routes = dict.fromkeys(self.options.routes)
        if self.options.baselines:
            routes |= dict.fromkeys(baseline_routes(context))
        return found | {route: Everywhere(route) for route in routes}

    def _possible(self, context: PlanningContext) -> dict[str, BatchStrategy]:
        """Return every policy that can plan with these tiers and this probe."""
        from workflow_composer.batch.planning.policies import Questions, make_policy

        found: dict[str, BatchStrategy] = {}
        predictor = context.predictor if self.has_probe else None
        for name in self._factories:
            with suppress(ConfigError):  # it needs a probe, or a tier
                policy = make_policy(name, self._factories)
                policy.routes(Questions(["?"], predictor), context)
                found[name] = policy
        return found

    def plan(
        self, rows: Any, policies: Mapping[str, BatchStrategy], context: PlanningContext, tokens: Any
    ) -> dict[str, PlanTable]:
        """Return the plan of a data set for each policy.

        Parses every route of the plan, so that a route that cannot run is an error before any call is paid for.
        """
        from workflow_composer.batch.planning.plan_table import plan_all

        tables = plan_all(limited(rows.chunks(), self.options.limit), policies, context, tokens=tokens)
        for table in tables.values():
            for route in table.frame["route_to"].cat.categories:
                self._parse(route)
        return tables


class Everywhere:
    """The batch policy that sends every question by one route."""

    def __init__(self, route: str) -> None:
        self.route = route

    def routes(self, questions: Any, context: PlanningContext) -> list[str]:
        """Return the same route for every question."""
        return [self.route] * len(questions)


def limited(chunks: Iterator[Any], limit: int | None) -> Iterator[Any]:
    """Yield the first ``limit`` rows of the chunks."""
    left = limit
    for chunk in chunks:
        if left is None:
            yield chunk
            continue
        if left <= 0:
            return
        yield chunk.slice(0, left)
        left -= chunk.num_rows
