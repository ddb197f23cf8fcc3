"""What a profile leaves to the package: cloud models that it only names, ``cloud`` without any, a profile without models.

Works on the tree as it was read, before the normal form and the checks, so that what is added is checked like the rest. A
name of the profile's own always comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from workflow_composer.config.profile_models import LOCAL_BACKENDS
from workflow_composer.config.yaml_source import KeyPath, SourceText
from workflow_composer.errors import MarkerError, nearest
from workflow_composer.markers import DEFAULT_TIERS, is_routing_string, parse_route

if TYPE_CHECKING:
    from workflow_composer.config.catalogue import CloudModel

CLOUD = "cloud"
"""Target: the cloud models of ``fallback``, or those of the catalogue if ``fallback`` has none."""

CASCADE_TARGET = "cascade"
"""Target: all tiers of the profile as one cascade."""

EMBEDDED_FLEET = {"small": 0.02, "medium": 0.10, "large": 0.40}
"""The checkpoints shipped with the package, by the invented costs of their tiers (dollars per million tokens)."""

_THE_MODELS = ("backend", "model", "context_length", "capabilities")
"""What the catalogue says of a model wherever it is served."""
_OTHERWISE = frozenset({CLOUD, CASCADE_TARGET, *DEFAULT_TIERS})
_MODELS = ("models", "vllm_endpoints", "fallback", "task_routing", "tiers")


class FilledIn:
    """A profile's tree with what it leaves to the package. ``notes`` tells the operator what was not taken as written."""

    def __init__(self, tree: Mapping[str, Any], source: SourceText) -> None:
        self.tree = dict(tree)
        self.notes: list[str] = []
        self._source = source
        if not any(self.tree.get(key) for key in _MODELS) and source.faulty.isdisjoint((key,) for key in _MODELS):
            self._embedded()
            return
        models = self.tree.get("models")
        models = {name: self._entry(name, item) for name, item in models.items()} if isinstance(models, Mapping) else {}
        if self.tree.get("allow_cloud") is not False:
            models |= self._named(models)
        if models:
            self.tree["models"] = models

    def _embedded(self) -> None:
        """A profile that names no model runs on the embedded fleet, which needs no key, no server and no network."""
        able = ("chat", "logprobs")
        self.tree["models"] = {n: {"backend": "embedded", "path": n, "capabilities": able} for n in EMBEDDED_FLEET}
        self.tree["tiers"] = {name: {"model": name, "cost": cost} for name, cost in EMBEDDED_FLEET.items()}
        self.tree["task_routing"] = {"*": list(EMBEDDED_FLEET)[-1]}
        self.tree.setdefault("routers", (CASCADE_TARGET, "provider"))

    # ------------------------------------------------------------------------------------------------------ entries

    def _entry(self, name: object, written: Any) -> Any:
        """Complete an entry that says of a model of the catalogue only what differs, or nothing."""
        if written is None and isinstance(name, str) and (found := self._found(name, None)) is not None:
            return self._in_service(name, found).keys()
        if not isinstance(written, Mapping) or not isinstance(name, str):
            return written
        backend, url = written.get("backend"), written.get("base_url")
        if backend not in (None, "openai") or any(written.get(key) is not None for key in ("endpoint", "path")):
            return written
        if (backend is not None and url is not None) or ("models", name, "backend") in self._source.faulty:
            return written
        found = self._found(name, written.get("model"))
        if found is None:
            return written
        if url is None:
            given = found.keys() if "model" in written else self._in_service(name, found).keys()
        elif _host(url) == found.host:
            given = found.keys()
        else:  # another provider or a proxy: its key and its prices are its own
            given = {key: value for key, value in found.keys().items() if key in _THE_MODELS}
        for mine, theirs in (("api_key", "api_key_env"), ("input_price", "cached_input_price")):
            if mine in written:
                given.pop(theirs, None)
        return {**given, **written}

    def _found(self, name: str, model: Any) -> CloudModel | None:
        from workflow_composer.config.catalogue import find

        return (find(model) if isinstance(model, str) else None) or find(name)

    def _in_service(self, name: str, model: CloudModel) -> CloudModel:
        """Return the model that answers under this name today; note if it is another one."""
        found = model.in_service()
        if found is not model:
            self.notes.append(
                f"{name}: {model.model} was retired on {model.retired_on}; its successor {found.model} answers in its place "
                f"and at its prices (write {found.name} to name it)"
            )
        return found

    # -------------------------------------------------------------------------------------------------------- names

    def _named(self, models: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of the catalogue's models that the profile names but does not describe."""
        known = {*models, *_keys(self.tree, "vllm_endpoints"), *_keys(self.tree, "tiers"), *_OTHERWISE}
        added: dict[str, Any] = {}
        for path, name in self._targets():
            if name in known or name in added or (found := self._found(name, None)) is None:
                continue
            added[name] = self._in_service(name, found).keys()
            self._source.same(("models", name), path)
        if not any(map(_is_cloud, [*models.values(), *added.values()])):
            places = [path for path, name in self._targets() if name == CLOUD]
            added |= self._clouds(known, places[0]) if places else {}
        return added

    def _clouds(self, known: set[str], path: KeyPath) -> dict[str, Any]:
        from workflow_composer.config.catalogue import clouds

        added = {model.name: model.keys() for model in clouds() if model.name not in known}
        for name in added:
            self._source.same(("models", name), path)
        return added

    def _targets(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield every target that the profile names, with its key: of tasks, fallbacks, tiers and routers."""
        routing = self.tree.get("task_routing")
        for task, target in routing.items() if isinstance(routing, Mapping) else ():
            yield from ((("task_routing", task), part) for part in parts_of(target))
        fallback = self.tree.get("fallback")
        items = (
            fallback.items() if isinstance(fallback, Mapping) else enumerate(fallback if isinstance(fallback, tuple) else ())
        )
        yield from ((("fallback", key), name) for key, name in items if isinstance(name, str))
        tiers = self.tree.get("tiers")
        for name, tier in tiers.items() if isinstance(tiers, Mapping) else ():
            model = tier.get("model") if isinstance(tier, Mapping) else None
            yield from [(("tiers", name, "model"), model)] if isinstance(model, str) else ()
        yield from ((("routers",), name) for name in _listed_tiers(self.tree.get("routers")))


def parts_of(target: object) -> list[str]:
    """Return the names in a target: one, or those of a routing string's tiers; none if it is malformed."""
    if not isinstance(target, str):
        return []
    if not is_routing_string(target):
        return [target]
    with suppress(MarkerError):
        return [tier.name for tier in parse_route(target).tiers]
    return []


def in_catalogue(name: object) -> bool:
    """Whether the built-in catalogue has a cloud model of this name."""
    from workflow_composer.config.catalogue import find

    return isinstance(name, str) and find(name) is not None


def nearest_name(name: str, valid: Sequence[str]) -> str:
    """Return "did you mean ..." for a name that is none of these and none of the catalogue; empty if nothing is near."""
    from workflow_composer.config.catalogue import names

    return nearest(name, valid) or nearest(name, names())


def _listed_tiers(routers: Any) -> Iterator[str]:
    """Yield the names that routers list as their ``tiers``, those of wrapped routers too."""
    if isinstance(routers, Mapping):
        for key, value in routers.items():
            if key == "tiers" and isinstance(value, tuple):
                yield from (name for name in value if isinstance(name, str))
            else:
                yield from _listed_tiers(value)
    elif isinstance(routers, tuple):
        for item in routers:
            yield from _listed_tiers(item)


def _keys(tree: Mapping[str, Any], section: str) -> tuple[str, ...]:
    value = tree.get(section)
    return tuple(value) if isinstance(value, Mapping) else ()


def _is_cloud(model: Any) -> bool:
    backend = model.get("backend") if isinstance(model, Mapping) else None
    return isinstance(backend, str) and backend not in LOCAL_BACKENDS


def _host(url: object) -> str | None:
    with suppress(ValueError):
        return urlsplit(url).hostname if isinstance(url, str) else None
    return None
