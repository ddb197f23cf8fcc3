"""One observer of a model's server: is it healthy, what does it serve, how busy is it, does it give one token?

The monitor, a supervisor, a probe and a set of replicas all ask in these words, over the one client: no proxy of the
environment's, no redirect, and an answer is bounded in bytes and in its whole time, also where one byte comes at a time.
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
"""Seconds in which a connection must stand, where the whole question has more."""
SMALL = Bounds(answer=1 << 22, decoded=1 << 22)
"""Of an answer that says little; a list of a hundred models has about 50,000 bytes."""
METRICS = Bounds(answer=1 << 20, decoded=1 << 22)
"""Of a page of metrics; vLLM's have about 60,000 bytes."""


class Ask(Protocol):
    """Sends a question: a GET, or a POST of JSON where there is ``content``. Raises as `Client.send`."""

    def __call__(self, url: str, content: bytes | None, *, connect: float, sink: Sink, bounds: Bounds) -> Awaitable[Answer]:
        """The answer, whatever its status."""
        ...


class Late(TimeoutError):
    """No whole answer in time. ``connected``: something took the connection; ``begun``: some of an answer has come."""

    def __init__(self, *, connected: bool, begun: bool) -> None:
        super().__init__("no whole answer in time")
        self.connected = connected
        self.begun = begun


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server says that it serves. ``models``: their ids; None where the answer is no list of models."""

    status: int
    models: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Given:
    """What came of a request for one token or one vector. ``whole``: the answer has one in it."""

    status: int
    whole: bool


class Observer:
    """Asks one server; ``api`` is its address up to ``/v1``.

    Each question has its limit, in seconds, for everything: the name, the connection, the last byte. All raise `Late`,
    OSError where no connection can be made, `Broken` where it ends or what comes is not HTTP, `TooLong` for an answer beyond
    the bounds, and `EgressDenied`.
    """

    def __init__(self, ask: Ask, api: str) -> None:
        self.api = api.rstrip("/")
        self._ask = ask
        self._root = self.api.removesuffix("/v1")

    @classmethod
    def over(cls, client: Client, api: str, key: str | None = None) -> Self:
        """An observer that asks over ``client``. The key goes to the API alone: vLLM wants none beside it."""
        bearer = {"Authorization": f"Bearer {key}"} if key else {}

        def ask(url: str, content: bytes | None, *, connect: float, sink: Sink, bounds: Bounds) -> Awaitable[Answer]:
            headers = bearer if url.startswith(api) else {}
            return client.ask(url, content, headers=headers, connect=connect, sink=sink, bounds=bounds)

        return cls(ask, api)

    async def health(self, limit: float) -> int:
        """The status of ``/health``; 200 is well."""
        return (await self._answer(f"{self._root}/health", limit)).status

    async def models(self, limit: float) -> Listing:
        """What it serves, base models before adapters."""
        answer = await self._answer(f"{self.api}/models", limit)
        return Listing(answer.status, _ids(answer.body) if answer.status == 200 else None)

    async def readings(self, limit: float) -> Readings:
        """What its metrics say; they say nothing where it has none."""
        answer = await self._answer(f"{self._root}/metrics", limit, bounds=METRICS)
        return read_metrics(answer.body.decode("utf-8", "replace")) if answer.status == 200 else Readings()

    async def one_token(self, model: str, limit: float) -> Given:
        """Let the model write one token."""
        body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        answer = await self._answer(f"{self.api}/completions", limit, encode(body))
        return Given(answer.status, _holds(answer.body, lambda data: isinstance(data["choices"][0]["text"], str)))

    async def one_vector(self, model: str, limit: float) -> Given:
        """Let a pooling model embed one text."""
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
    """Sees how far a question comes. A stream of events, for which nobody has asked, falls through it."""

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
    """The ids that a server lists; None where the answer is no list of models, each with an id."""
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
