"""Programs: what they are given, where they are looked for, and what their standard output means."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflow_composer.errors import ProgramFault
from workflow_composer.workflows.definition.model import CommandBody, ProgramLimits
from workflow_composer.workflows.programs.outcome import ProgramOutcome
from workflow_composer.workflows.programs.sandbox import ProgramJob, run

PYTHONS = ("python", "python3")
"""Names of a program that mean the interpreter of this package, with all that is installed for it."""


async def run_command(
    body: CommandBody,
    *,
    given: Any,
    files: Mapping[str, str],
    limits: ProgramLimits,
    folder: Path,
    private: bool,
) -> ProgramOutcome:
    """Run a program in a new folder with these files and return how it ended; nothing of it is left behind.

    It reads ``given`` on standard input: a text as it is, anything else as one JSON object or value, nothing for None.
    Arguments that name a file of the workflow's ``folder`` become its path, unless ``files`` has one of that name.
    ``private``: it must not use the network, whatever ``limits`` say; a step that is trusted is not private. Raises
    `ProgramFault` if the program cannot be started. Cancelling ends the program.
    """
    return await run(
        ProgramJob(argv=resolved(body.argv, folder, files), given=as_input(given), files=files), limits, folder, private
    )


def as_input(given: Any) -> bytes:
    """Return what a program reads on standard input."""
    if given is None:
        return b""
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def resolved(argv: Sequence[str], folder: Path, files: Mapping[str, str]) -> list[str]:
    """Return the arguments with the paths of the workflow's files. Raises `ProgramFault` if the program does not exist."""
    program, *rest = argv
    return [program_of(program, folder, files), *(_argument(one, folder, files) for one in rest)]


def _argument(argument: str, folder: Path, files: Mapping[str, str]) -> str:
    found = file_of(argument, folder, files)
    if found is None:
        return argument
    option, sign, _ = argument.partition("=")
    return f"{option}={found}" if sign and argument.startswith("-") else str(found)


def file_of(argument: str, folder: Path, files: Mapping[str, str]) -> Path | None:
    """Return the file of the workflow's folder that an argument names, perhaps as ``--option=FILE``; None: none."""
    name = argument.partition("=")[2] if argument.startswith("-") and "=" in argument else argument
    if not name.strip("./") or name in files:
        return None
    path = folder.absolute() / name
    try:
        return path if path.exists() else None
    except (OSError, ValueError):
        return None  # a text that is too long for a name, or has a null character


def program_of(program: str, folder: Path, files: Mapping[str, str]) -> str:
    """Return what is run for a program's name. Raises `ProgramFault` if it is not here."""
    if program in PYTHONS and sys.executable:
        return sys.executable
    if "/" not in program and (found := shutil.which(program)) is not None:
        return found
    here = file_of(program, folder, files)
    if here is None and (written := program.removeprefix("./")) in files:
        return f"./{written}"
    if here is None:
        raise ProgramFault(
            f"there is no program {program!r} here",
            hint="install it, or name a file beside the workflow",
            started=False,
        )
    return str(here)
