"""Showing how far a batch over a data set has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, Self

import click

from workflow_composer.batch.tally import Tally
from workflow_composer.cli.output import dollars, percent


class Progress(Protocol):
    """A context manager that is called with the tally after each row."""

    def __call__(self, tally: Tally) -> None:
        """Show it."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def progress_for(tally: Tally, label: str) -> Progress:
    """What suits standard error: a bar on a terminal, a line every few seconds elsewhere."""
    return Bar(tally, label) if sys.stderr.isatty() else Lines(label)


def describe(tally: Tally) -> str:
    """Share per tier, accuracy (where rows have labels), errors (where there are any), cost and rows in flight."""
    parts = []
    if len(tally.shares) > 1 or any(tally.shares):
        parts.append(" ".join(f"{name} {share:.0%}" for name, share in tally.shares.items()))
    if tally.accuracy is not None:
        parts.append(f"accuracy {percent(tally.accuracy)}")
    if tally.errors:
        parts.append(f"errors {tally.errors}")
    return ", ".join([*parts, f"cost {dollars(tally.cost)}", f"{tally.in_flight} in flight"])


class Lines:
    """A line at most every ``interval`` seconds: for log files."""

    def __init__(
        self,
        label: str,
        *,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        show: Callable[[str], None] = lambda line: click.echo(line, err=True),
    ) -> None:
        self._label = label
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
        now = self._clock()
        if now - self._last < self._interval:
            return
        self._last = now
        left = tally.seconds_left
        rest = "" if left is None else f", {left:.0f} s left"
        self._show(f"{self._label}: {tally.done}/{tally.total} rows, {describe(tally)}{rest}")


class Bar:
    """A bar by rich, redrawn a few times a second."""

    def __init__(self, tally: Tally, label: str, **console: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(**{"stderr": True, **console}),
        )
        self._task = self._bar.add_task(label, total=tally.total, completed=tally.done, state=describe(tally))
        self._last = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, tally: Tally) -> None:
        """Move the bar; describing every one of thousands of rows a second would cost more than the rows."""
        now = time.monotonic()
        if now - self._last > 0.1 or tally.done == tally.total:
            self._last = now
            self._bar.update(self._task, completed=tally.done, state=describe(tally))
