"""The thread of the synchronous facade: one event loop, started on first use.

Callers may run in their own event loop, as every notebook cell does. That loop is blocked while they wait, and nothing on
the thread's loop waits for it (`stands_still`).

A forked child has a copy of every `LoopThread`, but not the thread: there each starts afresh. The parent's loops are kept,
unused: their end would close descriptors and wake the parent through the pipes that the two still share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for_all
from typing import Any, Generic, TypeVar

from workflow_composer.errors import WorkflowComposerError

T = TypeVar("T")

_GLANCE = 0.1
"""Seconds between checks by a blocked caller whether it was interrupted or its task cancelled."""

_standing: set[asyncio.AbstractEventLoop] = set()


def stands_still(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a synchronous method blocks this loop, so that nothing runs on it before the method returns."""
    return loop in _standing


async def in_own_thread(work: Callable[[], T], name: str) -> T:
    """Run a blocking function in a new daemon thread, which delays no other work and does not keep the program from exiting.

    Raises what it raises. The default executor has few threads, and a closing loop waits for them.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(result)  # type: ignore[arg-type]  # without an error it is a T
        else:
            answer.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  # every error goes to the caller
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing waits for the result
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await answer


class LoopThread:
    """Runs coroutines on an event loop in a separate thread, for callers on any other thread or event loop."""

    def __init__(self) -> None:
        _threads.add(self)
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._jobs: set[_Job[Any]] = set()

    def run(self, coroutine: Coroutine[Any, Any, T], *, patience: float = 0.0) -> T:
        """Run the coroutine and return its result. A running event loop of the caller is blocked meanwhile.

        An interrupt (Ctrl-C) cancels the coroutine, which has ``patience`` seconds to end, and is raised; so is a
        cancellation of the caller's task, which is what the first Ctrl-C is under `asyncio.run`. Raises
        `WorkflowComposerError` if called on this thread's own loop, which would wait for itself.
        """
        try:
            self.refuse_own_loop()
        except WorkflowComposerError:
            coroutine.close()
            raise
        return self._wait_for(_Job(lambda: coroutine, coroutine.close), patience)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run the coroutine without waiting: the caller may hold a lock for which code on this thread's loop waits."""
        self._schedule(_Job(lambda: coroutine, coroutine.close))

    def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Like `run`, but creates the coroutine only when it starts, so that an early interrupt leaves none un-awaited."""
        self.refuse_own_loop()
        return self._wait_for(_Job(function))

    def _wait_for(self, job: _Job[T], patience: float = 0.0) -> T:
        cancelled = _cancellations()  # read first: the cancellation may arrive as soon as the job starts
        try:
            with _callers_loop_standing(), _interrupts_as_such():
                self._schedule(job)
                return _awaited(job.result, cancelled)
        except BaseException:
            self._cancel(job)
            with contextlib.suppress(CancelledError, TimeoutError):
                job.result.exception(patience)
            raise

    def _schedule(self, job: _Job[Any]) -> None:
        """Start a job on the loop, and the loop if needed. `stop` comes before or after it, so that no job is lost."""
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_serve, args=(loop,), name="workflow-composer", daemon=True)
                thread.start()
                self._loop, self._thread = loop, thread
            job.loop = self._loop
            self._jobs.add(job)
            job.result.add_done_callback(lambda _: self._jobs.discard(job))
            self._loop.call_soon_threadsafe(job.start)

    @staticmethod
    def _cancel(job: _Job[Any]) -> None:
        if job.loop is None:  # an interrupt came before it was scheduled
            job.cancel()
            job.start()
            return
        with contextlib.suppress(RuntimeError):  # `stop` has closed the loop and ended the job
            job.loop.call_soon_threadsafe(job.cancel)

    def drain(self) -> None:
        """Wait until no other thread waits for a result here. An interrupt (Ctrl-C) ends the wait. Raises as `run`.

        Calls of the same thread are not waited for: this may run in a signal handler in the midst of one.
        """
        self.refuse_own_loop()
        here = threading.get_ident()
        with _interrupts_as_such():
            while others := [job.result for job in list(self._jobs) if job.caller != here and not job.result.done()]:
                wait_for_all(others)

    def stop(self) -> None:
        """Cancel running work, end the thread, close the loop. A later `run` starts a new one. Raises as `run`."""
        self.refuse_own_loop()
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def forked(self) -> None:
        """Start afresh in a forked child, which has no copy of the thread."""
        _left_behind.append((self._loop, self._jobs))
        self._begin()

    def refuse_own_loop(self) -> None:
        """Raise `WorkflowComposerError` on this thread's own loop, where waiting for it would never end."""
        if self._loop is not None and _callers_loop() is self._loop:
            raise WorkflowComposerError(
                "a synchronous method was called on the orchestrator's own event loop (by a router, a hook or another "
                "plugin), which would wait for itself",
                hint="await the methods whose names begin with a: agenerate, astream, aembed, arun_batch, aswitch_strategy",
            )


class _Job(Generic[T]):
    """A coroutine that can be cancelled at any moment, even before the caller has a future to cancel.

    An interrupt may arrive after the job is scheduled but before the scheduling call returns.
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]], drop: Callable[[], None] = lambda: None) -> None:
        self._make = make
        self._drop = drop
        self.caller = threading.get_ident()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.result: Future[T] = Future()
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    def start(self) -> None:
        """Start on the loop. Nothing is created earlier, because an interrupt would leave it un-awaited."""
        if self._cancelled:
            self._drop()
            self.result.cancel()
            return
        asyncio.ensure_future(self._run()).add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._drop()  # it may not have begun
            self.result.cancel()
        elif (error := task.exception()) is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())

    async def _run(self) -> T:
        if self._cancelled:
            self._drop()
            raise asyncio.CancelledError
        self._task = asyncio.current_task()
        return await self._make()

    def cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()


_threads: weakref.WeakSet[LoopThread] = weakref.WeakSet()
_left_behind: list[object] = []


def _after_fork() -> None:
    _standing.clear()
    for thread in _threads:
        thread.forked()


os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def _interrupts_as_such() -> Iterator[None]:
    """Raise an interrupt inside `threading.Condition` as itself: it then releases a lock that it does not hold."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def _callers_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@contextlib.contextmanager
def _callers_loop_standing() -> Iterator[None]:
    """Mark the caller's loop, if any, as blocked for `stands_still`."""
    loop = _callers_loop()
    if loop is None:
        yield
        return
    _standing.add(loop)
    try:
        yield
    finally:
        _standing.discard(loop)


def _cancellations() -> int | None:
    """Return how often the caller's task has been cancelled so far; None if there is no task."""
    task = None if _callers_loop() is None else asyncio.current_task()
    return None if task is None else task.cancelling()


def _awaited(result: Future[T], cancelled: int | None) -> T:
    """Wait for a result. Raises CancelledError if the caller's task is cancelled more than ``cancelled`` times.

    The main thread looks up from time to time: an interrupt that comes just before it blocks would wake nothing.
    """
    glances = cancelled is not None or threading.current_thread() is threading.main_thread()
    while glances and not result.done():
        with contextlib.suppress(TimeoutError):
            result.exception(_GLANCE)
        if _cancellations() != cancelled:
            raise asyncio.CancelledError
    return result.result()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
