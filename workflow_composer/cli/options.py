"""Common options, accepted before or after a command's name, and examples for help texts."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from workflow_composer.cli.state import State
from workflow_composer.errors import InputError, RunBudgetReached

if TYPE_CHECKING:
    from workflow_composer.batch.datasets.columns import Columns

# ------------------------------------------------------------------------------------------------------------------ prompt
#
# Reading a single prompt.


def read_prompt(argument: str | None) -> str:
    """Return the prompt from the argument, or else (or for ``-``) from standard input.

    Raises `InputError` if it is empty or not UTF-8, `click.UsageError` if there is no argument and standard input is a
    terminal or closed.
    """
    if argument is not None and argument != "-":
        return _checked(argument, "the prompt")
    if sys.stdin is None or sys.stdin.closed:
        raise click.UsageError("give a prompt as an argument: standard input is closed")
    if argument is None and sys.stdin.isatty():
        raise click.UsageError("give a prompt as an argument or on standard input")
    return _checked(_read_input(), "standard input")


def piped_prompt() -> str | None:
    """Return the prompt on a standard input that is no terminal; None if there is none. Raises `InputError` if not UTF-8."""
    text = _read_input()
    return text if text.strip() else None


def _read_input() -> str:
    try:
        text: str = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}",
            hint="convert it first, for example with iconv -f LATIN1 -t UTF-8",
        ) from None
    return text.rstrip("\r\n")


def _checked(text: str, what: str) -> str:
    if not text.strip():
        raise InputError(f"{what} is empty", hint='give a prompt as an argument: generate "your question"')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} is not valid UTF-8", hint="pass it on standard input, encoded as UTF-8") from None
    return text


F = TypeVar("F", bound=Callable[..., Any])
STOPPED = RunBudgetReached.exit_code


def common_options(function: F) -> F:
    """Accept ``--json`` and ``--debug`` after a command's name, too."""
    for option in reversed((json_option, debug_option)):
        function = option(function)
    return function


def strategy_option(function: F) -> F:
    """Accept ``--strategy`` after the name of a command that uses it."""
    return profile_option("$BIOPIPELINES_STRATEGY, else detected from the servers on your own machines")(function)


def profile_option(default: str) -> Callable[[F], F]:
    """Return the same option, and ``--allow-code``, for a command with another default."""

    def add(function: F) -> F:
        return _strategy_option(default)(allow_code_option(function))

    return add


def allow_code_option(function: F) -> F:
    """``--allow-code``."""
    text = "Run code that a file names although it was only found in the working directory, not named by its path."
    option = click.option("--allow-code", is_flag=True, expose_value=False, callback=_allow_code, help=text)
    return option(function)


def _allow_code(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value:
        from workflow_composer.config.named_code import ALLOW_CODE_VARIABLE

        state = context.ensure_object(State)
        state.environ = {**state.environ, ALLOW_CODE_VARIABLE: "1"}
    return value


def _strategy_option(default: str) -> Callable[[F], F]:
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
    text = "Context template that precedes the prompt (see `contexts list`); may be repeated. Default: the profile's."
    return click.option("--context", "contexts", multiple=True, metavar="NAME", help=text)(function)


def stop_option(function: F) -> F:
    """``--stop``, which may be repeated."""
    text = (
        r"Text that ends an answer, such as '\n\nQuestion:' (\n: line break); may be repeated. Default: the model decides."
    )
    return click.option("--stop", multiple=True, metavar="TEXT", callback=_unescaped, help=text)(function)


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def _unescaped(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    r"""Return the texts with line breaks for ``\n``; None for none. Rejects an empty text, which would end every answer."""
    if "" in values:
        raise click.BadParameter("must not be empty", context, parameter)
    return tuple(re.sub(r"\\([ntr\\])", lambda found: _ESCAPES[found[1]], value) for value in values) or None


def column_options(*kinds: str) -> Callable[[F], F]:
    """``--question-column`` and the like, for some kinds of columns; `columns_of` reads them."""
    texts = {
        "question": "Column of the question or the messages.",
        "label": "Column of the right answers ('' for none); a point leads into an object: reward_model.ground_truth.",
        "choices": "Column of the choices, or one for each: A,B,C,D ('' for none).",
        "id": "Column of the rows' ids ('' for none).",
    }

    def add(function: F) -> F:
        for kind in reversed(kinds):
            help_text = f"{texts[kind]} Default: found by its name."
            function = click.option(f"--{kind}-column", metavar="NAME", help=help_text)(function)
        return function

    return add


def columns_of(options: dict[str, Any]) -> Columns:
    """Take the options of `column_options` out of a command's options, and return them as columns."""
    from workflow_composer.batch.datasets.columns import Columns

    kinds = ("question", "label", "id", "choices")
    return Columns(**{kind: options.pop(f"{kind}_column", None) for kind in kinds})


def vote_by_option(function: F) -> F:
    """``--vote-by``."""
    text = "How votes are grouped: by final answer, or free texts by meaning, with the profile's model for embeddings."
    return click.option("--vote-by", type=click.Choice(("answer", "embedding")), help=text)(function)


def run_budget_option(function: F) -> F:
    """``--run-budget``."""
    text = f"Budget of all rows, including earlier runs of the same output; stops when it is used up (exit code {STOPPED})."
    kind = click.FloatRange(min=0, min_open=True)
    return click.option("--run-budget", type=kind, callback=finite, metavar="DOLLARS", help=text)(function)


def keep_option(function: F) -> F:
    """``--keep``, which may be repeated."""
    text = "Column of the input to keep with the answers; may be repeated. Question, label and id are kept in any case."
    return click.option("--keep", multiple=True, metavar="COLUMN", help=text)(function)


def shard_option(function: F) -> F:
    """``--shard``."""
    text = (
        "Answer only shard i of n, into files of its own: i/n; or `slurm`, the task of a job array; or `auto`, which is "
        "everything outside of one. Join them by `merge`. Each shard may spend its n-th of --run-budget."
    )
    return click.option("--shard", metavar="I/N", help=text)(function)


def finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Reject NaN and infinities."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("must be a finite number", context, parameter)
    return value


def json_option(function: F) -> F:
    """``--json``."""
    text = "Print JSON: results on standard output, errors on standard error."
    return click.option("--json", is_flag=True, expose_value=False, callback=_keep("json"), help=text)(function)


def debug_option(function: F) -> F:
    """``--debug``."""
    text = "Print the traceback of an error."
    return click.option("--debug", is_flag=True, expose_value=False, callback=_keep("debug"), help=text)(function)


def examples(*lines: str) -> str:
    """Return the examples of a help text, from command lines without the program's name."""
    return "\n".join(("\b", "Examples:", *(f"  workflow-composer {line}" for line in lines)))
