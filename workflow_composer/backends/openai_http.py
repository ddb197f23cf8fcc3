"""One OpenAI-compatible server: its clients, key and model id, and single HTTP calls whose errors are the package's own."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from workflow_composer.backends import openai_errors, openai_wire
from workflow_composer.backends.base import BackendContext
from workflow_composer.backends.egress import endpoint_of, http_client
from workflow_composer.backends.openai_errors import Server
from workflow_composer.backends.per_loop import PerLoop
from workflow_composer.backends.probe import api_url, shown_url
from workflow_composer.errors import AuthenticationFailed, BadRequest, EgressDenied, ModelNotFound, ServerFailed
from workflow_composer.types import LLMRequest, Timeouts

if TYPE_CHECKING:
    import httpx2

    from workflow_composer.backends.upstream import Upstream
    from workflow_composer.strategy import ModelSpec

T = TypeVar("T")

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_KEEPALIVE_LOCAL = 4.0  # seconds; uvicorn, on which vLLM stands, closes after 5, and a request sent then is lost
_KEEPALIVE_CLOUD = 30.0


class OpenAIServer:
    """Sends requests for one model to the server of its spec."""

    def __init__(self, spec: ModelSpec, context: BackendContext) -> None:
        self._spec = spec
        self._context = context
        self.url = api_url(spec.base_url or "")
        self.host, port = endpoint_of(self.url)
        self._port = port
        self.authority = f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"
        self.label = Server(self.authority, shown_url(self.url), spec.api_key_env)
        self._served: str | None = None
        self._clients: PerLoop[_Clients] = PerLoop(self._make_clients, _Clients.close)

    async def send(
        self,
        path: str,
        body: dict[str, Any],
        secrets: Iterable[str],
        *,
        timeouts: Timeouts | None = None,
        stream: bool = False,
    ) -> httpx2.Response:
        """Post ``body`` with the model's id filled in."""
        return await self.addressed(body, lambda: self._post(path, body, secrets, timeouts, stream=stream))

    async def addressed(self, body: dict[str, Any], post: Callable[[], Awaitable[T]]) -> T:
        """``post()``, with the model's id in ``body``. A server that was restarted with another model is asked again."""
        body["model"] = await self._model()
        try:
            return await post()
        except ModelNotFound:
            if self._spec.model is not None:
                raise
            gone, self._served = self._served, None
            body["model"] = await self._model()
            if self._served == gone:
                raise
            return await post()

    async def client(self) -> httpx2.AsyncClient:
        """The running loop's HTTP client."""
        return (await self._clients.get()).http

    async def close(self) -> None:
        """Close the connections of every loop."""
        await self._clients.close()

    def key(self) -> str:
        """The key, read now. Raises `AuthenticationFailed` where it is missing."""
        variable = self._spec.api_key_env
        if variable is None:
            return "EMPTY"  # what vLLM's documentation sends to a server without keys
        key = self._context.environ.get(variable, "").strip()
        name = self._spec.name
        if not key:
            raise AuthenticationFailed(f"{name}: {variable} is not set", hint=f"export {variable}=...; nothing was sent")
        if not (key.isascii() and key.isprintable()):
            raise AuthenticationFailed(f"{name}: {variable} holds characters that no key has", hint="copy the key again")
        return key

    # ------------------------------------------------------------------------------------------------ answers and errors

    def json(self, response: httpx2.Response, secrets: Iterable[str]) -> Any:
        """The answer's JSON. Raises `ServerFailed` for garbage, and the error that a server reports under status 200."""
        return self.read_json(response.content, secrets)

    def read_json(self, content: bytes, secrets: Iterable[str]) -> Any:
        """The same for an answer's bytes."""
        data = self.understood(json.loads, content)
        self.raise_reported(data, secrets)
        return data

    def raise_reported(self, data: Any, secrets: Iterable[str]) -> None:
        """Raise the error that an answer or an event of a stream reports, if it does."""
        if isinstance(data, dict) and (data.get("error") or data.get("object") == "error"):
            raise openai_errors.from_stream(data, self.label, secrets)

    def understood(self, read: Callable[[Any], T], data: Any) -> T:
        """``read(data)``; raises `ServerFailed` where the data is not what the protocol says."""
        try:
            return read(data)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, openai_wire.Malformed) else type(error).__name__
            raise ServerFailed(f"{self.label.name}: the answer cannot be understood: {reason}") from None

    @asynccontextmanager
    async def errors(self, secrets: Iterable[str], key: str = "") -> AsyncIterator[None]:
        """Map what the client library raises."""
        try:
            yield
        except (TimeoutError, EgressDenied):
            raise
        except Exception as error:  # noqa: BLE001 - the mapping knows every class and has an answer for the rest
            # Not `from error`: a traceback would print the server's message, which may quote the prompt.
            raise openai_errors.from_exception(error, self.label, (key, *secrets)) from None

    # ------------------------------------------------------------------------------------------------------ the HTTP call

    async def _post(
        self, path: str, body: dict[str, Any], secrets: Iterable[str], timeouts: Timeouts | None, *, stream: bool
    ) -> httpx2.Response:
        content = self.encoded(body)
        return await self._request("post", path, secrets, timeouts, content=content, stream=stream)

    def encoded(self, body: Mapping[str, Any]) -> bytes:
        """The body as JSON. Raises `BadRequest` for what JSON cannot say."""
        try:
            return openai_wire.encode(body)
        except (TypeError, ValueError) as error:
            why = type(error).__name__
            raise BadRequest(f"{self.label.name}: the request cannot be written as JSON: {why}") from None

    async def _request(
        self, method: str, path: str, secrets: Iterable[str], timeouts: Timeouts | None, **arguments: Any
    ) -> httpx2.Response:
        import httpx2

        key = self.key()
        client = (await self._clients.get()).openai
        limit = httpx2.Timeout(None, connect=(timeouts or self._timeouts()).connect)
        options = {"headers": {"Authorization": f"Bearer {key}"}, "timeout": limit}
        async with self.errors(secrets, key):
            response: httpx2.Response = await getattr(client, method)(
                path, cast_to=httpx2.Response, options=options, **arguments
            )
        return response

    async def _model(self) -> str:
        named: str | None = self._spec.model
        if named is not None:
            return named
        if self._served is None:
            async with (await self._clients.get()).asking:
                if self._served is None:
                    self._served = await self._ask_for_model()
        return self._served

    async def _ask_for_model(self) -> str:
        response = await self._request("get", "/models", (), None)
        models = self.understood(openai_wire.model_ids, self.json(response, ()))
        if not models:
            raise ModelNotFound(f"{self.label.name}: the server serves no model", hint=self.label.models_hint)
        return models[0]

    # -------------------------------------------------------------------------------------------------------- the clients

    def _make_clients(self) -> _Clients:
        http = http_client(
            self._context.egress, timeouts=self._timeouts(), environ=self._context.environ, keepalive=self._keepalive
        )
        return _Clients(http, self.url)

    def upstream(self) -> Upstream:
        """Connections for relayed answers, of the running loop."""
        from workflow_composer.backends.upstream import Upstream

        tls = self.url.startswith("https:")
        return Upstream(self._context.egress, self.host, self._port, tls=tls, keepalive=self._keepalive)

    @property
    def path(self) -> str:
        """What stands before each method's own path."""
        return "/" + self.url.partition("://")[2].partition("/")[2]

    @property
    def direct(self) -> bool:
        """Whether no proxy of the environment may stand between."""
        environ = self._context.environ
        return self._spec.local or not any(environ.get(name) for name in _PROXIES)

    @property
    def _keepalive(self) -> float:
        return _KEEPALIVE_LOCAL if self._spec.local else _KEEPALIVE_CLOUD

    def _timeouts(self) -> Timeouts:
        found = self._context.config.timeouts
        return Timeouts(found.connect, found.first_token, found.total)


class _Clients:
    """What belongs to one event loop."""

    def __init__(self, http: httpx2.AsyncClient, url: str) -> None:
        self.http = http
        self.asking = asyncio.Lock()
        self._url = url

    @functools.cached_property
    def openai(self) -> Any:
        """The client library's client; loaded by the first call, not by a probe."""
        from workflow_composer.backends.openai_client import BareClient

        return BareClient(api_key="-", base_url=self._url, http_client=self.http, max_retries=0)

    async def close(self) -> None:
        await self.http.aclose()


class Secrets:
    """The texts of a request, gathered only when an error needs them."""

    def __init__(self, request: LLMRequest) -> None:
        self._request = request

    def __iter__(self) -> Iterator[str]:
        return openai_wire.secrets_of(self._request)
