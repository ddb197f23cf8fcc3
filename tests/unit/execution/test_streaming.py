"""Streams: invisible fallback before the first piece, none after it."""

import asyncio
from contextlib import aclosing

import pytest

from workflow_composer.backends.fake import Delay, Interrupted
from workflow_composer.errors import AllCandidatesFailed, ServerFailed, ServerUnreachable, StreamInterrupted
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.plan import Plan, Tier
from workflow_composer.types import Chunk, LLMRequest, Timeouts, Verdict

ASK = LLMRequest.of("What is 2 + 2?")


async def collect(run):
    return [chunk async for chunk in run.chunks()]


def run_of(b, *names, **options):
    return StreamRun(b.executor, Plan((Tier.of(b.candidates(*names), **options),)), ASK, b.trace)


async def test_pieces_arrive_and_the_outcome_is_the_whole(bench, fake):
    """The texts of the chunks join to the sample's text."""
    b = bench(fake("a", "one two three"))
    run = run_of(b)
    chunks = await collect(run)
    assert "".join(c.text for c in chunks) == "one two three" == run.outcome.samples[0].text
    assert len([c for c in chunks if c.text]) == 3
    assert b.trace.usage.completion_tokens == 3


async def test_a_failure_before_the_first_piece_falls_back_unnoticed(bench, fake):
    """The client sees only the second candidate's answer."""
    b = bench(fake("a", ServerUnreachable("down")), fake("b", "fine"))
    run = run_of(b)
    assert "".join(c.text for c in await collect(run)) == "fine"
    assert (run.outcome.candidate.name, run.outcome.fallback_depth) == ("b", 1)


async def test_a_failure_after_the_first_piece_ends_the_stream_with_an_error(bench, fake):
    """What was delivered is never replaced by another model's words."""
    b = bench(fake("a", Interrupted("one two", ServerFailed("died"))), fake("b", "fine"))
    seen = []
    with pytest.raises(StreamInterrupted, match="after 2 chunks") as caught:
        async for chunk in run_of(b).chunks():
            seen.append(chunk.text)
    assert "".join(seen) == "one two"
    assert b.backends["b"].calls == []
    assert caught.value.attempts[0].usage.completion_tokens == 2


async def test_a_late_first_token_falls_back(bench, fake):
    """The first token has a time limit of its own."""
    b = bench(fake("a", Delay(30.0, "late")), fake("b", "fine"), timeouts=Timeouts(1.0, 0.05, 30.0))
    run = run_of(b)
    assert "".join(c.text for c in await collect(run)) == "fine"
    assert b.trace.attempts[0].error_type == "CallTimeout"


async def test_when_nothing_answers_the_stream_raises_before_any_piece(bench, fake):
    """The same error as without a stream."""
    b = bench(fake("a", ServerUnreachable("down")))
    with pytest.raises(AllCandidatesFailed):
        await collect(run_of(b))


async def test_closing_the_stream_stops_the_work(bench, fake):
    """The backend sees that nobody listens any more."""
    b = bench(fake("a", "one two three"))
    async with aclosing(run_of(b).chunks()) as chunks:
        await anext(chunks)
    assert b.backends["a"].cancelled == 1
    assert b.trace.attempts[0].error_type == "GeneratorExit"


async def test_a_tier_that_must_be_judged_arrives_in_one_piece(bench, fake):
    """A doubtful answer of the first tier is never shown; the last tier's is streamed."""
    b = bench(fake("small", "wrong answer"), fake("large", "right answer"))
    doubt = Tier.of(b.candidates("small"), accept=lambda samples: Verdict(False, 0.1, "doubtful"))
    run = StreamRun(b.executor, Plan((doubt, Tier.of(b.candidates("large")))), ASK, b.trace)
    assert [c.text for c in await collect(run) if c.text] == ["right", " answer"]
    assert (run.outcome.tier, b.observer.escalations) == (1, [(0, "doubtful")])


async def test_an_accepted_first_tier_is_the_answer(bench, fake):
    """With several samples, too, the client gets one whole piece."""
    b = bench(fake("small", ["right", "right"]), fake("large", "x"))
    judged = Tier.of(b.candidates("small"), samples=2, accept=lambda samples: Verdict(True, 1.0, "agreed"))
    run = StreamRun(b.executor, Plan((judged, Tier.of(b.candidates("large")))), ASK, b.trace)
    chunks = await collect(run)
    assert [(c.text, c.finish_reason) for c in chunks] == [("right", "stop")]
    assert b.backends["large"].calls == []


async def test_a_stream_without_an_end_is_a_failure(bench, fake):
    """A server that closes the connection in mid-answer has not finished it."""

    class Cut(type(fake("x"))):
        async def stream(self, call):
            yield Chunk("half")

    b = bench(Cut(name="a"))
    with pytest.raises(StreamInterrupted, match="ended without a finish reason"):
        await collect(run_of(b))


async def test_pieces_of_tool_calls_are_joined(bench, fake):
    """The sample holds whole calls in OpenAI's form, though they arrive in pieces."""

    class Calling(type(fake("x"))):
        async def stream(self, call):
            yield Chunk(tool_calls=({"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a":'}},))
            yield Chunk(tool_calls=({"index": 0, "function": {"arguments": "1}"}},))
            yield Chunk(finish_reason="tool_calls")

    b = bench(Calling(name="a"))
    run = run_of(b)
    await collect(run)
    assert run.outcome.samples[0].tool_calls == (
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
    )


async def test_cancelling_the_reader_cancels_the_call(bench, fake):
    """A task that is cancelled while it waits for a piece leaves no call behind."""
    b = bench(fake("a", Delay(30.0, "x")), timeouts=Timeouts(30, 30, 30))
    task = asyncio.ensure_future(collect(run_of(b)))
    while not b.backends["a"].in_flight:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert b.backends["a"].in_flight == 0
