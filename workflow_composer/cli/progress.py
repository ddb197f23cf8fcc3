"""Showing how far a batch has come: a bar on a terminal, a line every few seconds elsewhere. On standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

import click

from workflow_composer.cli.batch import Tally
from workflow_composer.cli.output import dollars, percent


class Progress(Protocol):
    """A context manager that is called with the tally after each row."""

    def __call__(self, tally: Tally) -> None:
        """Show it."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress_for(tally: Tally) -> Progress:
    """What suits standard error."""
    return Bar(tally) if sys.stderr.isatty() else Lines()


def describe(tally: Tally) -> str:
    """Accuracy (where rows have labels), errors (where there are any) and cost so far, on one line."""
    parts = []
    if tally.accuracy is not None:
        parts.append(f"accuracy {percent(tally.accuracy)}")
    if tally.errors:
        parts.append(f"errors {tally.errors}")
    return ", ".join([*parts, f"cost {dollars(tally.cost)}"])


class Lines:
    """A line at most every ``interval`` seconds: for log files."""

    def __init__(
        self,
        *,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        show: Callable[[str], None] = lambda line: click.echo(line, err=True),
    ) -> None:
        self._interval = interval
        self._clock = clock
        self._show = show
        self._last = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, tally: Tally) -> None:
        """Show the tally, if it is time to."""
        if self._clock() - self._last < self._interval:
            return
        self._last = self._clock()
        left = tally.seconds_left
        rest = "" if left is None else f", {left:.0f} s left"
        self._show(f"{tally.done}/{tally.total} rows, {describe(tally)}{rest}")


class Bar:
    """A bar by rich."""

    def __init__(self, tally: Tally, **console: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(**{"stderr": True, **console}),
        )
        self._task = self._bar.add_task("", total=tally.total, completed=tally.done, state=describe(tally))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, tally: Tally) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=tally.done, state=describe(tally))
