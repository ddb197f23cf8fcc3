"""Queries to a model server: its health, its models, its load, and a test generation of one token.

The monitor, the supervisor, probes and replica sets all use it with the common HTTP client: no proxies of the environment,
no redirects, and limits on the bytes and on the total time of a response, even if it arrives byte by byte.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from workflow_composer.backends.http.client import Client, Limit
from workflow_composer.backends.http.connection import Answer, Bounds, Connection, Sink
from workflow_composer.backends.http.egress import is_unknown_name
from workflow_composer.backends.openai.wire import Malformed, encode, model_ids
from workflow_composer.errors import EgressDenied
from workflow_composer.types import EndpointStatus

# ------------------------------------------------------------------------------------------------------------------- probe
#
# Probe of a server: its models, and a description of its state.


def api_url(url: str) -> str:
    """Return the base URL of ``/models`` and ``/chat/completions``; a URL without a path gets ``/v1``."""
    bare = url.rstrip("/")
    has_path = "/" in bare.partition("://")[2]
    return bare if has_path else bare + "/v1"


def shown_url(url: str) -> str:
    """Return ``url`` without user and password."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


async def probe(
    observer: ServerObserver, name: str, *, limit: float, model: str | None = None, models: Sequence[str] = ()
) -> EndpointStatus:
    """Ask a server for its models, within ``limit`` seconds. Never raises.

    ``model``, or ``models`` if there are several, are the expected ids; a server without any of them is unhealthy.
    """
    started = time.perf_counter()
    wanted = models if model is None else (model, *models)
    lacking: tuple[str, ...] = ()
    models = ()
    try:
        found = await observer.models(limit)
        detail = _fault(found)
        models = found.models or ()
        lacking = tuple(one for one in wanted if not found.serves(one))
    except EgressDenied as error:
        detail = str(error)
    except Exception as error:  # noqa: BLE001 - a broken server must not hide the others
        detail = reason_of(error, limit)
    latency = (time.perf_counter() - started) * 1000
    url, told = shown_url(observer.api), f"serves {_listed(models)}" + (f", not {', '.join(lacking)}" if lacking else "")
    if detail or not models or (wanted and len(lacking) == len(wanted)):
        return EndpointStatus(name=name, url=url, healthy=False, models=tuple(models), detail=detail or told)
    detail = f"{told}; answered in {latency:.0f} ms"
    return EndpointStatus(name=name, url=url, healthy=True, models=tuple(models), latency_ms=latency, detail=detail)


def _listed(models: Sequence[str]) -> str:
    more = f" and {len(models) - 5} more" if len(models) > 5 else ""
    return (", ".join(models[:5]) or "no model") + more


def _fault(found: Listing) -> str:
    return "" if found.status == 200 and found.models is not None else status_fault(found.status)


def status_fault(status: int) -> str:
    """Describe an answer to `/models` with this status that is no list of models."""
    if status in (401, 403):
        return f"status {status}: the server requires a key; name its variable in the model's api_key_env"
    if 300 <= status < 400:
        return f"status {status}: redirects are not followed"
    if status != 200:
        return f"status {status} instead of a list of models"
    return "the response has no list of models; is it an OpenAI-compatible server?"


def reason_of(error: Exception, limit: float) -> str:
    """Describe why a server did not answer within ``limit`` seconds."""
    if isinstance(error, TimeoutError):
        return f"no answer within {limit:g} s"
    if is_unknown_name(error):
        return "unknown host name"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; is the server running?"
    return f"the connection broke: {error}"


# ---------------------------------------------------------------------------------------------------------------- readings
#
# The metrics of a vLLM server (``/metrics``), which count the requests of all its clients.


RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""The share of the cache in use, 0 to 1: its name, and its name in vLLM before 0.10."""
GENERATED = "vllm:generation_tokens_total"
PROMPT = "vllm:prompt_tokens_total"
FINISHED = "vllm:request_success_total"
STARTED = "process_start_time_seconds"

_MOST: dict[str, float] = dict.fromkeys((RUNNING, WAITING, *CACHE), 1e6) | dict.fromkeys(
    (GENERATED, PROMPT, FINISHED, STARTED), math.inf
)
"""The metrics to read and their upper bounds: no server has a million requests; counters are unbounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Running and waiting requests, share of the cache in use, tokens generated since the start. None: not reported.

    ``requests`` is the number of running and waiting ones. ``work`` increases whenever the server does something: prompt
    tokens, generated tokens and finished requests. ``started`` is the start time of the server's process in seconds since
    1970, because counters of different processes cannot be compared.
    """

    requests: int | None = None
    running: int | None = None
    waiting: int | None = None
    cache: float | None = None
    tokens: float | None = None
    work: float = 0.0
    started: float | None = None


def read_metrics(text: str) -> Readings:
    r"""Parse a page in Prometheus' text format; for several engines, add the counts and use the fullest cache.

    If one engine's value is invalid, the whole count is unknown: the server may be busy although the others report 0.

    >>> read_metrics('vllm:num_requests_waiting{engine="0"} 2.0\nvllm:num_requests_waiting{engine="1"} 1.0\n').waiting
    3
    """
    found: dict[str, list[float | None]] = {}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in _MOST:
            found.setdefault(name, []).append(_value(line, _MOST[name]))
    said = {name: [value for value in values if value is not None] for name, values in found.items()}
    return Readings(
        requests=_count([*found.get(RUNNING, ()), *found.get(WAITING, ())]),
        running=_count(found.get(RUNNING, [])),
        waiting=_count(found.get(WAITING, [])),
        cache=max((value for name in CACHE for value in said.get(name, ())), default=None),
        tokens=sum(said[GENERATED]) if said.get(GENERATED) else None,
        work=sum(sum(said.get(name, ())) for name in (GENERATED, PROMPT, FINISHED)),
        started=max(said.get(STARTED, ()), default=None),
    )


def _value(line: str, most: float) -> float | None:
    """Return the value of a line. Labels end with the last brace, so that no label's value is mistaken for it."""
    words = line.rpartition("}")[2].split() if "}" in line else line.split()[1:]
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return None
    return value if math.isfinite(value) and 0 <= value < most else None


def _count(values: list[float | None]) -> int | None:
    known = [value for value in values if value is not None]
    return int(sum(known)) if known and len(known) == len(values) else None


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
    """The models that a server lists. ``models``: their ids; None if the response is not a list of models.

    ``any_name``: it answers whatever model is asked for, as llama.cpp's server does with its only model. ``lengths``: the
    tokens of the models' contexts, where the server says them, as vLLM does.
    """

    status: int
    models: tuple[str, ...] | None
    any_name: bool = False
    lengths: tuple[int | None, ...] = ()

    def length(self, model: str) -> int | None:
        """The tokens of a model's context; None: unknown."""
        named = dict(zip(self.models or (), self.lengths, strict=False))
        return named.get(model)

    def serves(self, model: str) -> bool:
        """Whether a request for this model is answered; ollama takes a name without a tag for ``:latest``."""
        return self.any_name or (self.models is not None and (model in self.models or f"{model}:latest" in self.models))


@dataclass(frozen=True, slots=True)
class Given:
    """Result of a request for one token or one vector. ``whole``: the response contains one."""

    status: int
    whole: bool


class ServerObserver:
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
        return _listing(answer.body) if answer.status == 200 else Listing(answer.status, None)

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


def _listing(body: bytes | bytearray) -> Listing:
    """Return the listed models; none are known if the response is not a list of models with ids."""
    try:
        data: Any = json.loads(body)
        if isinstance(data, dict) and data.get("data", ()) is None:  # ollama without models
            return Listing(200, ())
        found = model_ids(data)
    except (ValueError, Malformed, RecursionError):
        return Listing(200, None)
    rows = data["data"]
    any_name = len(rows) == 1 and rows[0].get("owned_by") == _ANY_NAME
    lengths = tuple(row.get("max_model_len") if type(row.get("max_model_len")) is int else None for row in rows)
    lengths = lengths if any(lengths) else ()
    return Listing(200, found, any_name, lengths) if len(found) == len(rows) else Listing(200, None)


_ANY_NAME = "llamacpp"
"""``owned_by`` in the lists of llama.cpp's server (tools/server in its repository)."""


def _holds(body: bytes | bytearray, looks_right: Any) -> bool:
    try:
        return bool(looks_right(json.loads(body)))
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
