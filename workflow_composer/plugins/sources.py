"""Plugins as they are found: installed, or in files; their code is read but not run.

Sources can be pickled, so that every worker of a service runs the same code, whatever is installed meanwhile.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from workflow_composer.errors import PluginError
from workflow_composer.plugins.editions import Edition
from workflow_composer.plugins.hookspecs import ENTRY_POINT_GROUP

BLOCK_VARIABLE = "WORKFLOW_COMPOSER_BLOCK_PLUGINS"
"""Names of plugins not to load, separated by commas; ``*`` blocks all installed plugins."""

FILES_VARIABLE = "WORKFLOW_COMPOSER_PLUGINS"
"""Environment variable with paths of plugin files, separated as in ``PATH``; ``--plugin`` adds to it."""

_OWN = "workflow_composer"


@dataclass(frozen=True, slots=True)
class PluginSource:
    """A plugin that was found. ``value`` is its entry point, or the path of its file.

    ``edition`` is its code; None if it has no sources to read, as compiled code has none. ``fault`` says why it cannot be
    loaded, ``blocked`` that it must not be.
    """

    name: str
    value: str
    distribution: str = ""
    version: str = ""
    edition: Edition | None = None
    entry: Any = None
    file: Path | None = None
    fault: str = ""
    blocked: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What changes with its place, its version and its code."""
        return self.value, self.version, self.edition.digest if self.edition is not None else ""

    def load(self) -> tuple[Any, Edition | None]:
        """Run its code; return the plugin object, and the edition that holds its modules. Raises what the code raises."""
        if self.fault:
            raise ImportError(self.fault)
        if self.edition is None:
            return self.entry.load(), None
        edition = self.edition.shared()
        if self.file is not None:
            plugin = edition.run(edition.root)
            if not any(hasattr(value, "workflow_composer_impl") for value in vars(plugin).values()):
                raise PluginError(f"{self.file} has no function marked with @hookimpl", hint="see docs/plugins.md")
            return plugin, edition
        module, _, names = self.value.partition(":")
        plugin = edition.run(module.strip())
        for name in filter(None, names.partition("[")[0].strip().split(".")):
            plugin = getattr(plugin, name)
        return plugin, edition


def installed(
    entry_points: Iterable[metadata.EntryPoint] | None = None, blocked: str | None = None
) -> tuple[PluginSource, ...]:
    """Return the installed plugins, by name.

    ``blocked`` overrides the variable ``WORKFLOW_COMPOSER_BLOCK_PLUGINS``. Raises `PluginError` for duplicate names.
    """
    if entry_points is None:
        importlib.invalidate_caches()
        entry_points = metadata.entry_points(group=ENTRY_POINT_GROUP)
    listed = os.environ.get(BLOCK_VARIABLE, "") if blocked is None else blocked
    out = {part.strip() for part in listed.split(",")}
    found: dict[str, PluginSource] = {}
    for entry in sorted(entry_points, key=lambda one: one.name):
        source = _of(entry, blocked=bool(out & {entry.name, "*"}))
        if source.name in found:
            first, second = (one.distribution or one.value for one in (found[source.name], source))
            raise PluginError(
                f"two plugins are named {source.name!r}: one from {first}, one from {second}", hint="uninstall one of them"
            )
        found[source.name] = source
    return tuple(found.values())


def _of(entry: metadata.EntryPoint, *, blocked: bool) -> PluginSource:
    distribution, version = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
    edition, fault = None, ""
    if isinstance(entry, metadata.EntryPoint) and not blocked:
        try:
            edition = Edition.of_module(entry.module)
        except (ImportError, OSError, PluginError) as error:
            fault = str(error)
        if edition is not None and edition.root == _OWN:
            edition = None
    return PluginSource(entry.name, entry.value, distribution, version, edition, entry, fault=fault, blocked=blocked)


def in_file(path: str | Path) -> PluginSource:
    """Return the plugin in a Python file, or in a folder that is a package. Raises `PluginError` if it cannot be read."""
    place = Path(path).absolute()
    return PluginSource(place.stem, str(place), edition=Edition.of_file(place), file=place)


def in_files(listed: str) -> tuple[PluginSource, ...]:
    """Return the plugins in these files, whose paths are separated as in ``PATH``. Raises `PluginError`."""
    return tuple(in_file(path) for path in listed.split(os.pathsep) if path)


def digest(plugins: Sequence[PluginSource]) -> str:
    """Return a digest of the code and the versions of plugins; empty if there are none."""
    text = json.dumps([(source.name, *source.key, source.blocked) for source in plugins])
    return hashlib.sha256(text.encode()).hexdigest()[:16] if plugins else ""


def changes(old: Iterable[PluginSource], new: Iterable[PluginSource]) -> list[dict[str, str | None]]:
    """Return the plugins that differ: ``name``, and ``from`` and ``to``, the version and the digest of the code.

    None stands for a plugin that is not there.
    """
    before, after = ({source.name: source for source in plugins} for plugins in (old, new))
    same = {name for name in before.keys() & after.keys() if before[name].key == after[name].key}
    return [
        {"name": name, "from": _version(before.get(name)), "to": _version(after.get(name))}
        for name in sorted((before.keys() | after.keys()) - same)
    ]


def _version(source: PluginSource | None) -> str | None:
    if source is None:
        return None
    code = source.edition.digest[:12] if source.edition is not None else ""
    return " ".join(filter(None, (source.version, code)))
