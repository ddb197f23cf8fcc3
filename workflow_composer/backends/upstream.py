"""A small HTTP/1.1 client that hands on what a server sends: pooled connections, one callback per piece, nothing per token.

The library's client builds and reads messages; for relayed answers (`workflow_composer.relay`) that would be most of the
work. This one sends a request whose bytes are there, and gives back status, headers and bytes. Connections are made only to
addresses that the `EgressPolicy` admits. Parsing is llhttp's, through httptools.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import httptools

from workflow_composer.backends.egress import EgressPolicy, Resolve
from workflow_composer.backends.resolving import admitted_addresses

LONGEST_ANSWER = 256 * 2**20
"""Bytes of a whole answer; what is longer is no answer of a language model."""

Sink = Callable[[bytes], None]


class Broken(Exception):  # named for what happened
    """The connection ended, or what came is not HTTP. ``begun``: within an answer."""

    def __init__(self, reason: str, *, begun: bool) -> None:
        super().__init__(reason)
        self.begun = begun


class Answer:
    """What a server sent. ``body`` is empty where a sink took it."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class Connection(asyncio.Protocol):
    """One connection, with one request at a time on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self._sink: Sink | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._headers: dict[str, str] = {}
        self._streams = False
        self._begun = False
        self.transport: Any = None
        self.usable = True
        self.idle_since = 0.0

    def ask(self, data: bytes, sink: Sink | None) -> asyncio.Future[Answer]:
        """Send a request. ``sink`` takes the body of an event stream under status 200, piece by piece as it comes."""
        self._waiter = waiter = self._loop.create_future()
        self._sink = sink
        self._parts, self._headers, self._size, self._begun, self._streams = [], {}, 0, False, False
        self.transport.write(data)
        return waiter

    def pause(self) -> None:
        """Read nothing for now."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once; the server sees that nobody waits any more."""
        self.usable = False
        if self.transport is not None:
            self.transport.abort()

    # ----------------------------------------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._waiter is None:  # an idle connection on which a server speaks is out of step
            self.abort()
            return
        self._begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"what it sends is not HTTP ({type(error).__name__})")

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that has no length of its own ends here; any other is broken off."""
        self.usable = False
        if self._waiter is None:
            return
        if self._begun and self._headers and not {"content-length", "transfer-encoding"} & self._headers.keys():
            self._finish()
        else:
            self._fail(
                "reset by the server" if exc else "closed within the answer" if self._begun else "closed before an answer"
            )

    # --------------------------------------------------------------------------------------------- the parser's callbacks

    def on_message_begin(self) -> None:
        """An answer behind the one that was asked for would be taken for the next one's."""
        self.usable = self.usable and self._waiter is not None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """See whether the body is the stream that was asked for."""
        streams = self._sink is not None and self._parser.get_status_code() == 200
        self._streams = streams and "event-stream" in self._headers.get("content-type", "")

    def on_body(self, body: bytes) -> None:
        """Hand a piece on, or keep it."""
        if self._streams:
            self._sink(body)  # type: ignore[misc]  # a stream has one
            return
        self._parts.append(body)
        self._size += len(body)
        if self._size > LONGEST_ANSWER:
            self._fail("its answer is longer than any model's")

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was only an interim one."""
        if self._parser.get_status_code() < 200:
            self._headers = {}
            return
        self.usable = self.usable and self._parser.should_keep_alive()
        self._finish()

    def _finish(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            parts = self._parts
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            waiter.set_result(Answer(self._parser.get_status_code(), self._headers, body))
        self._sink = None

    def _fail(self, reason: str) -> None:
        waiter, self._waiter, self._sink, self._streams = self._waiter, None, None, False
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(Broken(reason, begun=self._begun))


class Upstream:
    """Connections of one event loop to one server, the last used first."""

    def __init__(
        self,
        policy: EgressPolicy,
        host: str,
        port: int,
        *,
        tls: bool,
        keepalive: float,
        resolve: Resolve | None = None,
    ) -> None:
        self._policy = policy
        self._host = host
        self._port = port
        self._tls = tls
        self._keepalive = keepalive
        self._resolve = resolve
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()

    def idle(self) -> Connection | None:
        """An open connection for one request; `give_back` it. None where a new one is needed."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.usable and time.monotonic() - connection.idle_since < self._keepalive:
                self._busy.add(connection)
                return connection
            connection.abort()
        return None

    async def connect(self, limit: float) -> Connection:
        """A new connection for one request, within so many seconds; `give_back` it.

        Raises `EgressDenied`, TimeoutError, and OSError where no connection can be made.
        """
        connection = await self._connect(limit)
        self._busy.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """The request is over. A connection that cannot be used again is closed."""
        self._busy.discard(connection)
        if not connection.usable:
            connection.abort()
            return
        connection.idle_since = now = time.monotonic()
        idle = self._idle
        idle.append(connection)
        if now - idle[0].idle_since >= self._keepalive:
            idle.popleft().abort()

    async def close(self) -> None:
        """Close every connection, those in use among them."""
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()
        self._busy.clear()

    async def _connect(self, limit: float) -> Connection:
        loop = asyncio.get_running_loop()
        ends = loop.time() + limit
        addresses = await admitted_addresses(self._policy, self._host, self._port, resolve=self._resolve, limit=limit)
        options: dict[str, Any] = {"ssl": _tls(), "server_hostname": self._host} if self._tls else {}
        for left in range(len(addresses), 0, -1):
            try:
                async with asyncio.timeout(max(0.001, ends - loop.time()) / left):
                    _, made = await loop.create_connection(lambda: Connection(loop), addresses[-left], self._port, **options)
            except OSError:
                if left == 1:
                    raise
            else:
                return made
        raise OSError("its name has no address")


def _tls() -> ssl.SSLContext:
    from workflow_composer.backends.transport import tls_context

    return tls_context()
