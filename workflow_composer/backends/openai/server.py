"""One OpenAI-compatible server: its connections, key and model id, and single calls that raise the package's errors."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from workflow_composer.backends.base import BackendContext, Upload
from workflow_composer.backends.http.client import Client, Origin, Stream, head
from workflow_composer.backends.http.connection import BOUNDS, Answer, Bounds, Broken, Request, Sink
from workflow_composer.backends.openai import errors, shapes, wire
from workflow_composer.backends.openai.errors import Server
from workflow_composer.backends.replicas.observer import api_url, shown_url
from workflow_composer.errors import AuthenticationFailed, BadRequest, ModelError, ModelNotFound, ServerFailed
from workflow_composer.support import large_json
from workflow_composer.support.large_json import LARGE
from workflow_composer.support.per_loop import PerLoop
from workflow_composer.types import Completion, LLMRequest
from workflow_composer.usage import Sending

if TYPE_CHECKING:
    from workflow_composer.backends.http.egress import EgressPolicy
    from workflow_composer.backends.http.proxied import ProxiedClient, ProxiedStream
    from workflow_composer.config.strategy import ModelSpec

T = TypeVar("T")

_KEEPALIVE_LOCAL = (
    4.0  # seconds; uvicorn, vLLM's HTTP server, closes idle connections after 5, and a request sent then is lost
)
_KEEPALIVE_CLOUD = 30.0
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_WORKED = frozenset({408, 500, 504})
"""Statuses of errors in spite of which the server may have worked on the request, which some providers charge for."""
_TELL_EVERY = 60.0
"""Seconds between two reports to the operator that a server refuses the key."""
_ACCEPTED = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
_JSON_TYPE = b"Content-Type: application/json\r\n"


_FAULTS = {json.JSONDecodeError: "it is not JSON", UnicodeDecodeError: "it is not UTF-8", RecursionError: "it is too deep"}


class OpenAIServer:
    """Sends requests for one model to the server of its spec."""

    def __init__(self, spec: ModelSpec, context: BackendContext) -> None:
        self._spec = spec
        self._context = context
        self.url = api_url(spec.base_url or "")
        self.origin = Origin.of(self.url)
        self.host = self.origin.host
        self._base = "/" + self.url.partition("://")[2].partition("/")[2]
        self._user = self.url.partition("://")[2].partition("/")[0].rpartition("@")[0]
        name = f"[{self.host}]:{self.origin.port}" if ":" in self.host else f"{self.host}:{self.origin.port}"
        self.label = Server(name, shown_url(self.url), spec.api_key_env)
        self._proxy = _proxy_for(self.origin, context)
        self._served: str | None = None
        self._lines: PerLoop[_Connections] = PerLoop(self._new_lines, _Connections.close)
        self._heads: dict[str, bytes] = {}
        self._silent_until = 0.0

    # ------------------------------------------------------------------------------------------------------------ calls

    async def send(
        self,
        path: str,
        body: dict[str, Any],
        secrets: Iterable[str],
        *,
        connect: float,
        sink: Sink | None = None,
        bounds: Bounds = BOUNDS,
        sending: Sending | None = None,
        bulk: int = 0,
        more: Mapping[str, str] | None = None,
        private: bool = False,
        upload: Upload | None = None,
    ) -> Answer:
        """Post ``body`` with the model's id; return a response with status 2xx. Raises `ModelError`, `EgressDenied`.

        ``sending`` learns when the server works for the call. A large ``bulk`` of characters is encoded in a thread and sent
        in pieces. ``more`` are headers. ``private``: to own machines, by no proxy. ``upload`` is sent in place of ``body``.
        """
        again = True
        while True:
            body["model"] = model = self._spec.model or self._served or await self._model(private)
            try:
                content = (
                    wire.encode(body) if bulk <= LARGE else await large_json.apart(large_json.pieces, body, wire.encode)
                )
            except (TypeError, ValueError, RecursionError) as error:
                raise self._unwritable(error) from None
            lines = self._lines.get(asyncio.get_running_loop()) or await self._lines.here()
            try:
                if lines.proxied is None or private:
                    start = self._heads.get(path) or self._head(path)
                    if more:
                        start = _with_headers(start, more)
                    data: Request
                    if upload is not None:
                        data = _uploading(start, upload, model)
                    elif isinstance(content, bytes):
                        data = b"%b%d\r\n\r\n%b" % (start, len(content), content)
                    else:
                        data = _in_pieces(start, content)
                    client = lines.own() if private else lines.direct
                    answer = await client.send(self.origin, data, connect=connect, sink=sink, bounds=bounds, sending=sending)
                else:
                    headers = {**(more or {}), **self._headers()}
                    whole = await _joined(content)
                    answer = await lines.proxied.ask(
                        "POST", path, headers, whole, connect=connect, bounds=bounds, sending=sending
                    )
            except (OSError, Broken) as error:
                raise errors.from_connection(error, self.label) from None
            if 200 <= answer.status < 300:
                return answer
            refusal = self._refusal(answer, secrets)
            if sending is not None and answer.status not in _WORKED:
                sending.sent -= 1
            if not (again and isinstance(refusal, ModelNotFound) and await self._serves_another_than(model, private)):
                raise refusal
            again = False

    async def open(
        self,
        path: str,
        body: dict[str, Any],
        secrets: Iterable[str],
        *,
        connect: float,
        sending: Sending | None = None,
        bulk: int = 0,
        more: Mapping[str, str] | None = None,
        private: bool = False,
    ) -> Stream | ProxiedStream:
        """Like `send`, but return an open event stream after its headers; the caller closes it. Its ``whole`` is set if the
        server does not stream and has answered at once.
        """
        again = True
        while True:
            body["model"] = model = self._spec.model or self._served or await self._model(private)
            stream = await self._opened(path, body, connect, sending, bulk, more, private)
            if stream.whole is None:
                return stream
            await stream.close()
            if 200 <= stream.whole.status < 300:
                return stream
            refusal = self._refusal(stream.whole, secrets)
            if sending is not None and stream.whole.status not in _WORKED:
                sending.sent -= 1
            if not (again and isinstance(refusal, ModelNotFound) and await self._serves_another_than(model, private)):
                raise refusal
            again = False

    async def ask(
        self,
        url: str,
        content: bytes | None = None,
        *,
        connect: float,
        sink: Sink | None = None,
        bounds: Bounds = BOUNDS,
        private: bool = False,
    ) -> Answer:
        """Send a small query to the server, below its API or elsewhere. Raises as `Client.ask`."""
        lines = self._lines.get(asyncio.get_running_loop()) or await self._lines.here()
        headers = self._headers() if url.startswith(self.url) else {}  # only the API gets the key
        if headers and self.host == "api.anthropic.com":  # its list of models is no part of its OpenAI-compatible API
            headers |= {"x-api-key": self.key(), "anthropic-version": "2023-06-01"}
        if private:
            return await lines.own().ask(url, content, headers=headers, connect=connect, sink=sink, bounds=bounds)
        if lines.proxied is not None:
            method, path = "GET" if content is None else "POST", url.removeprefix(self.url)
            return await lines.proxied.ask(method, path, headers, content, connect=connect, bounds=bounds)
        return await lines.direct.ask(url, content, headers=headers, connect=connect, sink=sink, bounds=bounds)

    async def close(self) -> None:
        """Close the connections of every loop."""
        await self._lines.close()

    @property
    def direct(self) -> bool:
        """Whether connections use no proxy."""
        return self._proxy is None

    def key(self) -> str:
        """Read the key from the environment. Raises `AuthenticationFailed` if it is missing."""
        variable = self._spec.api_key_env
        if variable is None:
            return "EMPTY"  # as in vLLM's documentation for a server without keys
        key = self._context.environ.get(variable, "").strip()
        name = self._spec.name
        if not key:
            raise AuthenticationFailed(f"{name}: {variable} is not set", hint=f"export {variable}=...; nothing was sent")
        if not (key.isascii() and key.isprintable()):
            raise AuthenticationFailed(f"{name}: {variable} contains invalid characters", hint="copy the key again")
        return key

    def _authorization(self) -> str:
        """Return the Authorization header: the key, else user and password of the address."""
        if self._spec.api_key_env is None and self._user:
            user = self._user if ":" in self._user else self._user + ":"
            return "Basic " + base64.b64encode(urllib.parse.unquote_to_bytes(user)).decode()
        return f"Bearer {self.key()}"

    # ------------------------------------------------------------------------------------------------ answers and errors

    def read_json(self, content: bytes | bytearray, secrets: Iterable[str]) -> Any:
        """Decode a response's JSON. Raises `ServerFailed` for invalid JSON, and errors reported with status 200."""
        data = self.understood(json.loads if len(content) <= LARGE else large_json.decode, content)
        self.raise_reported(data, secrets)
        return data

    def completion(self, content: bytes | bytearray, secrets: Iterable[str], *, model: str) -> Completion:
        """Decode the completion of a whole response. Raises as `read_json`."""
        data = self.read_json(content, secrets)
        return self.understood(lambda data: wire.completion_of(data, model=model), data)

    def raise_reported(self, data: Any, secrets: Iterable[str]) -> None:
        """Raise the error that a response or an event of a stream reports, if any."""
        if (error := shapes.reported(data)) is not None:
            raise errors.from_stream(error, self.label, secrets)

    def understood(self, read: Callable[[Any], T], data: Any) -> T:
        """Return ``read(data)``. Raises `ServerFailed` if the data violates the protocol."""
        try:
            return read(data)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = (
                str(error) if isinstance(error, wire.Malformed) else _FAULTS.get(type(error), "a field has another type")
            )
            raise ServerFailed(f"{self.label.name}: invalid response: {reason}") from None

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Map a connection's exceptions to the package's errors. Timeouts are left to the code that sets them."""
        try:
            yield
        except (OSError, Broken) as error:
            raise errors.from_connection(error, self.label) from None

    def _refusal(self, answer: Answer, secrets: Iterable[str]) -> ModelError:
        said = answer.body.decode("utf-8", "replace")
        error = errors.from_reply(answer.status, answer.headers, said, self.label, (self.key(), *secrets))
        if isinstance(error, AuthenticationFailed) and time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _TELL_EVERY
            self._context.report(f"{self._spec.name}: its server refuses the key ({answer.status}): {error.hint}")
        return error

    # ------------------------------------------------------------------------------------------------------ the HTTP call

    async def _opened(
        self,
        path: str,
        body: Mapping[str, Any],
        connect: float,
        sending: Sending | None,
        bulk: int,
        more: Mapping[str, str] | None,
        private: bool,
    ) -> Stream | ProxiedStream:
        try:
            content = wire.encode(body) if bulk <= LARGE else await large_json.apart(large_json.pieces, body, wire.encode)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._unwritable(error) from None
        lines = self._lines.get(asyncio.get_running_loop()) or await self._lines.here()
        with self.errors():
            if lines.proxied is None or private:
                start = self._heads.get(path) or self._head(path)
                if more:
                    start = _with_headers(start, more)
                data: Request
                if isinstance(content, bytes):
                    data = b"%b%d\r\n\r\n%b" % (start, len(content), content)
                else:
                    data = _in_pieces(start, content)
                client = lines.own() if private else lines.direct
                return await client.stream(self.origin, data, connect=connect, sending=sending)
            whole = await _joined(content)
            return await lines.proxied.open(
                "POST", path, {**(more or {}), **self._headers()}, whole, connect=connect, sending=sending
            )

    def _head(self, path: str) -> bytes:
        """Return a request's headers up to the body's length; cached unless they contain a key, which may change.

        A path that begins with two slashes is one beside the API, not below it.
        """
        headers = {**_ACCEPTED, **self._headers()}
        base = self._base.rstrip("/")
        target = base.removesuffix("/v1") + path[1:] if path.startswith("//") else base + path
        made = head("POST", target, self.origin, headers) + b"Content-Length: "
        if self._spec.api_key_env is None:
            self._heads[path] = made
        return made

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self._authorization()}

    def _unwritable(self, error: Exception) -> BadRequest:
        """Return the error for a body that cannot be encoded as JSON."""
        return BadRequest(f"{self.label.name}: cannot encode the request as JSON: {type(error).__name__}")

    async def _model(self, private: bool = False) -> str:
        async with (await self._lines.here()).asking:
            if self._served is None:
                self._served = await self._ask_for_model(private)
        return self._served

    async def _serves_another_than(self, model: str, private: bool) -> bool:
        """Whether a server that no longer knows the model was restarted with another one."""
        if self._spec.model is not None:
            return False
        if self._served == model:
            self._served = None
        return (self._served or await self._model(private)) != model

    async def _ask_for_model(self, private: bool) -> str:
        with self.errors():
            connect = self._context.config.timeouts.connect
            answer = await self.ask(f"{self.url}/models", connect=connect, private=private)
        if not 200 <= answer.status < 300:
            raise self._refusal(answer, ())
        models = self.understood(wire.model_ids, self.read_json(answer.body, ()))
        if not models:
            raise ModelNotFound(f"{self.label.name}: the server serves no model", hint=self.label.models_hint)
        return models[0]

    def _new_lines(self) -> _Connections:
        keepalive = _KEEPALIVE_LOCAL if self._spec.local else _KEEPALIVE_CLOUD
        proxied = None
        if self._proxy is not None:
            from workflow_composer.backends.http.proxied import ProxiedClient

            proxied = ProxiedClient(self._context.egress, self.origin, self._base, self._proxy)
        return _Connections(self._context.egress, keepalive, proxied)


def _with_headers(start: bytes, more: Mapping[str, str]) -> bytes:
    """Return a request's headers with more of them; the body's length comes last."""
    length = b"Content-Length: "
    lines = "".join(f"{name}: {value}\r\n" for name, value in more.items()).encode("latin-1")
    return start.removesuffix(length) + lines + length


def _uploading(start: bytes, upload: Upload, model: str) -> tuple[bytes, ...]:
    """Return a request with an upload, between whose pieces the model's name stands."""
    start = start.replace(_JSON_TYPE, f"Content-Type: {upload.kind}\r\n".encode("latin-1"))
    return _in_pieces(start, (*upload.before, model.encode(), *upload.after))


def _in_pieces(head: bytes, content: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return a request whose body is in pieces; its headers lack the body's length only."""
    return (b"%b%d\r\n\r\n" % (head, sum(map(len, content))), *content)


async def _joined(content: Request) -> bytes:
    return content if isinstance(content, bytes) else await large_json.apart(b"".join, content)


def _proxy_for(origin: Origin, context: BackendContext) -> str | None:
    """Return the proxy for a server, if the environment names any; only then is its module imported."""
    if not any(name.lower() in _PROXIES and value for name, value in context.environ.items()):
        return None
    from workflow_composer.backends.http.proxied import proxy_for

    return proxy_for(origin, context.egress, context.environ)


class _Connections:
    """The connections of one event loop; those of private requests are made as if the profile forbade the cloud."""

    def __init__(self, policy: EgressPolicy, keepalive: float, proxied: ProxiedClient | None) -> None:
        self.direct = Client(policy, keepalive=keepalive)
        self.proxied = proxied
        self.asking = asyncio.Lock()
        self._policy, self._keepalive = policy, keepalive
        self._own: Client | None = None

    def own(self) -> Client:
        """Return the client for private requests."""
        if not self._policy.allow_cloud:
            return self.direct
        if self._own is None:
            self._own = Client(replace(self._policy, allow_cloud=False), keepalive=self._keepalive)
        return self._own

    async def close(self) -> None:
        await self.direct.close()
        if self._own is not None:
            await self._own.close()
        if self.proxied is not None:
            await self.proxied.close()


@dataclass(slots=True)
class Secrets:
    """The texts of a request, collected only when an error needs them."""

    request: LLMRequest

    def __iter__(self) -> Iterator[str]:
        return wire.secrets_of(self.request)
