"""Running a batch: rows flow through their plans, each on its own, and are written down as they finish.

Every row is one task that goes through its whole cascade at once, so that no tier waits for another. As many are under way
as the limiter allows, and hardly more are read than that. A row that fails is a record with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from workflow_composer.batch.datasets import Row
from workflow_composer.batch.journal import Journal
from workflow_composer.batch.limiter import OVERLOAD, Limiter
from workflow_composer.batch.records import RowRecord
from workflow_composer.batch.tally import Tally
from workflow_composer.values import quick

_BLOCK = 256
"""Rows read at a time, in a thread: a slow disk must not hold up the calls in flight."""

_SYNC_EVERY = 5.0
"""Seconds between two `Journal.sync`: what a loss of power may cost."""


@quick
@dataclass(frozen=True, slots=True)
class Job:
    """A row of a data set, and the routing string that it is sent by."""

    row: Row
    route: str


class _StopAsked(Exception):
    """Someone has set the stop event."""


async def run(
    jobs: Iterable[Job],
    answer: Callable[[Job], Awaitable[RowRecord]],
    journal: Journal,
    *,
    tally: Tally,
    limiter: Limiter,
    progress: Callable[[Tally], None] = lambda tally: None,
    stop: asyncio.Event | None = None,
) -> Tally:
    """Answer all rows that the journal does not have yet; return the tally. ``progress`` is told it after each row.

    ``answer`` should let errors pass: they become the row's record, with their cost, and the limiter hears of those that
    tell of overload. Calls in flight are cancelled, and what was written stays, where this task is cancelled, where ``stop``
    is set (then this returns as usual), and where ``journal`` or ``progress`` raises, which is raised on. An error of
    ``jobs`` is raised once the rows in flight are done.
    """
    whole = _Run(answer, journal, tally, limiter, progress)
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


class _Run:
    """Starts rows as there is room for them."""

    def __init__(
        self,
        answer: Callable[[Job], Awaitable[RowRecord]],
        journal: Journal,
        tally: Tally,
        limiter: Limiter,
        progress: Callable[[Tally], None],
    ) -> None:
        self._answer = answer
        self._journal = journal
        self._tally = tally
        self._limiter = limiter
        self._progress = progress
        self._ended = asyncio.Event()

    async def answer_all(self, jobs: Iterable[Job], group: asyncio.TaskGroup) -> Exception | None:
        """Return when all rows are done, with what ended the reading of ``jobs`` early."""
        tasks: set[asyncio.Task[None]] = set()
        found, fault = iter(jobs), None
        while fault is None:
            block, fault = await asyncio.to_thread(_next_block, found)
            if not block:
                break
            for job in block:
                if not self._journal.is_done(job.row.row):
                    await self._room()
                    self._limiter.begin()
                    task = group.create_task(self._work(job))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.wait(tasks)
        return fault

    async def _room(self) -> None:
        """Wait for room in flight, and for as long as the limiter wants a pause."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while True:
            pause = self._limiter.pause - (loop.time() - since)
            if self._limiter.room and pause <= 0:
                return
            self._ended.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if self._limiter.room else None):
                    await self._ended.wait()

    async def _work(self, job: Job) -> None:
        well = False
        try:
            record = await self._record(job)
            self._journal.append(record)
            well = record.error is None
        finally:
            self._limiter.end(well=well)
            self._ended.set()
        self._tally.add(record)
        self._tally.in_flight, self._tally.limit = self._limiter.in_flight, self._limiter.limit
        self._progress(self._tally)

    async def _record(self, job: Job) -> RowRecord:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            record = await self._answer(job)
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            return _failed(job, error, loop.time() - started)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with one row must not end the others
            self._tell(_error_types(error))
            return _failed(job, error, loop.time() - started)
        self._tell([record.error[0]] if record.error else [])
        return record

    def _tell(self, errors: Iterable[str]) -> None:
        found = next(filter(OVERLOAD.__contains__, errors), None)
        if found is not None:
            self._limiter.overloaded(found)


def _next_block(jobs: Iterator[Job]) -> tuple[list[Job], Exception | None]:
    """The next rows, and what has stopped the reading after them."""
    block: list[Job] = []
    try:
        block.extend(islice(jobs, _BLOCK))
    except Exception as error:  # noqa: BLE001  # raised on as soon as the rows in flight are done
        return block, error
    return block, None


def _is_cancelled() -> bool:
    """Whether someone has cancelled this row, rather than the row something of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _error_types(error: Exception) -> list[str]:
    """The names of an error's type and of those of the attempts that led to it."""
    return [type(error).__name__, *(attempt.error_type or "" for attempt in getattr(error, "attempts", ()))]


def _failed(job: Job, error: BaseException, seconds: float) -> RowRecord:
    attempts = getattr(error, "attempts", ())
    return RowRecord(
        row=job.row.row,
        id=job.row.id,
        route=job.route,
        answer=None,
        confidence=None,
        accepted=False,
        tier=0,
        tiers=(),
        correct=None,
        prompt_tokens=sum(attempt.usage.prompt_tokens for attempt in attempts),
        completion_tokens=sum(attempt.usage.completion_tokens for attempt in attempts),
        cost=sum(attempt.cost for attempt in attempts),
        seconds=seconds,
        error=(type(error).__name__, str(error)),
    )


async def _keep_on_disk(journal: Journal) -> None:
    while True:
        await asyncio.sleep(_SYNC_EVERY)
        await asyncio.to_thread(journal.sync)


async def _raise_when(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _StopAsked
