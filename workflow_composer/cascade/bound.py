"""A time limit on one await, at a fraction of what a timer per call costs.

Nearly every call ends long before its limit, so a timer of its own would be made and cancelled for nothing (a fifth of the
core's work per request, and twice per token of a stream). Here each event loop has one timer, set to the earliest limit of
the calls in flight when it was set; calls that end in time only leave a dictionary.
"""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

from workflow_composer.cascade.endpoint import Endpoint
from workflow_composer.errors import CallTimeout, ServerFailed, WorkflowComposerError


class Bounded:
    """One await on a backend: it raises nothing but the package's errors, and ends within ``seconds``.

    Otherwise that is a `CallTimeout`, which says that there was no ``what`` within that time. A foreign exception is a fault
    in the backend's code, which should still not keep another candidate from answering. Cancellation is told from lateness
    as in `asyncio.timeout`.
    """

    __slots__ = ("_cancelling", "_endpoint", "_seconds", "_task", "_watch", "_what", "deadline", "expired")

    def __init__(self, endpoint: Endpoint, seconds: float, what: str) -> None:
        self._endpoint = endpoint
        self._seconds = seconds
        self._what = what
        self.expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # an await runs in a task
        self._task = task
        self._cancelling = task.cancelling()
        self._watch = watch = _watch()
        self.deadline = watch.loop.time() + self._seconds
        watch.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._watch.calls[self]
        if self.expired and self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise self._late() from None
        if error is None or isinstance(error, WorkflowComposerError) or not isinstance(error, Exception):
            return
        if isinstance(error, TimeoutError):
            raise self._late() from error
        name = type(self._endpoint.backend).__name__
        raise ServerFailed(
            f"{name} raised {type(error).__name__}: {error}", hint="this is a fault in the backend's code"
        ) from error

    def _late(self) -> CallTimeout:
        return CallTimeout(f"no {self._what} within {self._seconds:.1f} s")

    def expire(self) -> None:
        """The time is up: cancel what is awaited."""
        self.expired = True
        self._task.cancel()


class _Watch:
    """The calls in flight on one event loop, and the timer for the earliest of their limits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.calls: dict[Bounded, None] = {}
        self._timer: asyncio.Handle | None = None
        self._at = 0.0  # uvloop's handle of a timer that is due at once does not know

    def add(self, call: Bounded) -> None:
        self.calls[call] = None
        if self._timer is None or call.deadline < self._at:
            self._set(call.deadline)

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._at = self.loop.call_at(when, self._look), when

    def _look(self) -> None:
        self._timer = None
        now = self.loop.time()
        for call in [call for call in self.calls if call.deadline <= now and not call.expired]:
            call.expire()
        waiting = [call.deadline for call in self.calls if not call.expired]
        if waiting:
            self._set(min(waiting))


_here = threading.local()


def _watch() -> _Watch:
    """The running loop's watch; a loop runs in one thread, and a thread runs one loop at a time."""
    loop = asyncio.get_running_loop()
    watch: _Watch | None = getattr(_here, "watch", None)
    if watch is None or watch.loop is not loop:
        watch = _here.watch = _Watch(loop)
    return watch
