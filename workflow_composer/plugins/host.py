"""The plugin host: discovers, validates and registers plugins. It hides pluggy's objects from other modules.

One assignment publishes the providers as an immutable `PluginRegistry`, so that a reader sees all of a change or none. Order
is irrelevant: names are unique, and a name used by two plugins is an error that names both.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from types import MappingProxyType
from typing import Any, Literal

import pluggy

from workflow_composer.errors import PluginError, WorkflowComposerError
from workflow_composer.plugins import hookspecs
from workflow_composer.types import LLMRequest

BLOCK_VARIABLE = "WORKFLOW_COMPOSER_BLOCK_PLUGINS"
"""Names of plugins not to load, separated by commas; ``*`` blocks all installed plugins."""

BUILTIN = "workflow_composer"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_KINDS = {"routers": "router", "backends": "backend", "batch_strategies": "policy", "commands": "command"}
"""Kinds of what plugins provide, each with what a person calls one of it."""
_HOOKS = tuple(name for name, value in vars(hookspecs).items() if hasattr(value, "workflow_composer_spec"))


@dataclass(frozen=True, slots=True)
class Provided:
    """A registered object (a factory or a command), its name, and its plugin."""

    name: str
    value: Any
    plugin: str


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A discovered plugin. ``detail`` says why ``status`` is not "loaded"; ``provides`` lists "kind:name"."""

    name: str
    status: Literal["loaded", "blocked", "broken"]
    distribution: str = ""
    version: str = ""
    detail: str = ""
    provides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PluginRegistry:
    """Everything that plugins provide, by kind and name; ``hooks`` names the implemented hooks."""

    routers: Mapping[str, Provided] = field(default_factory=dict)
    backends: Mapping[str, Provided] = field(default_factory=dict)
    batch_strategies: Mapping[str, Provided] = field(default_factory=dict)
    commands: Mapping[str, Provided] = field(default_factory=dict)
    hooks: frozenset[str] = frozenset()


class PluginHost:
    """Manages plugins. ``on_broken`` is called with a plugin's name and the reason when its hook fails at run time."""

    def __init__(self, *, on_broken: Callable[[str, str], None] | None = None) -> None:
        self._manager = pluggy.PluginManager("workflow_composer")
        self._manager.add_hookspecs(hookspecs)
        self._lock = threading.Lock()
        self._infos: dict[str, PluginInfo] = {}
        self.registry = PluginRegistry()
        """The current registry, a consistent snapshot."""
        self._on_broken = on_broken

    # ------------------------------------------------------------------------------------------------ queries

    @property
    def plugins(self) -> tuple[PluginInfo, ...]:
        """All discovered plugins by name; the built-in one comes first."""
        return tuple(sorted(self._infos.values(), key=lambda info: (info.name != BUILTIN, info.name)))

    @property
    def broken(self) -> tuple[PluginInfo, ...]:
        """Plugins skipped because they failed to load."""
        return tuple(info for info in self.plugins if info.status == "broken")

    # ------------------------------------------------------------------------------------------------ adding, removing

    def discover(self, entry_points: Iterable[metadata.EntryPoint] | None = None, blocked: str | None = None) -> None:
        """Load the installed plugins. One that fails to load is recorded as broken and skipped.

        ``blocked`` overrides the variable ``WORKFLOW_COMPOSER_BLOCK_PLUGINS``. Raises `PluginError` for duplicate names.
        """
        found = metadata.entry_points(group=hookspecs.ENTRY_POINT_GROUP) if entry_points is None else entry_points
        listed = os.environ.get(BLOCK_VARIABLE, "") if blocked is None else blocked
        names = {part.strip() for part in listed.split(",") if part.strip()}
        for entry in sorted(found, key=lambda e: e.name):
            distribution = entry.dist.name if entry.dist else ""
            version = entry.dist.version if entry.dist else ""
            if entry.name in names or "*" in names:
                self._infos[entry.name] = PluginInfo(
                    entry.name, "blocked", distribution, version, f"blocked by {BLOCK_VARIABLE}"
                )
                continue
            if entry.name in self._infos:
                first = self._infos[entry.name].distribution or "the package"
                raise PluginError(
                    f"two plugins are named {entry.name!r}: one from {first}, one from {distribution or entry.value}",
                    hint="uninstall one of them",
                )
            try:
                self._load(entry.load(), entry.name, distribution, version)
            except PluginError:
                raise
            except Exception as error:  # noqa: BLE001  # no plugin's error may prevent the start
                self._infos[entry.name] = PluginInfo(
                    entry.name, "broken", distribution, version, f"{type(error).__name__}: {error}"
                )

    def add(self, plugin: object, *, name: str) -> None:
        """Add a plugin explicitly. Raises `PluginError` if it is invalid or provides a name already in use."""
        if name in self._infos:
            raise PluginError(f"a plugin named {name!r} already exists", hint="remove it first")
        try:
            self._load(plugin, name, "", "")
        except pluggy.PluginValidationError as error:
            raise PluginError(f"plugin {name!r} is invalid: {error}") from error

    def remove(self, name: str) -> None:
        """Remove a plugin and everything it provides. Raises `PluginError` for an unknown name."""
        with self._lock:
            if self._manager.unregister(name=name) is None:
                raise PluginError(f"no plugin is named {name!r}")
            del self._infos[name]
            self.registry = self._collect()

    def _load(self, plugin: object, name: str, distribution: str, version: str) -> None:
        with self._lock:
            self._manager.register(plugin, name)
            try:
                self._manager.check_pending()
                registry = self._collect()
            except BaseException:
                self._manager.unregister(name=name)
                raise
            self.registry = registry
            provides = tuple(
                f"{called}:{item.name}"
                for kind, called in _KINDS.items()
                for item in getattr(registry, kind).values()
                if item.plugin == name
            )
            self._infos[name] = PluginInfo(name, "loaded", distribution, version, provides=provides)

    def _collect(self) -> PluginRegistry:
        """Collect what every plugin provides. Raises `PluginError` for duplicate names."""
        kinds = {kind: self._collect_kind(kind) for kind in _KINDS}
        hooks = self._manager.hook
        return PluginRegistry(**kinds, hooks=frozenset(name for name in _HOOKS if getattr(hooks, name).get_hookimpls()))

    def _collect_kind(self, kind: str) -> Mapping[str, Provided]:
        found: dict[str, Provided] = {}

        def registrar(plugin: str) -> Callable[..., None]:
            def register(name: Any, value: Any = None) -> None:
                if kind == "commands":
                    name, value = getattr(name, "name", None), name
                if not isinstance(name, str) or not _NAME.fullmatch(name):
                    raise PluginError(f"plugin {plugin!r} registers {kind} under the invalid name {name!r}")
                if not callable(value):
                    raise PluginError(f"plugin {plugin!r} registers {name!r} among {kind}, but the object is not callable")
                if name in found:
                    raise PluginError(
                        f"{name!r} among {kind} is provided by both {found[name].plugin!r} and {plugin!r}",
                        hint=f"block one of them: {BLOCK_VARIABLE}={plugin}",
                    )
                found[name] = Provided(name, value, plugin)

            return register

        for plugin, function, arguments in self._implementations(f"register_{kind}"):
            function(**({"register": registrar(plugin)} if "register" in arguments else {}))
        return MappingProxyType(found)

    # ------------------------------------------------------------------------------------------------------- calling

    def before_route(self, request: LLMRequest, strategy: str) -> LLMRequest:
        """Pass the request through every plugin's `before_route`, ordered by plugin name."""
        for plugin, function, arguments in self._implementations("before_route"):
            values = {"request": request, "strategy": strategy}
            try:
                changed = function(**{name: values[name] for name in arguments})
            except WorkflowComposerError:
                raise
            except Exception as error:
                raise PluginError(f"before_route of plugin {plugin!r} failed: {type(error).__name__}: {error}") from error
            if changed is not None and not isinstance(changed, LLMRequest):
                raise PluginError(f"before_route of plugin {plugin!r} returned {type(changed).__name__}, not an LLMRequest")
            request = changed or request
        return request

    def notify(self, hook: str, **values: Any) -> None:
        """Call a hook of every plugin. A plugin that raises is reported to ``on_broken``; the request continues."""
        for plugin, function, arguments in self._implementations(hook):
            try:
                function(**{name: values[name] for name in arguments})
            except Exception as error:  # noqa: BLE001  # an observer's error must not fail the request
                if self._on_broken is not None:
                    self._on_broken(plugin, f"{hook} failed: {type(error).__name__}: {error}")

    def _implementations(self, hook: str) -> list[tuple[str, Callable[..., Any], tuple[str, ...]]]:
        """Return (plugin, function, argument names), the built-in plugin first, then by plugin name."""
        found = getattr(self._manager.hook, hook).get_hookimpls()
        ordered = sorted(found, key=lambda impl: (impl.plugin_name != BUILTIN, impl.plugin_name))
        return [(impl.plugin_name, impl.function, tuple(impl.argnames)) for impl in ordered]
