"""The HTTP client: pooled connections to the hosts that the `EgressPolicy` admits, at addresses that it has checked.

It sends encoded requests and returns status, headers and body, or a stream of bytes. It follows no redirects, reads no
environment variables and uses no proxy. If the server has closed a pooled connection, the request is sent once more on a new
one. Cancelling a request or closing a stream stops the work at the server.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, NamedTuple, Self

from workflow_composer.backends.http.connection import BOUNDS, STEP, Answer, Bounds, Broken, Connection, Request, Sink
from workflow_composer.backends.http.egress import EgressPolicy, Resolve, admitted_addresses, check_owner, endpoint_of
from workflow_composer.errors import EgressDenied
from workflow_composer.usage import Sending

# ------------------------------------------------------------------------------------------------------------------- limit
#
# A time limit on an await that is fair to servers: data that arrived while the event loop was blocked is in time.


_PARTS = 8
_TURNS = 10
"""Iterations of the event loop that deliver received data: from the socket to the awaiting task takes four."""


class Limit:
    """Cancels the block after ``seconds`` and raises the exception of ``late``; otherwise like `asyncio.timeout`.

    After an event loop was blocked (by a long computation or an overloaded machine), one iteration finds both the timeout
    and the response; `asyncio.timeout` would cancel. This class counts the time in parts, so that a pause of any length uses
    up only one of them, and the loop delivers received data before the last part.
    """

    __slots__ = ("_cancelling", "_expired", "_late", "_left", "_loop", "_part", "_task", "_timer")

    def __init__(self, seconds: float, late: Callable[[], Exception] = TimeoutError) -> None:
        self._part = max(0.0, seconds) / _PARTS
        self._left = _PARTS + _TURNS
        self._late = late
        self._expired = False

    @property
    def left(self) -> float:
        """Return the remaining seconds, including the current part."""
        return self._part * max(0, self._left - _TURNS)

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # an await runs in a task
        self._task, self._loop, self._cancelling = task, task.get_loop(), task.cancelling()
        self._timer = self._loop.call_later(self._part, self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise self._late() from None

    def end(self) -> None:
        """Lift the limit for the rest of the block."""
        self._timer.cancel()

    def _count(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._part if self._left > _TURNS else 0, self._count)
        else:
            self._expired = True
            self._task.cancel()


_NO_CLOCK: AbstractContextManager[None] = nullcontext()

KEEPALIVE = 4.0
"""Seconds for which an idle connection is kept; uvicorn, vLLM's HTTP server, closes idle ones after 5."""
_TOO_LATE = 408
"""Status with which some servers and proxies end an idle connection; the request that crosses it has not been read."""
_MOST_WAITING = 256 * 2**10
"""Bytes of a stream that may be buffered before reading pauses."""


class Origin(NamedTuple):
    """A server: whether it uses TLS, its canonical host, and its port."""

    tls: bool
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        """Return the server of a URL. Raises `EgressDenied` if it is not an HTTP URL."""
        return cls(url[:6].lower() == "https:", *endpoint_of(url))

    @property
    def authority(self) -> str:
        """Host and port as in a ``Host`` header, without the default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Client:
    """The client of one event loop. ``keepalive`` is in seconds; ``resolve`` replaces the system's resolver."""

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        keepalive: float = KEEPALIVE,
        resolve: Resolve | None = None,
    ) -> None:
        self._policy = policy
        self._keepalive = keepalive
        self._resolve = resolve
        self._idle: defaultdict[Origin, deque[Connection]] = defaultdict(deque)
        self._busy: set[Connection] = set()

    async def send(
        self,
        origin: Origin,
        data: Request,
        *,
        connect: float,
        sink: Sink | None = None,
        bounds: Bounds = BOUNDS,
        sending: Sending | None = None,
    ) -> Answer:
        """Send a whole request and return its response; connecting may take ``connect`` seconds.

        ``sending`` learns when the request was sent, and when the response has ended.

        Raises `EgressDenied`; TimeoutError and OSError if no connection can be made; `Broken` if it ends early.
        """
        connection, told = self._kept(origin), sending or Sending()
        reused = connection is not None
        while True:
            if connection is None:
                connection = await self._opened(origin, connect)
            if sink is not None:
                sink.attach(connection)
            try:
                told.sent += 1
                with told.clock or _NO_CLOCK:
                    answer = await connection.ask(data, sink, bounds)
                if not (reused and answer.status == _TOO_LATE):
                    return answer
            except Broken as error:
                if not (reused and error.stale):
                    raise
            except BaseException:
                connection.abort()
                raise
            finally:
                self._busy.discard(connection)
                if connection.usable:
                    self._idle[origin].append(connection)
                else:
                    connection.abort()
            told.sent -= 1  # the server has not read the request
            connection, reused = None, False

    async def stream(self, origin: Origin, data: Request, *, connect: float, sending: Sending | None = None) -> Stream:
        """Send a request and wait for the headers of its response. Raises as `send`."""
        inbox = _Inbox()
        asked = asyncio.ensure_future(self.send(origin, data, connect=connect, sink=inbox, sending=sending))
        asked.add_done_callback(inbox.end)
        stream = Stream(inbox, asked)
        try:
            await inbox.headed
        except BaseException:
            await stream.close()
            raise
        return stream

    async def ask(
        self,
        url: str,
        content: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        connect: float = 2.0,
        sink: Sink | None = None,
        bounds: Bounds = BOUNDS,
    ) -> Answer:
        """Send a small query: a GET, or with ``content`` a POST of JSON. Raises as `send`."""
        origin = Origin.of(url)
        sized = {} if content is None else {"Content-Type": "application/json", "Content-Length": str(len(content))}
        start = head("GET" if content is None else "POST", path_of(url), origin, {**sized, **(headers or {})})
        data = b"%b\r\n%b" % (start, content or b"")
        return await self.send(origin, data, connect=connect, sink=sink, bounds=bounds)

    async def close(self) -> None:
        """Close every connection, including those in use."""
        for connection in (*(one for kept in self._idle.values() for one in kept), *self._busy):
            connection.abort()
        self._idle.clear()
        self._busy.clear()
        await asyncio.sleep(0)  # the loop closes the sockets in its next round

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ------------------------------------------------------------------------------------------------------- connections

    def _kept(self, origin: Origin) -> Connection | None:
        """Return the last used connection if it is still usable."""
        kept, since = self._idle[origin], time.monotonic() - self._keepalive
        if kept and kept[0].idle_since <= since:  # closing one per call keeps up with new idle connections
            kept.popleft().abort()
        while kept:
            connection = kept.pop()
            if connection.usable and connection.idle_since > since:
                self._busy.add(connection)
                return connection
            connection.abort()
        return None

    async def _opened(self, origin: Origin, limit: float) -> Connection:
        tls, host, port = origin
        options: dict[str, Any] = {"ssl": tls_context(), "server_hostname": host} if tls else {}
        with Limit(limit) as whole:
            addresses = await admitted_addresses(self._policy, host, port, resolve=self._resolve)
            for left in range(len(addresses), 0, -1):
                try:
                    with Limit(whole.left / left):
                        return await self._connected(addresses[-left], origin, options)
                except (OSError, EgressDenied):
                    if left == 1:
                        raise
        raise OSError("the host name has no address")

    async def _connected(self, address: str, origin: Origin, options: dict[str, Any]) -> Connection:
        """Return a connection to this address, after `check_owner` has admitted its server."""
        loop = asyncio.get_running_loop()
        transport, made = await loop.create_connection(lambda: Connection(loop), address, origin.port, **options)
        self._busy.add(made)
        try:
            peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
            if peer and own:
                await check_owner(self._policy, origin.host, origin.port, peer[0], own)
        except BaseException:
            self._busy.discard(made)
            made.abort()
            raise
        if not made.usable:  # nobody has waited for its end so far
            self._busy.discard(made)
            raise Broken("closed before the response", begun=False, stale=True)
        return made


class Stream:
    """A response after its headers. ``whole`` is set if it is not an event stream; otherwise `read` its pieces."""

    def __init__(self, inbox: _Inbox, asked: asyncio.Future[Answer]) -> None:
        self._inbox = inbox
        self._asked = asked

    @property
    def whole(self) -> Answer | None:
        """The whole response if it is not a stream: an error, for example."""
        return None if self._inbox.streams else self._inbox.answer

    async def read(self) -> bytes:
        """Return the next bytes; b"" at the end. Raises `Broken`."""
        return await self._inbox.read()

    async def close(self) -> None:
        """Close the stream, which stops unfinished work at the server. Safe to call twice."""
        if self._asked.cancel():
            await asyncio.wait([self._asked])
            await asyncio.sleep(0)  # the loop closes the socket in its next round


class _Inbox:
    """Buffers a stream's pieces until they are read; pauses reading if the buffer is full."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._wanted: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self.connection: Connection
        self.headed: asyncio.Future[None] = self._loop.create_future()
        self.answer: Answer | None = None
        self.streams = False

    def attach(self, connection: Connection) -> None:
        self.connection = connection

    def begin(self) -> None:
        self.streams = True
        if not self.headed.done():
            self.headed.set_result(None)

    def feed(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > _MOST_WAITING and not self._paused:
            self._paused = True
            self.connection.pause()
        self._wake()

    async def read(self) -> bytes:
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self.answer is not None:
                return b""
            self._wanted = self._loop.create_future()
            await self._wanted
        if self._size <= STEP or len(self._parts) == 1:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
        else:  # whoever reads decodes it without a pause
            await asyncio.sleep(0)
            data = self._parts.popleft()
        self._size -= len(data)
        if self._paused and self._size <= STEP:
            self._paused = False
            self.connection.resume()
        return data

    def end(self, asked: asyncio.Future[Answer]) -> None:
        """Store the result of the request."""
        if asked.cancelled():
            error: BaseException | None = asyncio.CancelledError()
        else:
            error = asked.exception()
        if not self.headed.done():
            self.headed.set_exception(error) if error is not None else self.headed.set_result(None)
        if error is None:
            self.answer = asked.result()
        elif self.streams:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is not None and not wanted.done():
            wanted.set_result(None)


def head(method: str, path: str, origin: Origin, headers: Mapping[str, str]) -> bytes:
    """Return a request's headers without the final empty line. Raises ValueError for a header with a line break."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {origin.authority}", "User-Agent: workflow-composer"]
    lines += [f"{name}: {value}" for name, value in {"Accept-Encoding": "identity", **headers}.items()]
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or "\0" in text:
        raise ValueError("a header contains a line break")
    return text.encode("latin-1") + b"\r\n"


def path_of(url: str) -> str:
    """Return path and query of a URL."""
    place = url.partition("://")[2].partition("#")[0]
    path = place[len(place.partition("/")[0].partition("?")[0]) :]
    return path if path.startswith("/") else "/" + path


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the TLS context: verifies host names against the system's certificate authorities and certifi's."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
