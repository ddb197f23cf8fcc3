"""Showing how far a batch has come: a bar on a terminal, a line every few seconds elsewhere. On standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import click

from workflow_composer.cli.output import dollars, percent

if TYPE_CHECKING:
    from workflow_composer.batch.tally import Tally

_REDRAW = 0.1
"""Seconds: describing every one of thousands of rows a second would cost more than the rows."""


class Progress(Protocol):
    """A context manager that is called with the tally after each row."""

    def __call__(self, tally: Any) -> None:
        """Show it."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def describe(tally: Tally) -> str:
    """Accuracy (where rows have labels), errors (where there are any) and this run's cost so far, on one line."""
    return _described(tally, tally.cost_now)


def _described(tally: Tally, cost: float) -> str:
    parts = []
    if tally.accuracy is not None:
        parts.append(f"accuracy {percent(tally.accuracy)}")
    if tally.errors:
        parts.append(f"errors {tally.errors}")
    return ", ".join([*parts, f"cost {dollars(cost)}"])


def describe_tiers(tally: Tally) -> str:
    """The same, with the cost of earlier runs, the share of rows that each tier has decided, and the rows in flight."""
    shares = " ".join(f"{name} {share:.0%}" for name, share in tally.shares.items())
    return ", ".join(filter(None, [shares, _described(tally, tally.cost), f"{tally.in_flight} in flight"]))


Describe = Callable[[Any], str]


def progress_for(tally: Tally, describe: Describe = describe, *, label: str = "") -> Progress:
    """What suits standard error; ``describe`` says on one line what there is beside the rows, ``label`` of which run."""
    return Bar(tally, describe, label=label) if sys.stderr.isatty() else Lines(describe, label=label)


class Lines:
    """A line at most every ``interval`` seconds: for log files."""

    def __init__(
        self,
        describe: Describe = describe,
        *,
        label: str = "",
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        show: Callable[[str], None] = lambda line: click.echo(line, err=True),
    ) -> None:
        self._describe = describe
        self._label = f"{label}: " if label else ""
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
        self._show(f"{self._label}{tally.done}/{tally.total} rows, {self._describe(tally)}{rest}")


class Bar:
    """A bar by rich."""

    def __init__(self, tally: Tally, describe: Describe = describe, *, label: str = "", **console: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._describe = describe
        self._bar = Progress(
            *([TextColumn("{task.description}", markup=False)] if label else []),
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
        """Move the bar."""
        now = time.monotonic()
        if now - self._last > _REDRAW or tally.done == tally.total:
            self._last = now
            self._bar.update(self._task, completed=tally.done, state=self._describe(tally))
