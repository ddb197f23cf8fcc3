"""HTTP/1.1 server on asyncio: turns bytes into `Exchange`s and back. httptools (llhttp) does the parsing.

The goal is little overhead per request besides the handler (`benchmarks/serving_parts.py` compares it with general-purpose
servers). Input from the network is untrusted: sizes and durations of headers and bodies are limited, and an ambiguous
message (a request-smuggling risk) is refused and its connection closed.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from itertools import chain
from typing import Any

import httptools

from workflow_composer.server.exchange import EVENTS, JSON, Exchange, Fields, Reply
from workflow_composer.server.requests import BadTarget, HttpLimits, head_without_upgrade, path_and_query
from workflow_composer.support.unfinished import UnfinishedBodies

Serve = Callable[[Exchange], Awaitable[Reply | None]]
"""Answers an exchange; raises only CancelledError."""

Refuse = Callable[[int, str], Reply]
"""Makes the reply to a malformed request: status and reason -> reply."""

Admit = Callable[[Exchange], Reply | None]
"""Checks a request after its headers, before its body is read; returns the reply that refuses it, if it does."""

_WAITING = 8
"""Pipelined requests per connection that may wait before reading from it pauses."""
_LARGE = 64 * 1024
"""Size in bytes of a body after which a pipelined request pauses reading, until its turn."""
_LINGER = 2.0
"""Seconds for which data from a refused client is still read and discarded: closing at once would reset the connection, and
the client would not see the error response."""
_GRACE = 0.25
"""Seconds at shutdown in which a keep-alive connection may deliver one more request that was already in transit."""
_RECENT = 2.0
"""The same since the last response on a connection (or since it was made): an active client may send its next request."""
_SLOWEST = 1024
"""Minimum rate, in bytes per second, at which a client must read its response."""
_NO_HTTP = "malformed request; use HTTP/1.1"


class HttpServer:
    """All connections of one worker. Pass `protocol` to `loop.create_server`."""

    def __init__(self, serve: Serve, refuse: Refuse, limits: HttpLimits, *, admit: Admit | None = None) -> None:
        self.serve = serve
        self.refuse = refuse
        self.admit = admit
        self.limits = limits
        self.bodies = UnfinishedBodies(max(limits.unfinished, limits.body), limits.pace)
        self.draining = False
        self.connections: set[ServerConnection] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def protocol(self) -> ServerConnection:
        """Return the protocol of a new connection."""
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        return ServerConnection(self)

    async def _sweep(self) -> None:
        """Check the deadlines of all connections: a timer for each would cost more than the requests."""
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            self.bodies.cut_off_the_slow(now)
            for connection in list(self.connections):
                if connection.deadline < now:
                    connection.expire()

    async def drain(self, seconds: float) -> int:
        """Wait up to ``seconds`` for running requests; close the other connections and return their number."""
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
    """A request on a connection. ``chunks``: the client accepts chunked streams; ``ends``: close after the response."""

    connection: ServerConnection
    keep_alive: bool
    chunks: bool
    ends: bool = False
    begun: bool = False

    def open_stream(self, *, content_type: str = EVENTS, headers: Fields = ()) -> None:
        """Send status line and headers of a stream."""
        self.begun = True
        connection = self.connection
        self.ends = not (self.keep_alive and self.chunks) or connection.closing or connection.server.draining
        head_ = head(200, content_type, headers, length=None, close=self.ends, chunked=self.chunks)
        connection.transport.write(head_)

    def write(self, data: bytes) -> None:
        """Send a piece of the stream."""
        if data:
            self.connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunks else data)

    async def drain(self) -> None:
        """Wait until the client has caught up."""
        if (writable := self.connection.writable) is not None:
            await writable.wait()

    def close_stream(self, trailers: Fields = ()) -> None:
        """Send the end of the stream."""
        if self.chunks:
            told = "".join(f"{name}: {value}\r\n" for name, value in trailers)
            self.connection.transport.write(f"0\r\n{told}\r\n".encode("ascii"))

    @property
    def opened(self) -> bool:
        """Whether the headers of a stream have been sent."""
        return self.begun


@dataclass(slots=True)
class _Coming:
    """The received part of the next request. ``unread``: bytes since its start, or since its last piece of body.

    ``admitted``: it may send its body. ``counted``: bytes of the body that are counted among the unfinished ones.
    ``exchange`` is what its headers say, once they are complete and acceptable.
    """

    begun: bool = False
    target: bytes = b""
    version: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    fields: int = 0
    fields_size: int = 0
    declined: bool = False
    in_body: bool = False
    admitted: bool = False
    exchange: HttpExchange | None = None
    counted: int = 0
    body: bytes | bytearray = b""
    size: int = 0
    unread: int = 0


class ServerConnection(asyncio.Protocol):
    """One client's connection; its requests are answered in order."""

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
        self._crowded = False
        self._refused: tuple[int, str] | Reply | None = None
        self.closing = False
        self.transport: Any = None
        self.writable: asyncio.Event | None = None
        self.deadline = self._since + self._limits.head_seconds

    @property
    def busy(self) -> bool:
        """Whether a request is being answered or has been partly received."""
        return self._current is not None or (self._coming.begun and not self.closing)

    # ----------------------------------------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self._client = peer[0] if isinstance(peer, tuple) else ""
        self.server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Parse the data; a malformed request is refused after the requests before it are answered."""
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
            self._refuse(431, "the request headers or the chunk headers of its body are too long")
        if self._coming.in_body:
            self._receive_body()
        if self._current is None:  # else the request is complete, or has to wait
            self._expect_more()

    def _receive_body(self) -> None:
        """Admit the request whose body has begun, and count what has come of it."""
        coming = self._coming
        if not coming.admitted:
            self._admit()
        if self._refused is None and coming.size > coming.counted:
            more, coming.counted = coming.size - coming.counted, coming.size
            self.server.bodies.add(self, more, time.monotonic())

    def _admit(self) -> None:
        """Refuse the request if its headers suffice for that (a missing key, an unknown path)."""
        coming = self._coming
        coming.admitted = True
        if self.server.admit is None or self._refused is not None or coming.exchange is None:
            return
        if (reply := self.server.admit(coming.exchange)) is not None:
            self._refuse_with(reply)

    # ------------------------------------------------------------------------------------------------- unfinished bodies

    def hold(self) -> None:
        """See `Receiving`."""
        self.transport.pause_reading()

    def go_on(self) -> None:
        """See `Receiving`."""
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def cut_off(self) -> None:
        """See `Receiving`."""
        self._refuse(408, "the request body arrives too slowly, while others wait to send theirs")
        if self._current is None:
            self._send_refusal()

    def _decline(self, data: bytes, offer: httptools.HttpParserUpgrade) -> None:
        """Parse again without the Upgrade header, at which the parser stops."""
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
        """Pause the model server's stream: the client reads too slowly."""
        self.writable = asyncio.Event()
        self._unsent = self.transport.get_write_buffer_size()
        self.deadline = time.monotonic() + self._limits.stuck_seconds
        if self._current is not None and self._current.relay is not None and self._current.relay.source is not None:
            self._current.relay.source.pause()

    def resume_writing(self) -> None:
        """Resume the model server's stream: the client has caught up."""
        if self.writable is not None:
            self.writable.set()
            self.writable = None
        self.deadline = float("inf") if self._current is not None else time.monotonic() + self._limits.idle_seconds
        if self._current is not None and self._current.relay is not None and self._current.relay.source is not None:
            self._current.relay.source.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the running request: the client has disconnected."""
        self.server.connections.discard(self)
        self.closing = True
        self._queue.clear()
        if self._coming.counted:
            self.server.bodies.remove(self, time.monotonic())
        if self.writable is not None:
            self.writable.set()
        if self._task is not None:
            self._task.cancel()

    # --------------------------------------------------------------------------------------------- the parser's callbacks

    def on_url(self, url: bytes) -> None:
        """Collect a piece of the request target."""
        coming = self._coming
        coming.target += url
        coming.begun = True
        if len(coming.target) > self._limits.target:
            self._refuse(414, "the request target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        coming = self._coming
        if coming.in_body:
            return  # a trailer: none is needed, and none may override a header
        coming.fields += 1
        coming.fields_size += len(name) + len(value)
        if coming.fields > self._limits.fields or coming.fields_size > self._limits.head:
            self._refuse(431, "the request headers are too long")
            return
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        if key in coming.headers:
            if key in {"host", "content-length", "transfer-encoding", "authorization"}:
                self._refuse(400, f"duplicate header {key}")
            text = f"{coming.headers[key]}, {text}"
        coming.headers[key] = text

    def on_headers_complete(self) -> None:
        """Refuse an unacceptable request before its body is read."""
        coming = self._coming
        coming.in_body = True
        headers = coming.headers
        version = coming.version = self._parser.get_http_version()
        coming.declined = self._parser.should_upgrade()
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if self._parser.get_method() == b"CONNECT":
            self._refuse(501, "the server is not a proxy; send the path alone as request target")
        elif coming.declined and self._refused is None:
            return
        elif version not in {"1.0", "1.1"}:
            self._refuse(505, "unsupported HTTP version; use HTTP/1.1")
        elif version == "1.1" and not headers.get("host"):
            self._refuse(400, "the Host header is missing")
        elif coding is not None and (length is not None or version == "1.0" or coding.strip().lower() != "chunked"):
            self._refuse(400 if length is not None else 501, "unsupported Transfer-Encoding; only chunked is accepted")
        elif length is not None and int(length) > self._limits.body:
            self._refuse(413, f"the request body is longer than {self._limits.body} bytes")
        elif "expect" in headers and headers["expect"].lower() != "100-continue":
            self._refuse(417, "unsupported Expect header; only 100-continue is accepted")
        elif self._refused is None:
            try:
                path, query = path_and_query(coming.target)
            except BadTarget as error:
                self._refuse(400, str(error))
                return
            coming.exchange = HttpExchange(
                self._parser.get_method().decode("latin-1"),
                path,
                headers=headers,
                query=query,
                client=self._client,
                started=self._started,
                connection=self,
                keep_alive=False,
                chunks=version == "1.1",
            )
            if "expect" in headers and self._current is None and version == "1.1":
                self._admit()
                if self._refused is None:
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Collect a piece of the body."""
        coming = self._coming
        coming.unread = 0
        coming.size += len(body)
        if coming.size > self._limits.body:
            self._refuse(413, f"the request body is longer than {self._limits.body} bytes")
        elif self._refused is None:
            if not coming.body:
                coming.body = body
            else:  # one buffer: a list of one-byte pieces would take many times their size
                if isinstance(coming.body, bytes):
                    coming.body = bytearray(coming.body)
                coming.body += body

    def on_message_complete(self) -> None:
        """Answer the complete request, now or after those before it."""
        coming, exchange = self._coming, self._coming.exchange
        if self._refused is not None or exchange is None:  # refused, or an offered upgrade that is declined
            return
        exchange.body = coming.body if coming.size > _LARGE else bytes(coming.body)
        exchange.keep_alive = self._parser.should_keep_alive()
        if coming.counted:
            self.server.bodies.remove(self, time.monotonic())
        self._coming = _Coming()
        if self._current is None:
            self._current = exchange
            self.deadline = float("inf")  # the handler has its own time limits
            if self._idle is not None:
                self._idle.set_result(exchange)
            else:
                self._task = self._loop.create_task(self._run(exchange))
            return
        self._queue.append(exchange)
        if len(self._queue) >= _WAITING or coming.size > _LARGE:
            self._crowded = True
            self.transport.pause_reading()

    # -------------------------------------------------------------------------------------------------------- the answers

    async def _run(self, exchange: HttpExchange) -> None:
        """Answer a request and its successors: one task for each would cost as much as parsing it."""
        try:
            while True:
                reply = await self.server.serve(exchange)
                if reply is not None and not self.transport.is_closing():
                    ends = exchange.ends = not exchange.keep_alive or self.closing or self.server.draining
                    body = reply.body
                    head_ = head(reply.status, reply.content_type, reply.headers, length=len(body), close=ends)
                    if len(body) > _LARGE and exchange.method != "HEAD":
                        await self._write_in_pieces(head_, body)
                    else:
                        self.transport.write(head_ if exchange.method == "HEAD" else head_ + body)
                    if self.writable is not None:  # unread responses must not pile up
                        await self.writable.wait()
                if self.transport.is_closing():
                    return
                following = self._next(exchange)
                if following is None:
                    self._idle = self._loop.create_future()
                    following = await self._idle
                exchange = following
        except Exception as error:  # noqa: BLE001  # a bug must not leave the client waiting
            self._loop.call_exception_handler({"message": "a request was not answered", "exception": error})
            self.abort()

    async def _write_in_pieces(self, head_: bytes, body: bytes | bytearray) -> None:
        """Write a large response as fast as the client reads, and let others take their turns."""
        self.transport.write(head_)
        whole = memoryview(body)
        for start in range(0, len(body), _LARGE):
            if self.transport.is_closing():
                return
            self.transport.write(whole[start : start + _LARGE])
            if self.writable is not None:
                await self.writable.wait()
            else:
                await asyncio.sleep(0)

    def _next(self, exchange: HttpExchange) -> HttpExchange | None:
        """After a complete response, close the connection or return the next request."""
        if exchange.ends or (self.closing and not self._queue):
            self._current = None
            self._close()
            return None
        self._since = time.monotonic()
        if self._queue:
            self.deadline = float("inf")
            self._current = self._queue.popleft()
            if self._crowded and len(self._queue) < _WAITING:  # one read may bring thousands
                self._crowded = False
                self.transport.resume_reading()
            return self._current
        self._current = None
        begun = self._coming.begun
        self.deadline = self._since + (self._limits.body_seconds if begun else self._limits.idle_seconds)
        if begun or self._refused is not None:
            self._expect_more()
        return None

    def _refuse(self, status: int, reason: str) -> None:
        self._refuse_with((status, reason))

    def _refuse_with(self, why: tuple[int, str] | Reply) -> None:
        if self._refused is None:
            self._refused = why
            self._coming.body = b""
            if self._coming.counted:
                self._coming.counted = 0
                waited = self.server.bodies.waits(self)
                self.server.bodies.remove(self, time.monotonic())
                if waited:
                    self.go_on()

    def _send_refusal(self) -> None:
        """Send the pending refusal, once the requests before it are answered."""
        if self._refused is None or self.closing:
            return
        reply = self._refused if isinstance(self._refused, Reply) else self.server.refuse(*self._refused)
        head_ = head(reply.status, reply.content_type, reply.headers, length=len(reply.body), close=True)
        self.transport.write(head_ + reply.body)
        self.closing = True
        self.deadline = time.monotonic() + _LINGER
        self.transport.write_eof()

    def _expect_more(self) -> None:
        """Extend the deadline by what has been received, so that a slow body cannot hold a connection forever."""
        if self._refused is not None:
            self._send_refusal()
        elif self._coming.in_body:
            self.deadline = self._since + self._limits.body_seconds + self._coming.size / self._limits.pace

    def _close(self) -> None:
        """Close after all data is written."""
        self.closing = True
        self._queue.clear()
        self.deadline = time.monotonic() + self._limits.stuck_seconds
        self.transport.close()

    def expire(self) -> None:
        """Close or refuse: the deadline has passed."""
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        if 0 < self._unsent <= before - _SLOWEST * self._limits.stuck_seconds:
            self.deadline = time.monotonic() + self._limits.stuck_seconds  # the client still reads, slowly
        elif self._current is None and self._coming.begun and not self.closing:
            if self.server.bodies.waits(self):
                self._refuse(503, "the service is receiving too many large requests; try again later")
            else:
                self._refuse(408, "timed out waiting for the complete request")
            self._send_refusal()
        else:
            self.abort()

    def close_if_idle(self, since: float) -> None:
        """Close if no request is running and none has ended after ``since``."""
        if not self.busy and not self.closing and self._since <= since:
            self._close()

    def abort(self) -> None:
        """Close immediately."""
        self.transport.abort()


# ---------------------------------------------------------------------------------------------------------- heads


_STATUS: dict[int, str] = {status: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_LONGEST_VALUE = 1024


def head(
    status: int, content_type: str, headers: Fields, *, length: int | None, close: bool, chunked: bool = False
) -> bytes:
    """Return status line and headers. ``length`` None: no content-length (the body is chunked or ended by close)."""
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
    """Return a foreign value (a model's name, for example) without characters that could end the header."""
    if value.isascii() and value.isprintable():
        return value
    return value.encode("ascii", "backslashreplace").decode("ascii").translate(_CONTROLS)[:_LONGEST_VALUE]


_CONTROLS = dict.fromkeys((*range(32), 127), "?")


@functools.lru_cache(maxsize=1)
def _date(now: int) -> str:
    """Return an epoch second as an HTTP date."""
    return formatdate(now, usegmt=True)


__all__ = ["JSON", "HttpExchange", "HttpLimits", "HttpServer", "ServerConnection"]
