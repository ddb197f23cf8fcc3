"""Whether the programs and functions that a workflow names are here: found before anything is called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from workflow_composer.errors import ProgramFault, WorkflowFileError, nearest
from workflow_composer.workflows.definition.model import CommandBody, NestedBody, PythonBody, Workflow
from workflow_composer.workflows.programs.command import program_of
from workflow_composer.workflows.programs.digests import is_importable, module_files


def refuse_missing(workflow: Workflow) -> Workflow:
    """Return the workflow. Raises `WorkflowFileError` that names every program and function that is not here."""
    if problems := [*missing(workflow)]:
        raise WorkflowFileError(problems)
    return workflow


def missing(workflow: Workflow) -> Iterator[str]:
    """Yield a line for each program or function that is not here, with its place in the file.

    Modules are read, not imported: a name that a module makes only when it runs counts as there.
    """
    for path, step in workflow.every_step():
        checks = {"accept": step.accept, "release.check": None if step.release is None else step.release.check}
        bodies = {"": step.body, **{f".{key}": check.body for key, check in checks.items() if check is not None}}
        for key, body in bodies.items():
            if isinstance(body, NestedBody):
                yield from missing(body.workflow)
            elif problem := _problem(body, workflow.folder, frozenset(step.files)):
                yield f"{workflow.path or workflow.name}:{step.line}: steps.{path}{key}: {problem}"


def _problem(body: object, folder: Path, files: frozenset[str]) -> str:
    if isinstance(body, CommandBody):
        try:
            program_of(body.argv[0], folder, dict.fromkeys(files, ""))
        except ProgramFault as fault:
            return f"{fault.message}; {fault.hint}"
    if isinstance(body, PythonBody) and body.plugin is None:
        return _of_function(body.target, folder)
    return ""


def _of_function(target: str, folder: Path) -> str:
    module, _, function = target.partition(":")
    found = module_files(folder, module)
    if not found and not is_importable(module):
        return f"there is no module {module!r} here; write {module}.py beside the workflow, or install it"
    names = _names_of(found[-1]) if found and found[-1].suffix == ".py" else None
    if names is None or function in names:
        return ""
    return "; ".join(filter(None, (f"{found[-1].name} has no function {function!r}", nearest(function, names))))


def _names_of(path: Path) -> set[str] | None:
    """Return the names that a module's text gives a meaning; None: they cannot be told without running it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError):
        return None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(one.asname or one.name).partition(".")[0] for one in node.names}
    return None if names & {"*", "__getattr__"} else names
