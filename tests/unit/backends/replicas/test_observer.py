"""The one observer: what it asks, and that nothing that listens on a server's port can hold up or fill whoever asks."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from contextlib import asynccontextmanager

import pytest

from tests.integration.stub_backends import local_backend
from tests.unit.fleet.stub_vllm import StubVLLM, serving
from workflow_composer.backends.http.client import Client
from workflow_composer.backends.http.connection import Broken, TooLong
from workflow_composer.backends.http.egress import EgressPolicy, endpoint_of
from workflow_composer.backends.replicas.observer import (
    METRICS,
    SMALL,
    Given,
    Late,
    Listing,
    Readings,
    ServerObserver,
    probe,
)
from workflow_composer.errors import EgressDenied

ENDLESS = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
QUESTIONS = ["health", "models", "readings", "one_token", "one_vector"]


@asynccontextmanager
async def observing(port: int, key: str | None = None):
    """An observer of a port of this machine."""
    url = f"http://127.0.0.1:{port}/v1"
    async with Client(EgressPolicy(False, frozenset({endpoint_of(url)}))) as client:
        yield ServerObserver.over(client, url, key)


@asynccontextmanager
async def hostile(*parts: bytes, pause: float = 0.0, again: bool = False):
    """An observer of a server that sends these parts to whoever comes, whatever is asked, and with ``again`` for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(65536)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
            while again:
                writer.write(parts[-1])
                await writer.drain()
                await asyncio.sleep(pause)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with observing(server.sockets[0].getsockname()[1]) as observer:
            yield observer
    finally:
        server.close()


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole answer."""
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def ask(observer: ServerObserver, question: str, limit: float = 10.0):
    """One of its questions."""
    arguments = ("small", limit) if question.startswith("one_") else (limit,)
    return await getattr(observer, question)(*arguments)


@pytest.fixture
def stub():
    """A server that works."""
    with serving(StubVLLM(running=2.0, waiting=1.0, cache=0.5)) as made:
        yield made


# ------------------------------------------------------------------------------------------------------- what it asks


async def test_one_observer_asks_for_everything(stub):
    """Health, models, metrics, a token and a vector, over one connection."""
    async with observing(stub.port) as observer:
        assert await observer.health(5) == 200
        assert await observer.models(5) == Listing(200, ("small",))
        found = await observer.readings(5)
        assert (found.requests, found.running, found.waiting, found.cache) == (3, 2, 1, 0.5)
        assert await observer.one_token("small", 5) == Given(200, whole=True)
        assert await observer.one_vector("small", 5) == Given(200, whole=True)
    assert [(method, path, given) for method, path, given in stub.asked] == [
        ("GET", "/health", None),
        ("GET", "/v1/models", None),
        ("GET", "/metrics", None),
        ("POST", "/v1/completions", {"model": "small", "prompt": "1", "max_tokens": 1, "temperature": 0}),
        ("POST", "/v1/embeddings", {"model": "small", "input": ["1"]}),
    ]


async def test_the_key_goes_to_the_api_alone(server):
    """VLLM's metrics and its health want none, and what listens beside the API need not learn it."""
    url = server.url
    async with Client(EgressPolicy(False, frozenset({endpoint_of(url)}))) as client:
        observer = ServerObserver.over(client, url, "sesame")
        for question in QUESTIONS:
            await ask(observer, question)
    sent = {request.path: request.headers.get("authorization") for request in server.requests}
    assert {path for path, key in sent.items() if key == "Bearer sesame"} == {
        "/v1/models",
        "/v1/completions",
        "/v1/embeddings",
    }
    assert {path for path, key in sent.items() if key is None} == {"/health", "/metrics"}


async def test_a_replicas_metrics_are_asked_for_without_the_models_key(server):
    """A backend observes its server over the guarded client that it has; a server without metrics says nothing."""
    backend = local_backend(server.url)
    assert await backend.readings(5.0) == Readings()
    server.metrics = 'vllm:num_requests_running{engine="0"} 3.0\nvllm:kv_cache_usage_perc{engine="0"} 0.75\n'
    assert await backend.readings(5.0) == Readings(requests=3, running=3, cache=0.75)
    assert [request.path for request in server.requests] == ["/metrics", "/metrics"]
    assert "authorization" not in server.requests[0].headers
    await backend.close()


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data": 3}', b'{"data": [{}]}', b"{", b"\xff", b"[" * 100_000])
async def test_what_is_no_list_of_models_is_unknown(body):
    """Each row must be a model with an id."""
    async with hostile(answer(body)) as observer:
        assert await observer.models(5) == Listing(200, None)
        assert "no list of models" in (await probe(observer, "coder", limit=5)).detail


@pytest.mark.parametrize("body", [b"", b'{"choices": []}', b'{"data": [{"embedding": []}]}', b"[" * 100_000])
async def test_an_answer_without_a_token_or_a_vector_is_not_whole(body):
    """Whatever else it says."""
    async with hostile(answer(body)) as observer:
        assert await observer.one_token("small", 5) == Given(200, whole=False)
        assert await observer.one_vector("small", 5) == Given(200, whole=False)


# --------------------------------------------------------------------------------------------------- hostile servers


@pytest.mark.parametrize("question", QUESTIONS)
async def test_an_answer_without_end_is_left(question):
    """After as many bytes as an honest one can have."""
    async with hostile(ENDLESS, b"vllm:num_requests_running 1\n" * 4096, again=True) as observer:
        with pytest.raises(TooLong):
            await ask(observer, question, 60.0)


async def test_a_page_of_metrics_has_a_megabyte_at_most():
    """Which is sixteen times vLLM's own."""
    assert METRICS.answer == 1 << 20 < SMALL.answer
    async with hostile(answer(b"#" * (METRICS.answer + 1))) as observer:
        with pytest.raises(TooLong):
            await observer.readings(60.0)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_an_answer_that_is_a_bomb_is_not_unpacked(question):
    """A few thousand bytes stand for a hundred megabytes; what is kept of them has a bound."""
    bomb = gzip.compress(b"\0" * (100 << 20), 9)
    assert len(bomb) < METRICS.answer
    async with hostile(answer(bomb, b"Content-Encoding: gzip")) as observer:
        with pytest.raises(TooLong):
            await ask(observer, question, 60.0)


@pytest.mark.parametrize(
    ("parts", "again"),
    [([b"HTTP/1.1 200 OK\r\n", b"X"], True), ([answer(b"x")[:-1]], False), ([ENDLESS, b"x"], True)],
    ids=["head", "lacks its end", "body"],
)
async def test_an_answer_that_comes_one_byte_at_a_time_is_given_up_in_time(parts, again):
    """Its limit is for the whole, not for each byte; what has come is told from silence."""
    async with hostile(*parts, pause=0.05 if again else 30.0, again=again) as observer:
        begun = time.monotonic()
        with pytest.raises(Late) as late:
            await observer.readings(0.5)
        assert time.monotonic() - begun < 8
    assert (late.value.connected, late.value.begun) == (True, True)


async def test_a_server_that_says_nothing_is_told_from_one_that_cannot_be_reached():
    """SIGSTOP leaves the kernel to take connections that nobody answers; a full backlog takes none."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        port = silent.getsockname()[1]
        async with observing(port) as observer:
            with pytest.raises(Late) as late:
                await observer.health(0.5)
        assert (late.value.connected, late.value.begun) == (True, False)
        async with observing(port) as observer:  # the first connection still fills the backlog
            with pytest.raises(Late) as late:
                await observer.health(0.5)
    assert (late.value.connected, late.value.begun) == (False, False)


async def test_no_redirect_is_followed(stub):
    """What a server says must not send a question, or a key, elsewhere."""
    with serving(StubVLLM()) as other:
        headers = b"Location: http://127.0.0.1:%d/v1/models" % other.port
        async with hostile(answer(b"", headers, status=b"302 Found")) as observer:
            assert await observer.models(5) == Listing(302, None)
            assert await observer.health(5) == 302
            assert (await observer.one_token("small", 5)).status == 302
        assert other.asked == []


async def test_proxies_of_the_environment_are_not_asked(stub, monkeypatch):
    """A cluster's proxy does not know its nodes."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with observing(stub.port) as observer:
        assert await observer.health(5) == 200


@pytest.mark.parametrize("question", QUESTIONS)
async def test_what_speaks_no_http_is_broken(question):
    """And no error of a parser's."""
    async with hostile(b"SSH-2.0-OpenSSH_9.2\r\n") as observer:
        with pytest.raises(Broken):
            await ask(observer, question)


async def test_a_stream_of_events_that_nobody_asked_for_falls_through():
    """Nothing is kept of it."""
    async with hostile(answer(b"data: {}\n\n", b"Content-Type: text/event-stream")) as observer:
        assert await observer.models(5) == Listing(200, None)


async def test_a_server_that_is_not_there_is_an_error(unused_tcp_port):
    """Whoever asks must know that it cannot be reached."""
    async with observing(unused_tcp_port) as observer:
        with pytest.raises(ConnectionRefusedError):
            await observer.readings(5)


async def test_no_other_server_is_reached(stub):
    """The rule of its client holds for every question."""
    with serving(StubVLLM()) as other:
        async with Client(EgressPolicy(False, frozenset({("127.0.0.1", stub.port)}))) as client:
            for question in QUESTIONS:
                with pytest.raises(EgressDenied):
                    await ask(ServerObserver.over(client, f"http://127.0.0.1:{other.port}/v1"), question)
        assert other.asked == []
