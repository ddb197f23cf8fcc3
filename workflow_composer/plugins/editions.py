"""The code of a plugin as it stood when it was loaded.

An `Edition` holds the sources of one package or file in memory. Its modules import each other from there, also long after
the files on disk have changed: requests that began under an old edition finish under it. ``sys.modules`` has the modules of
one edition under their usual names: of the one that was last shown.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from workflow_composer.errors import PluginError

_MARK = "__workflow_composer_edition__"
"""The name under which a module knows its edition."""

_MOST_BYTES = 32 * 1024 * 1024
"""Most bytes of sources that one plugin may have."""


@dataclass(frozen=True, slots=True)
class Source:
    """The source text of a module."""

    path: Path
    text: bytes
    is_package: bool


class Edition:
    """One version of the package or module ``root``. Equal digests mean equal code."""

    def __init__(self, root: str, sources: Mapping[str, Source]) -> None:
        self.root = root
        self.sources = sources
        self._modules: dict[str, ModuleType] = {}
        self._lock = threading.RLock()
        self._builtins = {**vars(builtins), "__import__": self._import}
        self.digest = _digest(sources, 0)
        self.code_digest = _digest(sources, len(root))
        """As the digest, but the same wherever the code lies, and whatever it is imported as."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the sources; what has been loaded from them stays here."""
        return Edition, (self.root, dict(self.sources))

    @classmethod
    def of_module(cls, module: str) -> Edition | None:
        """Read the package (or the module) that holds ``module``; None if it has no sources, as compiled code has none.

        Of a namespace package, only the part that the distribution fills is read. Raises `ModuleNotFoundError`.
        """
        importlib.invalidate_caches()
        parts = module.split(".")
        places: Sequence[str] | None = None
        for length in range(1, len(parts) + 1):
            root = ".".join(parts[:length])
            spec = importlib.machinery.PathFinder.find_spec(root, places)
            if spec is None:
                spec = _found_otherwise(root)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {root!r}", name=root)
            if spec.origin is not None and spec.has_location:
                origin = Path(spec.origin)
                return cls(root, _sources(root, origin)) if origin.suffix == ".py" else None
            places = list(spec.submodule_search_locations or ())
        return None

    @classmethod
    def of_file(cls, path: Path) -> Edition:
        """Read one file, or a folder that is a package. Raises `PluginError` if it cannot be read."""
        place = path / "__init__.py" if path.is_dir() else path
        try:
            mark = hashlib.sha256(str(place.resolve()).encode()).hexdigest()[:8]
            root = f"workflow_composer_file_{mark}_{''.join(c if c.isalnum() else '_' for c in path.stem)}"
            return cls(root, _sources(root, place, whole=path.is_dir()))
        except OSError as error:
            reason = f"cannot read the plugin file {path}: {error.strerror}"
            raise PluginError(reason, hint="name a Python file, or a folder with an __init__.py") from error

    def shared(self) -> Edition:
        """Return the edition of the same code that ``sys.modules`` shows, if there is one, else this one.

        A package that somebody has imported without an edition is taken as it is, so that its classes are the same.
        """
        known = sys.modules.get(self.root)
        if known is None:
            return self
        other: Edition | None = vars(known).get(_MARK)
        if other is None:
            self._modules = {name: sys.modules[name] for name in _names(self.root)}
            return self
        return other if other.digest == self.digest else self

    def run(self, name: str) -> ModuleType:
        """Return the module ``name``, as `load`, but show nothing of it. Raises what the module raises."""
        if name in self._modules:
            return self._modules[name]
        before = _taken_out(self.root)
        try:
            return self.load(name)
        finally:
            _taken_out(self.root)
            sys.modules.update(before)

    def show(self) -> None:
        """Show this edition in ``sys.modules``, and no other of the same root."""
        if self._modules and sys.modules.get(self.root) is not self._modules.get(self.root):
            _taken_out(self.root)
            sys.modules.update(self._modules)

    def load(self, name: str) -> ModuleType:
        """Return the module, run at its first use. Raises what the module raises."""
        with self._lock:
            if name in self._modules:
                return self._modules[name]
            above = name.rpartition(".")[0]
            parent = self.load(above) if name != self.root else sys.modules.get(above)
            if (source := self.sources.get(name)) is None:
                return importlib.import_module(name)  # compiled, or missing
            module = self._run(name, source)
            if parent is not None:
                setattr(parent, name.rpartition(".")[2], module)
            return module

    def _run(self, name: str, source: Source) -> ModuleType:
        inside = [str(source.path.parent)] if source.is_package else None
        spec = importlib.util.spec_from_file_location(name, source.path, submodule_search_locations=inside)
        assert spec is not None  # the file's name ends in .py
        module = importlib.util.module_from_spec(spec)
        vars(module).update({"__builtins__": self._builtins, _MARK: self})
        code = compile(source.text, str(source.path), "exec", dont_inherit=True)
        before = sys.modules.get(name)
        shown = self._is_shown()
        self._modules[name] = sys.modules[name] = module  # dataclasses and circular imports look there
        try:
            exec(code, module.__dict__)  # noqa: S102  # a plugin that somebody installed or named
        except BaseException:
            del self._modules[name]
            shown = False
            raise
        finally:
            if not shown:
                _put_back(name, before)
        return module

    def _is_shown(self) -> bool:
        known = self._modules.get(self.root)
        return known is None or sys.modules.get(self.root) is known

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002  # the names that an import statement passes
        locals: Mapping[str, Any] | None = None,  # noqa: A002  # likewise
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Import as the statement does; what belongs to the plugin comes from this edition."""
        whole = name
        if level and globals is not None:
            whole = importlib.util.resolve_name("." * level + name, str(globals.get("__package__") or ""))
        if whole != self.root and not whole.startswith(f"{self.root}."):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = self.load(whole)
        if not fromlist:
            return self._modules[self.root] if "." not in self.root else sys.modules[self.root.partition(".")[0]]
        for wanted in vars(module).get("__all__", ()) if "*" in fromlist else fromlist:
            if not hasattr(module, wanted) and f"{whole}.{wanted}" in self.sources:
                self.load(f"{whole}.{wanted}")
        return module


def _digest(sources: Mapping[str, Source], skipped: int) -> str:
    """Return the digest of modules; so many characters of their names do not count."""
    made = hashlib.sha256()
    for name in sorted(sources):
        text = sources[name].text
        made.update(f"{name[skipped:]} {len(text)}\n".encode() + text)
    return made.hexdigest()


def _names(root: str) -> list[str]:
    return [name for name in list(sys.modules) if name == root or name.startswith(f"{root}.")]


def _taken_out(root: str) -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in _names(root)}


def _put_back(name: str, module: ModuleType | None) -> None:
    if module is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = module


def _found_otherwise(root: str) -> Any:
    """Find what another finder knows, such as that of an editable installation."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if finder is not importlib.machinery.PathFinder and find is not None and (spec := find(root, None)) is not None:
            return spec
    return None


def _sources(root: str, origin: Path, *, whole: bool | None = None) -> dict[str, Source]:
    """Read a module, or every module of a package, by name."""
    package = origin.name == "__init__.py" if whole is None else whole
    found = {root: Source(origin, origin.read_bytes(), package)}
    size = len(found[root].text)
    for path in sorted(origin.parent.rglob("*.py")) if package else ():
        if path == origin:
            continue
        parts = path.relative_to(origin.parent).with_suffix("").parts
        inner = parts[-1] == "__init__"
        name = ".".join((root, *(parts[:-1] if inner else parts)))
        text = path.read_bytes()
        size += len(text)
        if size > _MOST_BYTES:
            raise PluginError(f"the plugin in {origin.parent} has more than {_MOST_BYTES >> 20} MiB of sources")
        found[name] = Source(path, text, inner)
    return found
