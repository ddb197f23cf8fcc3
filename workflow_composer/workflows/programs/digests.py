"""What programs and functions consist of, as digests: a changed line is another question, and is asked again.

Seen are the files that a command's arguments name, the module of a function, and the modules beside them that they import,
also those that these import. Of what is installed a function's own file counts, and of a program nothing; what is compiled,
or found only while it runs, is not seen.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from workflow_composer.types import EMPTY
from workflow_composer.workflows.definition.model import CommandBody, NestedBody, PythonBody, Workflow
from workflow_composer.workflows.programs.command import PYTHONS, file_of

_DIGITS = 16
_MOST_FILES = 2000
"""Files of a folder that a command names; of a larger one only the names count."""
_PIECE = 1 << 20


class WorkflowSources:
    """Returns names and digests (hex) of what a program or function of a workflow, or of one within it, consists of.

    They are read once, here. ``unseen`` says, once for each, of which programs a change is not noticed.
    """

    def __init__(self, workflow: Workflow) -> None:
        folders: dict[Path, ProgramSources] = {}
        self._known: dict[int, Mapping[str, str]] = {}
        for folder, body in _programs(workflow):
            sources = folders.setdefault(folder, ProgramSources(folder))
            self._known[id(body)] = sources(body)
        self.unseen = list(dict.fromkeys(what for sources in folders.values() for what in sources.unseen))

    def __call__(self, body: CommandBody | PythonBody) -> Mapping[str, str]:
        """Return the digests of a body of the workflow."""
        return self._known[id(body)]


def _programs(workflow: Workflow) -> Iterator[tuple[Path, CommandBody | PythonBody]]:
    for _, step in workflow.every_step():
        checks = (step.accept, None if step.release is None else step.release.check)
        for body in (step.body, *(check.body for check in checks if check is not None)):
            if isinstance(body, NestedBody):
                yield from _programs(body.workflow)
            elif isinstance(body, (CommandBody, PythonBody)):
                yield workflow.folder, body


class ProgramSources:
    """Returns names and digests (hex) of what a program or function consists of, relative to a workflow's ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self.unseen: list[str] = []

    def __call__(self, body: CommandBody | PythonBody) -> Mapping[str, str]:
        """Return the digests; empty if nothing is seen."""
        if isinstance(body, PythonBody) and body.plugin is not None and body.plugin.digest:
            return {body.plugin.name: body.plugin.digest}
        found = self._of_command(body) if isinstance(body, CommandBody) else self._of_function(body)
        return {self._name(path): digest_of(path) for path in sorted(set(found))} or EMPTY

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix() if path.is_relative_to(self._folder) else str(path)

    def _of_command(self, body: CommandBody) -> Iterator[Path]:
        program, *rest = body.argv
        named = [file_of(one, self._folder, {}) for one in rest]
        own = file_of(program, self._folder, {})
        if own is not None and program not in PYTHONS:
            named.append(own)
        for path in filter(None, named):
            if path.is_dir():
                yield from self._in_folder(path)
            else:
                yield from self._with_imports(path)
        for option, module in pairwise(rest):
            if option == "-m" and (found := _module_in(self._folder, module)):
                for path in found:
                    yield from self._with_imports(path)
        if own is None and program not in PYTHONS and not any(named):
            self._not_seen(f"what the program {program} does: if it changes, its kept results are used all the same")

    def _of_function(self, body: PythonBody) -> Iterator[Path]:
        module = body.target.partition(":")[0]
        files = module_files(self._folder, module)
        for path in files:
            if path.suffix == ".py":
                yield from self._with_imports(path)
            else:
                yield path
                self._not_seen(f"the text of {module}, which is compiled: only {path.name} as a whole counts")
        if not files:
            self._not_seen(f"the text of {module}: if it changes, kept values of {body.target} are used all the same")

    def _not_seen(self, what: str) -> None:
        if what not in self.unseen:
            self.unseen.append(what)

    def _in_folder(self, folder: Path) -> Iterator[Path]:
        files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        if len(files) > _MOST_FILES:
            self._not_seen(f"the {len(files)} files of {self._name(folder)}: more than {_MOST_FILES}")
        else:
            yield from files

    def _with_imports(self, path: Path) -> Iterator[Path]:
        """Yield a file and the modules beside it, or in the workflow's folder, that it imports."""
        known: set[Path] = set()
        waiting = [path]
        while waiting:
            one = waiting.pop()
            if one in known:
                continue
            known.add(one)
            yield one
            if one.suffix == ".py":
                places = (one.parent, self._folder)
                waiting += [found for name in _imports(one) for place in places for found in _module_in(place, name)]


def _imports(path: Path) -> Iterable[str]:
    """Yield the names of the modules that a file imports, anywhere in it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = node.module or ""
            if above:
                yield above
            yield from (f"{above}.{one.name}".strip(".") for one in node.names)


def module_files(folder: Path, name: str) -> list[Path]:
    """Return the files of a module beside a workflow, else of an installed one, its own last; empty: it is not there."""
    return _module_in(folder, name) or _installed(name)


def _module_in(folder: Path, name: str) -> list[Path]:
    """Return the files of a module in a folder: its own and those of the packages above it; empty if it is not there."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return []
    found = [folder.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    whole = folder.joinpath(*parts)
    compiled = sorted(whole.parent.glob(f"{whole.name}.*.so")) + sorted(whole.parent.glob(f"{whole.name}.pyc"))
    own = [path for path in (whole.with_suffix(".py"), *compiled, found[-1]) if path.is_file()]
    return [*(path for path in found[:-1] if path.is_file()), own[0]] if own else []


def is_importable(module: str) -> bool:
    """Whether Python's path has a module, perhaps without a file; its packages are imported to find it."""
    return _spec(module) is not None


def _spec(module: str) -> ModuleSpec | None:
    try:
        return find_spec(module)
    except Exception:  # noqa: BLE001  # a package that cannot be imported: the step itself will say so
        return None


def _installed(module: str) -> list[Path]:
    """Return the file of a module that is found on Python's path."""
    spec = _spec(module)
    origin = None if spec is None else spec.origin
    return [Path(origin)] if origin and Path(origin).is_file() else []


def digest_of(path: Path) -> str:
    """Return the digest (hex) of a file's content; empty if it cannot be read."""
    made = hashlib.blake2b(digest_size=_DIGITS // 2)
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                made.update(piece)
    except OSError:
        return ""
    return made.hexdigest()
