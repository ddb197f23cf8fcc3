"""One thing that is wrong, and what a check may look at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from workflow_composer.config.checks import CASCADE_TARGET
from workflow_composer.config.strategy import ModelSpec, StrategyConfig
from workflow_composer.errors import MarkerError, RoutingError
from workflow_composer.markers import is_routing_string, parse_route
from workflow_composer.types import ANY_TASK

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong. An ``error`` keeps requests from being answered as the profile says; a ``warning`` may.

    ``kind`` is a stable word for programs, ``where`` the place (file, line and key of a profile, or a path or variable),
    ``models`` the models of the profile that cannot answer because of it.
    """

    level: Level
    kind: str
    where: str
    problem: str
    remedy: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined: a profile and the environment in which it runs. ``now`` returns seconds since 1970."""

    config: StrategyConfig
    environ: Mapping[str, str]
    now: Callable[[], float] = field(default=time.time)

    def tasks_of(self, name: str) -> tuple[str, ...]:
        """Return the tasks whose requests go to this model before any fallback; the task `*` is none by name."""
        routes = self.config.task_routing
        return tuple(task for task, target in routes.items() if any(name in part for part in self.parts(target)))

    def embeds(self, name: str) -> bool:
        """Whether the profile wants vectors of this model."""
        return "embeddings" in self.tasks_of(name) or tuple(self.config.backend_specs()[name].capabilities) == (
            "embeddings",
        )

    def chats(self, name: str) -> bool:
        """Whether the profile wants answers of this model: it says nothing else of it."""
        return not self.embeds(name) or any(task != "embeddings" for task in self.tasks_of(name))

    def parts(self, target: str) -> Iterator[tuple[str, ...]]:
        """Yield, for each tier that a target has, the names of the models of which one must answer."""
        for name in self._targets(target):
            try:
                yield tuple(spec.name for spec in self.config.resolve(name))
            except RoutingError:  # reported when the profile loads
                continue

    def _targets(self, target: str) -> tuple[str, ...]:
        if target == CASCADE_TARGET:
            return tuple(self.config.tiers)
        if not is_routing_string(target):
            return (target,)
        try:
            tiers = parse_route(target).tiers
        except MarkerError:
            return ()
        return tuple(candidate.name for tier in tiers for member in tier.members for candidate in member.candidates)


def named(names: Sequence[str], most: int = 6) -> str:
    """Return names in one line, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def place_of(config: StrategyConfig, spec: ModelSpec, *keys: str) -> str:
    """Return where a profile says something about a model: at its key, else at the model, else at its role."""
    if spec.name in config.models:
        return config.where("models", spec.name, *keys)
    return config.where("vllm_endpoints", spec.endpoint or spec.name)


def without_price(subject: Subject) -> Iterator[Finding]:
    """Report tiers with a budget whose model has no price, so that the budget limits nothing."""
    config = subject.config
    for name, tier in config.tiers.items():
        for spec in config.resolve(name) if tier.budget is not None else ():
            if not spec.priced:
                problem = f"tier {name} has a budget, but its model {spec.name} has no price: the budget limits nothing"
                remedy = f"add input_price and output_price, or gpu_hour_price, to models.{spec.name}; 0 if it is free"
                yield Finding("warning", "price-missing", config.where("tiers", name, "budget"), problem, remedy)


def without_model(subject: Subject, found: Sequence[Finding]) -> Iterator[Finding]:
    """Report the tasks that no model can answer because of what was found, those with the same models together."""
    config, lacking = subject.config, {name for finding in found for name in finding.models}
    spare = [spec.name for target in config.fallback for spec in config.resolve(target)]
    if not set(spare) <= lacking:
        return
    lost: dict[tuple[str, ...], list[str]] = {}
    for task, target in config.task_routing.items():
        tiers = list(subject.parts(target))
        if tiers and all(set(tier) <= lacking for tier in tiers):
            lost.setdefault(tuple(dict.fromkeys([name for tier in tiers for name in tier] + spare)), []).append(task)
    for models, tasks in lost.items():
        listed = named([task for task in tasks if task != ANY_TASK], 12)
        whose = [f"the task{'s' * (', ' in listed)} {listed}"] if listed else []
        whose += ["any task that is not listed"] if ANY_TASK in tasks else []
        problem = f"no model can answer {' and '.join(whose)}: {named(models)} cannot"
        remedy = "do what is said of these models, or route to another model"
        yield Finding("error", "task-without-model", config.where("task_routing", tasks[0]), problem, remedy)
