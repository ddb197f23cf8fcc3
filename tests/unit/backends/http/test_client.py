"""The one client: which connection a request takes, what becomes of it, and what a server sees where nobody waits."""

from __future__ import annotations

import asyncio
import gc
import ssl
import weakref

import pytest

from tests.integration.stub_backends import backend_of, call, collect, local_backend, posts
from tests.integration.stub_server import Reply, StubServer
from workflow_composer.backends.http import client as module
from workflow_composer.backends.http.client import Client, Origin, head, path_of
from workflow_composer.backends.http.connection import BOUNDS, Broken
from workflow_composer.backends.http.egress import EgressPolicy, endpoint_of
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import AnswerTooLong, ServerFailed, ServerUnreachable


def client_of(server, **options) -> Client:
    """A client that reaches the stub server."""
    return Client(EgressPolicy(False, frozenset({endpoint_of(server.url)})), **options)


def request_to(server, body: bytes = b"{}") -> bytes:
    """A chat request's bytes."""
    start = head(
        "POST", path_of(server.url) + "/chat/completions", Origin.of(server.url), {"Content-Length": str(len(body))}
    )
    return start + b"\r\n" + body


# ---------------------------------------------------------------------------------------------------------- connections


async def test_as_many_connections_are_opened_as_calls_are_under_way(server, local):
    """And the same ones serve the next calls."""
    for _ in range(3):
        await asyncio.gather(*(local.complete(call()) for _ in range(30)))
    assert server.connections <= 31  # the first one asked for the model


async def test_a_connection_that_the_server_closed_is_not_used_again(server):
    """The next request gets one that lives, and no error."""
    async with client_of(server) as client:
        for _ in range(3):
            server.script(Reply(headers={"Connection": "close"}, body=b"{}"))
            assert (await client.send(Origin.of(server.url), request_to(server), connect=2.0)).status == 200
    assert server.connections == 3


async def test_nothing_is_kept_of_a_connection_that_is_done_with(server):
    """A service that runs for months opens many."""
    async with client_of(server) as client:
        server.script(Reply(headers={"Connection": "close"}, body=b"{}"))
        seen = []

        class Sink:
            attach = staticmethod(lambda connection: seen.append(weakref.ref(connection)))

        await client.send(Origin.of(server.url), request_to(server), connect=2.0, sink=Sink())
        assert await asyncio.to_thread(server.wait_for, lambda stub: stub.open == 0)
        await asyncio.sleep(0)
        gc.collect()
        assert [found() for found in seen] == [None]


async def test_a_connection_that_was_idle_for_too_long_is_not_used_again(server):
    """The server may be about to close it."""
    async with client_of(server, keepalive=0.05) as client:
        await client.ask(server.url + "/models")
        await asyncio.sleep(0.1)
        await client.ask(server.url + "/models")
        assert await asyncio.to_thread(server.wait_for, lambda stub: stub.open == 1)
    assert server.connections == 2


async def test_idle_connections_beyond_need_are_closed_while_others_work(server):
    """After a burst their number falls again, although one of them is always fresh."""
    async with client_of(server, keepalive=0.3) as client:
        await asyncio.gather(*(client.ask(server.url + "/models") for _ in range(5)))
        async with asyncio.timeout(60):
            while server.open > 1:
                await client.ask(server.url + "/models")
    assert server.connections == 5


class Closing:
    """A server that answers some requests of each connection with ``body``, and closes it when the next one comes."""

    def __init__(self, answers: int, *, body: bytes = b"{}", says: bytes = b"") -> None:
        self.answers = answers
        self.connections = self.requests = 0
        self._answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        self._says = says
        self._open: set[asyncio.Transport] = set()

    def made(self) -> asyncio.Protocol:
        """What serves one connection; each request comes in one piece."""
        server, left = self, self.answers

        class Serving(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport, self.left = transport, left
                server._open.add(transport)
                server.connections += 1

            def data_received(self, data):
                server.requests += 1
                self.left -= 1
                self.transport.write(server._answer if self.left >= 0 else server._says)
                if self.left < 0:
                    self.transport.close()

            def connection_lost(self, exc):
                server._open.discard(self.transport)

        return Serving()

    async def __aenter__(self):
        self._server = await asyncio.get_running_loop().create_server(self.made, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for transport in self._open:
            transport.abort()
        await asyncio.sleep(0)


async def sent(client: Client, server: Closing) -> bytes:
    """The body of an answer that is wanted whole."""
    return (await client.send(Origin.of(server.url), request_to(server), connect=2.0)).body


async def streamed(client: Client, server: Closing) -> bytes:
    """The same of one that may be a stream."""
    stream = await client.stream(Origin.of(server.url), request_to(server), connect=2.0)
    await stream.close()
    assert stream.whole is not None
    return stream.whole.body


@pytest.mark.parametrize("ask", [sent, streamed])
async def test_a_kept_connection_that_the_server_closes_is_replaced_once_and_nobody_hears_of_it(ask):
    """It is closed in the moment in which the next request is sent: each second request meets that."""
    async with Closing(1) as server, client_of(server) as client:
        for _ in range(4):
            assert await ask(client, server) == b"{}"
    assert server.requests == 4 + 3  # three of the four found a kept connection, which was closed
    assert server.connections == 4


@pytest.mark.parametrize("answers", [0, 1])
@pytest.mark.parametrize("ask", [sent, streamed])
async def test_a_new_connection_that_is_closed_without_an_answer_is_an_error(answers, ask):
    """The server is asked no third time."""
    async with Closing(answers) as server, client_of(server) as client:
        if answers:
            await ask(client, server)
            server.answers = 0
        with pytest.raises(Broken) as caught:
            async with asyncio.timeout(60):
                await ask(client, server)
    assert not caught.value.begun
    assert server.connections == 1 + answers


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_client_that_is_closed_ends_its_requests_and_begins_none_anew(server, streaming):
    """A request on a kept connection is not taken for one that met a stale one."""
    client = client_of(server)
    await client.ask(server.url + "/models")
    server.script(Reply(hang=True))
    send = client.stream if streaming else client.send
    task = asyncio.ensure_future(send(Origin.of(server.url), request_to(server), connect=2.0))
    assert await asyncio.to_thread(server.wait_for, lambda stub: len(stub.requests) == 2)
    await client.close()
    with pytest.raises(Broken):
        async with asyncio.timeout(60):
            await task
    assert server.connections == 1


async def test_an_answer_that_breaks_off_is_not_asked_for_again():
    """It may have cost something."""
    async with Closing(1, says=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf") as server, client_of(server) as client:
        await client.ask(server.url + "/models")
        with pytest.raises(Broken) as caught:
            await client.ask(server.url + "/models")
    assert caught.value.begun
    assert server.requests == 2


async def test_a_call_over_a_stale_connection_counts_as_no_attempt():
    """The backend's user sees an answer, and no failure before it."""
    body = b'{"choices":[{"index":0,"message":{"content":"4"},"finish_reason":"stop"}]}'
    async with Closing(1, body=body) as server:
        backend = local_backend(server.url, model="m")
        for _ in range(4):
            assert (await backend.complete(call())).samples[0].text == "4"
        await backend.close()
    assert server.requests > 4


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_kept_connection_that_ends_with_408_is_stale(server, local, streaming):
    """HAProxy says so before it closes an idle connection; on a new connection it is an answer to the request."""
    await local.complete(call())
    server.script(Reply.error(408, "Request Time-out", headers={"Connection": "close"}))
    found = await collect(local, call()) if streaming else await local.complete(call())
    assert found
    assert [request.connection for request in posts(server)][-2:] == [1, 2]
    server.script(Reply.error(500, headers={"Connection": "close"}), Reply.error(408))
    with pytest.raises(ServerFailed, match="500"):
        await local.complete(call())
    with pytest.raises(ServerFailed, match="408"):
        await local.complete(call())


async def test_an_answer_that_is_too_long_is_not_tried_again(server, local):
    """It would be as long again; another candidate may answer."""
    await local.complete(call())
    server.script(Reply(headers={"X": "x" * 70_000}, body=b"{}"))
    with pytest.raises(AnswerTooLong) as caught:
        await local.complete(call())
    assert not caught.value.retryable
    assert caught.value.fallback
    assert caught.value.fault == "server"
    server.script(Reply(body=b" " * (BOUNDS.whole + 1)))
    with pytest.raises(AnswerTooLong) as caught:
        await local.complete(call())
    assert caught.value.fault == "ours"


# ---------------------------------------------------------------------------------------------------- streams, cancelling


async def test_a_stream_that_nobody_reads_holds_its_server_up(server):
    """What waits for its reader stays within bounds, however much there is."""
    event = b"x" * 60_000
    server.script(Reply(events=(event,) * 300))
    async with client_of(server) as client:
        stream = await client.stream(Origin.of(server.url), request_to(server), connect=2.0)
        assert stream.whole is None
        size, most = 0, 0
        while part := await stream.read():
            size += len(part)
            most = max(most, len(part))
            await asyncio.sleep(0.002)
        await stream.close()
    assert size >= 300 * 60_000
    assert most < 2 * 2**20


async def test_a_stream_that_is_read_to_its_end_leaves_its_connection_for_the_next(server):
    """And one that is left before it ends at the server."""
    async with client_of(server) as client:
        for _ in range(2):
            server.script(Reply.stream("a", "b"))
            stream = await client.stream(Origin.of(server.url), request_to(server), connect=2.0)
            while await stream.read():
                pass
            await stream.close()
            await stream.close()
        assert (server.connections, server.open) == (1, 1)
        server.script(Reply.stream(*"abcdefgh", gap=60.0))
        stream = await client.stream(Origin.of(server.url), request_to(server), connect=2.0)
        assert await stream.read()
        await stream.close()
        assert await asyncio.to_thread(server.wait_for, lambda stub: stub.disconnects == 1)


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_request_that_is_cancelled_ends_at_the_server(server, streaming):
    """While its answer is awaited, before a byte of it has come."""
    async with client_of(server) as client:
        server.script(Reply(hang=True))
        send = client.stream if streaming else client.send
        task = asyncio.ensure_future(send(Origin.of(server.url), request_to(server), connect=2.0))
        assert await asyncio.to_thread(server.wait_for, lambda stub: len(stub.requests) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.wait_for, lambda stub: stub.disconnects == 1)
        assert (await client.ask(server.url + "/models")).status == 200


async def test_a_refusal_of_a_stream_is_a_whole_answer(server):
    """Its status and body are there, and the connection can be used again."""
    async with client_of(server) as client:
        server.script(Reply.error(400, "no"))
        stream = await client.stream(Origin.of(server.url), request_to(server), connect=2.0)
        assert stream.whole is not None
        assert (stream.whole.status, b"no" in stream.whole.body) == (400, True)
        await stream.close()
        await client.ask(server.url + "/models")
    assert server.connections == 1


# ------------------------------------------------------------------------------------------------------------ TLS, heads


@pytest.fixture
def tls_server(certificate):
    """A stub server behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with StubServer(tls=context) as server:
        yield server


@pytest.mark.parametrize("named", [True, False])
async def test_a_backend_speaks_tls_with_the_authority_that_the_environment_names(
    tls_server, certificate, monkeypatch, named
):
    """`SSL_CERT_FILE` is how a cluster's own authority is made known; without it nothing is sent."""
    if named:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    module.tls_context.cache_clear()
    backend = local_backend(tls_server.url.replace("127.0.0.1", "localhost"))
    try:
        if named:
            assert (await backend.complete(call())).samples[0].text == "an answer"
        else:
            with pytest.raises(ServerUnreachable, match="certificate"):
                await backend.complete(call())
            assert tls_server.requests == []
    finally:
        module.tls_context.cache_clear()
        await backend.close()


async def test_user_and_password_of_an_address_are_sent_where_no_key_is_named(server, tmp_path):
    """A server behind a proxy that asks for them; errors and status show neither."""
    address = server.url.replace("http://", "http://ann:${PASSWORD}@")
    (tmp_path / "p.yaml").write_text(
        f"profile_name: p\nallow_cloud: false\nmodels: {{m: {{backend: vllm, base_url: '{address}'}}}}"
    )
    backend = backend_of("m", StrategyConfig.load(tmp_path / "p.yaml", environ={"PASSWORD": "p%40ss"}))
    await backend.complete(call())
    status = await backend.health(timeout=5.0)
    await backend.close()
    assert {request.headers["authorization"] for request in server.requests} == {"Basic YW5uOnBAc3M="}
    assert "p%40ss" not in repr(status)


def test_a_head_holds_what_it_was_given_and_nothing_can_be_slipped_in():
    """The usual port is left out of the host."""
    assert head("GET", "/v1", Origin(True, "api.example", 443), {}).startswith(b"GET /v1 HTTP/1.1\r\nHost: api.example\r\n")
    assert b"Host: [::1]:8001\r\n" in head("GET", "/", Origin(False, "::1", 8001), {})
    for bad in ("a\r\nX: y", "a\nb", "a\0"):
        with pytest.raises(ValueError, match="line break"):
            head("GET", "/", Origin(False, "h", 80), {"Authorization": bad})


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://h", "/"),
        ("http://h/", "/"),
        ("http://h/v1?a=b#c", "/v1?a=b"),
        ("http://h?a", "/?a"),
        ("http://u:p@h:1/x", "/x"),
    ],
)
def test_the_path_of_an_address(url, path):
    """With its query, without its fragment."""
    assert path_of(url) == path
