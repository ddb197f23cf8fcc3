"""Time limits, on a loop whose clock the tests set: what came in time is seen, and what never comes ends in time."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.integration.stub_backends import call, local_backend
from workflow_composer.backends.http import client as module
from workflow_composer.backends.http.client import Client, Limit
from workflow_composer.backends.http.egress import EgressPolicy, endpoint_of
from workflow_composer.backends.replicas.observer import Late, ServerObserver
from workflow_composer.errors import CallTimeout
from workflow_composer.types import LLMRequest, ModelCall, Relay, Timeouts

LONG = 10_000.0
TIMES = Timeouts(connect=2.0, first_token=60.0, total=300.0)


class Loop(asyncio.SelectorEventLoop):
    """Its time passes where nothing else happens, and where a test lets it stand still."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__()
        really = self._selector.select

        def select(timeout: float | None = None) -> list[Any]:
            events = really(min(timeout, 0.02) if timeout else timeout)
            if not events and timeout:
                self.now += timeout
            return events

        self._selector.select = select

    def time(self) -> float:
        return self.now

    def stand_still(self, turns: int = 0, seconds: float = LONG) -> None:
        """In so many turns, for so many seconds."""
        if turns:
            self.call_soon(self.stand_still, turns - 1, seconds)
        else:
            self.now += seconds


class DeadEnd(Loop):
    """Whoever wants a connection waits for ever."""

    async def create_connection(self, *_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()


def run(work: Callable[[Any], Coroutine[Any, Any, None]], kind: type[Loop] = Loop) -> None:
    """``work(loop)``, on such a loop."""

    async def main() -> None:
        await work(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=kind) as runner:
        runner.run(main())


class Server:
    """Answers every request, having it wait for as long as the loop of both stands still; None: never."""

    def __init__(self, loop: Loop, *, stands: float | None = 0.0, tls: Any = None) -> None:
        self._loop, self._stands, self._tls = loop, stands, tls

    def _made(self) -> asyncio.Protocol:
        server = self

        class Serving(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                if server._stands is not None:
                    self.transport.write(answer_to(data))
                    server._loop.stand_still(seconds=server._stands)

        return Serving()

    async def __aenter__(self) -> Server:
        self._server = await self._loop.create_server(self._made, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"https://localhost:{port}/v1" if self._tls else f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


def answer_to(request: bytes) -> bytes:
    """A whole answer, or a stream where one is wanted."""
    if b'"stream":true' in request:
        piece = b'data: {"choices":[{"index":0,"delta":{"content":"4"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(piece), piece)
    body = b'{"data":[{"index":0,"embedding":[1]}],"choices":[{"message":{"content":"4"},"finish_reason":"stop"}]}'
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def client_of(url: str) -> Client:
    return Client(EgressPolicy(False, frozenset({endpoint_of(url)})))


# --------------------------------------------------------------------------------------------------------- connections


@pytest.mark.parametrize("turns", range(6))
def test_a_connection_that_the_system_has_made_is_used_however_long_the_loop_stood_still(turns):
    """In whichever of the turns that a connection takes."""

    async def work(loop: Loop) -> None:
        async with Server(loop) as server, client_of(server.url) as client:
            loop.call_soon(loop.stand_still, turns)
            assert (await client.ask(server.url + "/models", connect=2.0)).status == 200
        assert loop.now >= LONG

    run(work)


@pytest.mark.parametrize("turns", range(12))
def test_so_is_one_whose_encryption_was_being_agreed_on(turns, certificate, monkeypatch):
    """What the server has yet to say comes in the time that is left."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    module.tls_context.cache_clear()

    async def work(loop: Loop) -> None:
        async with Server(loop, tls=context) as server:
            policy = EgressPolicy(False, frozenset({endpoint_of(server.url)}))
            async with Client(policy, resolve=lambda *_: ["127.0.0.1"]) as client:
                loop.call_soon(loop.stand_still, turns, 30.0)  # the server gives up after 60
                assert (await client.ask(server.url + "/models", connect=2.0)).status == 200

    run(work)
    module.tls_context.cache_clear()


@pytest.mark.parametrize("stood", [0.0, 3.0])
def test_a_host_that_never_answers_is_given_up_when_the_time_is_over(stood):
    """A pause is not counted for more than a part of it, and is over when it is over."""

    async def work(loop: Loop) -> None:
        loop.call_soon(loop.stand_still, 3, stood)
        async with client_of("http://127.0.0.1:9/") as client:
            with pytest.raises(TimeoutError):
                await client.ask("http://127.0.0.1:9/", connect=2.0)
        assert max(2.0, stood) <= loop.now <= 2.0 + stood

    run(work, DeadEnd)


# -------------------------------------------------------------------------------------------------------------- answers


async def complete(backend: Any, url: str) -> None:
    assert (await backend.complete(call(timeouts=TIMES))).samples[0].text == "4"


async def stream(backend: Any, url: str) -> None:
    assert "".join([chunk.text async for chunk in backend.stream(call(timeouts=TIMES))]) == "4"


async def relay(backend: Any, url: str) -> None:
    pieces: list[bytes] = []
    await backend.complete(ModelCall(LLMRequest.of("?", relay=Relay(pieces.append)), timeouts=TIMES))
    assert b'"content":"4"' in b"".join(pieces)


async def observe(backend: Any, url: str) -> None:
    async with client_of(url) as client:
        assert (await ServerObserver.over(client, url).models(5.0)).status == 200


async def embed(backend: Any, url: str) -> None:
    assert len((await backend.embed(["?"], timeout=5.0)).vectors) == 1


@pytest.mark.parametrize("ask", [complete, stream, relay, observe, embed])
def test_an_answer_that_came_while_the_loop_stood_still_is_read(ask):
    """It is in the socket's buffer when the limit has long passed."""

    async def work(loop: Loop) -> None:
        async with Server(loop, stands=LONG) as server:
            backend = local_backend(server.url, model="m")
            await ask(backend, server.url)
            await backend.close()
        assert loop.now >= LONG

    run(work)


@pytest.mark.parametrize(
    ("ask", "error", "limit"),
    [
        (complete, CallTimeout, TIMES.total),
        (stream, CallTimeout, TIMES.first_token),
        (relay, CallTimeout, TIMES.first_token),
        (observe, Late, 5.0),
        (embed, CallTimeout, 5.0),
    ],
)
def test_a_server_that_says_nothing_is_given_up_when_the_time_is_over(ask, error, limit):
    """Not before, and not after."""

    async def work(loop: Loop) -> None:
        async with Server(loop, stands=None) as server:
            backend = local_backend(server.url, model="m")
            with pytest.raises(error):
                await ask(backend, server.url)
            assert loop.now == limit
            await backend.close()

    run(work)


# ------------------------------------------------------------------------------------------------------------ the limit


def test_a_pause_takes_one_part_of_the_time_and_what_came_is_seen_before_the_last_turn():
    """However long the pause was, and however late it came."""

    async def work(loop: Loop) -> None:
        with Limit(8.0):
            loop.stand_still()
            await asyncio.sleep(6.9)
        with Limit(8.0):
            await asyncio.sleep(7.9)
            loop.stand_still()
            for _ in range(5):
                await asyncio.sleep(0)
        with pytest.raises(TimeoutError), Limit(8.0):
            await asyncio.sleep(8.1)

    run(work)


def test_who_is_cancelled_hears_of_that_and_not_of_a_limit():
    """Also where the time is over in the same turn."""

    async def wait() -> None:
        with Limit(5.0):
            await asyncio.Event().wait()

    async def work(loop: Loop) -> None:
        task = loop.create_task(wait())
        await asyncio.sleep(0)
        loop.call_at(5.0, task.cancel)
        loop.stand_still(seconds=5.0)
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):  # and whoever has time is not disturbed later
            await wait()
        await asyncio.sleep(100.0)

    run(work)


def test_of_two_limits_the_outer_one_speaks_where_both_have_passed():
    """And a limit that was ended passes no more."""

    async def work(loop: Loop) -> None:
        with pytest.raises(ZeroDivisionError):  # noqa: SIM117  # what the outer one gives
            with Limit(5.0, ZeroDivisionError):
                with Limit(5.0):
                    await asyncio.Event().wait()
        with Limit(5.0) as limit:
            limit.end()
            await asyncio.sleep(100.0)

    run(work)
