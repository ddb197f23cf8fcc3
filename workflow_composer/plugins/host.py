"""The plugin host: discovers, validates and registers plugins. It hides pluggy's objects from other modules.

All plugins of one time form a *generation*, an immutable `PluginRegistry`: what they provide and which hooks they listen to.
Each change makes a new generation. Whoever uses the host (an orchestrator) first builds what follows from it; then one
assignment publishes it, or, if anything fails, nothing changes. Order is irrelevant: names are unique, and a name used by
two plugins is an error that names both.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pluggy

from workflow_composer.errors import PluginError, WorkflowComposerError
from workflow_composer.plugins import hookspecs
from workflow_composer.plugins.builtin import BuiltinPlugin
from workflow_composer.plugins.editions import Edition
from workflow_composer.plugins.sources import BLOCK_VARIABLE, FILES_VARIABLE, PluginSource, in_file, in_files, installed
from workflow_composer.types import LLMRequest

if TYPE_CHECKING:
    from workflow_composer.workflows.step_kinds import StepKind

BUILTIN = "workflow_composer"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_KINDS = {"routers": "router", "backends": "backend", "batch_strategies": "policy", "steps": "step", "commands": "command"}
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
    """A plugin of a generation. ``plugin`` is None if it is blocked or broken; ``source`` if somebody has added it.

    ``edition`` holds the modules that run.
    """

    info: PluginInfo
    plugin: Any = None
    source: PluginSource | None = None
    edition: Edition | None = None


@dataclass(frozen=True, slots=True)
class PluginRegistry:
    """A generation: everything that plugins provide, by kind and name, and who listens to which hook.

    ``hooks`` has the implemented hooks only; ``parts`` has the plugins. ``report`` is called with a plugin's name and the
    reason when its hook fails.
    """

    routers: Mapping[str, Provided] = field(default_factory=dict)
    backends: Mapping[str, Provided] = field(default_factory=dict)
    batch_strategies: Mapping[str, Provided] = field(default_factory=dict)
    steps: Mapping[str, Provided] = field(default_factory=dict)
    commands: Mapping[str, Provided] = field(default_factory=dict)
    hooks: Mapping[str, tuple[Listener, ...]] = field(default_factory=dict)
    plugins: tuple[PluginInfo, ...] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)
    report: Callable[[str, str], None] | None = None

    @property
    def step_kinds(self) -> Mapping[str, StepKind]:
        """The kinds of workflow steps, by name."""
        return {name: provided.value for name, provided in self.steps.items()}

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
class NextGeneration:
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
        self.changing = threading.RLock()
        """Held while the generation changes."""
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
        """Load the installed plugins; see `installed`. One that fails to load is recorded as broken and skipped.

        Raises `PluginError` for duplicate names.
        """
        self.take(installed(entry_points, blocked))

    def take(self, sources: Iterable[PluginSource]) -> None:
        """Add these plugins. An installed one that fails to load is broken and skipped; raises `PluginError` for others."""
        with self.changing:
            parts = dict(self._parts)
            for source in sources:
                _refuse_again(source, parts)
                try:
                    part = self._made(source, parts)
                except PluginError:
                    raise
                except Exception as error:
                    if source.file is not None:
                        raise PluginError(f"the plugin file {source.file} failed to load: {_said(error)}") from error
                    part = Part(_info(source, "broken", _said(error)), source=source)
                parts[source.name] = part
            self._change(parts)

    def _made(self, source: PluginSource, parts: Mapping[str, Part]) -> Part:
        """Load a plugin beside these. Raises what it raises."""
        if source.blocked:
            return Part(_info(source, "blocked", f"blocked by {BLOCK_VARIABLE}"), source=source)
        plugin, edition = source.load()
        part = Part(_info(source, "loaded"), plugin, source, edition)
        self._registry({**parts, source.name: part})
        return part

    def add(self, plugin: object, *, name: str) -> None:
        """Add a plugin explicitly. Raises `PluginError` if it is invalid or provides a name already in use."""
        with self.changing:
            if name in self._parts:
                raise PluginError(f"a plugin named {name!r} already exists", hint="remove it first, or replace it")
            self._change({**self._parts, name: Part(PluginInfo(name, "loaded"), plugin)})

    def add_file(self, path: str | Path) -> str:
        """Add the plugin in a Python file, or in a folder that is a package; return its name, the file's without ``.py``.

        Raises `PluginError` if it cannot be read, fails to load, or provides a name already in use.
        """
        source = in_file(path)
        self.take((source,))
        return source.name

    def replace(self, name: str, plugin: object) -> None:
        """Put another plugin in the place of one, at once for routers, backends, policies and hooks.

        Requests in progress finish with the old one. Raises `WorkflowComposerError` if the new one is unfit, and the old one
        stays.
        """
        with self.changing:
            if name not in self._parts or name == BUILTIN:
                raise PluginError(f"no plugin is named {name!r}", hint=f"plugins: {', '.join(self._names()) or 'none'}")
            self._change({**self._parts, name: Part(PluginInfo(name, "loaded"), plugin)})

    def remove(self, name: str) -> None:
        """Remove a plugin and everything it provides. Raises `PluginError` for an unknown name."""
        with self.changing:
            if name not in self._parts or name == BUILTIN:
                raise PluginError(f"no plugin is named {name!r}", hint=f"plugins: {', '.join(self._names()) or 'none'}")
            self._change({other: part for other, part in self._parts.items() if other != name})

    # ------------------------------------------------------------------------------------------------ generations

    def reread(self) -> tuple[PluginSource, ...]:
        """Return the plugins that are installed now, and those of the files that were added, as they are now."""
        files = [part.source.file for part in self._parts.values() if part.source is not None and part.source.file]
        return (*installed(), *map(in_file, files))

    def generation(self, sources: Iterable[PluginSource]) -> PluginRegistry:
        """Return the generation with these plugins instead of those that were found before; nothing changes yet.

        Plugins whose code is the same stay the same objects, with what they remember; so do those that were added by
        ``add``. Raises `PluginError` if a plugin fails to load; one that has failed before stays broken.
        """
        with self.changing:
            parts = {name: part for name, part in self._parts.items() if part.source is None}
            for source in sources:
                _refuse_again(source, parts)
                parts[source.name] = self._renewed(source, self._parts.get(source.name), parts)
            return self.registry if _same(parts, self._parts) else self._registry(parts)

    def _renewed(self, source: PluginSource, before: Part | None, parts: Mapping[str, Part]) -> Part:
        if (
            before is not None
            and before.source is not None
            and before.source.key == source.key
            and before.plugin is not None
        ):
            return before
        try:
            return self._made(source, parts)
        except Exception as error:
            said = error.message if isinstance(error, PluginError) else _said(error)
            if before is not None and before.info.status == "broken":
                return Part(_info(source, "broken", said), source=source)
            name = f"{source.name!r} {source.version}".rstrip()
            hint = "mend or uninstall it, and reload again; what was loaded before stays"
            raise PluginError(f"plugin {name} failed to load: {said}", hint=hint) from error

    def with_files(
        self, registry: PluginRegistry, files: Iterable[Path], before: Mapping[str, Part] = MappingProxyType({})
    ) -> PluginRegistry:
        """Return a generation with the plugins in these files too; of ``before``, what is the same. Raises `PluginError`."""
        parts = dict(registry.parts)
        for path in files:
            known = parts.get(path.stem)
            if known is None or known.source is None or known.source.file != path:
                source = in_file(path)
                _refuse_again(source, parts)
                parts[source.name] = self._renewed(source, before.get(source.name), parts)
        return self._registry(parts) if len(parts) > len(registry.parts) else registry

    def add_follower(self, follower: Follower) -> None:
        """Tell this object of every new generation, as long as it lives."""
        with self.changing:
            self._followers.add(follower)

    def prepare(self, registry: PluginRegistry) -> NextGeneration:
        """Build what follows from a generation for everyone who uses the host. Raises `WorkflowComposerError`."""
        changes: list[Change] = []
        try:
            changes.extend(follower.follow_plugins(registry) for follower in list(self._followers))
        except BaseException:
            NextGeneration(registry, tuple(changes)).discard()
            raise
        return NextGeneration(registry, tuple(changes))

    def publish(self, prepared: NextGeneration) -> None:
        """Use a prepared generation everywhere."""
        with self.changing:
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
        kinds = {kind: _collected(kind, hooks[f"register_{kind}"], parts) for kind in _KINDS}
        return PluginRegistry(
            **kinds,
            hooks=MappingProxyType({name: found for name, found in hooks.items() if found}),
            plugins=_infos(parts, kinds),
            parts=MappingProxyType(dict(parts)),
            report=self._on_broken,
        )


def plugin_host(
    *,
    discover: bool = True,
    on_broken: Callable[[str, str], None] | None = None,
    environ: Mapping[str, str] | None = None,
    sources: Iterable[PluginSource] | None = None,
) -> PluginHost:
    """Return a host with the built-in plugin and, by default, every installed plugin; or with ``sources`` and no others.

    If ``environ`` is given, the plugin files that it names in ``WORKFLOW_COMPOSER_PLUGINS`` are loaded too. Raises
    `PluginError` if one of them cannot be loaded.
    """
    host = PluginHost(on_broken=on_broken)
    if sources is not None:
        host.take(sources)
        return host
    if discover:
        host.discover()
    host.take(in_files((environ or {}).get(FILES_VARIABLE, "")))
    return host


def shown(value: object) -> str:
    """Return a value and its type for an error, shortened."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"


def _same(one: Mapping[str, Part], other: Mapping[str, Part]) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _info(source: PluginSource, status: Literal["loaded", "blocked", "broken"], detail: str = "") -> PluginInfo:
    return PluginInfo(source.name, status, source.distribution, source.version, detail)


def _refuse_again(source: PluginSource, parts: Mapping[str, Part]) -> None:
    if (known := parts.get(source.name)) is None:
        return
    first = known.info.distribution or (known.source.value if known.source is not None else "the package")
    second = source.distribution or source.value
    hint = f"rename {source.file.name}" if source.file is not None else "uninstall one of them"
    raise PluginError(f"two plugins are named {source.name!r}: one from {first}, one from {second}", hint=hint)


def _listeners(manager: pluggy.PluginManager, hook: str) -> tuple[Listener, ...]:
    """Return the functions for a hook, the built-in plugin's first, then by plugin name."""
    found = getattr(manager.hook, hook).get_hookimpls()
    ordered = sorted(found, key=lambda impl: (impl.plugin_name != BUILTIN, impl.plugin_name))
    return tuple(Listener(impl.plugin_name, impl.function, tuple(impl.argnames)) for impl in ordered)


def _collected(kind: str, listeners: Iterable[Listener], parts: Mapping[str, Part]) -> Mapping[str, Provided]:
    found: dict[str, Provided] = {}

    def registrar(plugin: str) -> Callable[..., None]:
        def register(name: Any, value: Any = None, **more: Any) -> None:
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
            if kind == "steps":
                value = _step_kind(name, value, parts[plugin], more)
            elif more:
                raise PluginError(f"plugin {plugin!r} registers {name!r} among {kind} with {', '.join(more)}: unknown")
            found[name] = Provided(name, value, plugin)

        return register

    for listener in listeners:
        listener.function(**({"register": registrar(listener.plugin)} if "register" in listener.arguments else {}))
    return MappingProxyType(found)


def _step_kind(name: str, run: Any, part: Part, more: Mapping[str, Any]) -> StepKind:
    from workflow_composer.workflows.definition.steps import EVERY_KEY
    from workflow_composer.workflows.step_kinds import StepKind

    plugin = part.info.name
    if name in EVERY_KEY:
        raise PluginError(f"plugin {plugin!r} registers the kind of step {name!r}, which is a key of every workflow")
    try:
        return StepKind.of(name, run, plugin=plugin, **_code(part.edition), **more)
    except TypeError:
        known = "register(name, function, check=…, answer=…)"
        raise PluginError(f"plugin {plugin!r} registers the kind of step {name!r} otherwise than by {known}") from None


def _code(edition: Edition | None) -> dict[str, Any]:
    """Return the modules of an edition by name, and their digest."""
    if edition is None:
        return {"modules": {}, "digest": ""}
    found = {name: (str(one.path), one.is_package, one.text) for name, one in edition.sources.items()}
    return {"modules": found, "digest": edition.code_digest}


def _infos(parts: Mapping[str, Part], kinds: Mapping[str, Mapping[str, Provided]]) -> tuple[PluginInfo, ...]:
    """Return the plugins with what they provide, the built-in one first, then by name."""
    ordered = sorted(parts.values(), key=lambda part: (part.info.name != BUILTIN, part.info.name))
    provides: dict[str, list[str]] = {part.info.name: [] for part in ordered}
    for kind, called in _KINDS.items():
        for item in kinds[kind].values():
            provides[item.plugin].append(f"{called}:{item.name}")
    return tuple(replace(part.info, provides=tuple(provides[part.info.name])) for part in ordered)
