"""Running rows: each is answered on its own and is written to the journal as it ends.

Every row is one task that runs its whole cascade, so that no tier waits for other rows. The limiter and the budget bound
the rows in flight, and few rows beyond those are read ahead. A failed row becomes a record with an error.
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
from workflow_composer.batch.run.tally import MANY_UNREADABLE, Tally
from workflow_composer.errors import InputError
from workflow_composer.execution.reservation import Budget, Reservation
from workflow_composer.types import LLMResponse

# ------------------------------------------------------------------------------------------------------------------ budget
#
# What a run of rows may spend, and whether it can pay for another row.


class RunBudget:
    """Dollars that a row and the whole run may cost; None: no limit. Call `begin` for every row, and `end` with its result.

    A row begins only if the run budget covers it and the rows in flight, each at the row budget or, without one, at the cost
    of the most expensive row so far. Without a row budget the first row therefore runs alone. With a row budget, the run
    budget holds as far as cost estimates are accurate; without one, the last row may cost more than was left.
    """

    def __init__(self, row: float | None = None, run: float | None = None) -> None:
        for name, dollars in (("row", row), ("run", run)):
            wrong = dollars is not None and (isinstance(dollars, bool) or not isinstance(dollars, (int, float)))
            if wrong or (dollars is not None and not 0 < dollars < math.inf):
                raise InputError(f"invalid {name} budget: {dollars!r}", hint="give a number of dollars above 0")
        self.row, self.run = row, run
        self._money = Budget(math.inf if run is None else run)
        self._dearest: float | None = None
        self._under_way = 0
        self._is_over = False

    @classmethod
    def of(cls, given: Any) -> Self:
        """Return the budget of a mapping ``{"row": dollars, "run": dollars}``; each key is optional. Raises `InputError`."""
        if given is None:
            return cls()
        if not isinstance(given, dict) or not given.keys() <= {"row", "run"}:
            raise InputError(f"invalid budget: {given!r}", hint='write {"row": 0.01, "run": 5.0}, or one of the two keys')
        return cls(**given)

    @property
    def spent(self) -> float:
        """The dollars that this run and earlier ones have spent."""
        return self._money.spent

    @property
    def left(self) -> float:
        """The dollars that the run may still spend."""
        return math.inf if self.run is None else self.run - self.spent

    @property
    def is_over(self) -> bool:
        """Whether no further row may begin in this run."""
        return self._is_over or self.left <= 0

    @property
    def room(self) -> bool:
        """Whether another row may begin now; if not, and unless `is_over`, check again when a row has ended."""
        if self.run is None or not self._under_way:
            return not self.is_over
        expected = self._dearest if self.row is None else self.row
        return expected is not None and self._money.refill(expected, 0.0)

    def earlier(self, cost: float) -> None:
        """Add the cost of earlier runs."""
        Reservation(self._money).settle(cost)

    def begin(self) -> Reservation:
        """Reserve the expected cost of a row that begins, at most what is left."""
        self._under_way += 1
        made = Reservation(self._money)
        expected = self._dearest if self.row is None else self.row
        if self.run is not None:
            made.take(min(math.inf if expected is None else expected, max(self._money.room, 0.0)))
        return made

    def limit_of(self, reserved: Reservation) -> float | None:
        """Return what a row may cost; None: the budget sets no limit for it."""
        if self.row is None:
            return None
        return self.row if self.run is None else reserved.amount

    def end(self, reserved: Reservation, cost: float = 0.0, *, well: bool = False, unpaid: bool = False) -> None:
        """Settle a row that has ended; ``well``: it has an answer.

        ``unpaid``: its budget did not cover any tier. If less than a row budget is left, the run is then over.
        """
        self._under_way -= 1
        reserved.settle(cost)
        if well or cost:
            self._dearest = max(cost, self._dearest or 0.0)
        if unpaid and self.row is not None and self.left < self.row:
            self._is_over = True


_BLOCK = 256
"""Most rows read at a time, in a thread, so that a slow disk does not block the calls in flight."""

_LONGEST_READ = 0.05
"""Seconds after which a block is complete, because an iterator may be slow; the next block is then small."""

_LONGEST_PAUSE = 30.0
"""Longest pause (seconds) before failed rows are tried again when no other rows are left."""

SYNC_EVERY = 5.0
"""Seconds between two calls of `Journal.sync`: the most that a power loss may cost."""

RETRIED = OVERLOAD | {"ServerFailed"}
"""Transient errors: a row that failed with one is tried again."""

BUDGET = "budget"
"""`Tally.stopped_by` if the run budget was used up."""

UNREADABLE = "unreadable"
"""`Tally.stopped_by` if a person ended the run because its answers cannot be read."""

GoOn = Callable[[Tally], Awaitable[bool]]
"""Whether to go on although `MANY_UNREADABLE` answers in a row could not be read; asked once."""


async def going_on(tally: Tally) -> bool:
    """Go on without asking."""
    return True


class Record(Protocol):
    """A finished row, in the form that its journal writes."""

    @property
    def head(self) -> Head:
        """The fields that are counted."""
        ...


J = TypeVar("J")
R = TypeVar("R", bound=Record)
J_contra = TypeVar("J_contra", contravariant=True)
R_contra = TypeVar("R_contra", bound=Record, contravariant=True)
R_co = TypeVar("R_co", bound=Record, covariant=True)


class Answers(Protocol[J_contra, R_co]):
    """Turns rows into records."""

    async def __call__(self, job: J_contra, budget: float | None, /) -> R_co:
        """Answer a row for at most ``budget`` dollars. Raises the row's error."""
        ...

    def failed(self, job: J_contra, error: BaseException, seconds: float, /) -> R_co:
        """Return the record of a row that failed after ``seconds``."""
        ...


class Journal(Protocol[R_contra]):
    """Where records are written."""

    def append(self, record: R_contra, /) -> None:
        """Write a complete record before returning."""
        ...

    def sync(self) -> None:
        """Flush all written records to disk; must be safe to call from another thread."""
        ...


class _StopAsked(Exception):
    """The stop event was set."""


async def run(
    jobs: Iterable[J],
    answers: Answers[J, R],
    journal: Journal[R],
    *,
    tally: Tally,
    limiter: Limiter,
    budget: RunBudget | None = None,
    retries: int = 0,
    retry_after: float = 2.0,
    progress: Callable[[Tally], None] = lambda tally: None,
    stop: asyncio.Event | None = None,
    go_on: GoOn = going_on,
) -> Tally:
    """Answer all rows; return the tally. ``progress`` is called with it after each row, once the row is in the journal.

    An error of ``answers`` becomes the row's record, with its cost; errors of `OVERLOAD` are passed to the limiter. A row
    with an error of `RETRIED` is tried again up to ``retries`` times, after the rows that were not tried yet; when no other
    rows are left, after ``retry_after`` seconds, doubled each time up to half a minute. If the run budget is used up, no
    further row begins, and ``tally.stopped_by`` is `BUDGET`. Once `MANY_UNREADABLE` answers in a row could not be read, no
    further row begins until ``go_on`` has returned; if it returns False, ``tally.stopped_by`` is `UNREADABLE`. Calls in
    flight are cancelled, and written rows stay, if this task is cancelled, if ``stop`` is set (this then returns normally),
    or if ``journal`` or ``progress`` raises (this raises the same error). An error of ``jobs`` is raised after the rows in
    flight have ended.
    """
    whole = _Run(answers, journal, tally, limiter, budget or RunBudget(), (retries, retry_after), progress, go_on)
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
    """Starts rows as the limiter and the budget allow."""

    def __init__(
        self,
        answers: Answers[J, R],
        journal: Journal[R],
        tally: Tally,
        limiter: Limiter,
        budget: RunBudget,
        retries: tuple[int, float],
        progress: Callable[[Tally], None],
        go_on: GoOn,
    ) -> None:
        self._answers = answers
        self._journal = journal
        self._tally = tally
        self._limiter = limiter
        self._budget = budget
        self._retries, self._retry_after = retries
        self._progress = progress
        self._go_on: GoOn | None = go_on
        self._ended = asyncio.Event()
        self._again: list[tuple[J, int]] = []

    async def answer_all(self, jobs: Iterable[J], group: asyncio.TaskGroup) -> Exception | None:
        """Return when all rows have ended or the budget is used up, with the error that ended ``jobs`` early, if any."""
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
                if reason := await self._reason_to_stop():
                    self._tally.stopped_by = reason
                    break
                self._limiter.begin()
                task = group.create_task(self._work(job, tries, self._budget.begin()))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.wait(tasks)
        return reader.fault

    async def _reason_to_stop(self) -> str:
        """Wait until another row may begin; return what forbids it, or an empty text."""
        if not await self._room():
            return BUDGET
        if self._go_on is not None and self._tally.in_a_row >= MANY_UNREADABLE:
            ask, self._go_on = self._go_on, None
            return "" if await ask(self._tally) else UNREADABLE
        return ""

    async def _room(self) -> bool:
        """Wait until another row may begin, including the limiter's pause; return False if the budget is used up."""
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

    async def _work(self, job: J, tries: int, reserved: Reservation) -> None:
        well, cost, unpaid = False, 0.0, False
        try:
            record, errors = await self._record(job, self._budget.limit_of(reserved))
            self._journal.append(record)
            head = record.head
            well, cost, unpaid = head.error is None, head.cost, "BudgetExceeded" in errors
        finally:
            self._limiter.end(well=well)
            self._budget.end(reserved, cost, well=well, unpaid=unpaid)
            self._ended.set()
        if tries < self._retries and not RETRIED.isdisjoint(errors):
            self._again.append((job, tries + 1))
        self._tally.add(head, again=tries > 0)
        self._tally.in_flight, self._tally.limit = self._limiter.in_flight, self._limiter.limit
        self._progress(self._tally)

    async def _record(self, job: J, budget: float | None) -> tuple[R, list[str]]:
        """Answer a row; return its record and the types of the errors that it failed with."""
        started = time.perf_counter()
        try:
            return await self._answers(job, budget), []
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            return self._answers.failed(job, error, time.perf_counter() - started), []
        except Exception as error:  # noqa: BLE001  # an error of one row must not end the others
            errors = _error_types(error)
            tell_overload(self._limiter, errors)
            return self._answers.failed(job, error, time.perf_counter() - started), errors


Generate = Callable[..., Awaitable[LLMResponse]]
"""`ModelOrchestrator.agenerate`, or a replacement with the same signature."""


def heard(generate: Generate, limiter: Limiter) -> Generate:
    """Wrap ``generate`` to report overload errors of attempts to the limiter, even if the row is answered in the end."""

    async def ask(prompt: Any, **fields: Any) -> LLMResponse:
        response = await generate(prompt, **fields)
        tell_overload(limiter, (attempt.error_type or "" for attempt in response.attempts))
        return response

    return ask


def tell_overload(limiter: Limiter, errors: Iterable[str]) -> None:
    """Report the first error of `OVERLOAD`, if any, to the limiter."""
    found = next(filter(OVERLOAD.__contains__, errors), None)
    if found is not None:
        limiter.overloaded(found)


class _Reader(Generic[J]):
    """Reads rows in blocks, in a thread; ``fault`` is the error that stopped the reading."""

    def __init__(self, jobs: Iterable[J]) -> None:
        self._jobs = jobs
        self._iterator: Iterator[J] | None = None
        self._size = 1
        self._is_over = False
        self.fault: Exception | None = None

    async def block(self) -> list[J]:
        """Return the next rows; empty after the last."""
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
        except Exception as error:  # noqa: BLE001  # raised again after the rows in flight have ended
            self._is_over, self.fault = True, error
        return block


def _is_cancelled() -> bool:
    """Whether this row's task was cancelled, rather than something within it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _error_types(error: Exception) -> list[str]:
    """Return the type names of an error and of the attempts that led to it."""
    return [type(error).__name__, *(attempt.error_type or "" for attempt in getattr(error, "attempts", ()))]


async def _keep_on_disk(journal: Journal[R]) -> None:
    while True:
        await asyncio.sleep(SYNC_EVERY)
        await asyncio.to_thread(journal.sync)


async def _raise_when(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _StopAsked
