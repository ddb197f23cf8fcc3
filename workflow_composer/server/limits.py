"""Admission: so many requests at once, so many that wait, and the rest are told at once to come back."""

from __future__ import annotations

import asyncio
from collections import deque

from workflow_composer.server.failures import HttpFailure


class Admission:
    """A bounded number of places and a bounded queue for them, first come first served. Belongs to one event loop.

    ``queue_seconds`` is how long a request may wait for its place.
    """

    def __init__(self, concurrency: int, queue: int, queue_seconds: float) -> None:
        self.in_flight = 0
        self._concurrency = concurrency
        self._longest = queue
        self._seconds = queue_seconds
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return sum(not waiting.done() for waiting in self._queue)

    def try_enter(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        if self.in_flight >= self._concurrency or self._queue:
            return False
        self.in_flight += 1
        return True

    async def enter(self) -> None:
        """Wait for a place. Raises `HttpFailure` 429 where too many wait already, or where it takes too long."""
        if self.try_enter():
            return
        if self.queued >= self._longest:
            raise _busy("too many requests are waiting")
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(waiting)
        try:
            async with asyncio.timeout(self._seconds):
                await waiting
        except BaseException as error:
            self._give_up(waiting)
            if isinstance(error, TimeoutError):
                raise _busy(f"no place has become free within {self._seconds:g} s") from None
            raise

    def leave(self) -> None:
        """Give the place to who has waited longest, or free it."""
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
        self.in_flight -= 1

    def _give_up(self, waiting: asyncio.Future[None]) -> None:
        """A place that was given in the same moment goes to the next."""
        if waiting.done() and not waiting.cancelled():
            self.leave()
        elif waiting in self._queue:
            self._queue.remove(waiting)


def _busy(reason: str) -> HttpFailure:
    return HttpFailure(429, f"the service is busy: {reason}", type="rate_limit_error", code="overloaded", retry_after=1.0)
