"""The synchronous facade's thread: one event loop, started when it is first needed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from workflow_composer.errors import WorkflowComposerError

T = TypeVar("T")


class LoopThread:
    """Runs coroutines on an event loop in a thread of its own, from any other thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result. An interrupt (Ctrl-C) cancels the coroutine and is raised.

        Raises `WorkflowComposerError` where it is called from within an event loop, which it would block.
        """
        if _inside_loop():
            coroutine.close()
            raise _would_block()
        return self._wait_for(_Job(lambda: coroutine, coroutine.close))

    def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """As `run`, for a coroutine that is made only when it begins: an interrupt before that leaves none behind."""
        if _inside_loop():
            raise _would_block()
        return self._wait_for(_Job(function))

    def _wait_for(self, job: _Job[T]) -> T:
        loop = self._running_loop()
        try:
            loop.call_soon_threadsafe(job.start)
            return job.result.result()
        except BaseException as error:
            loop.call_soon_threadsafe(job.cancel)
            if isinstance(error, RuntimeError) and isinstance(error.__context__, KeyboardInterrupt):
                # The interrupt struck within threading.Condition, which then releases a lock that it does not hold.
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
        """Cancel what still runs, end the thread, close the loop. A later `run` starts anew."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


class _Job(Generic[T]):
    """A coroutine that can be cancelled at any moment, also before the caller holds a future to cancel.

    An interrupt may strike between the scheduling and the return of the call that schedules.
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]], drop: Callable[[], None] = lambda: None) -> None:
        self._make = make
        self._drop = drop
        self.result: Future[T] = Future()
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    def start(self) -> None:
        """Called on the loop. Nothing is made before, because an interrupt would leave it behind."""
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


def _would_block() -> WorkflowComposerError:
    return WorkflowComposerError(
        "a synchronous method was called inside a running event loop, which it would block",
        hint="await the method whose name begins with a: agenerate, astream, aembed, aswitch_strategy",
    )


def _inside_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


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
