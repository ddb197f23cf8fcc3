"""Options that stand before a command's name or behind it, and examples for help texts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from workflow_composer.cli.state import State
from workflow_composer.errors import InputError, RunBudgetReached

# ------------------------------------------------------------------------------------------------------------------ prompt
#
# Where a single prompt comes from.


def read_prompt(argument: str | None) -> str:
    """The prompt given as an argument, else (or with ``-``) standard input.

    Raises `InputError` where it is empty or no UTF-8, `click.UsageError` where nothing is given and a person sits at the
    terminal.
    """
    if argument is not None and argument != "-":
        return _checked(argument, "the prompt")
    if sys.stdin is None or sys.stdin.closed:
        raise click.UsageError("give a prompt as an argument: standard input is closed")
    if argument is None and sys.stdin.isatty():
        raise click.UsageError("give a prompt: as an argument, or by standard input")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}",
            hint="convert it, for example with: iconv -f LATIN1 -t UTF-8",
        ) from None
    return _checked(text.rstrip("\r\n"), "standard input")


def _checked(text: str, what: str) -> str:
    if not text.strip():
        raise InputError(f"{what} is empty", hint='give a prompt as an argument: generate "your question"')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} is not valid UTF-8", hint="pass it by standard input, encoded as UTF-8") from None
    return text


F = TypeVar("F", bound=Callable[..., Any])
STOPPED = RunBudgetReached.exit_code


def common_options(function: F) -> F:
    """Let ``--json`` and ``--debug`` stand behind a command's name, too."""
    for option in reversed((json_option, debug_option)):
        function = option(function)
    return function


def strategy_option(function: F) -> F:
    """Let ``--strategy`` stand behind the name of a command that has a use for it."""
    return profile_option("$BIOPIPELINES_STRATEGY, else what is found on your own machines")(function)


def profile_option(default: str) -> Callable[[F], F]:
    """The same, for a command that takes something else where no profile is named."""
    return click.option(
        "-s",
        "--strategy",
        metavar="NAME|PATH",
        expose_value=False,
        callback=_keep("strategy"),
        help=f"Strategy profile: a name (see `strategies list`) or a file. Default: {default}.",
    )


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value:
            setattr(context.ensure_object(State), name, value)
        return value

    return keep


def context_option(function: F) -> F:
    """``--context``, which may be repeated."""
    text = "Context template that stands first (see `contexts list`); may be repeated. Default: the profile's for the task."
    return click.option("--context", "contexts", multiple=True, metavar="NAME", help=text)(function)


def run_budget_option(function: F) -> F:
    """``--run-budget``."""
    text = f"Most for all rows, with what earlier runs of the same output have spent; then it stops (exit code {STOPPED})."
    kind = click.FloatRange(min=0, min_open=True)
    return click.option("--run-budget", type=kind, callback=finite, metavar="DOLLARS", help=text)(function)


def finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse numbers that are none."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("is no finite number", context, parameter)
    return value


def json_option(function: F) -> F:
    """``--json``."""
    text = "Print JSON: results to standard output, errors to standard error."
    return click.option("--json", is_flag=True, expose_value=False, callback=_keep("json"), help=text)(function)


def debug_option(function: F) -> F:
    """``--debug``."""
    text = "Show the traceback of an error."
    return click.option("--debug", is_flag=True, expose_value=False, callback=_keep("debug"), help=text)(function)


def examples(*lines: str) -> str:
    """A help text's end: command lines to copy, each without the program's name."""
    return "\n".join(("\b", "Examples:", *(f"  workflow-composer {line}" for line in lines)))
