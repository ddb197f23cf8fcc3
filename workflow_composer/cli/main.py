"""The entry point: runs a command and turns errors into exit codes."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from workflow_composer.cli.group import cli
from workflow_composer.cli.interrupt import INTERRUPTED, TERMINATED, Stopped, leave_now
from workflow_composer.cli.state import State
from workflow_composer.errors import FleetError, ProfileError, WorkflowComposerError

INTERNAL = 70
PROGRAM = "workflow-composer"


def main() -> NoReturn:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # escape characters that the terminal's encoding lacks
    code = run(sys.argv[1:], name=None)
    if code in (INTERRUPTED, TERMINATED):
        leave_now(code)
    _flush_or_forget()
    gc.freeze()  # nothing is collected any more: at the end of a short command, that would be a fifth of its processor time
    sys.exit(code)


def run(
    arguments: Sequence[str],
    state: State | None = None,
    *,
    name: str | None = PROGRAM,
    command: Sequence[str] = (),
) -> int:
    """Run one command; return the exit code. Prints an error to standard error as one line, with a hint on the next.

    ``name`` is the program's name in help texts; None: the name it was called by. ``command`` is the path of the command
    that a script stands for, such as ``("fleet", "monitor")``: its help then speaks of the script.
    """
    state = state or State()
    state.arguments = tuple(arguments)
    try:
        program = _standing_for(command, name) if command else cli
        code = program.main(list(arguments), prog_name=name, standalone_mode=False, obj=state, **cli.context_settings)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except Stopped:
        click.echo("stopped", err=True)
        return TERMINATED
    except SystemExit as end:  # click met a closed pipe: the reader is gone, so there is nothing to print
        return end.code if isinstance(end.code, int) else 1
    except BaseException as error:  # noqa: BLE001  # every error becomes an exit code here
        if state.debug or _given("--debug", arguments):
            _print_traceback(error)
        if isinstance(error, click.UsageError) and not _wants_json(state, arguments):
            error.show()
            return error.exit_code
        return _report(_explain(error), json=_wants_json(state, arguments))
    return code if isinstance(code, int) else 0


def _standing_for(command: Sequence[str], name: str | None) -> click.Command:
    """Return the command of this path, with examples that begin with the name of the script."""
    found: click.Command = cli
    for part in command:
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), part)
        assert inner is not None, part
        found = inner
    found = copy.copy(found)
    if name and found.epilog:
        found.epilog = found.epilog.replace(" ".join((PROGRAM, *command)), name)
    return found


def _explain(error: BaseException) -> dict[str, Any]:
    """Return the error as plain data: type, message, hint, exit_code, and its problems or attempts."""
    found: dict[str, Any] = {"type": type(error).__name__, "message": str(error), "hint": "", "exit_code": INTERNAL}
    if isinstance(error, WorkflowComposerError):
        found |= {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        if isinstance(error, (ProfileError, FleetError)):
            found["problems"] = list(error.problems)
        if attempts := getattr(error, "attempts", ()):
            from dataclasses import asdict

            found["attempts"] = [asdict(attempt) for attempt in attempts]
    elif isinstance(error, click.ClickException):
        found |= {"message": error.format_message(), "exit_code": error.exit_code}
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        found |= {"message": f"{where}{error.strerror}", "exit_code": 1}
    else:
        found["message"] = f"internal error: {type(error).__name__}: {error}"
        found["hint"] = "this is a bug in the program; run with --debug for the traceback"
    return found


def _report(found: dict[str, Any], *, json: bool) -> int:
    if json:
        from workflow_composer.cli.output import print_json

        print_json({"error": found}, err=True)
        return int(found["exit_code"])
    for line in found.get("problems") or [found["message"]]:
        click.echo(f"error: {' '.join(line.split())}", err=True)
    if found["hint"]:
        click.echo(f"hint: {' '.join(found['hint'].split())}", err=True)
    return int(found["exit_code"])


def _wants_json(state: State, arguments: Sequence[str]) -> bool:
    return state.json or (_given("--json", arguments) and not state.json_is_fields)


def _given(option: str, arguments: Sequence[str]) -> bool:
    """Whether an option is on the command line, even if an error prevented parsing it."""
    options = list(arguments)
    return option in (options[: options.index("--")] if "--" in options else options)


def _print_traceback(error: BaseException) -> None:
    import traceback

    click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def _flush_or_forget() -> None:
    """Flush the standard streams; if the reader is gone, discard the rest so that the interpreter prints no error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
