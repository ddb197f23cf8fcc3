"""Functions of the user's, each call in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflow_composer.errors import ProgramFault
from workflow_composer.support.own_program import FUNCTION_PATH
from workflow_composer.types import EMPTY
from workflow_composer.workflows.definition.model import ProgramLimits, PythonBody
from workflow_composer.workflows.programs.outcome import ProgramOutcome
from workflow_composer.workflows.programs.sandbox import ProgramJob, run

_PROGRAM = Path(__file__).with_name("function_worker.py")


async def call_function(
    body: PythonBody,
    *,
    given: Mapping[str, Any] = EMPTY,
    args: Sequence[Any] = (),
    files: Mapping[str, str] = EMPTY,
    limits: ProgramLimits,
    folder: Path,
    private: bool,
) -> Any:
    """Call ``module:name`` with ``given`` by keyword (JSON data) and return its value, JSON data.

    ``files`` are written into its working directory, a new folder. The module is looked for in the workflow's ``folder``
    first; that of a plugin's kind of step is the plugin's own, as it was loaded, and its function gets the step's settings
    before ``given``. A coroutine is awaited. Limits, ``private`` and cancelling are as in `run_command`. Raises
    `ProgramFault` if there is no such function, if it raises, if a limit ends it, or if its value is not JSON data.
    """
    asked: dict[str, Any] = {"target": body.target, "path": _path(folder), "given": dict(given), "args": list(args)}
    if body.plugin is not None:
        asked |= {"path": _path(None), "args": [body.settings], "modules": _as_text(body.plugin.modules)}
    job = ProgramJob(argv=[sys.executable, str(_PROGRAM)], given=json.dumps(asked).encode() + b"\n", files=files)
    outcome = await run(job, limits, folder, private)
    told = _told(outcome)
    if told is None:
        what = outcome.end() if not outcome.passed else "the function's process ended without an answer"
        raise ProgramFault(f"{body.title}: {what.replace('the program', 'the function')}", said=outcome.errors)
    if "error" not in told:
        return told["value"]
    if told.get("missing"):
        hint = "python: names MODULE:FUNCTION, of a module beside the workflow or an installed one"
        if body.plugin is not None:
            hint = f"the plugin {body.plugin.plugin} has its function at {body.target}, which cannot be imported here"
        raise ProgramFault(
            f"{body.title}: there is no such function here ({told['error']})", said=told["said"], hint=hint, started=False
        )
    if "problem" in told:
        raise ProgramFault(f"{body.title}: the value is not JSON data", said=told["problem"])
    raise ProgramFault(f"{body.title}: the function raised {told['error']}", said=outcome.errors + told["said"])


def _path(folder: Path | None) -> list[str]:
    """Return where modules are looked for: beside the workflow, then as in this process, whose working directory is last.

    A plugin's modules must not be mistaken for those beside a workflow: None.
    """
    here = [] if folder is None else [str(folder.absolute())]
    others = (str(Path(one).absolute()) for one in (*sys.path, *FUNCTION_PATH))
    return [*here, *(one for one in others if one not in here)]


def _as_text(modules: Mapping[str, tuple[str, bool, bytes]]) -> dict[str, tuple[str, bool, str]]:
    """Return a plugin's modules as JSON data, each byte of their texts as one character."""
    return {name: (path, is_package, text.decode("latin-1")) for name, (path, is_package, text) in modules.items()}


def _told(outcome: ProgramOutcome) -> dict[str, Any] | None:
    if not outcome.passed or outcome.shortened:
        return None
    try:
        found = json.loads(outcome.output)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
