"""One call: its time limit on one await and on each of a stream's, and what it leaves on record."""

import asyncio
import time

import pytest

from workflow_composer.backends.fake import Delay, FakeBackend
from workflow_composer.backends.pricing import Price
from workflow_composer.errors import CallTimeout, ServerFailed, StreamInterrupted
from workflow_composer.execution import call
from workflow_composer.execution.call import Call, Trace
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.plan import Plan, Tier
from workflow_composer.types import Attempt, Chunk, Completion, LLMRequest, ModelCall, Sample, Timeouts, Usage

ASK = LLMRequest.of("What is 2 + 2?")


@pytest.fixture
def within(bench, fake):
    """Makes calls that last so many seconds at the most."""
    b = bench(fake("a"))

    def make(seconds, awaited="answer"):
        return Call(b.endpoints["a"], ModelCall(ASK, timeouts=Timeouts(total=seconds)), b.trace, awaited=awaited)

    return make


def under_way():
    return call._here.watch.calls


async def test_each_of_many_calls_ends_at_its_own_limit(within):
    """One timer serves them all, also where a later call has the earlier limit."""
    ended = []

    async def late(seconds):
        started = time.monotonic()
        with pytest.raises(CallTimeout), within(seconds):
            await asyncio.sleep(30)
        ended.append(seconds)
        assert time.monotonic() - started >= seconds - 0.002  # two clocks

    await asyncio.gather(*(late(seconds) for seconds in (0.6, 0.2, 0.4, 0.8)))
    assert ended == [0.2, 0.4, 0.6, 0.8]
    assert under_way() == {}


async def test_an_answer_that_came_while_the_loop_stood_still_came_in_time(within):
    """Both timers are due in the same turn; the answer takes some more turns to whoever awaits it."""
    loop = asyncio.get_running_loop()

    async def answer():
        for _ in range(4):
            await asyncio.sleep(0)
        return "there"

    async def slow():
        await asyncio.sleep(0.01)
        return await loop.create_task(answer())

    async def call():
        with within(0.05):
            return await slow()

    asking = asyncio.create_task(call())
    await asyncio.sleep(0)
    time.sleep(0.1)  # noqa: ASYNC251  # the machine has no time for the loop
    assert await asking == "there"


async def test_a_request_whose_own_limit_ended_a_call_is_over_however_early_its_timer_fired(bench, fake):
    """Another model asked in what is left by the clock would answer a request that has been given up."""
    b = bench(fake("a"))
    trace = Trace(0.05, clock=lambda: time.perf_counter() - 0.02)
    with pytest.raises(CallTimeout), Call(b.endpoints["a"], ModelCall(ASK, timeouts=Timeouts(total=30.0)), trace):
        await asyncio.sleep(30)
    assert trace.over


async def test_a_cancellation_from_outside_stays_one(within):
    """Only the limit itself becomes a timeout."""

    async def long():
        with within(30.0):
            await asyncio.sleep(30)

    task = asyncio.ensure_future(long())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert under_way() == {}


async def test_limits_nest_with_those_of_the_caller(within):
    """A timeout around the whole that strikes first is the caller's."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            with within(30.0):
                await asyncio.sleep(30)


async def test_after_a_timeout_the_task_goes_on_undisturbed(within):
    """The cancellation that ended the await does not linger."""
    with pytest.raises(CallTimeout, match=r"no answer within 0\.0 s"), within(0.01):
        await asyncio.sleep(30)
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0.02)


async def test_a_foreign_error_is_named_as_the_backends_fault(within):
    """Errors of the package pass as they are."""
    with pytest.raises(ServerFailed, match="FakeBackend raised KeyError"), within(1.0):
        raise KeyError("x")
    with pytest.raises(CallTimeout, match="mine"), within(1.0):
        raise CallTimeout("mine")


async def test_a_readers_time_is_not_limited_but_counts(within):
    """While a reader has a stream's piece nobody is cancelled; the next piece then has the rest of the time."""
    with pytest.raises(CallTimeout, match="no end of the stream within"), within(0.05) as stream:
        stream.pause()
        assert under_way() == {}
        await asyncio.sleep(0.1)
        stream.resume("end of the stream")
        await asyncio.sleep(30)


async def test_a_readers_own_error_is_not_the_backends(within):
    """It comes through as it is."""
    with pytest.raises(KeyError), within(1.0) as stream:
        stream.pause()
        raise KeyError("x")


def test_a_limit_that_is_due_at_once_does_not_disturb_the_next_call_on_uvloop(within):
    """There, a timer of less than half a millisecond is no timer, and does not know when it is due."""
    uvloop = pytest.importorskip("uvloop")

    async def calls():
        with within(0.0), within(30.0):
            pass

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(calls())


class Scripted(FakeBackend):
    """Streams texts, and waits where the script has seconds, whatever the call's own limits are."""

    async def stream(self, call):
        for item in self.items:
            if isinstance(item, float):
                await asyncio.sleep(item)
            else:
                yield Chunk(item)


def streaming(bench, *items, timeouts):
    backend = Scripted(name="a")
    backend.items = items
    b = bench(backend, FakeBackend("fine", name="b"), timeouts=timeouts)
    return b, StreamRun(b.executor, Plan((Tier.of(b.candidates("a", "b")),)), ASK, b.trace)


async def test_the_first_token_has_a_limit_of_its_own_until_something_has_come(bench):
    """A piece that says nothing is none; the executor keeps the limit where the backend does not."""
    b, run = streaming(bench, "", 30.0, timeouts=Timeouts(1.0, 0.05, 30.0))
    assert "".join([chunk.text async for chunk in run.chunks()]) == "fine"
    assert b.trace.attempts[0].error == "no first token within 0.1 s"


async def test_a_reader_that_takes_longer_than_the_call_may_is_never_cancelled(bench):
    """It learns at the next piece that the time is over."""
    _, run = streaming(bench, "one", 30.0, timeouts=Timeouts(1.0, 0.05, 0.05))
    read = []
    with pytest.raises(StreamInterrupted, match="no end of the stream within"):
        async for chunk in run.chunks():
            await asyncio.sleep(0.15)
            read.append(chunk.text)
    assert read == ["one"]


async def test_gpu_time_is_charged_for_calls_that_end_and_for_those_that_fail(bench, fake):
    b = bench(fake("a", Delay(0.05, ServerFailed("500")), Delay(0.05, "4")), prices={"a": Price(gpu_hour=3600.0)})
    await b.executor.run(Plan((Tier.of(b.candidates("a")),)), ASK, b.trace)
    assert [attempt.cost >= 0.045 for attempt in b.trace.attempts] == [True, True]


async def test_servers_that_failed_before_the_answer_are_attempts_of_their_own(bench, fake):
    """They stand before the call that they were part of, under its candidate's name."""
    failed = Attempt(0, 0, "http://10.0.0.1:8000", True, 12.0, error="down", error_type="ServerUnreachable")
    done = Completion(samples=(Sample("4", "stop"),), usage=Usage(3, 1), model="m", failovers=(failed,))
    b = bench(fake("a", ServerFailed("500"), done))
    await b.executor.run(Plan((Tier.of(b.candidates("a")),)), ASK, b.trace)
    recorded = [(attempt.name, attempt.error_type) for attempt in b.trace.attempts]
    assert recorded == [("a", "ServerFailed"), ("a", "ServerUnreachable"), ("a", None)]


async def test_a_call_that_is_cancelled_is_charged_its_prompt(bench, fake):
    """A sample of a vote that is decided without it has been sent; the server has read its prompt."""
    b = bench(fake("a", Delay(30.0, "4")), prices={"a": Price(4.0, 1.0)})
    plan = Plan((Tier.of(b.candidates("a")),))
    asking = asyncio.ensure_future(b.executor.run(plan, ASK, b.trace))
    while not b.endpoints["a"].backend.calls:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    cancelled = b.trace.attempts[0]
    assert (cancelled.usage, cancelled.estimated) == (Usage(round(len("What is 2 + 2?") / 4), estimated=True), True)
    assert cancelled.cost == pytest.approx(cancelled.usage.prompt_tokens * 4e-6)
