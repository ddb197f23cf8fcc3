"""Running rows: each goes its own way to its answer, and is written down as it ends.

Every row is one task that goes through its whole cascade at once, so that no tier waits for another. As many are under way
as the limiter allows and the budget pays for, and hardly more are read than that. A row that fails is a record with an
error.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, Protocol, Self, TypeVar

from workflow_composer.batch.run.limiter import OVERLOAD, Limiter
from workflow_composer.batch.run.records import Head
from workflow_composer.batch.run.tally import Tally
from workflow_composer.errors import InputError
from workflow_composer.types import LLMResponse

# ------------------------------------------------------------------------------------------------------------------ budget
#
# What a run of rows may spend, and whether there is money for another row.


class Budget:
    """Dollars that a row and the whole run may cost; None: no limit. Told of every row by `begin` and `end`.

    A row begins where the run's money pays for it and for the rows under way, each taken to cost the row's budget, or,
    without one, as much as the dearest row so far. The first row then goes alone, so that there is something to go by. With
    a budget for rows the run's budget holds as far as estimates do; without one, the last row may cost more than was left.
    """

    def __init__(self, row: float | None = None, run: float | None = None) -> None:
        for name, dollars in (("row", row), ("run", run)):
            wrong = dollars is not None and (isinstance(dollars, bool) or not isinstance(dollars, (int, float)))
            if wrong or (dollars is not None and not 0 < dollars < math.inf):
                raise InputError(f"the budget of a {name} is {dollars!r}", hint="give a number of dollars above 0")
        self.row, self.run = row, run
        self.spent = 0.0
        self._dearest: float | None = None
        self._under_way = 0
        self._is_over = False

    @classmethod
    def of(cls, given: Any) -> Self:
        """The budget that a mapping names: ``{"row": dollars, "run": dollars}``, either or both."""
        if given is None:
            return cls()
        if not isinstance(given, dict) or not given.keys() <= {"row", "run"}:
            raise InputError(f"the budget is {given!r}", hint='write it as {"row": 0.01, "run": 5.0}, or one of the two')
        return cls(**given)

    @property
    def left(self) -> float:
        """Dollars that the run may still spend."""
        return math.inf if self.run is None else self.run - self.spent

    @property
    def is_over(self) -> bool:
        """Whether no further row may begin, whatever ends."""
        return self._is_over or self.left <= 0

    @property
    def room(self) -> bool:
        """Whether another row may begin now; where not, and the budget is not over, once another has ended."""
        if self.run is None or not self._under_way:
            return not self.is_over
        expected = self._dearest if self.row is None else self.row
        return expected is not None and (self._under_way + 1) * expected <= self.left

    def earlier(self, cost: float) -> None:
        """Count what earlier runs have spent."""
        self.spent += cost

    def begin(self) -> float | None:
        """A row begins; returns what it may cost, None where only its own limits hold."""
        self._under_way += 1
        return None if self.row is None else min(self.row, self.left)

    def end(self, cost: float = 0.0, *, well: bool = False, unpaid: bool = False) -> None:
        """A row is over and has cost so much; ``well`` where it has an answer.

        ``unpaid``: what it might cost paid for no tier. Where that was the run's last money, the run is over.
        """
        self._under_way -= 1
        self.spent += cost
        if well or cost:
            self._dearest = max(cost, self._dearest or 0.0)
        if unpaid and self.row is not None and self.left < self.row:
            self._is_over = True


pass  # MERGED

_BLOCK = 256
"""Most rows read at a time, in a thread: a slow disk must not hold up the calls in flight."""

_LONGEST_READ = 0.05
"""Seconds after which a block is complete, and the next begins small: an iterator may be in no hurry."""

_LONGEST_PAUSE = 30.0
"""Seconds between a row's failure and another try where nothing else is left to do."""

_SYNC_EVERY = 5.0
"""Seconds between two `Journal.sync`: what a loss of power may cost."""

RETRIED = OVERLOAD | {"ServerFailed"}
"""Errors that another try, a while later, may not meet again."""

BUDGET = "budget"
"""`Tally.stopped_by` where the run's budget was used up."""


class Record(Protocol):
    """A finished row, in whatever form it is written down."""

    @property
    def head(self) -> Head:
        """What counting needs to know of it."""
        ...


J = TypeVar("J")
R = TypeVar("R", bound=Record)
J_contra = TypeVar("J_contra", contravariant=True)
R_contra = TypeVar("R_contra", bound=Record, contravariant=True)
R_co = TypeVar("R_co", bound=Record, covariant=True)


class Answers(Protocol[J_contra, R_co]):
    """Turns rows into records."""

    async def __call__(self, job: J_contra, budget: float | None, /) -> R_co:
        """Answer a row for at most ``budget`` dollars. Raises what went wrong."""
        ...

    def failed(self, job: J_contra, error: BaseException, seconds: float, /) -> R_co:
        """The record of a row that has failed after so many seconds."""
        ...


class Journal(Protocol[R_contra]):
    """Where records are written."""

    def append(self, record: R_contra, /) -> None:
        """Write a record, all of it, before this returns."""
        ...

    def sync(self) -> None:
        """Have what was written put on the disk itself; safe to call from another thread."""
        ...


class _StopAsked(Exception):
    """Someone has set the stop event."""


async def run(
    jobs: Iterable[J],
    answers: Answers[J, R],
    journal: Journal[R],
    *,
    tally: Tally,
    limiter: Limiter,
    budget: Budget | None = None,
    retries: int = 0,
    retry_after: float = 2.0,
    progress: Callable[[Tally], None] = lambda tally: None,
    stop: asyncio.Event | None = None,
) -> Tally:
    """Answer all rows; return the tally. ``progress`` is told it after each row, which is written down by then.

    Errors that ``answers`` raises become the row's record, with their cost, and the limiter hears of those that tell of
    overload. A row that failed for want of a server is tried again, behind rows that were not tried yet, ``retries`` times;
    where nothing else is left to do, after ``retry_after`` seconds, twice that the next time, and half a minute at most.
    Where the run's budget is used up, no further row begins, and ``tally.stopped_by`` says so. Calls in flight are
    cancelled, and what was written stays, where this task is cancelled, where ``stop`` is set (then this returns as usual),
    and where ``journal`` or ``progress`` raises, which is raised on. An error of ``jobs`` is raised once the rows in flight
    are done.
    """
    whole = _Run(answers, journal, tally, limiter, budget or Budget(), (retries, retry_after), progress)
    tally.start()
    try:
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(_keep_on_disk(journal))]
            if stop is not None:
                background.append(group.create_task(_raise_when(stop)))
            fault = await whole.answer_all(jobs, group)
            for task in background:
                task.cancel()
    except BaseExceptionGroup as failed:
        errors = [error for error in failed.exceptions if not isinstance(error, _StopAsked)]
        if errors:
            raise errors[0] from None
        return tally
    if fault is not None:
        raise fault
    await asyncio.to_thread(journal.sync)
    return tally


class _Run(Generic[J, R]):
    """Starts rows as there is room for them."""

    def __init__(
        self,
        answers: Answers[J, R],
        journal: Journal[R],
        tally: Tally,
        limiter: Limiter,
        budget: Budget,
        retries: tuple[int, float],
        progress: Callable[[Tally], None],
    ) -> None:
        self._answers = answers
        self._journal = journal
        self._tally = tally
        self._limiter = limiter
        self._budget = budget
        self._retries, self._retry_after = retries
        self._progress = progress
        self._ended = asyncio.Event()
        self._again: list[tuple[J, int]] = []

    async def answer_all(self, jobs: Iterable[J], group: asyncio.TaskGroup) -> Exception | None:
        """Return when all rows are done, or the budget is over, with what ended the reading of ``jobs`` early."""
        tasks: set[asyncio.Task[None]] = set()
        reader = _Reader(jobs)
        while not self._tally.stopped_by:
            block = [(job, 0) for job in await reader.block()]
            if not block and tasks:
                await asyncio.wait(tasks)
            again: list[tuple[J, int]] = []
            if not block or len(self._again) >= _BLOCK:
                again, self._again = self._again, []
            if not block and not again:
                break
            if not block:
                await asyncio.sleep(self._retry_after)
                self._retry_after = min(2 * self._retry_after, _LONGEST_PAUSE)
            for job, tries in block + again:
                if not await self._room():
                    self._tally.stopped_by = BUDGET
                    break
                self._limiter.begin()
                task = group.create_task(self._work(job, tries, self._budget.begin()))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.wait(tasks)
        return reader.fault

    async def _room(self) -> bool:
        """Wait for room in flight, and for as long as the limiter wants a pause; False where the budget is over."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while not self._budget.is_over:
            pause = self._limiter.pause - (loop.time() - since)
            room = self._limiter.room and self._budget.room
            if room and pause <= 0:
                return True
            self._ended.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if room else None):
                    await self._ended.wait()
        return False

    async def _work(self, job: J, tries: int, budget: float | None) -> None:
        well, cost, unpaid = False, 0.0, False
        try:
            record, errors = await self._record(job, budget)
            self._journal.append(record)
            head = record.head
            well, cost, unpaid = head.error is None, head.cost, "BudgetExceeded" in errors
        finally:
            self._limiter.end(well=well)
            self._budget.end(cost, well=well, unpaid=unpaid)
            self._ended.set()
        if tries < self._retries and not RETRIED.isdisjoint(errors):
            self._again.append((job, tries + 1))
        self._tally.add(head, again=tries > 0)
        self._tally.in_flight, self._tally.limit = self._limiter.in_flight, self._limiter.limit
        self._progress(self._tally)

    async def _record(self, job: J, budget: float | None) -> tuple[R, list[str]]:
        """The record of a row, and the types of the errors that it failed with."""
        started = time.perf_counter()
        try:
            return await self._answers(job, budget), []
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            return self._answers.failed(job, error, time.perf_counter() - started), []
        except Exception as error:  # noqa: BLE001  # whatever is wrong with one row must not end the others
            errors = _error_types(error)
            tell_overload(self._limiter, errors)
            return self._answers.failed(job, error, time.perf_counter() - started), errors


Generate = Callable[..., Awaitable[LLMResponse]]
"""`ModelOrchestrator.agenerate`, or what stands in for it."""


def heard(generate: Generate, limiter: Limiter) -> Generate:
    """``generate`` that tells the limiter of answers which a server had refused at first: no row need fail for that."""

    async def ask(prompt: Any, **fields: Any) -> LLMResponse:
        response = await generate(prompt, **fields)
        tell_overload(limiter, (attempt.error_type or "" for attempt in response.attempts))
        return response

    return ask


def tell_overload(limiter: Limiter, errors: Iterable[str]) -> None:
    """Tell the limiter of the first error that speaks of overload, if any does."""
    found = next(filter(OVERLOAD.__contains__, errors), None)
    if found is not None:
        limiter.overloaded(found)


class _Reader(Generic[J]):
    """Rows by blocks, read in a thread; ``fault`` is what has stopped the reading."""

    def __init__(self, jobs: Iterable[J]) -> None:
        self._jobs = jobs
        self._iterator: Iterator[J] | None = None
        self._size = 1
        self._is_over = False
        self.fault: Exception | None = None

    async def block(self) -> list[J]:
        """The next rows; empty behind the last."""
        return [] if self._is_over else await asyncio.to_thread(self._next)

    def _next(self) -> list[J]:
        block: list[J] = []
        latest = time.monotonic() + _LONGEST_READ
        try:
            self._iterator = self._iterator or iter(self._jobs)
            while len(block) < self._size and (not block or time.monotonic() < latest):
                block.append(next(self._iterator))
            self._size = min(2 * self._size, _BLOCK) if time.monotonic() < latest else 1
        except StopIteration:
            self._is_over = True
        except Exception as error:  # noqa: BLE001  # raised on as soon as the rows in flight are done
            self._is_over, self.fault = True, error
        return block


def _is_cancelled() -> bool:
    """Whether someone has cancelled this row, rather than the row something of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _error_types(error: Exception) -> list[str]:
    """The names of an error's type and of those of the attempts that led to it."""
    return [type(error).__name__, *(attempt.error_type or "" for attempt in getattr(error, "attempts", ()))]


async def _keep_on_disk(journal: Journal[R]) -> None:
    while True:
        await asyncio.sleep(_SYNC_EVERY)
        await asyncio.to_thread(journal.sync)


async def _raise_when(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _StopAsked
