"""Where a single prompt comes from."""

from __future__ import annotations

import sys

import click

from workflow_composer.errors import InputError


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
