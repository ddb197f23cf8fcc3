"""The plugin host: discovers, validates and registers plugins. It hides pluggy's objects from other modules.

All plugins of one time form a *generation*, an immutable `PluginRegistry`: what they provide and which hooks they listen to.
Each change makes a new generation. Whoever uses the host (an orchestrator) first builds what follows from it; then one
assignment publishes it, or, if anything fails, nothing changes. Order is irrelevant: names are unique, and a name used by
two plugins is an error that names both.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import pluggy

from workflow_composer.errors import PluginError, WorkflowComposerError
from workflow_composer.plugins import hookspecs
from workflow_composer.plugins.editions import Edition
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
class Listener:
    """A plugin's function for a hook, and the arguments that it takes."""

    plugin: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A plugin of a generation. ``plugin`` is None if it is blocked or broken.

    ``key`` says which code it is: of an installed plugin the entry point, of a plugin file its path. Others are objects that
    somebody has added.
    """

    info: PluginInfo
    plugin: Any = None
    key: str = ""
    edition: Edition | None = None
    file: Path | None = None

    @property
    def installed(self) -> bool:
        """Whether it comes from an entry point."""
        return bool(self.key) and self.file is None


@dataclass(frozen=True, slots=True)
class PluginRegistry:
    """A generation: everything that plugins provide, by kind and name, and who listens to which hook.

    ``hooks`` has the implemented hooks only; ``parts`` has the plugins. ``report`` is called with a plugin's name and the reason when its hook fails.
    """

    routers: Mapping[str, Provided] = field(default_factory=dict)
    backends: Mapping[str, Provided] = field(default_factory=dict)
    batch_strategies: Mapping[str, Provided] = field(default_factory=dict)
    commands: Mapping[str, Provided] = field(default_factory=dict)
    hooks: Mapping[str, tuple[Listener, ...]] = field(default_factory=dict)
    plugins: tuple[PluginInfo, ...] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)
    report: Callable[[str, str], None] | None = None

    def before_route(self, request: LLMRequest, strategy: str) -> LLMRequest:
        """Pass the request through every plugin's `before_route`, ordered by plugin name."""
        values = {"request": request, "strategy": strategy}
        for listener in self.hooks.get("before_route", ()):
            plugin = listener.plugin
            try:
                changed = listener.function(**{name: values[name] for name in listener.arguments})
            except WorkflowComposerError:
                raise
            except Exception as error:
                raise PluginError(f"before_route of plugin {plugin!r} failed: {type(error).__name__}: {error}") from error
            if changed is not None and not isinstance(changed, LLMRequest):
                raise PluginError(f"before_route of plugin {plugin!r} returned {shown(changed)}, not an LLMRequest")
            values["request"] = request = changed or request
        return request

    def notify(self, hook: str, **values: Any) -> None:
        """Call a hook of every plugin. A plugin that raises is reported; the request continues."""
        for listener in self.hooks.get(hook, ()):
            try:
                listener.function(**{name: values[name] for name in listener.arguments})
            except Exception as error:  # noqa: BLE001  # an observer's error must not fail the request
                if self.report is not None:
                    self.report(listener.plugin, f"{hook} failed: {type(error).__name__}: {error}")


class Change(Protocol):
    """What follows from a new generation, built and checked but not in use."""

    def publish(self) -> None:
        """Use it from now on."""
        ...

    def discard(self) -> None:
        """Give it up."""
        ...


class Follower(Protocol):
    """Whoever uses a host's plugins."""

    def follow_plugins(self, registry: PluginRegistry) -> Change:
        """Build what follows from a new generation; nothing changes yet. Raises `WorkflowComposerError`."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A generation that is not in use yet, and what follows from it everywhere; see `PluginHost.publish`."""

    registry: PluginRegistry
    changes: tuple[Change, ...]

    def discard(self) -> None:
        """Give it up."""
        for change in self.changes:
            change.discard()


class PluginHost:
    """Manages plugins; has the built-in one from the start.

    ``on_broken`` is called with a plugin's name and the reason when its hook fails at run time.
    """

    def __init__(self, *, on_broken: Callable[[str, str], None] | None = None) -> None:
        from workflow_composer.plugins.builtin import BuiltinPlugin

        self._lock = threading.RLock()
        self._on_broken = on_broken
        self._followers: weakref.WeakSet[Any] = weakref.WeakSet()
        self.registry = self._registry({BUILTIN: Part(PluginInfo(BUILTIN, "loaded"), BuiltinPlugin())})
        """The current generation, a consistent snapshot."""

    # ------------------------------------------------------------------------------------------------ queries

    @property
    def plugins(self) -> tuple[PluginInfo, ...]:
        """All discovered plugins by name; the built-in one comes first."""
        return self.registry.plugins

    @property
    def broken(self) -> tuple[PluginInfo, ...]:
        """Plugins skipped because they failed to load."""
        return tuple(info for info in self.plugins if info.status == "broken")

    # ------------------------------------------------------------------------------------------------ changes

    def discover(self, entry_points: Iterable[metadata.EntryPoint] | None = None, blocked: str | None = None) -> None:
        """Load the installed plugins. One that fails to load is recorded as broken and skipped.

        ``blocked`` overrides the variable ``WORKFLOW_COMPOSER_BLOCK_PLUGINS``. Raises `PluginError` for duplicate names.
        """
        with self._lock:
            parts = dict(self._parts)
            for entry in _entries(entry_points):
                _refuse_twice(entry, parts)
                part = self._fit(entry, blocked, parts)
                parts[entry.name] = part
            self._change(parts)

    def _fit(self, entry: metadata.EntryPoint, blocked: str | None, parts: Mapping[str, Part]) -> Part:
        """Load a plugin beside these; broken if it cannot be loaded or registered."""
        part = _blocked(entry, blocked)
        if part is not None:
            return part
        try:
            part = _loaded(entry)
            self._registry({**parts, entry.name: part})
        except PluginError:
            raise
        except Exception as error:  # noqa: BLE001  # no plugin's error may prevent the start
            return replace(_described(entry, "broken", f"{type(error).__name__}: {error}"), edition=None)
        return part

    def add(self, plugin: object, *, name: str) -> None:
        """Add a plugin explicitly. Raises `PluginError` if it is invalid or provides a name already in use."""
        with self._lock:
            if name in self._parts:
                raise PluginError(f"a plugin named {name!r} already exists", hint="remove it first, or replace it")
            self._change({**self._parts, name: Part(PluginInfo(name, "loaded"), plugin)})

    def add_file(self, path: str | Path) -> str:
        """Add the plugin in a Python file, or in a folder that is a package; return its name, the file's without ``.py``.

        Raises `PluginError` if it cannot be read, fails to load, or provides a name already in use.
        """
        with self._lock:
            part = part_of_file(Path(path))
            _refuse_again(part, path, self._parts)
            self._change({**self._parts, part.info.name: part})
        return part.info.name

    def replace(self, name: str, plugin: object) -> None:
        """Put another plugin in the place of one, at once for routers, backends, policies and hooks.

        Requests in progress finish with the old one. Raises `WorkflowComposerError` if the new one is unfit, and the old one
        stays.
        """
        with self._lock:
            if name not in self._parts or name == BUILTIN:
                raise PluginError(f"no plugin is named {name!r}", hint=f"plugins: {', '.join(self._names()) or 'none'}")
            self._change({**self._parts, name: Part(PluginInfo(name, "loaded"), plugin)})

    def remove(self, name: str) -> None:
        """Remove a plugin and everything it provides. Raises `PluginError` for an unknown name."""
        with self._lock:
            if name not in self._parts or name == BUILTIN:
                raise PluginError(f"no plugin is named {name!r}", hint=f"plugins: {', '.join(self._names()) or 'none'}")
            self._change({other: part for other, part in self._parts.items() if other != name})

    # ------------------------------------------------------------------------------------------------ generations

    def prepare_reload(
        self, entry_points: Iterable[metadata.EntryPoint] | None = None, blocked: str | None = None
    ) -> Prepared:
        """Look for new, changed and removed plugins, and build what follows; nothing changes until `publish`.

        Plugins whose code is the same stay the same objects, with what they remember; so do plugins that were added by
        ``add``. Raises `WorkflowComposerError` if a plugin is unfit; one that has failed to load before stays broken.
        """
        with self._lock:
            parts = {name: _reread(part) for name, part in self._parts.items() if not part.installed}
            for entry in _entries(entry_points):
                _refuse_twice(entry, parts)
                part = _blocked(entry, blocked)
                parts[entry.name] = part or self._renewed(entry, parts)
            return self.prepare(self._registry(parts))

    def _renewed(self, entry: metadata.EntryPoint, parts: Mapping[str, Part]) -> Part:
        before = self._parts.get(entry.name)
        try:
            part = _loaded(entry, before)
            if part is not before:
                self._registry({**parts, entry.name: part})
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if before is not None and before.info.status == "broken":
                return _described(entry, "broken", said)
            version = f" {entry.dist.version}" if entry.dist else ""
            reason = f"plugin {entry.name!r}{version} failed to load: {said}"
            raise PluginError(reason, hint="mend or uninstall it, and reload again; what was loaded before stays") from error
        return part

    def with_files(
        self, registry: PluginRegistry, files: Iterable[Path], before: Mapping[str, Part] = MappingProxyType({})
    ) -> PluginRegistry:
        """Return a generation with the plugins in these files too; of ``before``, what is the same. Raises `PluginError`."""
        parts = dict(registry.parts)
        for path in files:
            part = part_of_file(path, before.get(path.stem))
            _refuse_again(part, path, parts)
            parts[part.info.name] = part
        return self._registry(parts) if len(parts) > len(registry.parts) else registry

    def add_follower(self, follower: Follower) -> None:
        """Tell this object of every new generation, as long as it lives."""
        with self._lock:
            self._followers.add(follower)

    def prepare(self, registry: PluginRegistry) -> Prepared:
        """Build what follows from a generation for everyone who uses the host. Raises `WorkflowComposerError`."""
        changes: list[Change] = []
        try:
            changes.extend(follower.follow_plugins(registry) for follower in list(self._followers))
        except BaseException:
            Prepared(registry, tuple(changes)).discard()
            raise
        return Prepared(registry, tuple(changes))

    def publish(self, prepared: Prepared) -> None:
        """Use a prepared generation everywhere."""
        with self._lock:
            self.registry = prepared.registry
            for part in self._parts.values():
                if part.edition is not None:
                    part.edition.show()
            for change in prepared.changes:
                change.publish()

    def _change(self, parts: Mapping[str, Part]) -> None:
        """Publish these plugins everywhere, or nowhere."""
        try:
            registry = self._registry(parts)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"plugin {error.plugin!r} is invalid: {error}") from error
        self.publish(self.prepare(registry))

    @property
    def _parts(self) -> Mapping[str, Part]:
        return self.registry.parts

    def _names(self) -> list[str]:
        return sorted(name for name in self._parts if name != BUILTIN)

    def _registry(self, parts: Mapping[str, Part]) -> PluginRegistry:
        """Collect what every plugin provides. Raises `PluginError` for duplicate names, and what the plugins raise."""
        manager = pluggy.PluginManager("workflow_composer")
        manager.add_hookspecs(hookspecs)
        for name, part in parts.items():
            if part.plugin is not None:
                manager.register(part.plugin, name)
        manager.check_pending()
        hooks = {name: _listeners(manager, name) for name in _HOOKS}
        kinds = {kind: _collected(kind, hooks[f"register_{kind}"]) for kind in _KINDS}
        return PluginRegistry(
            **kinds,
            hooks=MappingProxyType({name: found for name, found in hooks.items() if found}),
            plugins=_infos(parts, kinds),
            parts=MappingProxyType(dict(parts)),
            report=self._on_broken,
        )


def shown(value: object) -> str:
    """Return a value and its type for an error, shortened."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"


def _entries(found: Iterable[metadata.EntryPoint] | None) -> list[metadata.EntryPoint]:
    if found is None:
        importlib.invalidate_caches()
        found = metadata.entry_points(group=hookspecs.ENTRY_POINT_GROUP)
    return sorted(found, key=lambda entry: entry.name)


def _described(entry: metadata.EntryPoint, status: Literal["loaded", "blocked", "broken"], detail: str = "") -> Part:
    distribution, version = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
    return Part(PluginInfo(entry.name, status, distribution, version, detail), key=entry.value)


def _refuse_twice(entry: metadata.EntryPoint, parts: Mapping[str, Part]) -> None:
    if entry.name in parts:
        first = parts[entry.name].info.distribution or "the package"
        second = entry.dist.name if entry.dist else entry.value
        raise PluginError(
            f"two plugins are named {entry.name!r}: one from {first}, one from {second}", hint="uninstall one of them"
        )


def _refuse_again(part: Part, path: str | Path, parts: Mapping[str, Part]) -> None:
    if part.info.name in parts and parts[part.info.name].key != part.key:
        raise PluginError(f"a plugin named {part.info.name!r} already exists", hint=f"rename {path}")


def _blocked(entry: metadata.EntryPoint, blocked: str | None) -> Part | None:
    listed = os.environ.get(BLOCK_VARIABLE, "") if blocked is None else blocked
    names = {part.strip() for part in listed.split(",")}
    return _described(entry, "blocked", f"blocked by {BLOCK_VARIABLE}") if names & {entry.name, "*"} else None


def _loaded(entry: metadata.EntryPoint, before: Part | None = None) -> Part:
    """Load an entry point, unless ``before`` is the same code. Raises what the plugin raises."""
    edition = Edition.of_module(entry.module) if isinstance(entry, metadata.EntryPoint) else None
    part = _described(entry, "loaded")
    if edition is None or edition.root == BUILTIN:
        return replace(part, plugin=entry.load())
    known = before.edition if before is not None and before.key == part.key else None
    if before is not None and known is not None and known.digest == edition.digest:
        return replace(before, info=part.info)
    edition = edition.shared()
    plugin: Any = edition.run(entry.module)
    for name in filter(None, (entry.attr or "").split(".")):
        plugin = getattr(plugin, name)
    return replace(part, plugin=plugin, edition=edition)


def part_of_file(path: Path, before: Part | None = None) -> Part:
    """Load the plugin in a file, unless ``before`` is the same code. Raises `PluginError`."""
    edition = Edition.of_file(path)
    if before is not None and before.edition is not None and before.edition.digest == edition.digest:
        return before
    name, edition = path.stem, edition.shared()
    try:
        plugin = edition.run(edition.root)
    except Exception as error:
        raise PluginError(f"the plugin file {path} failed to load: {type(error).__name__}: {error}") from error
    if not any(hasattr(value, "workflow_composer_impl") for value in vars(plugin).values()):
        raise PluginError(f"the plugin file {path} has no function marked with @hookimpl", hint="see docs/plugins.md")
    return Part(PluginInfo(name, "loaded"), plugin, str(path.resolve()), edition, path)


def _reread(part: Part) -> Part:
    return part if part.file is None else part_of_file(part.file, part)


def _listeners(manager: pluggy.PluginManager, hook: str) -> tuple[Listener, ...]:
    """Return the functions for a hook, the built-in plugin's first, then by plugin name."""
    found = getattr(manager.hook, hook).get_hookimpls()
    ordered = sorted(found, key=lambda impl: (impl.plugin_name != BUILTIN, impl.plugin_name))
    return tuple(Listener(impl.plugin_name, impl.function, tuple(impl.argnames)) for impl in ordered)


def _collected(kind: str, listeners: Iterable[Listener]) -> Mapping[str, Provided]:
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

    for listener in listeners:
        listener.function(**({"register": registrar(listener.plugin)} if "register" in listener.arguments else {}))
    return MappingProxyType(found)


def _infos(parts: Mapping[str, Part], kinds: Mapping[str, Mapping[str, Provided]]) -> tuple[PluginInfo, ...]:
    """Return the plugins with what they provide, the built-in one first, then by name."""
    ordered = sorted(parts.values(), key=lambda part: (part.info.name != BUILTIN, part.info.name))
    provides: dict[str, list[str]] = {part.info.name: [] for part in ordered}
    for kind, called in _KINDS.items():
        for item in kinds[kind].values():
            provides[item.plugin].append(f"{called}:{item.name}")
    return tuple(replace(part.info, provides=tuple(provides[part.info.name])) for part in ordered)
