"""The thread of the synchronous facade: one event loop, started on first use.

Callers may run in their own event loop, as every notebook cell does. That loop is blocked while they wait, and nothing on
the thread's loop waits for it (`stands_still`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar

from workflow_composer.errors import WorkflowComposerError

T = TypeVar("T")

_GLANCE = 0.1
"""Seconds between checks by a blocked caller whether its task was cancelled; nothing else would notify it."""

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
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, T], *, patience: float = 0.0) -> T:
        """Run the coroutine and return its result. A running event loop of the caller is blocked meanwhile.

        An interrupt (Ctrl-C) cancels the coroutine, which has ``patience`` seconds to end, and is raised; so is a
        cancellation of the caller's task, which is what the first Ctrl-C is under `asyncio.run`. Raises
        `WorkflowComposerError` if called on this thread's own loop, which would wait for itself.
        """
        try:
            self._refuse_own_loop()
        except WorkflowComposerError:
            coroutine.close()
            raise
        return self._wait_for(_Job(lambda: coroutine, coroutine.close), patience)

    def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Like `run`, but creates the coroutine only when it starts, so that an early interrupt leaves none un-awaited."""
        self._refuse_own_loop()
        return self._wait_for(_Job(function))

    def _wait_for(self, job: _Job[T], patience: float = 0.0) -> T:
        loop = self._running_loop()
        cancelled = _cancellations()  # read first: the cancellation may arrive as soon as the job starts
        try:
            with _callers_loop_standing():
                loop.call_soon_threadsafe(job.start)
                return _awaited(job.result, cancelled)
        except BaseException as error:
            loop.call_soon_threadsafe(job.cancel)
            with contextlib.suppress(CancelledError, TimeoutError):
                job.result.exception(patience)
            if isinstance(error, RuntimeError) and isinstance(error.__context__, KeyboardInterrupt):
                # The interrupt arrived inside threading.Condition, which then releases a lock that it does not hold.
                raise KeyboardInterrupt from None
            raise

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_serve, args=(loop,), name="workflow-composer", daemon=True)
                thread.start()
                self._loop, self._thread = loop, thread
            return self._loop

    def stop(self) -> None:
        """Cancel running work, end the thread, close the loop. A later `run` starts a new one. Raises as `run`."""
        self._refuse_own_loop()
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _refuse_own_loop(self) -> None:
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
    """Wait for a result. Raises CancelledError if the caller's task is cancelled more than ``cancelled`` times."""
    while cancelled is not None and not result.done():
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
