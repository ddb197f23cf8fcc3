"""Queries to a model server: its health, its models, its load, and a test generation of one token.

The monitor, the supervisor, probes and replica sets all use it with the common HTTP client: no proxies of the environment,
no redirects, and limits on the bytes and on the total time of a response, even if it arrives byte by byte.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol, Self

from workflow_composer.backends.http.client import Client
from workflow_composer.backends.http.connection import Answer, Bounds, Connection, Sink
from workflow_composer.backends.limit import Limit
from workflow_composer.backends.openai_wire import Malformed, encode, model_ids
from workflow_composer.backends.readings import Readings, read_metrics

CONNECT = 5.0
"""Maximum seconds to connect, even if the whole query has more time."""
SMALL = Bounds(answer=1 << 22, decoded=1 << 22)
"""Size limits of a small response; a list of a hundred models has about 50,000 bytes."""
METRICS = Bounds(answer=1 << 20, decoded=1 << 22)
"""Size limits of a metrics page; vLLM's have about 60,000 bytes."""


class Ask(Protocol):
    """Sends a GET, or a POST of JSON if there is ``content``. Raises as `Client.send`."""

    def __call__(self, url: str, content: bytes | None, *, connect: float, sink: Sink, bounds: Bounds) -> Awaitable[Answer]:
        """Return the response, whatever its status."""
        ...


class Late(TimeoutError):
    """No complete response in time. ``connected``: the connection was made; ``begun``: part of the response arrived."""

    def __init__(self, *, connected: bool, begun: bool) -> None:
        super().__init__("no complete response in time")
        self.connected = connected
        self.begun = begun


@dataclass(frozen=True, slots=True)
class Listing:
    """The models that a server lists. ``models``: their ids; None if the response is not a list of models."""

    status: int
    models: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Given:
    """Result of a request for one token or one vector. ``whole``: the response contains one."""

    status: int
    whole: bool


class Observer:
    """Queries one server; ``api`` is its address up to ``/v1``.

    Each query has one limit in seconds for name resolution, connection and response. All raise `Late`, OSError if no
    connection can be made, `Broken` if it ends early or the response is not HTTP, `TooLong` for a response beyond the size
    limits, and `EgressDenied`.
    """

    def __init__(self, ask: Ask, api: str) -> None:
        self.api = api.rstrip("/")
        self._ask = ask
        self._root = self.api.removesuffix("/v1")

    @classmethod
    def over(cls, client: Client, api: str, key: str | None = None) -> Self:
        """Return an observer that uses ``client``. The key is sent only to the API: vLLM needs none for other paths."""
        bearer = {"Authorization": f"Bearer {key}"} if key else {}

        def ask(url: str, content: bytes | None, *, connect: float, sink: Sink, bounds: Bounds) -> Awaitable[Answer]:
            headers = bearer if url.startswith(api) else {}
            return client.ask(url, content, headers=headers, connect=connect, sink=sink, bounds=bounds)

        return cls(ask, api)

    async def health(self, limit: float) -> int:
        """Return the status of ``/health``; 200 means healthy."""
        return (await self._answer(f"{self._root}/health", limit)).status

    async def models(self, limit: float) -> Listing:
        """Return the models it serves, base models before adapters."""
        answer = await self._answer(f"{self.api}/models", limit)
        return Listing(answer.status, _ids(answer.body) if answer.status == 200 else None)

    async def readings(self, limit: float) -> Readings:
        """Return the readings of its metrics, empty if it has none."""
        answer = await self._answer(f"{self._root}/metrics", limit, bounds=METRICS)
        return read_metrics(answer.body.decode("utf-8", "replace")) if answer.status == 200 else Readings()

    async def one_token(self, model: str, limit: float) -> Given:
        """Generate one token with the model."""
        body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        answer = await self._answer(f"{self.api}/completions", limit, encode(body))
        return Given(answer.status, _holds(answer.body, lambda data: isinstance(data["choices"][0]["text"], str)))

    async def one_vector(self, model: str, limit: float) -> Given:
        """Embed one text with a pooling model."""
        answer = await self._answer(f"{self.api}/embeddings", limit, encode({"model": model, "input": ["1"]}))
        return Given(answer.status, _holds(answer.body, lambda data: len(data["data"][0]["embedding"]) > 0))

    async def _answer(self, url: str, limit: float, content: bytes | None = None, *, bounds: Bounds = SMALL) -> Answer:
        line = _Line()
        try:
            with Limit(limit):
                return await self._ask(url, content, connect=min(CONNECT, limit), sink=line, bounds=bounds)
        except TimeoutError:
            raise Late(connected=line.connection is not None, begun=line.begun) from None


class _Line:
    """Records the progress of a query. An unexpected event stream is discarded."""

    def __init__(self) -> None:
        self.connection: Connection | None = None

    @property
    def begun(self) -> bool:
        return self.connection is not None and self.connection.begun

    def attach(self, connection: Connection) -> None:
        self.connection = connection

    def begin(self) -> None:
        pass

    def feed(self, data: bytes) -> None:
        pass


def _ids(body: bytes) -> tuple[str, ...] | None:
    """Return the ids of the listed models; None if the response is not a list of models with ids."""
    try:
        data: Any = json.loads(body)
        found = model_ids(data)
    except (ValueError, Malformed, RecursionError):
        return None
    return found if len(found) == len(data["data"]) else None


def _holds(body: bytes, looks_right: Any) -> bool:
    try:
        return bool(looks_right(json.loads(body)))
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
