"""The HTTP transport that asks the `EgressPolicy` before each request and before each connection.

Twice, because a request that may be sent can still end up elsewhere: the name of a local server may resolve to an address
out in the world. So names are resolved here, the addresses are judged, and the connection is made to a judged address.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import httpcore2
import httpx2

from workflow_composer.backends.connections import Connections
from workflow_composer.backends.egress import EgressPolicy, Resolve
from workflow_composer.backends.resolving import admitted_addresses, system_resolve
from workflow_composer.backends.sockets import AsyncioNetwork
from workflow_composer.errors import EgressDenied

# httpcore's errors have the same names in httpx.
_ERRORS: dict[type[Exception], type[httpx2.RequestError]] = {
    getattr(httpcore2, name): getattr(httpx2, name)
    for name in (
        "ConnectTimeout",
        "ReadTimeout",
        "WriteTimeout",
        "PoolTimeout",
        "ConnectError",
        "ReadError",
        "WriteError",
        "ProxyError",
        "UnsupportedProtocol",
        "LocalProtocolError",
        "RemoteProtocolError",
    )
}
_FOREIGN: tuple[type[Exception], ...] = (*_ERRORS, ssl.SSLError, OSError)


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends what the policy admits and raises `EgressDenied` for the rest. Belongs to one event loop."""

    def __init__(
        self, policy: EgressPolicy, *, environ: Mapping[str, str], resolve: Resolve | None, keepalive: float
    ) -> None:
        self._policy = policy
        self._environ = environ if policy.allow_cloud else {}
        self._network = PinnedNetwork(policy, resolve or system_resolve)
        self._keepalive = keepalive
        self._pools: dict[tuple[str, str | None], Connections] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; raises `EgressDenied` or an `httpx2.RequestError`."""
        url = request.url
        self._policy.check(url)
        pool = self._pool(url)
        core = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            response = await pool.send(core)
        except _FOREIGN as error:
            raise _translated(error) from error
        return httpx2.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        while self._pools:
            await self._pools.popitem()[1].close()

    def _pool(self, url: httpx2.URL) -> Connections:
        proxy = self._proxy_for(url)
        key = (url.scheme, proxy)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = self._make_pool(tls=url.scheme == "https", proxy=proxy)
        return pool

    def _make_pool(self, *, tls: bool, proxy: str | None) -> Connections:
        options: dict[str, Any] = {
            "ssl_context": tls_context() if tls else None,
            "keepalive_expiry": self._keepalive,
        }
        if proxy is None:
            options["network_backend"] = self._network
        else:  # the request has been checked; where the proxy itself stands is the environment's affair
            options |= {"proxy": _proxy(proxy), "network_backend": AsyncioNetwork()}
        return Connections(httpcore2.AsyncConnectionPool(**options).create_connection)

    def _proxy_for(self, url: httpx2.URL) -> str | None:
        if not self._environ:
            return None
        host = url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        if self._policy.is_local(host, port):
            return None
        found = _variable(self._environ, f"{url.scheme}_proxy") or _variable(self._environ, "all_proxy")
        bypass: Any = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]  # older than typeshed, and not in it
        if not found or bypass(f"{host}:{port}", {"no": _variable(self._environ, "no_proxy")}):
            return None
        return found if "://" in found else f"http://{found}"


class PinnedNetwork(httpcore2.AsyncNetworkBackend):
    """Opens connections to admitted hosts, at admitted addresses."""

    def __init__(self, policy: EgressPolicy, resolve: Resolve, sockets: httpcore2.AsyncNetworkBackend | None = None) -> None:
        self._policy = policy
        self._resolve = resolve
        self._sockets = sockets or AsyncioNetwork()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that answers; raises `EgressDenied` or httpcore's connect errors."""
        options: dict[str, Any] = {"local_address": local_address, "socket_options": socket_options}
        deadline = None if timeout is None else time.monotonic() + timeout
        addresses = await self._admitted(host, port, timeout)
        for left in range(len(addresses), 0, -1):
            address = addresses[-left]
            share = None if deadline is None else max(0.0, deadline - time.monotonic()) / left
            try:
                return await self._sockets.connect_tcp(address, port, timeout=share, **options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if left == 1:
                    raise
        raise httpcore2.ConnectError(f"{host} has no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Refuse: no profile names a socket file, and what listens there may pass bytes on."""
        raise EgressDenied("connections to socket files are not made")

    async def sleep(self, seconds: float) -> None:
        """Wait (httpcore's pause between its own attempts, of which there are none)."""
        await asyncio.sleep(seconds)

    async def _admitted(self, host: str, port: int, limit: float | None) -> list[str]:
        try:
            return await admitted_addresses(self._policy, host, port, resolve=self._resolve, limit=limit)
        except TimeoutError:
            raise httpcore2.ConnectTimeout(f"the name {host} was not resolved in time") from None
        except OSError as error:
            raise httpcore2.ConnectError(f"the name {host} cannot be resolved: {error.strerror or error}") from error


class _Body(httpx2.AsyncByteStream):
    """A response's body, with httpcore's errors translated."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async with aclosing(aiter(self._stream)) as parts:
                async for part in parts:
                    yield part
        except _FOREIGN as error:
            raise _translated(error) from error

    async def aclose(self) -> None:
        await self._stream.aclose()


def _translated(error: Exception) -> httpx2.RequestError:
    return _ERRORS.get(type(error), httpx2.ConnectError)(str(error))


@functools.cache
def tls_context() -> ssl.SSLContext:
    """What connections are encrypted by: the well-known authorities, names checked."""
    return httpx2.create_ssl_context()


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""


def _proxy(url: str) -> httpcore2.Proxy:
    parsed = httpx2.Proxy(url)
    if parsed.url.scheme.startswith("socks"):
        try:
            import socksio  # type: ignore[import-not-found]  # noqa: F401 - an extra of httpx2
        except ImportError:
            raise httpx2.ProxyError("the environment names a SOCKS proxy, which needs `pip install socksio`") from None
    core = httpcore2.URL(
        scheme=parsed.url.raw_scheme, host=parsed.url.raw_host, port=parsed.url.port, target=parsed.url.raw_path
    )
    return httpcore2.Proxy(core, auth=parsed.raw_auth, headers=parsed.headers.raw)
