"""The scripted model that plugin authors and this project's own tests use."""

from __future__ import annotations

import asyncio
import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.backends import fake as module
from workflow_composer.backends.base import Backend
from workflow_composer.backends.fake import Delay, FakeBackend, Interrupted
from workflow_composer.errors import CallTimeout, RateLimited, ServerFailed, ServerUnreachable
from workflow_composer.types import Completion, LLMRequest, ModelCall, Sample, Timeouts, TokenLogprob, Usage


def call(prompt="How many?", *, samples=1, timeouts=None, **fields):
    """One question to the model."""
    return ModelCall(LLMRequest.of(prompt, **fields), samples=samples, timeouts=timeouts or Timeouts())


async def texts_of(backend, a_call):
    """The samples' texts."""
    return [sample.text for sample in (await backend.complete(a_call)).samples]


async def chunks_of(backend, a_call):
    """The whole stream."""
    return [chunk async for chunk in backend.stream(a_call)]


def test_it_is_a_backend():
    """The fake offers every method of the seam."""
    assert isinstance(FakeBackend(), Backend)


async def test_items_are_used_in_order_and_the_last_is_repeated():
    """One item per call; a script need not know how many calls will come."""
    backend = FakeBackend("one", "two")
    assert [await texts_of(backend, call()) for _ in range(4)] == [["one"], ["two"], ["two"], ["two"]]


async def test_without_a_script_it_repeats_the_last_message():
    """The default answers with what was asked."""
    assert await texts_of(FakeBackend(), call("an echo")) == ["an echo"]


async def test_a_list_gives_each_sample_its_own_text():
    """Votes are scripted as a list, begun again where the call asks for more samples."""
    assert await texts_of(FakeBackend(["4", "5"]), call(samples=5)) == ["4", "5", "4", "5", "4"]
    assert await texts_of(FakeBackend("4"), call(samples=3)) == ["4", "4", "4"]


async def test_a_completion_is_returned_as_it_is():
    """Whoever needs exact token counts scripts a whole completion."""
    completion = Completion(samples=(Sample("x"),), usage=Usage(7, 9), model="m")
    assert await FakeBackend(completion).complete(call()) is completion


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("item", [ServerFailed("down"), ServerFailed, lambda _: ServerFailed("down")])
async def test_exceptions_are_raised_then_the_script_goes_on(item, streamed):
    """An instance, a class or a function that returns one: the call fails, the next one uses the next item."""
    backend = FakeBackend(item, "well again")
    with pytest.raises(ServerFailed):
        await (chunks_of(backend, call()) if streamed else backend.complete(call()))
    assert await texts_of(backend, call()) == ["well again"]


async def test_a_repeated_exception_does_not_collect_tracebacks():
    """The same instance raised a thousand times keeps one call's frames, not a thousand calls'."""
    error = RateLimited("slow down", retry_after=1.5)
    backend = FakeBackend(error)
    depths = []
    for _ in range(3):
        with pytest.raises(RateLimited) as caught:
            await backend.complete(call())
        assert caught.value.retry_after == 1.5
        depths.append(len(caught.traceback))
    assert depths[0] == depths[2]


async def test_functions_see_the_call_and_may_be_asynchronous():
    """A function decides by the request; a coroutine function can wait for the test."""
    release = asyncio.Event()

    async def later(_call):
        await release.wait()
        return ["a", "b"]

    backend = FakeBackend(lambda c: f"t={c.temperature}", later)
    assert await texts_of(backend, ModelCall(LLMRequest.of("?"), temperature=0.7)) == ["t=0.7"]
    waiting = asyncio.create_task(texts_of(backend, call(samples=2)))
    await asyncio.sleep(0)
    assert backend.in_flight == 1
    release.set()
    assert await waiting == ["a", "b"]
    assert (backend.in_flight, backend.most_in_flight) == (0, 1)


async def test_a_delay_within_the_limit_answers():
    """The item follows after the delay, which may lead to any other item."""
    assert await texts_of(FakeBackend(Delay(0.001, Delay(0.001, lambda _: "late"))), call()) == ["late"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_delay_past_the_limit_times_out(streamed):
    """The fake keeps the call's time limits as a real backend does: total, or to the first token of a stream."""

    async def never(_call):
        await asyncio.Event().wait()

    limit = Timeouts(first_token=0.01 if streamed else 60, total=60 if streamed else 0.01)
    for item in (Delay(3600, "late"), never):
        backend = FakeBackend(item)
        with pytest.raises(CallTimeout, match=r"0\.01 s"):
            await (chunks_of if streamed else texts_of)(backend, call(timeouts=limit))
        assert (backend.in_flight, backend.cancelled) == (0, 0)


async def test_cancelling_is_counted():
    """A test can see that cancelling the awaiting task reached the model."""
    backend = FakeBackend(Delay(3600))
    task = asyncio.create_task(backend.complete(call()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (backend.cancelled, backend.in_flight) == (1, 0)


async def test_a_stream_closed_early_counts_as_cancelled():
    """Whoever stops reading must close the stream; the fake shows whether that happened."""
    backend = FakeBackend("one two three")
    stream = backend.stream(call())
    assert (await anext(stream)).text == "one"
    await stream.aclose()
    assert (backend.cancelled, backend.in_flight) == (1, 0)


@given(text=st.text(st.sampled_from("ab \n\t\x1c\xa0\u2003ä"), max_size=12))
def test_counted_tokens_are_the_streamed_ones(text):
    """The quick count agrees with the pieces, whatever the white space."""
    assert module._count(text) == len(module._pieces(text))
    assert "".join(module._pieces(text)) == text


@pytest.mark.parametrize("text", ["", " ", "one", "one two\n three ", "\n\nx"])
async def test_streamed_pieces_join_to_the_text_and_end_with_usage(text):
    """Nothing is lost between pieces, and the last chunk says why it ended and what it used."""
    backend = FakeBackend(text, model="m-1")
    chunks = await chunks_of(backend, call("two words"))
    assert "".join(chunk.text for chunk in chunks) == text
    assert (chunks[-1].finish_reason, chunks[-1].model) == ("stop", "m-1")
    assert chunks[-1].usage == Usage(2, len(chunks) - 1)


async def test_an_interrupted_stream_breaks_after_its_text():
    """The text arrives, then the error; without streaming there is only the error."""
    backend = FakeBackend(Interrupted("half an", ServerUnreachable("broken pipe")))
    stream = backend.stream(call())
    assert [(await anext(stream)).text for _ in range(2)] == ["half", " an"]
    with pytest.raises(ServerUnreachable, match="broken pipe"):
        await anext(stream)
    with pytest.raises(ServerUnreachable):
        await backend.complete(call())


async def test_log_probabilities_come_only_where_they_are_asked_for():
    """Each word is a token; the alternatives' probabilities add up to one."""
    backend = FakeBackend("12 apples", logprob=-0.5)
    assert (await backend.complete(call())).samples[0].logprobs is None
    (sample,) = (await backend.complete(call(logprobs=True, top_logprobs=2))).samples
    assert [token.token for token in sample.logprobs] == ["12", " apples"]
    assert sum(math.exp(value) for _, value in sample.logprobs[0].top) == pytest.approx(1.0)
    streamed = await chunks_of(backend, call(logprobs=True))
    assert [token.token for chunk in streamed for token in chunk.logprobs] == ["12", " apples"]


async def test_scripted_log_probabilities_are_kept():
    """A sample that brings its own is not touched."""
    own = (TokenLogprob("4", -2.0),)
    (sample,) = (await FakeBackend(Sample("4", "stop", logprobs=own)).complete(call(logprobs=True))).samples
    assert sample.logprobs is own


async def test_tool_calls_reach_the_last_chunk():
    """A scripted tool call is streamed as well as returned."""
    tool = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    chunks = await chunks_of(FakeBackend(Sample("", "tool_calls", (tool,))), call())
    assert (chunks[-1].tool_calls, chunks[-1].finish_reason) == ((tool,), "tool_calls")


async def test_usage_counts_words_of_the_prompt_once_and_of_every_sample():
    """Prompt tokens do not multiply with the samples; completion tokens do."""
    completion = await FakeBackend("a b").complete(call("one two three", samples=4))
    assert completion.usage == Usage(3, 8)


async def test_embeddings_are_stable_and_replaceable():
    """Equal texts have equal vectors, and a test may choose its own or fail."""
    backend = FakeBackend()
    first = await backend.embed(["a", "b", "a"], timeout=1)
    assert first.vectors[0] == first.vectors[2] != first.vectors[1]
    assert backend.embedded == ["a", "b", "a"]
    own = await FakeBackend(vector=lambda text: (float(len(text)),)).embed(["abc"], timeout=1)
    assert own.vectors == ((3.0,),)


async def test_calls_health_and_closing_can_be_inspected():
    """What a test looks at: the calls in order, the health as set, whether it was closed."""
    backend = FakeBackend("x", name="tiny", local=False)
    await backend.complete(call("one"))
    await chunks_of(backend, call("two"))
    assert [c.request.messages[-1]["content"] for c in backend.calls] == ["one", "two"]
    assert (await backend.health(timeout=1)).healthy
    backend.healthy = False
    assert not (await backend.health(timeout=1)).healthy
    assert not backend.closed
    await backend.close()
    await backend.close()
    assert backend.closed
    assert not backend.local


async def test_recording_can_be_switched_off():
    """A million benchmark calls need not be kept."""
    backend = FakeBackend("x", record=False)
    await backend.complete(call())
    assert backend.calls == []


def test_the_docstring_example_runs():
    """The documentation's example is true."""
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
