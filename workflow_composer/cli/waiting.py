"""A line that is written anew while one waits, on terminals only."""

from __future__ import annotations

import shutil
from typing import Self, TextIO

import click


class Waiting:
    """Shows what happens on a terminal's last line; says what is to stay on lines of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        """Put a text on the last line; nothing where there is no terminal."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[K" + text[:width])
            self._stream.flush()
            self._shown = True

    def say(self, text: str) -> None:
        """Write a line to standard output."""
        self.clear()
        click.echo(text)

    def clear(self) -> None:
        """Take the text off the last line."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.clear()
