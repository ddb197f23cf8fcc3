"""The synchronous facade's thread."""

import asyncio
import signal
import threading
import time

import pytest

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.runtime.streams import ResponseStream, SyncResponseStream
from workflow_composer.support.loop_thread import LoopThread, stands_still
from workflow_composer.types import Chunk


@pytest.fixture
def thread():
    made = LoopThread()
    yield made
    made.stop()


def test_results_and_errors_come_back(thread):
    """As if the coroutine had been awaited."""

    async def double(x):
        if x < 0:
            raise ValueError("negative")
        return 2 * x

    assert thread.run(double(2)) == 4
    with pytest.raises(ValueError, match="negative"):
        thread.run(double(-1))


async def test_inside_an_event_loop_it_blocks_that_loop_and_answers(thread):
    """As a notebook's user wants it: results and errors come back, and meanwhile the loop is known to stand still."""
    here = asyncio.get_running_loop()
    others = []
    here.call_soon(others.append, "ran")

    async def fail():
        raise TimeoutError("of its own")

    async def seen():
        return stands_still(here), stands_still(asyncio.get_running_loop())

    assert thread.run(asyncio.sleep(0.15, "a")) == "a"
    assert thread.call(seen) == (True, False)
    with pytest.raises(TimeoutError, match="of its own"):
        thread.run(fail())
    assert not stands_still(here)
    assert others == []


def test_on_its_own_loop_it_refuses(thread):
    """It would wait for itself; the error names the methods to await, and no coroutine is left behind."""

    async def outer():
        for misuse in (lambda: thread.run(asyncio.sleep(0)), lambda: thread.call(seven), thread.stop):
            with pytest.raises(WorkflowComposerError, match="own event loop") as caught:
                misuse()
            assert "agenerate" in caught.value.hint
        return await asyncio.to_thread(thread.call, seven)  # another thread may: the loop goes on

    async def seven():
        return 7

    assert thread.run(outer()) == 7


def test_a_thread_may_wait_for_another(thread):
    """A hook of one orchestrator may use another one."""
    other = LoopThread()

    async def ask():
        return other.run(asyncio.sleep(0, "from the other"))

    assert thread.run(ask()) == "from the other"
    other.stop()


def test_an_interrupt_cancels_the_work(thread):
    """Ctrl-C while waiting: what was begun does not go on behind the caller's back."""
    began, cancelled = threading.Event(), threading.Event()

    async def work():
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def interrupt():
        began.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        thread.run(work())
    assert cancelled.wait(60)


def test_an_interrupted_caller_with_patience_goes_on_when_the_work_has_ended(thread):
    """And no later: what the work holds is free then."""
    began, log = threading.Event(), []

    async def work():
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            log.append("ended")

    def interrupt():
        began.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    waited = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        thread.run(work(), patience=60.0)
    assert log == ["ended"]
    assert time.monotonic() - waited < 30.0


def test_the_first_interrupt_reaches_a_caller_under_asyncio_run(thread):
    """`asyncio.run` answers Ctrl-C by cancelling the main task, which waits here and would not hear of it."""
    began, cancelled = threading.Event(), threading.Event()

    async def work():
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def main():
        thread.run(work())

    def interrupt():
        began.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert cancelled.wait(60)


def test_stopping_ends_the_thread_and_a_later_run_starts_anew():
    """No thread stays behind."""
    before = threading.active_count()
    thread = LoopThread()
    assert thread.run(asyncio.sleep(0, "a")) == "a"
    thread.stop()
    assert threading.active_count() == before
    assert thread.run(asyncio.sleep(0, "b")) == "b"
    thread.stop()
    thread.stop()


def test_an_interrupted_stream_can_be_closed(thread):
    """Ctrl-C while a chunk is awaited leaves no generator running that cannot be closed."""
    began, ended = threading.Event(), threading.Event()

    async def chunks(stream):
        try:
            began.set()
            await asyncio.sleep(60)
            yield Chunk("late")
        finally:
            ended.set()

    def interrupt():
        began.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt), SyncResponseStream(thread, ResponseStream(chunks)) as stream:
        next(stream)
    assert ended.wait(60)
