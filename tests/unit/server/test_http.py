"""HTTP/1.1 by hand: what is answered, what is refused, and that one request never disturbs another."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from workflow_composer.server.exchange import Exchange, Reply
from workflow_composer.server.http import HttpLimits, HttpServer
from workflow_composer.support import unfinished as bodies
from workflow_composer.types import Relay

LIMITS = HttpLimits(head=4096, fields=20, target=1024, body=10_000, head_seconds=0.6, body_seconds=0.6, idle_seconds=0.8)


async def echo(exchange: Exchange) -> Reply:
    text = f"{exchange.method} {exchange.path} {exchange.query} {len(exchange.body)}"
    return Reply(200, text.encode(), content_type="text/plain", headers=[("x-name", exchange.headers.get("x-name", ""))])


Ask = Callable[[bytes], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def serving(handler=echo, limits: HttpLimits = LIMITS) -> AsyncIterator[tuple[HttpServer, int]]:
    server = HttpServer(handler, lambda status, reason: Reply(status, reason.encode()), limits)
    listening = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0)
    try:
        yield server, listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await server.drain(0.0)
        await asyncio.sleep(0)


async def talk(port: int, *parts: bytes, pause: float = 0.0, until_closed: bool = True) -> bytes:
    """Send the parts and return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(5):
            return await reader.read() if until_closed else await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


GET = b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


async def test_a_request_is_answered_with_its_own_path_query_and_body():
    async with serving() as (_, port):
        answer = await talk(
            port, b"POST /a%20b?q=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nxyz"
        )
    assert answer.endswith(b"POST /a b q=1 3")


async def test_pieces_of_any_size_make_the_same_request():
    async with serving() as (_, port):
        request = (
            b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        )
        answer = await talk(port, *(request[i : i + 1] for i in range(len(request))))
    assert answer.endswith(b"POST /p  3")


async def test_requests_that_come_at_once_are_answered_in_their_order():
    async def slow_first(exchange: Exchange) -> Reply:
        await asyncio.sleep(0.05 if exchange.path == "/0" else 0)
        return await echo(exchange)

    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(30))
    async with serving(slow_first) as (_, port):
        answer = await talk(port, requests + GET)
    assert [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"GET")] != []
    places = [answer.index(b"GET /%d  0" % number) for number in range(30)]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"GET / HTTP/9.9\r\nHost: h\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1e3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10001\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2800\r\n" + b"x" * 0x2800 + b"\r\n0\r\n\r\n",
            413,
        ),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", 400),  # a folded header
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(30)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 5000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
        (b"GET /%ff%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nExpect: a-miracle\r\nContent-Length: 1\r\n\r\na", 417),
    ],
)
async def test_what_is_not_http_as_it_should_be_is_refused_and_the_connection_closed(request_, expected):
    async with serving() as (_, port):
        answer = await talk(port, request_)
        assert status(answer) == expected
        assert answer.count(b"HTTP/1.1 ") == 1
        assert status(await talk(port, GET)) == 200


async def test_a_request_behind_a_bad_one_is_not_answered():
    """What follows a message whose end is in doubt may be another's smuggled request."""
    smuggled = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET
    async with serving() as (_, port):
        answer = await talk(port, smuggled)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status(answer) == 400


async def test_a_bad_request_behind_good_ones_is_refused_after_their_answers():
    async with serving() as (_, port):
        answer = await talk(port, b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\nnonsense\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200", b"200", b"400"]


@pytest.mark.parametrize(
    "parts", [(b"GET / HTTP/1.1\r\nHo",), (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nab",)]
)
async def test_a_request_that_does_not_come_to_its_end_is_timed_out(parts):
    async with serving() as (_, port):
        assert status(await talk(port, *parts)) == 408


async def test_an_idle_connection_is_closed():
    async with serving() as (_, port):
        answer = await talk(port, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert status(answer) == 200  # and `talk` returned, so it was closed


async def test_a_client_may_wait_for_leave_to_send_its_body():
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ab")
        assert (await reader.read()).endswith(b"POST /  2")
        writer.close()
        await writer.wait_closed()


async def test_http_1_0_is_answered_without_chunks_and_closed():
    async def stream(exchange: Exchange) -> None:
        exchange.open_stream()
        exchange.write(b"data: 1\n\n")
        exchange.close_stream()

    async with serving(stream) as (_, port):
        answer = await talk(port, b"GET / HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\ndata: 1\n\n")
    assert b"chunked" not in answer


async def test_a_stream_ends_with_its_trailers_and_the_connection_serves_on():
    async def stream(exchange: Exchange) -> None:
        exchange.open_stream(headers=[("x-a", "b")])
        exchange.write(b"one")
        exchange.write(b"two")
        exchange.close_stream([("x-cost", "1")])

    async with serving(stream) as (_, port):
        answer = await talk(port, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", GET)
    assert answer.count(b"3\r\none\r\n3\r\ntwo\r\n0\r\nx-cost: 1\r\n\r\n") == 2


async def test_a_client_that_goes_away_cancels_its_answer():
    cancelled, begun = asyncio.Event(), asyncio.Event()

    async def hang(exchange: Exchange) -> None:
        begun.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(hang) as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        await begun.wait()
        writer.transport.abort()
        async with asyncio.timeout(5):
            await cancelled.wait()
        assert not server.connections


async def test_a_header_that_would_end_another_is_made_harmless():
    async def hostile(exchange: Exchange) -> Reply:
        return Reply(200, b"", headers=[("x-model", "a\r\nx-evil: 1\u20ac\x00")])

    async with serving(hostile) as (_, port):
        answer = await talk(port, GET)
    assert b"\r\nx-evil" not in answer
    assert b"x-model: a??x-evil: 1\\u20ac?" in answer


async def test_draining_lets_what_is_under_way_end_and_closes_the_rest():
    go_on = asyncio.Event()

    async def slow(exchange: Exchange) -> Reply:
        await go_on.wait()
        return await echo(exchange)

    async with serving(slow) as (server, port):
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        working = asyncio.create_task(talk(port, b"GET /w HTTP/1.1\r\nHost: h\r\n\r\n"))
        while not any(connection.busy for connection in server.connections):
            await asyncio.sleep(0.01)
        draining = asyncio.create_task(server.drain(5.0))
        async with asyncio.timeout(5):
            assert await idle_reader.read() == b""
            go_on.set()
            assert b"connection: close" in await working
            assert await draining == 0
        idle_writer.close()
        await idle_writer.wait_closed()


async def test_draining_ends_what_takes_too_long_and_counts_it():
    async def hang(exchange: Exchange) -> None:
        await asyncio.sleep(30)

    async with serving(hang) as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        while not any(connection.busy for connection in server.connections):
            await asyncio.sleep(0.01)
        assert await server.drain(0.1) == 1
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_client_that_reads_slowly_pauses_the_source_of_its_stream():
    paused, resumed = asyncio.Event(), asyncio.Event()

    class Source:
        def pause(self) -> None:
            paused.set()

        def resume(self) -> None:
            resumed.set()

    async def flood(exchange: Exchange) -> None:
        exchange.relay = Relay(exchange.write)
        exchange.relay.source = Source()
        exchange.open_stream()
        while not paused.is_set():
            exchange.write(b"x" * 100_000)
            await asyncio.sleep(0)
        await exchange.drain()
        exchange.close_stream()

    async with serving(flood) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        async with asyncio.timeout(60):
            await paused.wait()
            assert not resumed.is_set()
            while await reader.read(1 << 20):
                pass
            assert resumed.is_set()
        writer.close()
        await writer.wait_closed()


async def test_head_has_the_length_of_the_answer_and_no_body():
    async with serving() as (_, port):
        answer = await talk(port, b"HEAD /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert b"content-length: 10" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_a_target_with_scheme_and_host_is_its_path():
    async with serving() as (_, port):
        answer = await talk(port, b"GET http://h/a/b?c HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"GET /a/b c 0")


async def test_a_request_that_waits_for_its_turn_does_not_shorten_the_one_before_it():
    """The first answer takes longer than a body may; a second request, whole or half, is no reason to cut it off."""

    async def slow_first(exchange: Exchange) -> Reply:
        await asyncio.sleep(2.0 if exchange.path == "/slow" else 0)
        return await echo(exchange)

    slow = b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n"
    half = b"POST /half HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nab"
    async with serving(slow_first) as (_, port):
        whole, broken = await asyncio.gather(talk(port, slow + GET), talk(port, slow + half))
    assert re.findall(rb"HTTP/1.1 (\d+) ", whole) == [b"200", b"200"]
    assert re.findall(rb"HTTP/1.1 (\d+) ", broken) == [b"200", b"408"]


async def test_answers_that_nobody_reads_are_not_made_ahead():
    made = 0

    async def big(exchange: Exchange) -> Reply:
        nonlocal made
        made += 1
        return Reply(200, b"x" * 1_000_000)

    async with serving(big) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 500 + GET)
        await asyncio.sleep(0.5)
        assert made < 50  # what the sockets' buffers take
        async with asyncio.timeout(60):
            while await reader.read(1 << 20):
                pass
        assert made == 501
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_reads_slowly_gets_all_and_one_that_reads_nothing_is_cut_off():
    limits = HttpLimits(stuck_seconds=2.0)

    async def big(exchange: Exchange) -> Reply:
        return Reply(200, b"x" * 20_000_000)

    async with serving(big, limits) as (_, port):

        async def read(first: float, pause: float) -> int:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(GET)
            await asyncio.sleep(first)
            size = 0
            with contextlib.suppress(ConnectionError):
                while piece := await reader.read(1 << 18):
                    size += len(piece)
                    await asyncio.sleep(pause)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return size

        async with asyncio.timeout(60):
            slow, stuck = await asyncio.gather(read(0.0, 0.03), read(6.0, 0.0))
    assert slow > 20_000_000
    assert stuck < 20_000_000


async def test_a_handler_that_breaks_its_word_and_raises_leaves_nobody_waiting():
    async def broken(exchange: Exchange) -> Reply:
        raise ValueError("unforeseen")

    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(repr(context.get("exception"))))
    async with serving(broken) as (_, port):
        with contextlib.suppress(ConnectionError):
            assert await talk(port, GET) == b""
    assert told == ["ValueError('unforeseen')"]


async def test_draining_lets_a_kept_connection_bring_what_was_on_its_way():
    async with serving() as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n")
        await reader.readuntil(b"GET /1  0")
        draining = asyncio.create_task(server.drain(5.0))
        await asyncio.sleep(0.05)
        writer.write(b"GET /2 HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = await reader.read()
        assert b"connection: close" in answer
        assert answer.endswith(b"GET /2  0")
        assert await draining == 0
        writer.close()
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def guarding(limits: HttpLimits = LIMITS) -> AsyncIterator[tuple[HttpServer, int, list[str]]]:
    """A server that refuses requests without a key; and the bodies that reached its handler."""
    reached: list[str] = []

    async def handler(exchange: Exchange) -> Reply:
        reached.append(exchange.path)
        return await echo(exchange)

    async with serving(handler, limits) as (server, port):
        server.admit = lambda exchange: (
            None if "x-key" in exchange.headers else Reply(401, b"no key for " + exchange.path.encode())
        )
        yield server, port, reached


POST = b"POST /a%20b HTTP/1.1\r\nHost: h\r\nContent-Length: 9000\r\n"
CHUNKED = b"POST /a%20b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize("head", [POST, CHUNKED, POST + b"Expect: 100-continue\r\n"], ids=["sized", "chunked", "asks"])
@pytest.mark.parametrize("start", [b"", b"1\r\nx\r\n"], ids=["no body yet", "some"])
async def test_a_request_without_a_key_is_refused_before_its_body(head, start):
    async with guarding() as (server, port, reached):
        answer = await talk(port, head + b"\r\n" + start)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert answer.endswith(b"no key for /a b")
        assert reached == []
        assert server.bodies.held == 0


async def test_a_request_with_its_key_sends_its_body_in_pieces():
    async with guarding() as (server, port, _):
        parts = (POST + b"X-Key: 1\r\nConnection: close\r\n\r\n", b"x" * 4000, b"x" * 5000)
        assert (await talk(port, *parts, pause=0.01)).endswith(b"9000")
        assert server.bodies.held == 0


async def test_a_refusal_by_the_headers_waits_for_the_answers_before_it():
    async with guarding() as (_, port, reached):
        answer = await talk(port, GET.replace(b"Connection: close", b"X-Key: 1") + POST + b"\r\n")
        assert [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 401]
        assert reached == ["/a"]


async def test_many_large_bodies_are_received_in_bounded_memory_and_all_are_answered():
    """Each is sent but for its end before any is completed: those for which there is no room wait in their sockets."""
    size, count = 2**22, 12
    limits = HttpLimits(body=size, unfinished=size)
    async with serving(limits=limits) as (server, port):
        ready, most = asyncio.Event(), 0

        async def send() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size)
            writer.write(b"x" * (size - 1))
            await ready.wait()
            writer.write(b"x")
            answer = await reader.read()
            writer.close()
            return answer

        sending = [asyncio.create_task(send()) for _ in range(count)]
        for _ in range(200):
            await asyncio.sleep(0.001)
            most = max(most, server.bodies.held)
        ready.set()
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*sending)
    assert all(answer.endswith(b"POST /p  %d" % size) for answer in answers)
    assert size < most <= 2 * size + count * 2**18
    assert server.bodies.held == 0


async def test_bodies_that_stand_still_do_not_keep_others_from_theirs(monkeypatch):
    """They are refused while another waits, and it is answered."""
    monkeypatch.setattr(bodies, "PATIENCE", 0.1)
    size = 2**20
    limits = HttpLimits(body=size, unfinished=size, pace=2**30)
    head = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size
    async with serving(limits=limits) as (_, port):
        still = [asyncio.create_task(talk(port, head + b"x" * (size // 2))) for _ in range(3)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            assert (await talk(port, head + b"x" * size)).endswith(b"%d" % size)
        assert {status(await one) for one in still} == {408}
