"""HTTP/1.1 over asyncio: bytes to `Exchange`s and back. Parsing is llhttp's, through httptools.

Written for one thing: that a request costs little besides its handler (`benchmarks/serving_parts.py` compares it with
general servers). What comes from the network is hostile: the size of heads and bodies and the time that they may take are
limited, and a message that two readers could read in two ways is refused and its connection closed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httptools

from workflow_composer.server.exchange import JSON, Exchange, Reply
from workflow_composer.server.heads import BadTarget, head, head_without_upgrade, path_and_query
from workflow_composer.server.http_exchange import HttpExchange

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
        self.connections: set[Connection] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def protocol(self) -> Connection:
        """A connection that is being made."""
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        return Connection(self)

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


class Connection(asyncio.Protocol):
    """One client's connection; its requests are answered one after the other."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._queue: deque[HttpExchange] = deque()
        self._current: HttpExchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._client = ""
        self._begin()
        self._started = 0.0
        self._since = time.monotonic()
        self._unsent = 0
        self._refused: tuple[int, str] | None = None
        self._closing = False
        self.transport: Any = None
        self.writable: asyncio.Event | None = None
        self.deadline = self._since + self._limits.head_seconds

    def _begin(self) -> None:
        """Nothing of the next request is known yet."""
        self._target = b""
        self._version = ""
        self._headers: dict[str, str] = {}
        self._body: bytes | bytearray = b""
        self._size = 0
        self._coming = False
        self._unread = 0  # bytes since the message began, or since its last piece of body
        self._fields = 0
        self._fields_size = 0
        self._in_body = False
        self._declined = False

    @property
    def busy(self) -> bool:
        """Whether a request is being answered or has partly come."""
        return self._current is not None or (self._coming and not self._closing)

    @property
    def ending(self) -> bool:
        """Whether no further request is answered here."""
        return self._closing or self._server.draining

    # ----------------------------------------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self._client = peer[0] if isinstance(peer, tuple) else ""
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Parse; a fault is answered after the requests before it."""
        if self._refused is not None or self._closing:
            return
        if not self._coming:
            self._coming, self._started = True, time.perf_counter()
            if self._current is None:
                self._since = time.monotonic()
                self.deadline = self._since + self._limits.head_seconds
        self._unread += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(400, "the request is not HTTP/1.1 as it should be")
        if self._unread > self._limits.head:
            self._refuse(431, "the head of the request, or what stands in place of its body, is too long")
        if self._current is None:
            self._send_refusal()

    def _feed(self, data: bytes) -> None:
        """Parse. The parser takes a request for another protocol for the end of this one; it is asked again without that."""
        rest = memoryview(data)
        while rest:
            try:
                self._parser.feed_data(rest)
                rest = rest[:0]
            except httptools.HttpParserUpgrade as offer:
                if self._refused is not None:
                    return
                rest = rest[offer.args[0] :]
                again = head_without_upgrade(self._parser.get_method(), self._target, self._version, self._headers)
                self._begin()
                self._coming = True
                self._parser = httptools.HttpRequestParser(self)
                self._parser.feed_data(again)

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
        self._server.connections.discard(self)
        self._closing = True
        self._queue.clear()
        if self.writable is not None:
            self.writable.set()
        if self._task is not None:
            self._task.cancel()

    # --------------------------------------------------------------------------------------------- the parser's callbacks

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url
        self._coming = True
        if len(self._target) > self._limits.target:
            self._refuse(414, "the target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if self._in_body:
            return  # a trailer: nobody here has asked for any, and none may change what the head has said
        self._fields += 1
        self._fields_size += len(name) + len(value)
        if self._fields > self._limits.fields or self._fields_size > self._limits.head:
            self._refuse(431, "the head of the request is too long")
            return
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        if key in self._headers:
            if key in {"host", "content-length", "transfer-encoding", "authorization"}:
                self._refuse(400, f"the header {key} stands twice")
            text = f"{self._headers[key]}, {text}"
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        """Refuse what cannot be answered before its body is read."""
        self._in_body = True
        headers = self._headers
        version = self._version = self._parser.get_http_version()
        self._declined = self._parser.should_upgrade()
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if self._parser.get_method() == b"CONNECT":
            self._refuse(501, "this is no proxy")
        elif self._declined and self._refused is None:
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
        self._expect_body()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._unread = 0
        self._size += len(body)
        if self._size > self._limits.body:
            self._refuse(413, f"the body is longer than {self._limits.body} bytes")
        elif self._refused is None:
            if not self._body:
                self._body = body
            else:  # one buffer: a list of pieces would take many times their size, were they of a byte each
                if isinstance(self._body, bytes):
                    self._body = bytearray(self._body)
                self._body += body
            self._expect_body()

    def on_message_complete(self) -> None:
        """The request is whole: answer it now, or after those before it."""
        if self._refused is not None or self._declined:
            return
        try:
            path, query = path_and_query(self._target)
        except BadTarget as error:
            self._refuse(400, str(error))
            return
        exchange = HttpExchange(
            self._parser.get_method().decode("latin-1"),
            path,
            headers=self._headers,
            body=bytes(self._body),
            query=query,
            client=self._client,
            started=self._started,
        )
        exchange.connection = self
        exchange.keep_alive = self._parser.should_keep_alive()
        exchange.chunks = self._version == "1.1"
        self._begin()
        if self._current is None:
            self._answer(exchange)
            return
        self._queue.append(exchange)
        if len(self._queue) >= _WAITING:
            self.transport.pause_reading()

    # -------------------------------------------------------------------------------------------------------- the answers

    def _answer(self, exchange: HttpExchange) -> None:
        self._current = exchange
        self.deadline = float("inf")  # whatever answers has limits of its own
        self._task = self._loop.create_task(self._run(exchange))

    async def _run(self, exchange: HttpExchange) -> None:
        try:
            reply = await self._server.serve(exchange)
            if reply is not None and not self.transport.is_closing():
                exchange.send(reply)
                await exchange.drain()  # what a client does not read must not pile up, answer after answer
        except Exception as error:  # noqa: BLE001  # a fault of the service must not leave the client waiting
            self._loop.call_exception_handler({"message": "a request was not answered", "exception": error})
            self.abort()
            return
        self._task = None
        if not self.transport.is_closing():
            self._next(exchange)

    def _next(self, exchange: HttpExchange) -> None:
        """The answer is complete: close, or go on with what waits."""
        self._current = None
        if exchange.ends or (self._closing and not self._queue):
            self._close()
            return
        self._since = time.monotonic()
        self.deadline = self._since + self._limits.idle_seconds
        if self._queue:
            if len(self._queue) == _WAITING:
                self.transport.resume_reading()
            self._answer(self._queue.popleft())
            return
        if self._coming:
            self._expect_body()
        self._send_refusal()

    def _refuse(self, status: int, reason: str) -> None:
        if self._refused is None:
            self._refused = (status, reason)
            self._body = b""

    def _send_refusal(self) -> None:
        """Answer a request that was refused, if there is one, now that those before it are answered."""
        if self._refused is None or self._closing:
            return
        reply = self._server.refuse(*self._refused)
        head_ = head(reply.status, reply.content_type, reply.headers, length=len(reply.body), close=True)
        self.transport.write(head_ + reply.body)
        self._closing = True
        self.deadline = time.monotonic() + _LINGER
        self.transport.write_eof()

    def _expect_body(self) -> None:
        """A body must come at a pace, or one client after the other could hold a connection for ever."""
        if self._current is None:  # else the deadline is that of the answer
            self.deadline = self._since + self._limits.body_seconds + self._size / self._limits.pace

    def _close(self) -> None:
        """Close once everything is written."""
        self._closing = True
        self._queue.clear()
        self.deadline = time.monotonic() + self._limits.stuck_seconds
        self.transport.close()

    def expire(self) -> None:
        """The time for what was expected is over."""
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        if 0 < self._unsent <= before - _SLOWEST * self._limits.stuck_seconds:
            self.deadline = time.monotonic() + self._limits.stuck_seconds  # the client reads, if slowly
        elif self._current is None and self._coming and not self._closing:
            self._refuse(408, "the request did not come in time")
            self._send_refusal()
        else:
            self.abort()

    def close_if_idle(self, since: float) -> None:
        """Close where nothing is under way, and nothing was after that moment."""
        if not self.busy and not self._closing and self._since <= since:
            self._close()

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()


__all__ = ["JSON", "Connection", "HttpExchange", "HttpLimits", "HttpServer"]
