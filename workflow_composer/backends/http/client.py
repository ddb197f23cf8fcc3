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
from types import TracebackType
from typing import Any, NamedTuple, Self

from workflow_composer.backends.http.connection import BOUNDS, Answer, Bounds, Broken, Connection, Sink
from workflow_composer.backends.http.egress import EgressPolicy, Resolve, admitted_addresses, endpoint_of

# ------------------------------------------------------------------------------------------------------------------- limit
#
# A time limit on an await that is fair to servers: what came while the event loop stood still came in time.


_PARTS = 8
_TURNS = 10
"""Turns of the loop in which it sees what has come: a connection takes four from the system to whoever awaits it."""


class Limit:
    """Cancels the block after ``seconds``, which then raises what ``late`` gives; otherwise as `asyncio.timeout`.

    An event loop that stood still (for a long computation, on a machine without time) finds in the same turn that the time
    is over and that the answer is there; `asyncio.timeout` would cancel. Here time counts in parts, of which a pause takes
    only one however long it was, and the loop looks at what has come before the last.
    """

    __slots__ = ("_cancelling", "_expired", "_late", "_left", "_loop", "_part", "_task", "_timer")

    def __init__(self, seconds: float, late: Callable[[], Exception] = TimeoutError) -> None:
        self._part = max(0.0, seconds) / _PARTS
        self._left = _PARTS + _TURNS
        self._late = late
        self._expired = False

    @property
    def left(self) -> float:
        """Seconds that are left, the part under way among them."""
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
        """Let the rest of the block take its time."""
        self._timer.cancel()

    def _count(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._part if self._left > _TURNS else 0, self._count)
        else:
            self._expired = True
            self._task.cancel()


pass  # MERGED

KEEPALIVE = 4.0
"""Seconds for which an idle connection is kept: uvicorn, vLLM's HTTP server, closes it after 5."""
_MOST_WAITING = 256 * 2**10
"""Bytes of a stream that may wait for their reader before nothing more is read."""


class Origin(NamedTuple):
    """A server: whether it is spoken to by TLS, its host in canonical form, and its port."""

    tls: bool
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        """The server of a URL. Raises `EgressDenied` where it is none of HTTP."""
        return cls(url[:6].lower() == "https:", *endpoint_of(url))

    @property
    def authority(self) -> str:
        """Host and port, as a ``Host`` header has them: the usual port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Client:
    """Requests of one event loop. ``keepalive`` in seconds; ``resolve`` replaces the system's resolver."""

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
        self, origin: Origin, data: bytes, *, connect: float, sink: Sink | None = None, bounds: Bounds = BOUNDS
    ) -> Answer:
        """Send a whole request and return its response; connecting may take ``connect`` seconds.

        Raises `EgressDenied`; TimeoutError and OSError if no connection can be made; `Broken` if it ends early.
        """
        connection = self._kept(origin)
        reused = connection is not None
        while True:
            if connection is None:
                connection = await self._opened(origin, connect)
            if sink is not None:
                sink.attach(connection)
            try:
                return await connection.ask(data, sink, bounds)
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
            connection, reused = None, False

    async def stream(self, origin: Origin, data: bytes, *, connect: float) -> Stream:
        """Send a request, and wait for the head of its answer. Raises as `send`."""
        inbox = _Inbox()
        asked = asyncio.ensure_future(self.send(origin, data, connect=connect, sink=inbox))
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
        """One small question: a GET, or a POST of JSON where there is ``content``. Raises as `send`."""
        origin = Origin.of(url)
        sized = {} if content is None else {"Content-Type": "application/json", "Content-Length": str(len(content))}
        start = head("GET" if content is None else "POST", path_of(url), origin, {**sized, **(headers or {})})
        data = b"%b\r\n%b" % (start, content or b"")
        return await self.send(origin, data, connect=connect, sink=sink, bounds=bounds)

    async def close(self) -> None:
        """Close every connection, those in use among them."""
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
        """The connection that was used last, if it is still good."""
        kept, since = self._idle[origin], time.monotonic() - self._keepalive
        if kept and kept[0].idle_since <= since:  # one at a time is enough to keep up with those that have become idle
            kept.popleft().abort()
        while kept:
            connection = kept.pop()
            if connection.usable and connection.idle_since > since:
                self._busy.add(connection)
                return connection
            connection.abort()
        return None

    async def _opened(self, origin: Origin, limit: float) -> Connection:
        loop = asyncio.get_running_loop()
        tls, host, port = origin
        options: dict[str, Any] = {"ssl": tls_context(), "server_hostname": host} if tls else {}
        with Limit(limit) as whole:
            addresses = await admitted_addresses(self._policy, host, port, resolve=self._resolve)
            for left in range(len(addresses), 0, -1):
                try:
                    with Limit(whole.left / left):
                        _, made = await loop.create_connection(lambda: Connection(loop), addresses[-left], port, **options)
                except OSError:
                    if left == 1:
                        raise
                else:
                    self._busy.add(made)
                    return made
        raise OSError("its name has no address")


class Stream:
    """An answer whose head has come. ``whole`` is it, where it is no event stream; else `read` its pieces."""

    def __init__(self, inbox: _Inbox, asked: asyncio.Future[Answer]) -> None:
        self._inbox = inbox
        self._asked = asked

    @property
    def whole(self) -> Answer | None:
        """The answer, where the server did not send what was asked for: an error, say."""
        return None if self._inbox.streams else self._inbox.answer

    async def read(self) -> bytes:
        """The next bytes; none at the end. Raises `Broken`."""
        return await self._inbox.read()

    async def close(self) -> None:
        """Be done with it; before its end, that ends it at the server. Safe to call twice."""
        if self._asked.cancel():
            await asyncio.wait([self._asked])
            await asyncio.sleep(0)  # the loop closes the socket in its next round


class _Inbox:
    """Takes a stream's pieces until they are read; holds the server up where nobody reads them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
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
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size = [], 0
        if self._paused:
            self._paused = False
            self.connection.resume()
        return data

    def end(self, asked: asyncio.Future[Answer]) -> None:
        """What has become of the request."""
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
    """A request's head, without the empty line that ends it. Raises ValueError for what no header can say."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {origin.authority}", "User-Agent: workflow-composer"]
    lines += [f"{name}: {value}" for name, value in {"Accept-Encoding": "identity", **headers}.items()]
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or "\0" in text:
        raise ValueError("a header with a line break")
    return text.encode("latin-1") + b"\r\n"


def path_of(url: str) -> str:
    """What a request to a URL names: its path and query."""
    place = url.partition("://")[2].partition("#")[0]
    path = place[len(place.partition("/")[0].partition("?")[0]) :]
    return path if path.startswith("/") else "/" + path


@functools.cache
def tls_context() -> ssl.SSLContext:
    """What connections are encrypted by: the system's authorities and the well-known ones, names checked."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
