"""Connections for httpcore on asyncio's own streams.

httpcore's backend goes through anyio, which costs a call a tenth of its time and, where a task is cancelled while it
connects, leaves a coroutine that was never awaited.
"""

from __future__ import annotations

import asyncio
import os
import select
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import httpcore2

T = TypeVar("T")


class AsyncioNetwork(httpcore2.AsyncNetworkBackend):
    """Opens TCP connections."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect; raises httpcore's `ConnectError` or `ConnectTimeout`."""
        source = (local_address, 0) if local_address else None

        async def connect() -> AsyncioStream:
            opened = await asyncio.open_connection(host, port, local_addr=source)
            return AsyncioStream(*opened)

        stream = await _limited(connect, timeout, httpcore2.ConnectTimeout, httpcore2.ConnectError)
        for option in socket_options or ():
            stream.get_extra_info("socket").setsockopt(*option)
        return stream

    async def sleep(self, seconds: float) -> None:
        """Wait (httpcore's pause between its own attempts, of which there are none)."""
        await asyncio.sleep(seconds)


class AsyncioStream(httpcore2.AsyncNetworkStream):
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most ``max_bytes``; none at the end. Raises `ReadError` or `ReadTimeout`."""
        return await _limited(lambda: self._reader.read(max_bytes), timeout, httpcore2.ReadTimeout, httpcore2.ReadError)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it. Raises `WriteError` or `WriteTimeout`."""
        if buffer:
            self._writer.write(buffer)
            await _limited(self._writer.drain, timeout, httpcore2.WriteTimeout, httpcore2.WriteError)

    async def aclose(self) -> None:
        """Close at once; what was not sent is not sent any more."""
        self._writer.close()
        self._writer.transport.abort()
        await asyncio.sleep(0)  # the loop closes the socket in its next round

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Go on encrypted. Raises `ConnectError` or `ConnectTimeout`; asyncio has then closed the connection."""
        await _limited(
            lambda: self._writer.start_tls(ssl_context, server_hostname=server_hostname),
            timeout,
            httpcore2.ConnectTimeout,
            httpcore2.ConnectError,
        )
        return self

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks of a connection."""
        if info == "is_readable":
            return _is_readable(self.get_extra_info("socket"))
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._writer.get_extra_info(names.get(info, info))


async def _limited(
    work: Callable[[], Awaitable[T]], limit: float | None, late: type[Exception], broken: type[Exception]
) -> T:
    try:
        if limit is None:
            return await work()
        async with asyncio.timeout(limit):
            return await work()
    except TimeoutError as error:
        raise late(str(error)) from error
    except OSError as error:
        raise broken(_said(error)) from error


def _said(error: OSError) -> str:
    # asyncio writes "Connect call failed" over the system's words; TLS errors have words, and no number, of their own
    system = error.errno and error.errno > 0 and not isinstance(error, ssl.SSLError)
    return os.strerror(error.errno) if system and error.errno else str(error)


def _is_readable(sock: Any) -> bool:
    if sock is None or sock.fileno() < 0:
        return True
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([sock.fileno()], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))
