"""HTTP/1.1 over asyncio: bytes to `Exchange`s and back. Parsing is llhttp's, through httptools.

Written for one thing: that a request costs little besides its handler (`benchmarks/serving_parts.py` compares it with
general servers). What comes from the network is hostile: the size of heads and bodies and the time that they may take are
limited, and a message that two readers could read in two ways is refused and its connection closed.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from itertools import chain
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

from workflow_composer.server.exchange import EVENTS, JSON, Exchange, Fields, Reply

Serve = Callable[[Exchange], Awaitable[Reply | None]]
"""Answers an exchange; raises nothing but CancelledError."""

Refuse = Callable[[int, str], Reply]
"""The reply to a request that is not understood: status and reason -> reply."""

_WAITING = 8
"""Requests of one connection that may wait for their turn before no more is read from it."""
_LINGER = 2.0
"""Seconds for which what a refused client still sends is taken, and thrown away: closing at once would reset the connection,
and the client would not see why."""
_GRACE = 0.25
"""Seconds at the end of the service in which a kept connection may bring one more request, that was on its way."""
_RECENT = 2.0
"""The same after the last answer on a connection (or its making): its client is at work and may ask again, if slowly."""
_SLOWEST = 1024
"""Bytes a second that a client must read of what waits for it."""
_NO_HTTP = "the request is not HTTP/1.1 as it should be"


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a request may take. Sizes in bytes, times in seconds; bodies have a second more for every ``pace`` bytes."""

    head: int = 64 * 1024
    fields: int = 100
    target: int = 8 * 1024
    body: int = 32 * 2**20
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    pace: int = 64 * 1024
    idle_seconds: float = 75.0
    stuck_seconds: float = 60.0


class HttpServer:
    """All connections of one worker. `protocol` is what `loop.create_server` wants."""

    def __init__(self, serve: Serve, refuse: Refuse, limits: HttpLimits) -> None:
        self.serve = serve
        self.refuse = refuse
        self.limits = limits
        self.draining = False
        self.connections: set[ServerConnection] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def protocol(self) -> ServerConnection:
        """A connection that is being made."""
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        return ServerConnection(self)

    async def _sweep(self) -> None:
        """One clock for all connections: a timer for each would cost more than the requests."""
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for connection in list(self.connections):
                if connection.deadline < now:
                    connection.expire()

    async def drain(self, seconds: float) -> int:
        """Let what is under way end, for so many seconds; close the rest, and say how many that were."""
        self.draining = True
        began = time.monotonic()
        while self.connections and (now := time.monotonic()) < began + seconds:
            for connection in list(self.connections) if now >= began + _GRACE else ():
                connection.close_if_idle(now - _RECENT)
            await asyncio.sleep(0.01)
        left = [connection for connection in self.connections if connection.busy]
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        return len(left)


@dataclass(slots=True, eq=False, kw_only=True)
class HttpExchange(Exchange):
    """A request on a connection. ``chunks``: a stream can be sent in chunks; ``ends``: no request follows its answer."""

    connection: ServerConnection
    keep_alive: bool
    chunks: bool
    ends: bool = False
    begun: bool = False

    def open_stream(self, *, content_type: str = EVENTS, headers: Fields = ()) -> None:
        """Send the head of a stream."""
        self.begun = True
        connection = self.connection
        self.ends = not (self.keep_alive and self.chunks) or connection.closing or connection.server.draining
        head_ = head(200, content_type, headers, length=None, close=self.ends, chunked=self.chunks)
        connection.transport.write(head_)

    def write(self, data: bytes) -> None:
        """Send a piece."""
        if data:
            self.connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunks else data)

    async def drain(self) -> None:
        """Wait while the client does not keep up."""
        if (writable := self.connection.writable) is not None:
            await writable.wait()

    def close_stream(self, trailers: Fields = ()) -> None:
        """The end."""
        if self.chunks:
            told = "".join(f"{name}: {value}\r\n" for name, value in trailers)
            self.connection.transport.write(f"0\r\n{told}\r\n".encode("ascii"))

    @property
    def opened(self) -> bool:
        """Whether the head of a stream has been sent."""
        return self.begun


@dataclass(slots=True)
class _Coming:
    """What has come of the next request. ``unread``: bytes since it began, or since its last piece of body."""

    begun: bool = False
    target: bytes = b""
    version: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    fields: int = 0
    fields_size: int = 0
    declined: bool = False
    in_body: bool = False
    body: bytes | bytearray = b""
    size: int = 0
    unread: int = 0


class ServerConnection(asyncio.Protocol):
    """One client's connection; its requests are answered one after the other."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._queue: deque[HttpExchange] = deque()
        self._current: HttpExchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[HttpExchange] | None = None
        self._client = ""
        self._coming = _Coming()
        self._started = 0.0
        self._since = time.monotonic()
        self._unsent = 0
        self._refused: tuple[int, str] | None = None
        self.closing = False
        self.transport: Any = None
        self.writable: asyncio.Event | None = None
        self.deadline = self._since + self._limits.head_seconds

    @property
    def busy(self) -> bool:
        """Whether a request is being answered or has partly come."""
        return self._current is not None or (self._coming.begun and not self.closing)

    # ----------------------------------------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self._client = peer[0] if isinstance(peer, tuple) else ""
        self.server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Parse; a fault is answered after the requests before it."""
        if self._refused is not None or self.closing:
            return
        if not self._coming.begun:
            self._coming.begun, self._started = True, time.perf_counter()
            if self._current is None:
                self._since = time.monotonic()
                self.deadline = self._since + self._limits.head_seconds
        self._coming.unread += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data, offer)
        except httptools.HttpParserError:
            self._refuse(400, _NO_HTTP)
        if self._coming.unread > self._limits.head:
            self._refuse(431, "the head of the request, or what stands in place of its body, is too long")
        if self._current is None:  # else the request has come, or has to wait
            self._expect_more()

    def _decline(self, data: bytes, offer: httptools.HttpParserUpgrade) -> None:
        """The parser takes a request for another protocol for the end of this one; it is asked again without that."""
        rest = memoryview(data)
        try:
            while self._refused is None:
                rest = rest[offer.args[0] :]
                known, method = self._coming, self._parser.get_method()
                self._coming = _Coming(begun=True)
                self._parser = httptools.HttpRequestParser(self)
                self._parser.feed_data(head_without_upgrade(method, known.target, known.version, known.headers))
                try:
                    self._parser.feed_data(rest)
                except httptools.HttpParserUpgrade as another:
                    offer = another
                else:
                    return
        except httptools.HttpParserError:
            self._refuse(400, _NO_HTTP)

    def pause_writing(self) -> None:
        """The client reads more slowly than a model writes: take no more from the model."""
        self.writable = asyncio.Event()
        self._unsent = self.transport.get_write_buffer_size()
        self.deadline = time.monotonic() + self._limits.stuck_seconds
        if self._current is not None and self._current.relay is not None and self._current.relay.source is not None:
            self._current.relay.source.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self.writable is not None:
            self.writable.set()
            self.writable = None
        self.deadline = float("inf") if self._current is not None else time.monotonic() + self._limits.idle_seconds
        if self._current is not None and self._current.relay is not None and self._current.relay.source is not None:
            self._current.relay.source.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: whatever was under way for it ends."""
        self.server.connections.discard(self)
        self.closing = True
        self._queue.clear()
        if self.writable is not None:
            self.writable.set()
        if self._task is not None:
            self._task.cancel()

    # --------------------------------------------------------------------------------------------- the parser's callbacks

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        coming = self._coming
        coming.target += url
        coming.begun = True
        if len(coming.target) > self._limits.target:
            self._refuse(414, "the target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        coming = self._coming
        if coming.in_body:
            return  # a trailer: nobody here has asked for any, and none may change what the head has said
        coming.fields += 1
        coming.fields_size += len(name) + len(value)
        if coming.fields > self._limits.fields or coming.fields_size > self._limits.head:
            self._refuse(431, "the head of the request is too long")
            return
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        if key in coming.headers:
            if key in {"host", "content-length", "transfer-encoding", "authorization"}:
                self._refuse(400, f"the header {key} stands twice")
            text = f"{coming.headers[key]}, {text}"
        coming.headers[key] = text

    def on_headers_complete(self) -> None:
        """Refuse what cannot be answered before its body is read."""
        coming = self._coming
        coming.in_body = True
        headers = coming.headers
        version = coming.version = self._parser.get_http_version()
        coming.declined = self._parser.should_upgrade()
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if self._parser.get_method() == b"CONNECT":
            self._refuse(501, "this is no proxy")
        elif coming.declined and self._refused is None:
            return
        elif version not in {"1.0", "1.1"}:
            self._refuse(505, "HTTP/1.1 is spoken here")
        elif version == "1.1" and not headers.get("host"):
            self._refuse(400, "the header host is missing")
        elif coding is not None and (length is not None or version == "1.0" or coding.strip().lower() != "chunked"):
            self._refuse(400 if length is not None else 501, "the transfer coding is none that is read here")
        elif length is not None and int(length) > self._limits.body:
            self._refuse(413, f"the body is longer than {self._limits.body} bytes")
        elif "expect" in headers and headers["expect"].lower() != "100-continue":
            self._refuse(417, "only 100-continue can be expected")
        elif "expect" in headers and self._current is None and version == "1.1" and self._refused is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        coming = self._coming
        coming.unread = 0
        coming.size += len(body)
        if coming.size > self._limits.body:
            self._refuse(413, f"the body is longer than {self._limits.body} bytes")
        elif self._refused is None:
            if not coming.body:
                coming.body = body
            else:  # one buffer: a list of pieces would take many times their size, were they of a byte each
                if isinstance(coming.body, bytes):
                    coming.body = bytearray(coming.body)
                coming.body += body

    def on_message_complete(self) -> None:
        """The request is whole: answer it now, or after those before it."""
        coming, parser = self._coming, self._parser
        if self._refused is not None or coming.declined:
            return
        try:
            path, query = path_and_query(coming.target)
        except BadTarget as error:
            self._refuse(400, str(error))
            return
        exchange = HttpExchange(
            parser.get_method().decode("latin-1"),
            path,
            headers=coming.headers,
            body=bytes(coming.body),
            query=query,
            client=self._client,
            started=self._started,
            connection=self,
            keep_alive=parser.should_keep_alive(),
            chunks=coming.version == "1.1",
        )
        self._coming = _Coming()
        if self._current is None:
            self._current = exchange
            self.deadline = float("inf")  # whatever answers has limits of its own
            if self._idle is not None:
                self._idle.set_result(exchange)
            else:
                self._task = self._loop.create_task(self._run(exchange))
            return
        self._queue.append(exchange)
        if len(self._queue) >= _WAITING:
            self.transport.pause_reading()

    # -------------------------------------------------------------------------------------------------------- the answers

    async def _run(self, exchange: HttpExchange) -> None:
        """Answer a request, and then those that come after it: a task for each would cost as much as reading it does."""
        try:
            while True:
                reply = await self.server.serve(exchange)
                if reply is not None and not self.transport.is_closing():
                    ends = exchange.ends = not exchange.keep_alive or self.closing or self.server.draining
                    body = reply.body
                    head_ = head(reply.status, reply.content_type, reply.headers, length=len(body), close=ends)
                    self.transport.write(head_ if exchange.method == "HEAD" else head_ + body)
                    if self.writable is not None:  # what a client does not read must not pile up, answer after answer
                        await self.writable.wait()
                if self.transport.is_closing():
                    return
                following = self._next(exchange)
                if following is None:
                    self._idle = self._loop.create_future()
                    following = await self._idle
                exchange = following
        except Exception as error:  # noqa: BLE001  # a fault of the service must not leave the client waiting
            self._loop.call_exception_handler({"message": "a request was not answered", "exception": error})
            self.abort()

    def _next(self, exchange: HttpExchange) -> HttpExchange | None:
        """The answer is complete: close, or go on with what waits."""
        if exchange.ends or (self.closing and not self._queue):
            self._current = None
            self._close()
            return None
        self._since = time.monotonic()
        if self._queue:
            if len(self._queue) == _WAITING:
                self.transport.resume_reading()
            self.deadline = float("inf")
            self._current = self._queue.popleft()
            return self._current
        self._current = None
        begun = self._coming.begun
        self.deadline = self._since + (self._limits.body_seconds if begun else self._limits.idle_seconds)
        if begun or self._refused is not None:
            self._expect_more()
        return None

    def _refuse(self, status: int, reason: str) -> None:
        if self._refused is None:
            self._refused = (status, reason)
            self._coming.body = b""

    def _send_refusal(self) -> None:
        """Answer a request that was refused, if there is one, now that those before it are answered."""
        if self._refused is None or self.closing:
            return
        reply = self.server.refuse(*self._refused)
        head_ = head(reply.status, reply.content_type, reply.headers, length=len(reply.body), close=True)
        self.transport.write(head_ + reply.body)
        self.closing = True
        self.deadline = time.monotonic() + _LINGER
        self.transport.write_eof()

    def _expect_more(self) -> None:
        """A body must come at a pace, or one client after the other could hold a connection for ever."""
        if self._refused is not None:
            self._send_refusal()
        elif self._coming.in_body:
            self.deadline = self._since + self._limits.body_seconds + self._coming.size / self._limits.pace

    def _close(self) -> None:
        """Close once everything is written."""
        self.closing = True
        self._queue.clear()
        self.deadline = time.monotonic() + self._limits.stuck_seconds
        self.transport.close()

    def expire(self) -> None:
        """The time for what was expected is over."""
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        if 0 < self._unsent <= before - _SLOWEST * self._limits.stuck_seconds:
            self.deadline = time.monotonic() + self._limits.stuck_seconds  # the client reads, if slowly
        elif self._current is None and self._coming.begun and not self.closing:
            self._refuse(408, "the request did not come in time")
            self._send_refusal()
        else:
            self.abort()

    def close_if_idle(self, since: float) -> None:
        """Close where nothing is under way, and nothing was after that moment."""
        if not self.busy and not self.closing and self._since <= since:
            self._close()

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()


# ---------------------------------------------------------------------------------------------------------- heads


_STATUS: dict[int, str] = {status: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_LONGEST_VALUE = 1024


class BadTarget(ValueError):
    """The request's target is none that a server of one's own resources can have."""


def head(
    status: int, content_type: str, headers: Fields, *, length: int | None, close: bool, chunked: bool = False
) -> bytes:
    """Status line and headers, with the empty line. ``length`` None: the body's end is told in another way."""
    said = tuple(chain.from_iterable(headers))
    together = "".join(said)
    if not (together.isascii() and together.isprintable()):
        said = tuple(map(_harmless, said))
    date = _date(int(time.time()))
    sized = "transfer-encoding: chunked\r\n" if chunked else "" if length is None else f"content-length: {length}\r\n"
    ending = "connection: close\r\n" if close else ""
    told = ("%s: %s\r\n" * len(headers)) % said
    return f"{_STATUS[status]}date: {date}\r\ncontent-type: {content_type}\r\n{sized}{ending}{told}\r\n".encode("ascii")


def _harmless(value: str) -> str:
    """A value that comes from elsewhere (a model's name, say), without what could end the header."""
    if value.isascii() and value.isprintable():
        return value
    return value.encode("ascii", "backslashreplace").decode("ascii").translate(_CONTROLS)[:_LONGEST_VALUE]


_CONTROLS = dict.fromkeys((*range(32), 127), "?")


@functools.lru_cache(maxsize=1)
def _date(now: int) -> str:
    """An epoch second, as HTTP writes it."""
    return formatdate(now, usegmt=True)


def head_without_upgrade(method: bytes, target: bytes, version: str, headers: Mapping[str, str]) -> bytes:
    """The head of a request that offers to speak another protocol, without the offer, which a server may ignore."""
    lines = [f"{method.decode('latin-1')} {target.decode('latin-1')} HTTP/{version}"]
    for name, value in headers.items():
        if name == "connection":
            value = ", ".join(one for one in value.split(",") if one.strip().lower() != "upgrade")  # noqa: PLW2901  # less
        if name != "upgrade":
            lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@functools.lru_cache(maxsize=256)
def path_and_query(target: bytes) -> tuple[str, str]:
    """The decoded path and the raw query of a request's target. Raises `BadTarget`."""
    if not target.startswith(b"/"):
        scheme, found, rest = target.partition(b"://")
        if target == b"*":
            return "*", ""
        if not found or scheme.lower() not in {b"http", b"https"}:
            raise BadTarget("the target is no path")
        target = b"/" + rest.partition(b"/")[2]
    path, _, query = target.partition(b"?")
    try:
        if b"%" in path:
            path = unquote_to_bytes(path)
            if b"\0" in path:
                raise BadTarget("the path holds a null byte")
            return path.decode("utf-8"), query.decode("ascii")
        return path.decode("ascii"), query.decode("ascii")
    except UnicodeDecodeError:
        raise BadTarget("the target is no text") from None


__all__ = ["JSON", "HttpExchange", "HttpLimits", "HttpServer", "ServerConnection"]
