"""One HTTP/1.1 connection: sends an encoded request and receives a response, whole or piece by piece.

Servers are not trusted: the sizes of headers, response and decoded response are limited, each byte is scanned once, data
after a response closes the connection, and what takes long (decompression, much data at once) is done in steps between which
the event loop serves others. httptools (llhttp) does the parsing.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary, finalize

import httptools

from workflow_composer.support.unfinished import PATIENCE, UnfinishedBodies


@dataclass(frozen=True, slots=True)
class Bounds:
    """Maximum bytes of the headers, of one event of a stream, of a response as sent, of the decoded response, and of one
    that is not a stream; and the most JSON values in an event or a response of more than a megabyte.
    """

    head: int = 64 * 2**10
    event: int = 4 * 2**20
    answer: int = 256 * 2**20
    decoded: int = 256 * 2**20
    whole: int = 16 * 2**20
    values: int = 500_000


BOUNDS = Bounds()
"""Far beyond what models generate: a hundred thousand tokens of text are half a megabyte."""


def bounds_of(answers: int, *, size: int, values: int) -> Bounds:
    """Return the bounds of a response with so many answers of at most ``size`` bytes and ``values`` JSON values each."""
    return Bounds(whole=min(BOUNDS.whole + answers * size, BOUNDS.decoded), values=BOUNDS.values + answers * values)


STEP = 64 * 2**10
"""Bytes of a response that are parsed or decompressed before the event loop serves others."""
PIECE = 4 * 2**10
"""The same of headers and of events, each of which takes work of its own."""
LARGE = 2**20
"""Bytes after which a response is large: its JSON values are counted, and it waits if others take the room."""
TOGETHER = 64 * 2**20
"""Bytes of large answers that an event loop receives or decodes at once; beyond it, all but the first wait."""
PACE = 64 * 2**10
"""Bytes per second at which a large answer must arrive while others wait."""
ERROR = 256 * 2**10
"""Bytes of an error response that are kept."""


_rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, UnfinishedBodies] = WeakKeyDictionary()


def room_of(loop: asyncio.AbstractEventLoop) -> UnfinishedBodies:
    """Return the large answers of a loop."""
    found = _rooms.get(loop)
    if found is None:
        found = _rooms[loop] = UnfinishedBodies(TOGETHER, PACE)
    return found


def values_in(data: bytes | bytearray) -> int:
    """Return an upper bound of the number of JSON values."""
    return data.count(b",") + data.count(b"[") + data.count(b"{") + 1


Request = bytes | tuple[bytes, ...]
"""A complete request, or its pieces."""


class Broken(Exception):  # named for what happened
    """The connection ended, or the response is not HTTP.

    ``begun``: during a response. ``stale``: the server closed the connection before it sent anything, as it does after too
    long an idle time; the request may succeed on another connection.
    """

    def __init__(self, reason: str, *, begun: bool = True, stale: bool = False) -> None:
        super().__init__(reason)
        self.begun = begun
        self.stale = stale


class Undecodable(Broken):
    """The response has an unsupported or damaged compression."""


class TooLong(Broken):
    """The response exceeds the limits; a retry would not help.

    ``ours``: an honest server may have sent it, so that the limit is at fault and not the server.
    """

    def __init__(self, reason: str, *, ours: bool = False) -> None:
        super().__init__(reason)
        self.ours = ours


@dataclass(slots=True, weakref_slot=True)
class Answer:
    """A server's response, with header names in lower case. ``body`` is empty if a sink received it."""

    status: int
    headers: dict[str, str]
    body: bytes | bytearray


class Sink(Protocol):
    """Receives the body of an event stream with a status of success; any other response is returned as an `Answer`."""

    def attach(self, connection: Connection) -> None:
        """Set the connection of the response; called again after a retry on another connection."""
        ...

    def begin(self) -> None:
        """Start the stream after its headers."""
        ...

    def feed(self, data: bytes) -> None:
        """Receive a decoded piece. Raises `TooLong`."""
        ...


class Connection(asyncio.Protocol):
    """One connection, for one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._bounds = BOUNDS
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self._sink: Sink | None = None
        self._body: bytes | bytearray = b""
        self._headers: dict[str, str] = {}
        self._received = self._parsed = self._decoded = self._named = self._values = 0
        self._most = 0
        self._headed = self._streams = self._aborted = self._complete = False
        self._inflating: Inflating | None = None
        self._backlog: deque[memoryview] = deque()
        self._working = self._scheduled = self._held = False
        self._lost: tuple[Exception | None] | None = None
        self._unsent: deque[bytes] = deque()
        self._full = False
        self._share: Share | None = None
        self.transport: Any = None
        self.usable = True
        self.idle_since = 0.0

    def ask(self, data: Request, sink: Sink | None = None, bounds: Bounds = BOUNDS) -> asyncio.Future[Answer]:
        """Send a complete request, one in pieces as fast as the server reads. The future fails with `Broken`."""
        self._waiter = waiter = self._loop.create_future()
        self._bounds = bounds
        self._sink, self._body, self._headers = sink, b"", {}
        self._received = self._parsed = self._decoded = self._named = self._values = 0
        self._most = bounds.whole if bounds.whole < bounds.decoded else bounds.decoded
        self._headed = self._streams = self._complete = False
        self._inflating = None
        if isinstance(data, bytes):
            self.transport.write(data)
        else:
            self._unsent.extend(data)
            self._send()
        return waiter

    def _send(self) -> None:
        """Send pieces until the server or others have to catch up."""
        if self._waiter is None or self._aborted:
            self._unsent.clear()
        size = 0
        while self._unsent and not self._full:
            if size > STEP:
                self._loop.call_soon(self._send)
                return
            size += len(self._unsent[0])
            self.transport.write(self._unsent.popleft())

    @property
    def begun(self) -> bool:
        """Whether part of the response has been received."""
        return self._received > 0

    def pause(self) -> None:
        """Pause reading."""
        self._held = True
        self._stop_reading()

    def resume(self) -> None:
        """Resume reading."""
        self._held = False
        if self._working:
            self._work_soon()
        elif self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _stop_reading(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def abort(self) -> None:
        """Close immediately, which tells the server to stop."""
        self.usable, self._aborted = False, True
        self._unsent.clear()
        if self._share is not None:
            self._share.end()
            self._share = None
        if self.transport is not None:
            self.transport.abort()

    # ----------------------------------------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes | memoryview, *, in_step: bool = False) -> None:
        """Parse received data, much of it in steps, which come back here: a function apart costs every response a call."""
        if not in_step:
            if self._waiter is None:  # data on an idle connection: out of sync
                self.abort()
                return
            self._received += len(data)
            if self._received > self._bounds.answer:
                self._fail(TooLong(f"the response is longer than {self._bounds.answer} bytes"))
                return
            if len(data) > PIECE or self._inflating is not None or self._working:
                self._take_in_steps(data)
                return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Broken(f"the response is not valid HTTP ({type(error).__name__})"))
            return
        self._parsed += len(data)
        if self._named > self._bounds.head or (self._parsed > self._bounds.head and not self._headed):
            self._fail(TooLong(f"the response headers are longer than {self._bounds.head} bytes"))
        elif self._inflating is not None and not in_step:
            self._take_in_steps(b"")

    def pause_writing(self) -> None:
        """Stop sending pieces: the server reads too slowly."""
        self._full = True

    def resume_writing(self) -> None:
        """Send the next pieces."""
        self._full = False
        if self._unsent:
            self._loop.call_soon(self._send)

    def connection_lost(self, exc: Exception | None) -> None:
        """Complete a response without a length; fail any other unfinished one."""
        self.usable = False
        begun = self._received > 0
        if self._waiter is None:
            return
        if self._working and not self._aborted:
            self._lost = (exc,)  # once the received data is processed
            return
        if self._headed and not self._aborted and not {"content-length", "transfer-encoding"} & self._headers.keys():
            self.on_message_complete()
            if self._complete and self._waiter is not None:
                self.on_message_complete()
        else:
            how = "reset by the server" if exc else "closed during the response" if begun else "closed before the response"
            self._fail(Broken(how, begun=begun, stale=not begun and not self._aborted))

    # ---------------------------------------------------------------------------------------------------- work in steps

    def _take_in_steps(self, data: bytes | memoryview) -> None:
        """Process much data, or compressed data, in steps; reading pauses meanwhile."""
        if data:
            self._backlog.append(memoryview(data))
        if not self._working:
            self._working = True
            self._stop_reading()
            self._work()

    def _work(self) -> None:
        """Take one step, and arrange for the next."""
        self._scheduled = False
        if not self._working or self._held:
            return  # `resume` goes on
        if self._waiter is not None and not self._waiter.done():
            self._take_a_step()
            if self._waiter is not None and (self._backlog or (self._inflating is not None and self._inflating.waits)):
                self._work_soon()
                return
        self._working = False
        if self._backlog:  # data after the response
            self.usable = False
            self._backlog.clear()
        lost, self._lost = self._lost, None
        if self._complete and self._waiter is not None:
            self.on_message_complete()
        elif lost is not None:
            self.connection_lost(lost[0])
        elif not self._held and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _work_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._work)

    def _take_a_step(self) -> None:
        """Decompress a piece, or parse one."""
        if self._inflating is not None and self._inflating.waits:
            try:
                if piece := self._inflating.piece():
                    self._accept(piece)
            except zlib.error:
                self._fail(Undecodable("cannot decompress the response"))
            return
        if not self._backlog:
            return
        data, most = self._backlog.popleft(), STEP if self._headed and not self._streams else PIECE
        if len(data) > most:
            self._backlog.appendleft(data[most:])
            data = data[:most]
        self.data_received(data, in_step=True)

    # --------------------------------------------------------------------------------------------- the parser's callbacks

    def on_message_begin(self) -> None:
        """Detect a second response, which would be taken for that of the next request."""
        self.usable = self.usable and self._waiter is not None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header; ignore trailers."""
        self._named += len(name) + len(value)
        if not self._headed:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Choose how to handle the body."""
        status = self._parser.get_status_code()
        if status < 200:
            return
        self._headed = True
        if self._named > self._bounds.head:
            self._fail(TooLong(f"the response headers are longer than {self._bounds.head} bytes"))
            return
        if "content-encoding" in self._headers:
            try:
                self._inflating = inflating_for(self._headers["content-encoding"])
            except Undecodable as error:
                self._fail(error)
                return
        if self._sink is not None and status < 300 and "event-stream" in self._headers.get("content-type", ""):
            self._streams = True
            self._sink.begin()
        elif len(length := self._headers.get("content-length", "")) < 20 and length.isdecimal() and int(length) > self._most:
            self._fail(TooLong(f"the response is longer than {self._most} bytes", ours=True))

    def on_body(self, body: bytes) -> None:
        """Pass a piece to the sink, or keep it."""
        if self._waiter is None:
            return
        if self._inflating is not None:
            self._inflating.add(body)
        elif self._body or self._streams or len(body) > LARGE or len(body) > self._most:
            self._accept(body)
        else:  # as usual, the whole body
            self._body, self._decoded = body, len(body)

    def _accept(self, piece: bytes) -> None:
        """Pass a decoded piece to the sink, or keep it, within the bounds."""
        self._decoded += len(piece)
        if self._streams:
            if self._decoded > self._bounds.decoded:
                self._fail(TooLong(f"the decompressed response is longer than {self._bounds.decoded} bytes"))
                return
            try:
                self._sink.feed(piece)  # type: ignore[union-attr]  # set for streams
            except TooLong as error:
                self._fail(error)
            return
        if self._decoded > self._most:
            self._fail(TooLong(f"the response is longer than {self._most} bytes", ours=True))
            return
        if self._decoded > ERROR and self._parser.get_status_code() >= 400:
            return  # the start of an error says what it is
        if not self._body:
            self._body = piece
        else:  # one buffer: a list of small pieces would take many times their size
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += piece
        if self._decoded > LARGE:
            if self._share is None:
                self._share = Share(self, room_of(self._loop))
            self._share.grow(len(piece))
            self._values += values_in(piece if self._values else self._body)
            if self._values > self._bounds.values:
                self._fail(TooLong(f"the response has more than {self._bounds.values} values", ours=True))

    def on_message_complete(self) -> None:
        """Deliver the response, unless it was an interim one (1xx); a compressed one once it is decompressed."""
        if not self._complete:
            if self._parser.get_status_code() < 200:
                self._headers = {}
                return
            self.usable = self.usable and self._parser.should_keep_alive() and not self._unsent
            if self._inflating is not None:
                self._complete = True
                return
        elif self._inflating is not None and not self._inflating.whole:
            self._fail(Undecodable("cannot decompress the response: it is truncated"))
            return
        self.idle_since = time.monotonic()
        waiter, self._waiter, self._sink = self._waiter, None, None
        body, self._body = self._body, b""
        if waiter is not None and not waiter.done():
            answer = Answer(self._parser.get_status_code(), self._headers, body)
            if self._share is not None:
                finalize(answer, self._share.end).atexit = False  # once it is decoded
                self._share = None
                if self._held:
                    self.resume()
            waiter.set_result(answer)

    def give_up(self, share: Share) -> None:
        """End a response that stands still while others wait, if it is still coming."""
        if self._share is share:
            self._fail(Broken("the response arrives too slowly, while others wait"))

    def _fail(self, error: Broken) -> None:
        waiter, self._waiter, self._sink, self._streams = self._waiter, None, None, False
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)


class Share:
    """A large answer among those of its event loop; reading pauses while the others take the room."""

    def __init__(self, connection: Connection, room: UnfinishedBodies) -> None:
        self._connection = connection
        self._room = room
        self._loop = asyncio.get_running_loop()

    def grow(self, size: int) -> None:
        """Count received bytes."""
        self._room.add(self, size, self._loop.time())
        if self._room.waits(self):
            self._loop.call_later(PATIENCE, self._look)

    def end(self) -> None:
        """Leave, in any thread: nobody holds the answer any more."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._leave)

    def hold(self) -> None:
        """See `Receiving`."""
        self._connection.pause()

    def go_on(self) -> None:
        """See `Receiving`."""
        self._connection.resume()

    def cut_off(self) -> None:
        """See `Receiving`."""
        self._connection.give_up(self)

    def _look(self) -> None:
        """While it waits, those that stand still end."""
        if self._room.waits(self):
            self._room.cut_off_the_slow(self._loop.time())
            self._loop.call_later(PATIENCE, self._look)

    def _leave(self) -> None:
        self._room.remove(self, self._loop.time())


def inflating_for(coding: str) -> Inflating | None:
    """Return what decompresses a Content-Encoding; None if nothing is compressed. Raises `Undecodable`."""
    name = coding.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in ("gzip", "x-gzip", "deflate"):
        raise Undecodable(f"unsupported Content-Encoding {name[:20]!r} of the response")
    return Inflating()


class Inflating:
    """Decompresses gzip and deflate in pieces of bounded size (protects against decompression bombs)."""

    def __init__(self) -> None:
        self._inflate: Any = None
        self._packed = bytearray()

    @property
    def waits(self) -> bool:
        """Whether there is data to decompress."""
        return bool(self._packed)

    @property
    def whole(self) -> bool:
        """Whether the data is complete; also true without a body."""
        return self._inflate is None or self._inflate.eof

    def add(self, data: bytes) -> None:
        """Accept compressed data."""
        if self._inflate is None or not self._inflate.eof:  # what comes after its end is ignored
            self._packed += data

    def piece(self) -> bytes:
        """Return the next decompressed bytes; b"" if more data is needed. Raises `zlib.error`."""
        data, self._packed = bytes(self._packed[:STEP]), self._packed[STEP:]
        if self._inflate is None:
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, detected by its header
            try:
                piece = self._inflate.decompress(data, STEP)
            except zlib.error:  # some servers send deflate without the zlib header
                self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                piece = self._inflate.decompress(data, STEP)
        else:
            piece = self._inflate.decompress(data, STEP)
        if self._inflate.eof:
            self._packed.clear()
        elif rest := self._inflate.unconsumed_tail:
            self._packed[:0] = rest
        return bytes(piece)
