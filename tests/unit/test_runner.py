"""The synchronous facade's thread."""

import asyncio
import signal
import threading

import pytest

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.responses import ResponseStream, SyncResponseStream
from workflow_composer.runner import LoopThread
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


async def test_inside_an_event_loop_it_refuses(thread):
    """It would block the loop that it is called from; the coroutine is closed, not left behind."""
    with pytest.raises(WorkflowComposerError, match="agenerate"):
        thread.run(asyncio.sleep(0))


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
