"""Progress of a batch on standard error: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

import click

from workflow_composer.batch.keeping.shards import Shard
from workflow_composer.batch.run.runner import UNREADABLE, Generate, GoOn, RunBudget
from workflow_composer.batch.run.tally import Tally
from workflow_composer.cli.output import cost_text, dollars, percent
from workflow_composer.errors import AnswersUnreadable, RunBudgetReached
from workflow_composer.storage.appending import open_for_appending

if TYPE_CHECKING:
    from workflow_composer.batch.run.tally import Tally
    from workflow_composer.types import LLMResponse


# ---------------------------------------------------------------------------------------------------------------- spending
#
# Messages about the run budget.


def tell_spent_before(budget: RunBudget, spent: float) -> None:
    """Print to standard error how much of the run budget earlier runs have spent, if any."""
    if budget.run is not None and spent:
        click.echo(f"earlier runs have spent {dollars(spent)} of the run budget of {dollars(budget.run)}", err=True)


def shard_of(text: str | None, environ: Mapping[str, str]) -> Shard | None:
    """Return the shard that ``--shard`` names, and tell which it is; None without one. Raises `InputError`."""
    shard = None if text is None else Shard.parse(text, environ)
    if shard is not None and text != str(shard):
        click.echo(f"shard {shard}", err=True)
    return shard


def part_of_budget(budget: RunBudget, shard: Shard | None) -> RunBudget:
    """Return a shard's part of the run budget, because shards do not know what the others spend; tell how much it is."""
    if shard is None or budget.run is None:
        return budget
    part = RunBudget(budget.row, budget.run / shard.of)
    click.echo(
        f"shard {shard} may spend {dollars(budget.run / shard.of)} of the run budget of {dollars(budget.run)}", err=True
    )
    return part


def tell_unlimited(budget: RunBudget, tally: Tally) -> None:
    """Print to standard error that a budget did not limit rows of unknown cost, if there were any."""
    if budget.run is not None and tally.unpriced:
        rows = f"{tally.unpriced} row{'s' * (tally.unpriced != 1)}"
        click.echo(f"note: the cost of {rows} is not known, so that --run-budget did not limit it", err=True)


def raise_if_over(budget: RunBudget, tally: Tally) -> None:
    """Raise `RunBudgetReached` if the run budget stopped the run, `AnswersUnreadable` if a person did."""
    if tally.stopped_by == UNREADABLE:
        raise AnswersUnreadable(
            f"stopped, because answers could not be read: {tally.done} of {tally.total} rows done",
            hint="have the model mark its answer, or choose another --extract; the same command resumes the run",
        )
    if tally.stopped_by and budget.run is not None:
        raise RunBudgetReached(
            f"the run budget of {dollars(budget.run)} is used up: {dollars(budget.spent)} spent, "
            f"{tally.done} of {tally.total} rows done",
            hint="run the same command with a higher --run-budget to resume",
        )


# --------------------------------------------------------------------------------------------------------------- decisions
#
# The decision log of a batch: a file, because thousands of lines would hide the progress.


DECISIONS = "routing_decisions.log"


class DecisionLog:
    """A text file that is created with its first line, which is announced once on standard error.

    ``locate`` returns the path for the file's name.
    """

    def __init__(self, locate: Callable[[str], Path]) -> None:
        self._locate = locate
        self._file: TextIO | None = None

    def write(self, text: str, /) -> None:
        """Append the text; drop it if the file cannot be written, because a log must not stop the run."""
        with suppress(OSError):
            if self._file is None:
                path = self._locate(DECISIONS)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.fdopen(open_for_appending(path), "a", encoding="utf-8", buffering=1)
                click.echo(f"decisions are logged in {path}", err=True)
            self._file.write(text)

    def flush(self) -> None:
        """Do nothing: the file is line-buffered."""

    def isatty(self) -> bool:
        """Return False: it is a file."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


# ----------------------------------------------------------------------------------------------------------------- waiting
#
# A status line that is redrawn while waiting, on terminals only.


class Warned:
    """``generate`` of an orchestrator that counts the answers' warnings; `tell` prints each kind once."""

    def __init__(self, generate: Generate) -> None:
        self._generate = generate
        self._counts: Counter[str] = Counter()

    async def __call__(self, prompt: Any, **fields: Any) -> LLMResponse:
        """Answer a prompt."""
        response = await self._generate(prompt, **fields)
        if response.warning:
            self._counts[response.warning.partition(": ")[0]] += 1
        return response

    def tell(self) -> None:
        """Print the warnings with the number of answers to standard error."""
        for warning, count in self._counts.most_common():
            click.echo(f"warning: {count} answer{'' if count == 1 else 's'}: {warning}", err=True)


class Waiting:
    """Shows a status on a terminal's last line; prints permanent lines above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        """Show a text on the last line; do nothing without a terminal."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[K" + text[:width])
            self._stream.flush()
            self._shown = True

    def say(self, text: str) -> None:
        """Print a permanent line to standard output."""
        self.clear()
        click.echo(text)

    def clear(self) -> None:
        """Clear the last line."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.clear()


_REDRAW = 0.1
"""Seconds between updates: with thousands of rows per second, updating for each would cost more than the rows."""


class Progress(Protocol):
    """A context manager that is called with the tally after each row."""

    def __call__(self, tally: Any) -> None:
        """Show the tally."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """Leave the screen to something else meanwhile."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def describe(tally: Tally) -> str:
    """Return accuracy (with labels), errors (if any) and this run's cost so far, on one line."""
    return _described(tally, cost_text(tally.cost_now, tally.unpriced_now))


def _described(tally: Tally, cost: str) -> str:
    parts = []
    if tally.accuracy is not None:
        parts.append(f"accuracy {percent(tally.accuracy)}")
    if tally.unreadable:
        parts.append(f"unreadable {tally.unreadable}")
    if tally.errors:
        parts.append(f"errors {tally.errors}")
    return ", ".join([*parts, f"cost {cost}"])


def describe_tiers(tally: Tally) -> str:
    """Return the same with the share of rows that each tier decided, the cost of all runs, and the rows in flight."""
    shares = " ".join(f"{name} {share:.0%}" for name, share in tally.shares.items())
    rest = _described(tally, cost_text(tally.cost, tally.unpriced))
    return ", ".join(filter(None, [shares, rest, f"{tally.in_flight} in flight"]))


Describe = Callable[[Any], str]


def progress_for(tally: Tally, describe: Describe = describe, *, label: str = "") -> Progress:
    """Return a bar or lines, as standard error allows; ``describe`` adds details on one line, ``label`` names the run."""
    return Bar(tally, describe, label=label) if sys.stderr.isatty() else Lines(describe, label=label)


class Lines:
    """Prints a line at most every ``interval`` seconds, for log files."""

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

    def paused(self) -> AbstractContextManager[None]:
        """Do nothing: printed lines stay."""
        return nullcontext()

    def __call__(self, tally: Tally) -> None:
        """Print the tally if the interval is over."""
        now = self._clock()
        if now - self._last < self._interval:
            return
        self._last = now
        left = tally.seconds_left
        rest = "" if left is None else f", {left:.0f} s left"
        self._show(f"{self._label}{tally.done}/{tally.total} rows, {self._describe(tally)}{rest}")


class Bar:
    """A progress bar of rich."""

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

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar off the screen meanwhile."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def __call__(self, tally: Tally) -> None:
        """Update the bar."""
        now = time.monotonic()
        if now - self._last > _REDRAW or tally.done == tally.total:
            self._last = now
            self._bar.update(self._task, completed=tally.done, state=self._describe(tally))


# ---------------------------------------------------------------------------------------------------- unreadable answers
#
# The question whether to go on with a run whose answers cannot be read.


def doubting(progress: Progress, remedy: str, *, label: str = "") -> GoOn:
    """Return the question whether to go on: it asks on a terminal; elsewhere it prints a warning and goes on."""
    start = f"{label}: " if label else ""

    async def go_on(tally: Tally) -> bool:
        cause = "reached the token limit: raise --max-tokens" if 2 * tally.cut_off > tally.unreadable else ""
        said = (
            f"{start}the last {tally.in_a_row} answers in a row could not be read",
            f"hint: most of them {cause}" if cause else f"hint: {remedy}",
        )
        with progress.paused():
            for line in said:
                click.echo(line, err=True)
            if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
                return True
            click.echo(f"{tally.done} of {tally.total} rows done. Go on? [y/N] ", nl=False, err=True)
            return (await _line()).strip().lower() in {"y", "yes"}

    return go_on


async def _line() -> str:
    """Return a line of standard input without blocking the calls in flight; empty at its end."""
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    there = asyncio.Event()
    loop.add_reader(descriptor, there.set)
    try:
        await there.wait()
        return os.read(descriptor, 1024).decode(errors="replace")
    finally:
        loop.remove_reader(descriptor)
