"""Cloud models behind a proxy of the environment: the ``openai`` client with its own transport and pool.

Only here does another party (the proxy) resolve names, and only for hosts of the catalogue in a profile that allows the
cloud. The environment gives the proxy's address. This module is imported only if a proxy is set.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from workflow_composer.backends.http.connection import (
    BOUNDS,
    ERROR,
    LARGE,
    STEP,
    Answer,
    Bounds,
    Broken,
    Inflating,
    TooLong,
    Undecodable,
    inflating_for,
    values_in,
)
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.errors import EgressDenied
from workflow_composer.usage import Sending, WorkClock

if TYPE_CHECKING:
    import httpx2

    from workflow_composer.backends.http.client import Origin


def proxy_for(origin: Origin, policy: EgressPolicy, environ: Mapping[str, str]) -> str | None:
    """Return the proxy that the environment sets for a server; None if there is none or it may not be used."""
    if not policy.allow_cloud or policy.is_local(origin.host, origin.port):
        return None
    scheme = "https" if origin.tls else "http"
    found = _variable(environ, f"{scheme}_proxy") or _variable(environ, "all_proxy")
    if not found or is_bypassed(f"{origin.host}:{origin.port}", environ):
        return None
    return found if "://" in found else f"http://{found}"


def is_bypassed(place: str, environ: Mapping[str, str]) -> bool:
    """Whether ``NO_PROXY`` excludes a host and port from the use of proxies."""
    import urllib.request  # with the first proxy: it loads http.client and email

    bypass: Any = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]  # older than typeshed, and not in it
    return bool(bypass(place, {"no": _variable(environ, "no_proxy")}))


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""


class ProxiedClient:
    """Requests of one event loop to one server, through a proxy. ``base``: the API's path on the server."""

    def __init__(self, policy: EgressPolicy, origin: Origin, base: str, proxy: str) -> None:
        self._policy = policy
        self._url = f"{'https' if origin.tls else 'http'}://{origin.authority}{base}"
        self._origin = origin
        self._proxy = proxy
        self._client: Any = None

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes | None,
        *,
        connect: float,
        bounds: Bounds = BOUNDS,
        sending: Sending | None = None,
    ) -> Answer:
        """Send a request and return its whole response. Raises as `Client.send`."""
        opened = await self.open(method, path, headers, content, connect=connect, bounds=bounds, sending=sending)
        try:
            return opened.whole or await opened.gathered()
        finally:
            await opened.close()

    async def open(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes | None,
        *,
        connect: float,
        bounds: Bounds = BOUNDS,
        sending: Sending | None = None,
    ) -> ProxiedStream:
        """Send a request and return its response after the headers. Raises as `Client.stream`."""
        import httpx2
        import openai

        self._policy.check_endpoint(self._origin.host, self._origin.port)
        options = {"headers": dict(headers), "timeout": httpx2.Timeout(None, connect=connect)}
        clock = None
        try:
            client = self._client = self._client or self._made()
            send = client.post if method == "POST" else client.get
            more = {} if content is None else {"content": content}
            if sending is not None:
                sending.sent += 1
                if (clock := sending.clock) is not None:
                    clock.__enter__()
            response = await send(path, cast_to=httpx2.Response, options=options, stream=True, **more)
        except openai.APIStatusError as error:
            body = await error.response.aread()
            whole = Answer(error.status_code, _headers(error.response), body)
            return ProxiedStream(error.response, bounds, whole, clock=clock)
        except BaseException as error:  # noqa: BLE001  # two libraries' errors, all mapped below
            plain = _plain(error) if isinstance(error, Exception) else error
            if clock is not None:
                clock.__exit__()
            if sending is not None and isinstance(plain, OSError):
                sending.sent -= 1  # no connection, so nothing was sent
            raise plain from None
        return ProxiedStream(response, bounds, clock=clock)

    def _made(self) -> Any:
        import httpx2
        from openai import AsyncOpenAI

        class Bare(AsyncOpenAI):
            """Sends no header that the process's environment names, such as ``OPENAI_ORG_ID``."""

            @property
            def default_headers(self) -> dict[str, Any]:
                return {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "workflow-composer"}

        transport = _in_steps(httpx2.AsyncHTTPTransport(proxy=self._proxy, trust_env=False))
        http = httpx2.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)
        return Bare(api_key="-", base_url=self._url, http_client=http, max_retries=0)

    async def close(self) -> None:
        """Close every connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()


class ProxiedStream:
    """As `client.Stream`."""

    def __init__(
        self,
        response: httpx2.Response,
        bounds: Bounds,
        whole: Answer | None = None,
        *,
        clock: WorkClock | None = None,
    ) -> None:
        self.whole = whole
        self._clock = clock
        self._response = response
        self._bounds = bounds
        self._parts: AsyncIterator[bytes] | None = None
        self._size = 0

    async def read(self) -> bytes:
        """Return the next bytes; none at the end. Raises `Broken`."""
        try:
            self._parts = self._parts or aiter(self._response.aiter_bytes())
            part = await anext(self._parts, b"")
        except Exception as error:  # noqa: BLE001  # two libraries' errors, all mapped below
            raise _plain(error) from None
        self._size += len(part)
        if self._size > self._bounds.decoded:
            raise TooLong(f"the decompressed response is longer than {self._bounds.decoded} bytes")
        return part

    async def gathered(self) -> Answer:
        """Return the rest. Raises `Broken`."""
        body, most = bytearray(), min(self._bounds.whole, self._bounds.decoded)
        while part := await self.read():
            body += part
            if len(body) > most:
                raise TooLong(f"the response is longer than {most} bytes", ours=True)
        if len(body) > LARGE and values_in(body) > self._bounds.values:
            raise TooLong(f"the response has more than {self._bounds.values} values", ours=True)
        return Answer(self._response.status_code, _headers(self._response), bytes(body))

    async def close(self) -> None:
        """Close the response."""
        clock, self._clock = self._clock, None
        if clock is not None:
            clock.__exit__()
        await self._response.aclose()


def _in_steps(inner: httpx2.AsyncHTTPTransport) -> httpx2.AsyncBaseTransport:
    """Return a transport that decompresses responses in bounded steps, and of errors reads the start only.

    The client would decompress whatever comes at once, and read an error whatever its size.
    """
    import httpx2

    class Body(httpx2.AsyncByteStream):
        def __init__(self, stream: Any, inflating: Inflating | None, most: int) -> None:
            self._stream = stream
            self._inflating = inflating
            self._most = most

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = self._most
            async for data in self._stream:
                for start in range(0, len(data), STEP):
                    async for piece in self._pieces(data[start : start + STEP]):
                        if left <= 0:
                            return
                        yield piece
                        left -= len(piece)
            if self._inflating is not None and not self._inflating.whole:
                raise Undecodable("cannot decompress the response: it is truncated")

        async def _pieces(self, data: bytes) -> AsyncIterator[bytes]:
            if self._inflating is None:
                yield data
                return
            self._inflating.add(data)
            while self._inflating.waits:
                try:
                    piece = self._inflating.piece()
                except zlib.error:
                    raise Undecodable("cannot decompress the response") from None
                await asyncio.sleep(0)
                if piece:
                    yield piece

        async def aclose(self) -> None:
            await self._stream.aclose()

    class Stepping(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            found = await inner.handle_async_request(request)
            inflating = inflating_for(found.headers.get("content-encoding", ""))
            headers = [field for field in found.headers.raw if field[0].lower() != b"content-encoding"]
            most = ERROR if found.status_code >= 400 else 2**62
            body = Body(found.stream, inflating, most)
            return httpx2.Response(found.status_code, headers=headers, stream=body, extensions=found.extensions)

        async def aclose(self) -> None:
            await inner.aclose()

    return Stepping()


def _headers(response: httpx2.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _plain(error: Exception) -> Exception:
    """Return the exception that `Client` raises for the same error."""
    import httpx2
    import openai

    cause: Exception | BaseException = error
    if isinstance(error, openai.APIConnectionError):  # it wraps whatever the transport raises
        cause = error.__cause__ or error
    if isinstance(cause, (EgressDenied, Broken)):
        return cause
    if isinstance(cause, (httpx2.ConnectTimeout, httpx2.PoolTimeout)):
        return TimeoutError(str(cause))
    if isinstance(cause, (httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol, ImportError)):
        return OSError(str(cause))
    return Broken(str(cause) or type(cause).__name__)
