"""The time limit on one await."""

import asyncio
import time

import pytest

from workflow_composer.cascade.bound import Bounded, _watch
from workflow_composer.errors import CallTimeout, ServerFailed


async def test_each_of_many_calls_ends_at_its_own_limit(bench, fake):
    """One timer serves them all, also where a later call has the earlier limit."""
    endpoint = bench(fake("a")).endpoints["a"]
    ended = []

    async def call(seconds):
        started = time.monotonic()
        with pytest.raises(CallTimeout), Bounded(endpoint, seconds, "late"):
            await asyncio.sleep(30)
        ended.append(seconds)
        assert time.monotonic() - started >= seconds

    await asyncio.gather(*(call(seconds) for seconds in (0.15, 0.05, 0.1, 0.2)))
    assert ended == [0.05, 0.1, 0.15, 0.2]
    assert _watch().calls == {}


async def test_a_cancellation_from_outside_stays_one(bench, fake):
    """Only the limit itself becomes a timeout."""
    endpoint = bench(fake("a")).endpoints["a"]

    async def call():
        with Bounded(endpoint, 30.0, "late"):
            await asyncio.sleep(30)

    task = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _watch().calls == {}


async def test_limits_nest_with_those_of_the_caller(bench, fake):
    """A timeout around the whole that strikes first is the caller's."""
    endpoint = bench(fake("a")).endpoints["a"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            with Bounded(endpoint, 30.0, "late"):
                await asyncio.sleep(30)


async def test_after_a_timeout_the_task_goes_on_undisturbed(bench, fake):
    """The cancellation that ended the await does not linger."""
    endpoint = bench(fake("a")).endpoints["a"]
    with pytest.raises(CallTimeout, match=r"no answer within 0\.0 s"), Bounded(endpoint, 0.01, "answer"):
        await asyncio.sleep(30)
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0.02)


async def test_a_foreign_error_is_named_as_the_backends_fault(bench, fake):
    """Errors of the package pass as they are."""
    endpoint = bench(fake("a")).endpoints["a"]
    with pytest.raises(ServerFailed, match="FakeBackend raised KeyError"), Bounded(endpoint, 1.0, "late"):
        raise KeyError("x")
    with pytest.raises(CallTimeout, match="mine"), Bounded(endpoint, 1.0, "late"):
        raise CallTimeout("mine")


def test_a_limit_that_is_due_at_once_does_not_disturb_the_next_call_on_uvloop(bench, fake):
    """There, a timer of less than half a millisecond is no timer, and does not know when it is due."""
    uvloop = pytest.importorskip("uvloop")
    endpoint = bench(fake("a")).endpoints["a"]

    async def calls():
        with Bounded(endpoint, 0.0, "late"), Bounded(endpoint, 30.0, "late"):
            pass

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(calls())
