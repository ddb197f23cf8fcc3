"""What a run is: the settings that its answers depend on. Two runs that differ in one of them are never mixed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from workflow_composer.answers.form import as_data
from workflow_composer.errors import InputError, WorkflowComposerError
from workflow_composer.markers import is_routing_string, parse_route

if TYPE_CHECKING:
    from workflow_composer.config.profile_models import ModelSpec
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.plan import Voting
    from workflow_composer.routers.cascade import CascadeSettings

_SHOWN = 24

_NOT_MEANT = frozenset(
    {"name", "endpoint", "base_url", "api_key_env", "input_price", "output_price", "gpu_hour_price", "context_length",
     "capabilities", "path", "cached_input_price", "reasoning_price", "aliases", "gpu_hours_per_day"}
)  # fmt: skip
"""Keys of a model that say where it is, what it costs and what it can do, not what it answers."""

_PLAIN_ROUTERS = {"provider", "cascading_provider", "cascade"}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two identities, each as ``NAME was X and is Y``; values are compared as in JSON.

    >>> differences({"votes": {"target": 0.75}}, {"votes": {"target": 0.9}, "seed": 1})
    ['votes.target was 0.75 and is 0.9', 'seed was missing and is 1']
    """
    before, after = dict(_flat(then)), dict(_flat(json.loads(json.dumps(now, default=as_data))))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name} was {_shown(before.get(name))} and is {_shown(after.get(name))}" for name in names]


def _flat(found: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(found, Mapping) and (found or not name):
        for key, value in found.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, found


def _shown(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN // 2] + "…" + text[-_SHOWN // 4 :]


# ------------------------------------------------------------------------------------------- what a profile's names mean


def meaning_of(config: StrategyConfig, targets: Iterable[str], tasks: Iterable[str] = ()) -> dict[str, Any]:
    """Return the part of a profile on which answers depend: those of these targets, and of requests of these tasks.

    A target is a role, model, tier or routing string. Models of a fallback are included. Addresses, prices, time limits,
    retries and models that no target names are not.
    """
    routed = {task: config.route_of(task) for task in tasks}
    every = dict.fromkeys([*targets, *(target for target in routed.values() if target is not None)])
    names = list(dict.fromkeys(name for target in every for name in _names(target, config)))
    if None in routed.values():
        names += config.models
    found: dict[str, Any] = {"models": {}, "tiers": {}, "routers": _routers(config)}
    if routed:
        found["task_routing"] = routed
    for name in names:
        if name in config.tiers:
            found["tiers"][name] = config.tiers[name].model_dump(mode="json", exclude={"cost", "deadline", "budget"})
    for name in [*names, *config.fallback]:
        with suppress(WorkflowComposerError):  # an unknown name fails when it is planned, with a better error
            found["models"] |= {spec.name: _meant(spec) for spec in config.resolve(name)}
    return found


def _names(target: str, config: StrategyConfig) -> Iterable[str]:
    """Return the names of the tiers or models of a target."""
    if target == "cascade":
        return tuple(config.tiers)
    if not is_routing_string(target):
        return (target,)
    with suppress(WorkflowComposerError):
        return [tier.title for tier in parse_route(target).tiers]
    return ()


def _routers(config: StrategyConfig) -> list[Any]:
    """Return the routers with their settings, without the cascade router's, which are those of the votes."""
    every = (router if isinstance(router, dict) else {router: {}} for router in config.to_dict()["routers"])
    return [router for router in every if not router.keys() & _PLAIN_ROUTERS]


def _meant(spec: ModelSpec) -> dict[str, Any]:
    """Return what identifies a model: its backend, its id, and, where the provider makes a difference, the provider."""
    found: dict[str, Any] = {
        name: value for name, value in spec.model_dump(mode="json").items() if name not in _NOT_MEANT and value is not None
    }
    if spec.backend == "embedded" and spec.path is not None:
        found["path"] = Path(spec.path).name
    if not spec.local and spec.base_url is not None:
        found["provider"] = urlsplit(str(spec.base_url)).hostname
    return found


def cascade_settings(config: StrategyConfig) -> CascadeSettings:
    """Return the settings of the profile's cascade router; the defaults if it has none."""
    from workflow_composer.routers.cascade import CascadeSettings

    spec = next((spec for spec in config.routers if spec.name == "cascade"), None)
    return CascadeSettings.model_validate({} if spec is None else dict(spec.settings))


def voting_of(config: StrategyConfig) -> Voting:
    """Return the voting settings of the profile's cascade router; the defaults if it has none."""
    return cascade_settings(config).voting()


# ------------------------------------------------------------------------------------------------ what servers report


class Served:
    """The models that servers reported for each candidate in earlier runs of a file.

    A name such as ``gpt-4o`` may stand for another model today. A gateway may also report several models within one run, so
    only models of earlier runs are compared.
    """

    def __init__(self, path: Path, *, other: str) -> None:
        self._path = path
        self._other = other
        self._before: dict[str, set[str]] = {}

    def remember(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Add (candidate, reported model) pairs of an earlier run."""
        for candidate, model in pairs:
            if candidate and model:
                self._before.setdefault(candidate, set()).add(model)

    def check(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Raise `InputError` if a candidate is now another model than in all earlier runs."""
        for candidate, model in pairs:
            known = self._before.get(candidate)
            if known and model and model not in known:
                were = " or ".join(sorted(known))
                raise InputError(
                    f"{self._path}: {candidate!r} is now {model}, and was {were} when earlier rows were answered: "
                    "the model has changed",
                    hint=f"choose {self._other} for the new model, or name the earlier one in the profile",
                )
