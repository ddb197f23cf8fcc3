"""Where the decisions of a batch are explained: in a file, since a thousand of them would bury the progress."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import click

DECISIONS = Path("logs") / "routing_decisions.log"


class DecisionLog:
    """A text file that comes into being with its first line, and says so once on standard error."""

    def __init__(self, path: Path = DECISIONS) -> None:
        self._path = path
        self._file: TextIO | None = None

    def write(self, text: str, /) -> None:
        """Append. Where the file cannot be written the text is let go: a log must not end the work."""
        with suppress(OSError):
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a", encoding="utf-8", buffering=1)
                click.echo(f"decisions are explained in {self._path}", err=True)
            self._file.write(text)

    def flush(self) -> None:
        """Nothing waits: lines are written when they end."""

    def isatty(self) -> bool:
        """Never: it is a file."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
