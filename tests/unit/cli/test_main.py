"""Errors become exit codes: one line, one hint, and a traceback only for those who ask."""

from __future__ import annotations

import errno
import json

import click
import pytest

from workflow_composer.backends.fake import FakeBackend
from workflow_composer.cli.main import run
from workflow_composer.cli.state import State
from workflow_composer.errors import (
    AuthenticationFailed,
    EgressDenied,
    InputError,
    ProfileError,
    RoutingError,
    ServerUnreachable,
    WorkflowComposerError,
)


def failing(error):
    """A state in which opening the orchestrator fails."""

    def open_nothing(state, metrics):
        raise error

    return State(environ={}, open=open_nothing)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkflowComposerError("no"), 1),
        (InputError("no"), 2),
        (RoutingError("no"), 3),
        (EgressDenied("no"), 4),
        (AuthenticationFailed("no"), 5),
        (ValueError("no"), 70),
        (KeyboardInterrupt(), 130),
        (click.UsageError("no"), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_every_kind_of_error_has_its_exit_code(error, code, capsys):
    """Scripts can tell a wrong profile from a server that is down; nothing but the error is printed."""
    assert run(["status"], failing(error)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_an_error_is_one_line_and_its_hint_the_next(capsys):
    """Line ends within a message do not spread it over the screen."""
    run(["status"], failing(RoutingError("no route\nfor this", hint="name a task")))

    assert capsys.readouterr().err == "error: no route for this\nhint: name a task\n"


def test_each_fault_of_a_profile_has_its_line(capsys):
    """All of them at once, as they stand in the file."""
    run(["status"], failing(ProfileError(["a.yaml:1: one", "a.yaml:7: two"], hint="see docs/profiles.md")))

    assert capsys.readouterr().err == "error: a.yaml:1: one\nerror: a.yaml:7: two\nhint: see docs/profiles.md\n"


def test_a_fault_of_the_program_is_called_one(capsys):
    """The user is told that it is not their fault, and how to show more."""
    run(["status"], failing(ZeroDivisionError("division by zero")))

    assert capsys.readouterr().err.splitlines() == [
        "error: internal error: ZeroDivisionError: division by zero",
        "hint: this is a bug in the program; run with --debug for the traceback",
    ]


@pytest.mark.parametrize("arguments", [["--debug", "status"], ["status", "--debug"]])
def test_debug_shows_the_traceback(arguments, capsys):
    """Before the one line, which stays the last; the option may stand on either side of the name."""
    run(arguments, failing(ZeroDivisionError("division by zero")))

    captured = capsys.readouterr().err
    assert captured.startswith("Traceback (most recent call last):")
    assert "in open_nothing" in captured
    assert captured.splitlines()[-1].startswith("hint: ")


@pytest.mark.parametrize("arguments", [["--json", "status"], ["status", "--json"]])
def test_json_errors_go_to_standard_error(arguments, capsys):
    """Standard output holds results only, so that a pipe never mistakes an error for one."""
    run(arguments, failing(ProfileError(["a.yaml:1: one", "a.yaml:7: two"], hint="look")))

    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err) == {
        "error": {
            "type": "ProfileError",
            "message": "a.yaml:1: one\na.yaml:7: two",
            "hint": "look",
            "exit_code": 2,
            "problems": ["a.yaml:1: one", "a.yaml:7: two"],
        }
    }


@pytest.mark.parametrize("arguments", [["--json", "statsu"], ["status", "--json", "--nonsense"], ["--nonsense", "--json"]])
def test_wrong_usage_is_json_too(arguments, capsys):
    """Also where the error comes before the option was read."""
    assert run(arguments, State(environ={})) == 2

    assert json.loads(capsys.readouterr().err)["error"]["exit_code"] == 2


def test_a_prompt_that_looks_like_an_option_is_none(command):
    """Behind ``--`` everything is text."""
    command.script = command.remote = (ServerUnreachable("connection refused"),)
    done = command("generate", "--", "--json")

    assert done.err.startswith("error: ")


def test_json_errors_list_the_attempts(command):
    """Which model failed, how, and what it cost."""
    command.script = command.remote = (ServerUnreachable("connection refused"),)
    done = command("--json", "generate", "hello")

    error = json.loads(done.err)["error"]
    assert (done.code, error["type"], error["exit_code"]) == (5, "AllCandidatesFailed", 5)
    assert [(a["name"], a["error_type"]) for a in error["attempts"]] == [
        ("small", "ServerUnreachable"),
        ("remote", "ServerUnreachable"),
    ]


def test_wrong_usage_shows_how_to_get_help(capsys):
    """As click does it."""
    assert run(["generate", "--nonsense"], State(environ={})) == 2

    assert "--help" in capsys.readouterr().err


def test_a_file_system_error_is_told_in_its_own_words(capsys):
    """No fault of the program: the file and the reason."""
    error = OSError(errno.ENOSPC, "No space left on device", "logs/x")

    assert run(["status"], failing(error)) == 1
    assert capsys.readouterr().err == "error: logs/x: No space left on device\n"


def test_a_closed_pipe_is_no_error(capsys):
    """``| head`` has seen enough."""
    assert run(["status"], failing(BrokenPipeError(errno.EPIPE, "Broken pipe"))) == 1
    assert capsys.readouterr().err == ""


def test_what_went_well_is_zero(command):
    """And help is no failure."""
    assert command("status").code == 0
    assert command("--help").code == 0
    assert command("generate", "--help").code == 0
    assert command("--version").out.startswith("workflow_composer, version ")
    assert isinstance(command.made[0], FakeBackend)
