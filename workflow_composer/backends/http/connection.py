"""One HTTP/1.1 connection: sends an encoded request and receives a response, whole or piece by piece.

Servers are not trusted: the sizes of headers, response and decoded response are limited, each byte is scanned once, and data
after a response closes the connection. httptools (llhttp) does the parsing.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import httptools


@dataclass(frozen=True, slots=True)
class Bounds:
    """Maximum bytes of the headers, of one event of a stream, of a response as sent, and of the decoded response."""

    head: int = 64 * 2**10
    event: int = 16 * 2**20
    answer: int = 256 * 2**20
    decoded: int = 256 * 2**20


BOUNDS = Bounds()
"""Far beyond what models generate."""


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
    """The response exceeds the limits; a retry would not help."""


@dataclass(slots=True)
class Answer:
    """A server's response, with header names in lower case. ``body`` is empty if a sink received it."""

    status: int
    headers: dict[str, str]
    body: bytes


class Sink(Protocol):
    """Receives the body of an event stream with status 200; any other response is returned as an `Answer`."""

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
        self._parts: list[bytes] = []
        self._headers: dict[str, str] = {}
        self._received = self._decoded = self._named = 0
        self._headed = self._streams = self._aborted = False
        self._inflating: _Inflating | None = None
        self.transport: Any = None
        self.usable = True
        self.idle_since = 0.0

    def ask(self, data: bytes, sink: Sink | None = None, bounds: Bounds = BOUNDS) -> asyncio.Future[Answer]:
        """Send a complete request. The future fails with `Broken`."""
        self._waiter = waiter = self._loop.create_future()
        self._bounds = bounds
        self._sink, self._parts, self._headers = sink, [], {}
        self._received = self._decoded = self._named = 0
        self._headed = self._streams = False
        self._inflating = None
        self.transport.write(data)
        return waiter

    @property
    def begun(self) -> bool:
        """Whether part of the response has been received."""
        return self._received > 0

    def pause(self) -> None:
        """Pause reading."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Resume reading."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close immediately, which tells the server to stop."""
        self.usable, self._aborted = False, True
        if self.transport is not None:
            self.transport.abort()

    # ----------------------------------------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse received data."""
        if self._waiter is None:  # data on an idle connection: out of sync
            self.abort()
            return
        self._received += len(data)
        if self._received > self._bounds.answer:
            self._fail(TooLong(f"the response is longer than {self._bounds.answer} bytes"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Broken(f"the response is not valid HTTP ({type(error).__name__})"))
            return
        if self._received > self._bounds.head and not self._headed:
            self._fail(TooLong(f"the response headers are longer than {self._bounds.head} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Complete a response without a length; fail any other unfinished one."""
        self.usable = False
        begun = self._received > 0
        if self._waiter is None:
            return
        if self._headed and not self._aborted and not {"content-length", "transfer-encoding"} & self._headers.keys():
            self.on_message_complete()
        else:
            how = "reset by the server" if exc else "closed during the response" if begun else "closed before the response"
            self._fail(Broken(how, begun=begun, stale=not begun and not self._aborted))

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
        coding = self._headers.get("content-encoding", "").strip().lower()
        if coding not in ("", "identity"):
            if coding not in ("gzip", "x-gzip", "deflate"):
                self._fail(Undecodable(f"unsupported Content-Encoding {coding[:20]!r} of the response"))
                return
            self._inflating = _Inflating()
        if self._sink is not None and status == 200 and "event-stream" in self._headers.get("content-type", ""):
            self._streams = True
            self._sink.begin()

    def on_body(self, body: bytes) -> None:
        """Pass a piece to the sink, or keep it."""
        if self._waiter is None:
            return
        pieces = (body,) if self._inflating is None else self._inflating.feed(body)
        try:
            for piece in pieces:
                self._decoded += len(piece)
                if self._decoded > self._bounds.decoded:
                    self._fail(TooLong(f"the decompressed response is longer than {self._bounds.decoded} bytes"))
                    return
                if self._streams:
                    self._sink.feed(piece)  # type: ignore[union-attr]  # set for streams
                else:
                    self._parts.append(piece)
        except zlib.error:
            self._fail(Undecodable("cannot decompress the response"))
        except TooLong as error:
            self._fail(error)

    def on_message_complete(self) -> None:
        """Complete the response, unless it was an interim one (1xx)."""
        if self._parser.get_status_code() < 200:
            self._headers = {}
            return
        self.usable = self.usable and self._parser.should_keep_alive()
        if self._inflating is not None and not self._inflating.whole:
            self._fail(Undecodable("cannot decompress the response: it is truncated"))
            return
        self.idle_since = time.monotonic()
        waiter, self._waiter, self._sink = self._waiter, None, None
        if waiter is not None and not waiter.done():
            parts = self._parts
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            waiter.set_result(Answer(self._parser.get_status_code(), self._headers, body))

    def _fail(self, error: Broken) -> None:
        waiter, self._waiter, self._sink, self._streams = self._waiter, None, None, False
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)


class _Inflating:
    """Decompresses gzip and deflate in pieces of bounded size (protects against decompression bombs)."""

    PIECE = 64 * 2**10

    def __init__(self) -> None:
        self._inflate: Any = None

    @property
    def whole(self) -> bool:
        """Whether the data is complete; also true without a body."""
        return self._inflate is None or self._inflate.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decompressed ``data``. Raises `zlib.error`."""
        if self._inflate is None:
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, detected by its header
            try:
                piece = self._inflate.decompress(data, self.PIECE)
            except zlib.error:  # some servers send deflate without the zlib header
                self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                piece = self._inflate.decompress(data, self.PIECE)
        else:
            piece = self._inflate.decompress(data, self.PIECE)
        while piece:
            yield piece
            rest = self._inflate.unconsumed_tail
            piece = self._inflate.decompress(rest, self.PIECE)
