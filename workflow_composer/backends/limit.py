"""A time limit on an await that is fair to servers: what came while the event loop stood still came in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

_PARTS = 8
_TURNS = 10
"""Turns of the loop in which it sees what has come: a connection takes four from the system to whoever awaits it."""


class Limit:
    """Cancels the block after ``seconds``, which then raises what ``late`` gives; otherwise as `asyncio.timeout`.

    An event loop that stood still (for a long computation, on a machine without time) finds in the same turn that the time
    is over and that the answer is there; `asyncio.timeout` would cancel. Here time counts in parts, of which a pause takes
    only one however long it was, and the loop looks at what has come before the last.
    """

    __slots__ = ("_cancelling", "_expired", "_late", "_left", "_loop", "_part", "_task", "_timer")

    def __init__(self, seconds: float, late: Callable[[], Exception] = TimeoutError) -> None:
        self._part = max(0.0, seconds) / _PARTS
        self._left = _PARTS + _TURNS
        self._late = late
        self._expired = False

    @property
    def left(self) -> float:
        """Seconds that are left, the part under way among them."""
        return self._part * max(0, self._left - _TURNS)

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # an await runs in a task
        self._task, self._loop, self._cancelling = task, task.get_loop(), task.cancelling()
        self._timer = self._loop.call_later(self._part, self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise self._late() from None

    def end(self) -> None:
        """Let the rest of the block take its time."""
        self._timer.cancel()

    def _count(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._part if self._left > _TURNS else 0, self._count)
        else:
            self._expired = True
            self._task.cancel()
