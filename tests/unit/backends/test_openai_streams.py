"""The OpenAI-compatible backend: streams, limits of time, cancellation."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import aclosing, suppress
from dataclasses import replace

import pytest

from tests.integration.stub_backends import call, collect, local_backend, posts
from tests.integration.stub_server import MODEL, Reply
from workflow_composer.errors import BadRequest, CallTimeout, RateLimited, ServerFailed, ServerUnreachable
from workflow_composer.types import Chunk, Timeouts, Usage

# -------------------------------------------------------------------------------------------------------------- the stream


async def test_a_stream_arrives_piece_by_piece_and_ends_with_its_usage(server, local):
    """Empty events are left out."""
    chunks = await collect(local, call())
    assert chunks == [
        Chunk("an ", model=MODEL),
        Chunk("answer", model=MODEL),
        Chunk(finish_reason="stop", model=MODEL),
        Chunk(usage=Usage(5, 2), model=MODEL),
    ]
    assert posts(server)[0].json["stream_options"] == {"include_usage": True}


async def test_the_first_piece_is_there_before_the_last_is_written(server, local):
    """Nothing waits for the whole."""
    server.script(Reply.stream("first", "second", gap=0.05, die_after=None))
    async with aclosing(local.stream(call())) as stream:
        assert (await anext(stream)).text == "first"
        assert (await anext(stream)).text == "second"


NO_OPTIONS = "Unrecognized request argument supplied: stream_options"
EXTRA = {"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}


@pytest.mark.parametrize(
    "refusal",
    [
        Reply.error(400, NO_OPTIONS, param="stream_options"),
        Reply.error(400, "unknown", param="stream_options.include_usage", code="unknown_parameter"),
        Reply.of({"detail": [EXTRA]}, status=422),
    ],
    ids=["openai", "nested", "fastapi"],
)
async def test_a_server_that_knows_no_stream_options_streams_without(server, local, refusal):
    """Once it has refused them by name, it is not asked again."""
    server.script(refusal, Reply.stream("a", usage=False))
    assert [chunk.text for chunk in await collect(local, call())] == ["a", ""]
    await collect(local, call())
    assert ["stream_options" in request.json for request in posts(server)] == [True, False, False]


async def test_the_text_of_a_refusal_helps_its_own_request_only(server, local):
    """A client may have written it: the next stream asks for its usage again."""
    server.script(Reply.error(400, NO_OPTIONS), Reply.stream("a", usage=False))
    assert [chunk.text for chunk in await collect(local, call())] == ["a", ""]
    await collect(local, call())
    assert ["stream_options" in request.json for request in posts(server)] == [True, False, True]


@pytest.mark.parametrize(
    "refusal",
    [
        Reply.error(400, "max_tokens or max_completion_tokens is too large", param="max_tokens", code="invalid_value"),
        Reply.error(
            400, "max_tokens: integer above max_completion_tokens", param="max_tokens", code="integer_above_max_value"
        ),
        Reply.error(400, "at least 1", param="max_tokens"),
        Reply.error(400, "no", param="stream_options", code="invalid_value"),
    ],
)
async def test_a_limit_that_is_refused_for_its_value_teaches_nothing(server, local, refusal):
    """A server that ignores the other field would else give every later answer without a limit."""
    server.script(refusal)
    with suppress(BadRequest):
        await local.complete(call(max_tokens=10**9))
    await collect(local, call(max_tokens=8))
    assert posts(server)[-1].json["max_tokens"] == 8
    assert "stream_options" in posts(server)[-1].json


async def test_a_field_is_given_up_only_if_the_request_succeeds_without_it(server, local):
    """A server that refuses in any case has said nothing about the field."""
    refusal = Reply.error(400, NO_OPTIONS, param="stream_options")
    server.script(refusal, Reply.error(400, "something else"))
    with pytest.raises(BadRequest):
        await collect(local, call())
    await collect(local, call())
    assert ["stream_options" in request.json for request in posts(server)] == [True, False, True]


async def test_a_model_that_names_its_limit_otherwise_gets_it_so(server, local):
    """OpenAI's reasoning models refuse `max_tokens` and name what they want instead; the meaning is the same."""
    refusal = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    server.script(Reply.error(400, refusal, param="max_tokens", code="unsupported_parameter"))
    await local.complete(call(max_tokens=9))
    await collect(local, call(max_tokens=8))
    limits = [(request.json.get("max_tokens"), request.json.get("max_completion_tokens")) for request in posts(server)]
    assert limits == [(9, None), (None, 9), (None, 8)]


@pytest.mark.parametrize(
    ("refusal", "named"),
    [
        ("Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported.", True),
        ("`temperature` is deprecated for this model.", False),
        ("temperature: Extra inputs are not permitted", False),
    ],
)
async def test_a_model_that_takes_no_temperature_gets_none_that_the_plan_chose(server, local, refusal, named):
    """A cascade's one answer is greedy by default; what the request itself asks for is refused as the server refuses it."""

    def answer(request):
        if "temperature" not in request.json:
            return Reply.stream("4") if request.json.get("stream") else Reply.chat("4")
        return Reply.error(400, refusal, param="temperature" if named else None)

    server.answer = answer
    planned = replace(call(), temperature=0.0)
    assert (await local.complete(planned)).samples[0].text == "4"
    assert [chunk.text for chunk in await collect(local, planned)][:1] == ["4"]
    assert ["temperature" in request.json for request in posts(server)] == [True, False, *[[True, False], [False]][named]]
    with pytest.raises(BadRequest, match="temperature"):
        await local.complete(replace(call(temperature=0.5), temperature=0.5))


async def test_a_temperature_that_is_refused_for_its_value_stays(server, local):
    """It is not the field that the server refuses."""
    server.answer = lambda request: Reply.error(400, "temperature: must be at most 1", param="temperature")
    with pytest.raises(BadRequest):
        await local.complete(replace(call(), temperature=1.5))
    assert len(posts(server)) == 1


async def test_events_are_read_however_the_bytes_arrive(server, local):
    """Comments, multi-line data, carriage returns and an end without [DONE]."""
    event = json.dumps(
        {"choices": [{"index": 0, "delta": {"content": "\u00fc"}, "finish_reason": "stop"}]}, ensure_ascii=False
    )
    first, second = event[:12], event[12:]
    body = f": ping\r\n\r\nevent: x\r\ndata: {first}\r\ndata:{second}\r\n\r\n".encode()
    server.script(Reply(body=body, headers={"Content-Type": "text/event-stream; charset=utf-8"}))
    assert [chunk.text for chunk in await collect(local, call())] == ["\u00fc"]


@pytest.mark.parametrize(
    ("reply", "error", "delivered"),
    [
        (Reply.stream("a", "b", die_after=2), ServerUnreachable, ["a"]),
        (Reply.stream("a", "b", finish=None, done=False), ServerUnreachable, ["a", "b"]),
        (Reply(events=(b'{"error": {"message": "engine died", "code": 500}}',)), ServerFailed, []),
        (Reply(events=(b'{"error": {"message": "slow down", "code": 429}}',)), RateLimited, []),
        (Reply(events=(b"garbage",)), ServerFailed, []),
        (Reply(events=(b"[]",)), ServerFailed, []),
        (Reply.error(503), ServerFailed, []),
    ],
)
async def test_a_stream_that_breaks_raises_what_broke_it(server, local, reply, error, delivered):
    """After whatever had arrived; a stream without a finish reason and without the end marker is not complete."""
    server.script(reply)
    texts: list[str] = []

    async def read():
        async for chunk in local.stream(call()):
            texts.extend(filter(None, [chunk.text]))

    with pytest.raises(error):
        await read()
    assert texts == delivered


async def test_an_answer_that_is_no_stream_is_one_piece_and_leaves_its_connection_in_step(server, local):
    """It is read to its end, so the next call may use the same one."""
    server.script(Reply.chat("no stream"))
    assert [(piece.text, piece.finish_reason) for piece in await collect(local, call())] == [("no stream", "stop")]
    assert (await local.complete(call())).samples
    assert server.connections == 1


# ---------------------------------------------------------------------------------------------------- time, cancellation


async def test_a_silent_stream_runs_into_the_first_token_timeout(server, local):
    """The role alone is no token; the server sees that nobody waits any longer."""
    server.script(Reply.stream("late", gap=60.0))
    with pytest.raises(CallTimeout, match=r"no first token within 0\.3 s"):
        await collect(local, call(timeouts=Timeouts(first_token=0.3, total=30.0)))
    assert await asyncio.to_thread(server.wait_for, lambda stub: stub.disconnects == 1)


async def test_a_stream_that_thinks_first_has_started(server, local):
    """Reasoning shows that the model works."""
    thinking = json.dumps({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}).encode()
    answer = json.dumps({"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]}).encode()
    server.script(Reply(events=(thinking, answer), gap=1.3))
    timeouts = Timeouts(first_token=1.0, total=30.0)
    found = [(chunk.reasoning, chunk.text) for chunk in await collect(local, call(timeouts=timeouts))]
    assert found == [("hm", ""), ("", "yes")]


async def test_a_stream_that_never_ends_runs_into_the_total_timeout(server, local):
    """However many tokens have arrived."""
    server.script(Reply.stream(*"abcdefgh", gap=0.2))
    with pytest.raises(CallTimeout, match=r"longer than 0\.5 s \(total\)"):
        await collect(local, call(timeouts=Timeouts(total=0.5)))
    assert await asyncio.to_thread(server.wait_for, lambda stub: stub.disconnects == 1)


async def test_an_answer_that_never_comes_runs_into_the_total_timeout(server, local):
    """The server sees that nobody waits any longer."""
    server.script(Reply(hang=True))
    with pytest.raises(CallTimeout, match=r"longer than 0\.3 s \(total\)"):
        await local.complete(call(timeouts=Timeouts(first_token=0.1, total=0.3)))
    assert await asyncio.to_thread(server.wait_for, lambda stub: stub.disconnects == 1)


async def test_a_server_that_accepts_no_connection_runs_into_the_connect_timeout():
    """The call's own limit applies, and the error says which one it was."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:  # fill the queue of connections that nobody accepts
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        backend = local_backend(f"http://127.0.0.1:{full.getsockname()[1]}/v1", model="m")
        with pytest.raises(CallTimeout, match="connect"):
            await backend.complete(call(timeouts=Timeouts(connect=0.3)))
        await backend.close()
        for sock in waiting:
            sock.close()


async def test_cancelling_a_call_hangs_up(server, local):
    """The server sees the connection close and can stop generating."""
    server.script(Reply(hang=True))
    task = asyncio.ensure_future(local.complete(call()))
    await asyncio.to_thread(server.wait_for, lambda stub: len(posts(stub)) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.wait_for, lambda stub: stub.disconnects == 1)
    assert (await local.complete(call())).samples[0].text == "an answer"


@pytest.mark.parametrize("way", ["cancel", "close"])
async def test_leaving_a_stream_hangs_up(server, local, way):
    """Whether its reader is cancelled or just has enough."""
    server.script(Reply.stream("a", *"b" * 100, gap=0.1))
    stream = local.stream(call())
    assert (await anext(stream)).text == "a"
    if way == "close":
        await stream.aclose()
    else:
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await asyncio.to_thread(server.wait_for, lambda stub: stub.disconnects == 1)
