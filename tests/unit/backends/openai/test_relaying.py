"""Relayed answers: the server's own bytes reach the caller, and nothing else about the call changes."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.integration.stub_backends import PROMPT, backend_of, local_backend, posts
from tests.integration.stub_server import MODEL, Reply
from workflow_composer.backends.http.connection import Bounds
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.backends.openai import backend as backend_module
from workflow_composer.backends.openai import relaying
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import (
    AnswerTooLong,
    AuthenticationFailed,
    BadRequest,
    CallTimeout,
    ContextOverflow,
    EgressDenied,
    RateLimited,
    ServerFailed,
    ServerUnreachable,
)
from workflow_composer.types import LLMRequest, ModelCall, Relay, Sample, Timeouts, Usage

QUICK = Timeouts(connect=1.0, first_token=0.3, total=5.0)


class Client:
    """Takes what a relay gives."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    @property
    def text(self) -> str:
        return b"".join(self.pieces).decode()

    @property
    def events(self) -> list[str]:
        return [line[6:] for line in self.text.split("\n") if line.startswith("data: ")]


def whole(**fields) -> ModelCall:
    return ModelCall(LLMRequest.of(PROMPT, relay=Relay(), **fields), samples=fields.get("n", 1))


def streamed(client: Client, *, usage: bool = False, keep: bool = False, timeouts: Timeouts = QUICK) -> ModelCall:
    relay = Relay(client.pieces.append, usage=usage)
    relay.keep = keep
    return ModelCall(LLMRequest.of(PROMPT, relay=relay), timeouts=timeouts)


@pytest.fixture
async def named(server):
    """A model whose id the profile knows, so that the server is not asked for it."""
    backend = local_backend(server.url, model=MODEL)
    yield backend
    await backend.close()


# ---------------------------------------------------------------------------------------------------------- whole answers


async def test_a_whole_answer_is_handed_on_byte_for_byte(server, local):
    """Fields that only this server knows survive, in its own order and spacing."""
    body = b'{"choices": [{"message":{"content":"4","x_own":[1.50]},"finish_reason":"stop"}],  "model":"m", "usage":' + (
        b'{"prompt_tokens":3,"completion_tokens":2,"special":{"a":1}}}'
    )
    server.script(Reply(body=body))
    call = whole()
    done = await local.complete(call)
    assert call.request.relay.body == body
    assert (done.samples, done.usage, done.model) == ((Sample("4", "stop"),), Usage(3, 2), "m")


async def test_the_request_is_written_as_without_a_relay(server, local):
    """Same body, same key, same path."""
    fields = {"max_tokens": 7, "temperature": 0.5, "seed": 3, "extra": {"min_p": 0.1, "nested": {"ü": [1, None]}}, "n": 2}
    await local.complete(whole(**fields))
    await local.complete(ModelCall(LLMRequest.of(PROMPT, **fields), samples=2))
    relayed, plain = posts(server)
    assert relayed.json == plain.json
    assert (relayed.path, relayed.headers["authorization"]) == (plain.path, plain.headers["authorization"])


async def test_tool_calls_and_log_probabilities_are_read_where_there_are_some(server, local):
    """Hooks and the executor see the same sample as without a relay."""
    tool = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    logprobs = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": []}]}
    choice = {"index": 0, "message": {"content": None, "tool_calls": [tool]}, "finish_reason": "x", "logprobs": logprobs}
    server.script(*[Reply.of({"choices": [choice], "model": "m"})] * 2)
    relayed = await local.complete(whole())
    plain = await local.complete(ModelCall(LLMRequest.of(PROMPT)))
    assert relayed.samples == plain.samples


async def test_connections_are_used_again(server, named):
    """One connection serves calls that follow each other."""
    for _ in range(5):
        await named.complete(whole())
    assert server.connections == 1


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used(server, named):
    """The next call opens another one."""
    server.script(Reply.chat("a", headers={"Connection": "close"}), Reply.chat("b"))
    await named.complete(whole())
    await named.complete(whole())
    assert server.connections == 2


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply.error(400, "bad temperature"), BadRequest),
        (Reply.error(400, "maximum context length is 5"), ContextOverflow),
        (Reply.error(401, "no"), AuthenticationFailed),
        (Reply.error(429, "slow", headers={"Retry-After": "7"}), RateLimited),
        (Reply.error(500, "oops"), ServerFailed),
        (Reply(status=502, body=b"<html>bad gateway</html>"), ServerFailed),
        (Reply(body=b"not json"), ServerFailed),
        (Reply(body=b'{"choices": [{"message"'), ServerFailed),
        (Reply(body=b'{"choices": []}'), ServerFailed),
        (Reply(body=b'{"choices": [{"message": 5}]}'), ServerFailed),
        (Reply(body=b'{"error": {"message": "out of memory"}, "choices": []}'), ServerFailed),
        (Reply.chat("a", die_after=1), ServerUnreachable),
    ],
)
async def test_what_goes_wrong_raises_what_it_raises_without_a_relay(server, local, reply, error):
    """One mapping of errors, whichever way an answer takes; and nothing is left in the relay."""
    server.script(reply, reply)
    call = whole()
    with pytest.raises(error) as relayed:
        await local.complete(call)
    with pytest.raises(error) as plain:
        await local.complete(ModelCall(LLMRequest.of(PROMPT)))
    assert (relayed.value.status, relayed.value.retry_after) == (plain.value.status, plain.value.retry_after)
    assert call.request.relay.body is None


async def test_an_error_does_not_repeat_the_prompt(server, local):
    """A server's message that quotes the request is cut, as everywhere."""
    server.script(Reply.error(400, f"cannot do: {PROMPT}"))
    with pytest.raises(BadRequest) as caught:
        await local.complete(whole())
    assert PROMPT not in str(caught.value)


async def test_nothing_is_sent_where_the_policy_forbids_it(server):
    """The egress rule holds for relayed answers: the connection is never made."""
    config = StrategyConfig(
        profile_name="local", allow_cloud=False, models={"model": {"backend": "vllm", "base_url": server.url, "model": "m"}}
    )
    backend = backend_of("model", config, egress=EgressPolicy(allow_cloud=False, local=frozenset()))
    with pytest.raises(EgressDenied):
        await backend.complete(whole())
    assert server.connections == 0
    await backend.close()


async def test_a_refused_connection_is_an_unreachable_server(server, local):
    """With the reason in words."""
    server.close()
    with pytest.raises(ServerUnreachable, match="no connection: refused"):
        await local.complete(whole())


async def test_a_cancelled_call_closes_its_connection(server, local):
    """The server sees that nobody waits any more."""
    server.script(Reply(hang=True))
    task = asyncio.create_task(local.complete(whole()))
    assert await asyncio.to_thread(server.wait_for, lambda s: len(posts(s)) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.wait_for, lambda s: s.disconnects == 1)


async def test_a_dialect_is_learned_from_a_refusal(server, local):
    """As without a relay: the second try says `max_completion_tokens`."""
    server.script(Reply.error(400, "use max_completion_tokens instead"), Reply.chat("a"))
    await local.complete(whole(max_tokens=5))
    assert posts(server)[1].json["max_completion_tokens"] == 5


# ---------------------------------------------------------------------------------------------------------------- streams


async def test_a_stream_is_handed_on_event_by_event(server, local):
    """All events but the usage that the client did not ask for; the usage is known all the same."""
    client = Client()
    done = await local.complete(streamed(client))
    events = client.events
    assert events[-1] == "[DONE]"
    assert [json.loads(e)["choices"][0]["delta"].get("content") for e in events[:-1]] == ["", "an ", "answer", None]
    assert done.usage == Usage(5, 2)
    assert posts(server)[0].json["stream_options"] == {"include_usage": True}


async def test_the_usage_is_handed_on_where_the_client_asked_for_it(server, local):
    """Its event comes last but one, as the server sent it."""
    client = Client()
    await local.complete(streamed(client, usage=True))
    assert json.loads(client.events[-2])["usage"]["prompt_tokens"] == 5


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
async def test_events_arrive_whole_however_they_are_cut(size):
    """Whatever the network's pieces, each write to the client ends where an event ends; CRLF and comments included."""
    body = b": hello\r\n\r\n" + b"".join(
        b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\r\n\r\n"
        for text in ("a", "b", "ü")
    )
    body += b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    chunks = [body[start : start + size] for start in range(0, len(body), size)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for chunk in chunks:
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    backend = local_backend(f"http://127.0.0.1:{port}/v1", model="m")
    client = Client()
    done = await backend.complete(streamed(client, keep=True))
    assert all(piece.endswith((b"\n\n", b"\n\r\n")) for piece in client.pieces)
    assert client.text.replace("\r\n", "\n") == body.decode().replace("\r\n", "\n")
    assert done.samples[0].text == "abü"
    await backend.close()
    listening.close()
    await listening.wait_closed()


async def test_nothing_reaches_the_client_before_the_first_token(server, local):
    """The opening event of a server that then fails is held back, so another model may still answer."""
    client = Client()
    server.script(Reply.stream("never", die_after=1))
    call = streamed(client)
    with pytest.raises(ServerUnreachable):
        await local.complete(call)
    assert client.pieces == []
    assert not call.request.relay.begun


async def test_a_stream_that_breaks_after_its_first_token_says_so(server, local):
    """What was delivered stands, and the relay says that something was."""
    client = Client()
    server.script(Reply.stream("a", "b", "c", die_after=3))
    call = streamed(client)
    with pytest.raises(ServerUnreachable):
        await local.complete(call)
    assert call.request.relay.begun
    assert len(client.events) == 3


async def test_a_stream_without_an_end_is_not_whole(server, local):
    """No end mark and no finish reason: the answer was cut off, however politely."""
    server.script(Reply.stream("a", "b", finish=None, done=False))
    with pytest.raises(ServerUnreachable, match="ended before the answer was complete"):
        await local.complete(streamed(Client()))


async def test_a_stream_without_an_end_mark_is_whole_where_the_model_said_that_it_stopped(server, local):
    """Some servers send no `[DONE]`."""
    server.script(Reply.stream("a", usage=False, done=False))
    client = Client()
    done = await local.complete(streamed(client, keep=True))
    assert done.samples == (Sample("a", "stop"),)


async def test_an_error_within_a_stream_is_raised_and_not_handed_on(server, local):
    """The executor decides what the client is told."""
    client = Client()
    good = json.dumps({"choices": [{"delta": {"content": "a"}}]}).encode()
    server.script(Reply(events=(good, json.dumps({"error": {"message": "engine died", "code": 500}}).encode())))
    with pytest.raises(ServerFailed, match="engine died"):
        await local.complete(streamed(client))
    assert client.events == [good.decode()]


async def test_garbage_within_a_stream_is_a_failed_server(server, local):
    """An event that is no JSON, before the first token."""
    server.script(Reply(events=(b"{not json",)))
    with pytest.raises(ServerFailed):
        await local.complete(streamed(Client()))


async def test_no_first_token_in_time_is_a_timeout(server, local):
    """The limit is the profile's, and the connection is closed."""
    server.script(Reply.stream("late", first=30.0))
    with pytest.raises(CallTimeout, match=r"no first token within 0\.3 s"):
        await local.complete(streamed(Client()))
    assert await asyncio.to_thread(server.wait_for, lambda s: s.disconnects == 1)


async def test_the_first_tokens_limit_does_not_end_a_stream_that_has_begun(server, local):
    """What comes after the first may take longer in all."""
    server.script(Reply.stream("a", "b", gap=0.9, first=0.0))
    done = await local.complete(streamed(Client(), keep=True, timeouts=Timeouts(5.0, 2.0, 60.0)))
    assert done.samples[0].text == "ab"


async def test_a_server_that_answers_without_a_stream_is_passed_on_as_one_event(server, local):
    """Also if what it says is no answer: then it has failed."""
    server.script(Reply.chat("a"), Reply(body=b"<html>log in</html>", headers={"Content-Type": "text/html"}))
    client = Client()
    done = await local.complete(streamed(client))
    first, last = [line for line in b"".join(client.pieces).split(b"\n\n") if line]
    assert json.loads(first[6:])["choices"][0]["delta"]["content"] == done.samples[0].text == "a"
    assert last == b"data: [DONE]"
    with pytest.raises(ServerFailed, match="it is not JSON"):
        await local.complete(streamed(Client()))


async def test_a_client_that_reads_slowly_slows_the_server_down(server, local):
    """A paused source takes nothing more; resumed, the stream comes to its end."""
    client, seen = Client(), []
    text = "x" * 1000
    server.script(Reply.stream(*[text] * 3000))
    call = streamed(client, timeouts=Timeouts(1.0, 5.0, 60.0))
    relay = call.request.relay

    def write(data: bytes) -> None:
        client.pieces.append(data)
        if len(client.pieces) == 3:
            relay.source.pause()
            seen.append(asyncio.get_running_loop().call_later(0.3, go_on, len(client.pieces)))

    def go_on(count: int) -> None:
        seen.append(len(client.pieces) - count)
        relay.source.resume()

    relay.write = write
    await local.complete(call)
    assert seen[1] < 300  # what had been read already when it was paused: at most 256 KiB of three million bytes
    assert client.events[-1] == "[DONE]"


async def test_the_model_of_a_restarted_server_is_asked_for_again(server, local):
    """A server whose profile names no model may come back with another one."""
    await local.complete(whole())
    server.models = ["another"]
    server.script(Reply.error(404, "no such model"))
    await local.complete(whole())
    assert [post.json["model"] for post in posts(server)] == [MODEL, MODEL, "another"]


async def test_that_a_relayed_stream_was_cut_off_is_known_though_nobody_reads_it(server, named):
    """The last event says so, however it is spaced."""
    for spaced in (b'"finish_reason": "length"', b'"finish_reason":"length"'):
        start = b'data: {"choices":[{"delta":{"content":"Say \\"length\\""}}]}\n\n'
        end = b'data: {"choices":[{"delta":{},' + spaced + b"}]}\n\ndata: [DONE]\n\n"
        server.script(Reply(body=start + end, headers={"content-type": "text/event-stream"}))
        client = Client()
        done = await named.complete(streamed(client))
        assert done.samples == (Sample("", "length"),)
        assert client.text.encode() == start + end


@pytest.mark.parametrize("way", ["relayed and kept", "in pieces"])
async def test_an_answer_that_does_not_end_is_not_kept_without_end(server, local, monkeypatch, way):
    """Whether its bytes are kept or its pieces joined, it ends where no model's answer comes to."""
    monkeypatch.setattr(relaying, "_MOST_KEPT", 100_000)
    monkeypatch.setattr(backend_module, "BOUNDS", Bounds(whole=100_000))
    server.script(Reply.stream(*["x" * 1000] * 300))
    got = 0
    with pytest.raises(AnswerTooLong):
        if way == "in pieces":
            async for chunk in local.stream(ModelCall(LLMRequest.of(PROMPT))):
                got += len(chunk.text)
        else:
            client = Client()
            await local.complete(streamed(client, keep=True, timeouts=Timeouts(1.0, 5.0, 60.0)))
    assert got <= 100_000
