"""One HTTP connection: what a server sends out of turn is nobody's answer, and what is too much is left."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator

import pytest

from workflow_composer.backends.http import connection as connection_module
from workflow_composer.backends.http.connection import STEP, Bounds, Broken, Connection, TooLong, Undecodable

ASK = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def connected(sent: bytes) -> AsyncIterator[Connection]:
    """A connection to a server that sends these bytes to every request."""
    accepted = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
            accepted.append(transport)

        def data_received(self, data):
            self.transport.write(sent)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, connection = await loop.create_connection(lambda: Connection(loop), "127.0.0.1", port)
    try:
        async with asyncio.timeout(5):
            yield connection
    finally:
        connection.abort()
        for transport in accepted:
            transport.abort()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)


@pytest.mark.parametrize("sent", [OK, b"HTTP/1.1 100 Continue\r\n\r\n" + OK])
async def test_a_connection_that_is_in_step_can_be_used_again(sent):
    async with connected(sent) as connection:
        assert (await connection.ask(ASK)).body == b"ok"
        assert connection.usable


@contextlib.asynccontextmanager
async def sending(bodies) -> AsyncIterator[list[Connection]]:
    """Connections to a server that sends the next body to each, at once, with a length of 300,000 bytes."""
    waiting, accepted = list(bodies), []

    class Server(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
            accepted.append(transport)

        def data_received(self, data):
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + waiting.pop(0))

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0)
    place = server.sockets[0].getsockname()
    found = [(await loop.create_connection(lambda: Connection(loop), *place))[1] for _ in bodies]
    try:
        async with asyncio.timeout(60):
            yield found
    finally:
        for transport in (*found, *accepted):
            transport.abort()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)


@pytest.fixture
def small_room(monkeypatch):
    """Answers of more than 10 kB are large, and all together may have 500 kB."""
    monkeypatch.setattr(connection_module, "LARGE", 10_000)
    monkeypatch.setattr(connection_module, "TOGETHER", 500_000)
    return 500_000


async def test_large_answers_are_bounded_together_and_all_arrive(small_room):
    """Also while they wait to be decoded: each has its room until nobody holds it any more."""
    body, most = b"x" * 300_000, 0
    async with sending([body] * 12) as connections:
        room = connection_module.room_of(asyncio.get_running_loop())
        asked = {connection.ask(ASK) for connection in connections}
        served = 0
        while asked:
            done, asked = await asyncio.wait(asked, timeout=0.01)
            most = max(most, room.held)
            for one in done:
                assert bytes(one.result().body) == body
                served += 1
            del done
            one = None
        assert served == 12
        assert all(connection.usable for connection in connections)
        for _ in range(3):
            await asyncio.sleep(0)
        assert room.held == 0
    assert most <= small_room + 12 * (STEP + 10_000)  # what each has before it is large, and a step


async def test_a_large_answer_that_stands_still_does_not_keep_others_from_theirs(small_room, monkeypatch):
    """They wait for its room; it ends, because it is slow while others wait."""
    monkeypatch.setattr(connection_module, "PATIENCE", 0.05)
    monkeypatch.setattr("workflow_composer.support.unfinished.PATIENCE", 0.05)
    monkeypatch.setattr(connection_module, "PACE", 10**9)
    async with sending([b"x" * 299_000] * 2 + [b"x" * 300_000] * 3) as connections:
        stuck = [connection.ask(ASK) for connection in connections[:2]]
        room = connection_module.room_of(asyncio.get_running_loop())
        while room.held < small_room:
            await asyncio.sleep(0.01)
        for connection in connections[2:]:
            assert len((await connection.ask(ASK)).body) == 300_000
        for one in stuck:
            with pytest.raises(Broken, match="too slowly"):
                await one


async def test_a_connection_is_used_again_after_an_answer_that_waited_for_room(small_room):
    async with sending([b"x" * 300_000] * 4) as connections:

        async def size(connection):
            return len((await connection.ask(ASK)).body)

        assert await asyncio.gather(*map(size, connections[:3])) == [300_000] * 3
        assert len((await connections[0].ask(ASK)).body) == 300_000


class Taker(asyncio.Protocol):
    """A server that reads when it is told to, and answers when it has read so much."""

    def __init__(self, size, *, answers=OK):
        self.size, self.answers, self.got, self.stops = size, answers, bytearray(), False
        self.connected = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        transport.pause_reading()
        self.connected.set_result(None)

    def data_received(self, data):
        before = len(self.got)
        self.got += data
        if before < self.size <= len(self.got):
            self.transport.write(self.answers)
            if self.stops:
                self.transport.pause_reading()


@contextlib.asynccontextmanager
async def taken_by(taker) -> AsyncIterator[Connection]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: taker, "127.0.0.1", 0)
    _, connection = await loop.create_connection(lambda: Connection(loop), *server.sockets[0].getsockname())
    try:
        async with asyncio.timeout(60):
            await taker.connected
            connection.taker = taker
            yield connection
    finally:
        connection.abort()
        taker.transport.abort()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)


async def test_a_large_request_is_sent_in_steps_and_as_fast_as_the_server_reads():
    """No more of it is handed to the transport than that holds anyway."""
    async with taken_by(Taker(500 * STEP)) as connection:
        handed = []
        write = connection.transport.write
        connection.transport = Watched(connection.transport, lambda data: (handed.append(len(data)), write(data)))
        asked = connection.ask((b"x" * STEP,) * 500)
        assert sum(handed) <= 2 * STEP  # in the first step
        while not connection._full:
            await asyncio.sleep(0)
        assert connection.transport.get_write_buffer_size() <= 3 * STEP
        assert sum(handed) < 500 * STEP
        connection.taker.transport.resume_reading()
        assert (await asked).body == b"ok"
        assert sum(handed) == 500 * STEP


class Watched:
    """A transport whose writes are seen."""

    def __init__(self, transport, write):
        self._transport, self.write = transport, write

    def __getattr__(self, name):
        return getattr(self._transport, name)


async def test_pieces_arrive_in_their_order_and_the_connection_is_used_again():
    pieces = tuple(b"%06d" % number * 10_000 for number in range(100))
    async with taken_by(Taker(100 * 60_000)) as connection:
        taker = connection.taker
        asked = connection.ask(pieces)
        taker.transport.resume_reading()
        assert (await asked).body == b"ok"
        assert bytes(taker.got) == b"".join(pieces)
        assert connection.usable
        taker.got.clear()
        taker.size = len(ASK)
        assert (await connection.ask(ASK)).body == b"ok"


async def test_an_answer_to_a_request_that_is_not_sent_yet_ends_it():
    """As of a server that refuses what is too large. What is left unsent would be taken for the next request."""
    async with taken_by(Taker(1)) as connection:
        asked = connection.ask((b"x" * STEP,) * 2000)
        connection.taker.transport.resume_reading()
        connection.taker.stops = True
        assert (await asked).body == b"ok"
        assert not connection.usable


@pytest.mark.parametrize("behind", [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf of", OK, b"nonsense"])
async def test_a_connection_with_something_behind_the_answer_is_not_used_again(behind):
    """What follows would be taken for the answer to the next request, which may be another client's."""
    async with connected(OK + behind) as connection:
        assert (await connection.ask(ASK)).body == b"ok"
        assert not connection.usable


async def test_a_connection_on_which_a_server_speaks_unasked_is_not_used_again():
    """As some say that a connection was idle for too long; it would be taken for the next answer."""
    async with connected(OK) as connection:
        await connection.ask(ASK)
        connection.data_received(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        assert not connection.usable


async def test_an_answers_headers_are_those_of_its_own_head():
    """Neither of an interim answer before it, nor behind its body, where a server could take back what it said."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\nX: interim\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nX: head\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: behind\r\nY: behind\r\n\r\n"
    async with connected(interim + answer) as connection:
        assert (await connection.ask(ASK)).headers == {"x": "head", "transfer-encoding": "chunked"}


async def test_a_server_that_goes_over_to_another_protocol_has_failed():
    async with connected(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n") as connection:
        with pytest.raises(Broken):
            await connection.ask(ASK)


def sent_as(body: bytes, coding: str = "", *, chunked: bool = False) -> bytes:
    """An answer on the wire."""
    head = "HTTP/1.1 200 OK\r\n" + (f"Content-Encoding: {coding}\r\n" if coding else "")
    if not chunked:
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 7]), body[at : at + 7]) for at in range(0, len(body), 7))
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + pieces + b"0\r\n\r\n"


def raw_deflate(data: bytes) -> bytes:
    """Deflate without zlib's head, as some servers send it."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("coding", "packed"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate), ("", bytes)],
)
async def test_compressed_answers_are_read_as_what_they_stand_for(coding, packed, chunked):
    """Although they were not asked for."""
    text = b'{"a": "' + bytes(range(32, 127)).replace(b'"', b"") * 2000 + b'"}'
    async with connected(sent_as(packed(text), coding, chunked=chunked)) as connection:
        assert (await connection.ask(ASK)).body == text
        assert connection.usable


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (sent_as(b"garbage", "gzip"), Undecodable),
        (sent_as(gzip.compress(b"x" * 1000)[:-9], "gzip"), Undecodable),
        (sent_as(b"x", "br"), Undecodable),
        (sent_as(gzip.compress(b"0" * 200_000), "gzip"), TooLong),  # 200 bytes that stand for 200,000
        (sent_as(b"0" * 60_000), TooLong),
        (sent_as(b"0" * 60_000, chunked=True), TooLong),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9_000 + b"\r\n", TooLong),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 3_000, TooLong),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 20_000, TooLong),
    ],
    ids=["no gzip", "half", "brotli", "a bomb", "long", "long chunks", "long header", "many headers", "many trailers"],
)
async def test_what_is_too_much_or_cannot_be_read_ends_the_connection(answer, error):
    """Before it has filled the memory; the connection is not used again."""
    bounds = Bounds(head=8_000, answer=50_000, decoded=100_000)
    async with connected(answer) as connection:
        with pytest.raises(error):
            await connection.ask(ASK, bounds=bounds)
        assert not connection.usable


async def test_a_head_and_a_long_body_in_one_piece_are_not_taken_for_a_long_head():
    """Only bytes before the body count."""
    async with connected(sent_as(b"0" * 40_000)) as connection:
        assert len((await connection.ask(ASK, bounds=Bounds(head=200))).body) == 40_000


class Turns:
    """Notes in which turns of the event loop something was done: each turn raises `now`."""

    def __init__(self):
        self.now, self.done = 0, []
        self._task = asyncio.ensure_future(self._turn())

    async def _turn(self):
        while True:
            await asyncio.sleep(0)
            self.now += 1

    def note(self):
        self.done.append(self.now)

    def end(self):
        self._task.cancel()


BOMB = gzip.compress(b" " * 200_000_000, compresslevel=1)


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_a_bomb_is_decompressed_in_steps_between_which_others_are_served_and_only_up_to_the_bound(monkeypatch, kind):
    """200 MB in less than 1 MB, as one piece or many."""
    turns, piece = Turns(), connection_module.Inflating.piece

    def noted(self):
        turns.note()
        return piece(self)

    monkeypatch.setattr(connection_module.Inflating, "piece", noted)
    answer = sent_as(BOMB, "gzip").replace(b"\r\n", b"\r\nContent-Type: " + kind.encode() + b"\r\n", 1)
    bounds = Bounds(whole=2**22, decoded=2**22)
    async with connected(answer) as connection:
        with pytest.raises(TooLong):
            await connection.ask(ASK, Discarding(), bounds)
    turns.end()
    assert 2**22 / STEP <= len(turns.done) <= 2**22 / STEP + len(BOMB) / STEP + 9
    assert len(set(turns.done)) >= len(turns.done) - 4


class Discarding:
    """Receives a stream and keeps nothing."""

    def attach(self, connection):
        pass

    def begin(self):
        pass

    def feed(self, data):
        pass


async def test_a_stream_that_is_paused_is_decompressed_no_further_until_it_is_resumed():
    """So that a slow client's answer does not pile up."""
    text = b"data: " + b"x" * 1_000_000 + b"\n\n"

    class Reading(Discarding):
        got = 0

        def attach(self, connection):
            self.connection = connection

        def feed(self, data):
            self.got += len(data)
            self.connection.pause()

    sink = Reading()
    answer = sent_as(gzip.compress(text), "gzip").replace(b"\r\n", b"\r\nContent-Type: text/event-stream\r\n", 1)
    async with connected(answer) as connection:
        sink.attach(connection)
        done = connection.ask(ASK, sink)
        seen = -1
        while not done.done():
            if seen == sink.got > 0:
                connection.resume()
            seen = sink.got
            assert sink.got <= seen + STEP
            await asyncio.sleep(0.001)
        assert (await done).status == 200
        assert sink.got == len(text)
        assert connection.usable


async def test_much_data_at_once_is_parsed_in_steps(monkeypatch):
    """A protocol gets a quarter of a megabyte at a time, in which there may be ten thousand pieces."""
    turns, on_body = Turns(), Connection.on_body

    def noted(self, body):
        turns.note()
        on_body(self, body)

    monkeypatch.setattr(Connection, "on_body", noted)
    body = b"x" * 400_000
    async with connected(b"") as connection:
        done = connection.ask(ASK)
        connection.data_received(sent_as(body, chunked=True))
        assert (await done).body == body
        assert connection.usable
    turns.end()
    assert len(set(turns.done)) > 400_000 / STEP


@pytest.mark.parametrize("behind", [b"", OK])
async def test_an_answer_that_ends_with_the_connection_is_whole_although_it_is_still_being_processed(behind):
    body = b"y" * 500_000
    async with connected(b"") as connection:
        done = connection.ask(ASK)
        connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n" + body)
        connection.connection_lost(None)
        assert (await done).body == body
        assert not connection.usable


async def test_of_an_error_only_the_start_is_kept():
    """Which servers may fill with what they were sent."""
    answer = sent_as(b"it is too long: " + b"z" * 3_000_000).replace(b"200 OK", b"400 Bad")
    async with connected(answer) as connection:
        found = await connection.ask(ASK)
    assert found.status == 400
    assert found.body.startswith(b"it is too long: ")
    assert len(found.body) <= 2**18


@pytest.mark.parametrize(("body", "whole"), [(b"[1,2]" * 300_000, False), (b'"' + b"x," * 200_000 + b"x" * 1_200_000, True)])
async def test_a_large_answer_of_many_values_is_refused(body, whole):
    """Two million lists take a hundred times their bytes."""
    async with connected(sent_as(body)) as connection:
        if whole:
            assert (await connection.ask(ASK)).body == body
        else:
            with pytest.raises(TooLong):
                await connection.ask(ASK)


async def test_a_sink_that_pauses_at_the_last_step_stays_paused():
    """The end of the steps resumes only what they paused themselves."""

    class Pausing(Discarding):
        def feed(self, data):
            self.connection.pause()

    sink = Pausing()
    async with connected(b"") as connection:
        sink.connection = connection
        done = connection.ask(ASK, sink)
        start = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 200000\r\n\r\n"
        connection.data_received(start + b"x" * 100_000)
        for _ in range(5):
            connection.resume()
            connection.pause()
            await asyncio.sleep(0)
        while connection._working:
            connection.resume()
            await asyncio.sleep(0)
        assert not connection.transport.is_reading()
        connection.resume()
        assert connection.transport.is_reading()
        connection.data_received(b"x" * 100_000)
        while not done.done():
            connection.resume()
            await asyncio.sleep(0)
        assert (await done).status == 200
