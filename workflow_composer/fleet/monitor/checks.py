"""Check one server: does it respond, serve the expected model, and return one token (or one vector) in time?"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from workflow_composer.backends.http.connection import Broken, TooLong
from workflow_composer.backends.http.egress import is_unknown_name
from workflow_composer.backends.replicas.observer import Late, Readings, ServerObserver
from workflow_composer.errors import EgressDenied
from workflow_composer.fleet.monitor.observers import observing

T = TypeVar("T")

Verdict = Literal["up", "overloaded", "down"]

GRACE = 5.0
"""Extra seconds in which a server that returned no token may still show progress in its metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckTarget:
    """The server to check. ``key_variable`` is the source of ``key``, for messages; the key itself never appears in one."""

    host: str
    port: int
    model: str
    pooling: bool = False
    key: str | None = None
    key_variable: str | None = None

    @property
    def place(self) -> str:
        """Host and port, as text."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time limit of a check in seconds; waiting requests and KV-cache usage from which a server counts as overloaded."""

    seconds: float = 30.0
    queue: int = 100
    cache: float = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Result of a check. ``reason`` is one line, empty if the server is up; ``seconds`` is how long the check took.

    ``overloaded``: it works, but receives more requests than it can serve; a restart would only lose requests.
    ``curable``: a restart may help; it cannot if the monitor lacks the server's key. ``serves``: it is healthy and does not
    hang, whatever else is wrong, so that it may have requests in progress.
    """

    verdict: Verdict
    reason: str = ""
    readings: Readings = field(default_factory=Readings)
    seconds: float = 0.0
    curable: bool = True
    serves: bool = False


class _Down(Exception):
    """Why a server is down, in one line."""


class _Unauthorized(_Down):
    """The server rejects the monitor's key."""


async def check(target: CheckTarget, limits: Limits = Limits(), *, probe: bool = True) -> Check:
    """Check a server; without ``probe``, request no token. No response of a server makes this raise.

    Takes at most ``limits.seconds``, plus `GRACE` if the server returns no token but serves its metrics.
    """
    begun = time.monotonic()
    readings, curable, serves = Readings(), True, False
    verdict: Verdict
    try:
        async with observing(target.host, target.port, target.key) as observer:
            server = _Server(target, observer, limits)
            try:
                reason = await server.examine(probe=probe)
            finally:
                readings, serves = server.readings, server.serves
        verdict = "overloaded" if reason else "up"
    except _Down as down:
        reason, verdict, curable = str(down), "down", not isinstance(down, _Unauthorized)
    except EgressDenied:
        reason, verdict = f"{target.host} is not a valid host name", "down"
    seconds = time.monotonic() - begun
    return Check(verdict=verdict, reason=reason, readings=readings, seconds=seconds, curable=curable, serves=serves)


class _Server:
    """The queries to one server, in order, all within one deadline."""

    def __init__(self, target: CheckTarget, observer: ServerObserver, limits: Limits) -> None:
        self.target = target
        self.limits = limits
        self.readings = Readings()
        self.serves = False
        self._observer = observer
        self._ends = time.monotonic() + limits.seconds

    async def examine(self, *, probe: bool) -> str:
        """Return why the server counts as overloaded, or an empty text. Raises `_Down`."""
        status = await self._heard("/health", self._observer.health(self._left))
        if status != 200:
            raise _Down(f"{self.target.place} responds, but /health returns status {status}")
        self.serves = True
        await self._identify()
        await self._read()
        if probe:
            try:
                await self._probe()
            except Late:
                return await self._without_token()
            await self._read()
        return self._load()

    async def _heard(self, path: str, question: Awaitable[T]) -> T:
        """Return the response. Raises `_Down` if it is late."""
        try:
            return await self._asked(path, question)
        except Late as late:
            self.serves = False
            if late.begun:
                raise _Down(f"{self.target.place} sent no complete response within {self._limit}: it hangs") from None
            if late.connected:
                raise _Down(f"port {self.target.port} is open, but no response within {self._limit}: it hangs") from None
            raise _Down(f"{self.target.place} cannot be reached: no connection within {self._limit}") from None

    async def _asked(self, path: str, question: Awaitable[T]) -> T:
        """Return the response. Raises `Late` if it is late, and `_Down` for every other fault."""
        try:
            return await question
        except Late:
            raise
        except TooLong:
            raise _Down(f"the response of {self.target.place}{path} exceeds the size limit") from None
        except (OSError, Broken, ValueError) as error:  # ValueError: the key is not valid in a header
            raise _Down(_unreachable(self.target, error)) from None

    async def _identify(self) -> None:
        found = await self._heard("/v1/models", self._observer.models(self._left))
        if found.status in (401, 403):
            raise _Unauthorized(self._unauthorized(found.status))
        if found.models is None:
            says = "/v1/models lists no models" if found.status == 200 else f"/v1/models returns status {found.status}"
            raise _Down(f"the server on {self.target.place} is not OpenAI-compatible: {says}")
        if self.target.model not in found.models:
            raise _Down(f"{self.target.place} serves {_named(found.models)}, not {self.target.model}")

    def _unauthorized(self, status: int) -> str:
        variable = self.target.key_variable
        if variable is None:
            return f"{self.target.place} requires an API key (status {status}), but its role sets no api_key_env"
        if self.target.key is None:
            return f"{self.target.place} requires an API key (status {status}), but ${variable} is not set"
        return f"{self.target.place} rejects the key in ${variable} (status {status})"

    async def _probe(self) -> None:
        """Request one token or one vector. Raises `Late`."""
        if self.target.pooling:
            question = self._asked("/v1/embeddings", self._observer.one_vector(self.target.model, self._left))
        else:
            question = self._asked("/v1/completions", self._observer.one_token(self.target.model, self._left))
        given = await question
        if given.status in (401, 403):
            raise _Unauthorized(self._unauthorized(given.status))
        if given.status != 200:
            raise _Down(f"{self.target.place} returns status {given.status} to a request for one {self._what}")
        if not given.whole:
            raise _Down(f"{self.target.place} returns no {self._what} to a request for one {self._what}")

    async def _without_token(self) -> str:
        """Return the overload if the metrics show progress while the probe waited. Raises `_Down` otherwise."""
        before = self.readings.work
        self._ends = time.monotonic() + GRACE
        await self._read()
        if self.readings.work > before:
            return (
                f"no {self._what} within {self._limit}, but it is processing: {self.readings.waiting or 0} requests waiting"
            )
        self.serves = False
        raise _Down(f"port {self.target.port} is open, but no {self._what} within {self._limit}: it hangs")

    async def _read(self) -> None:
        """Read the metrics; a server without metrics does not count as down."""
        with contextlib.suppress(Late, _Down):
            self.readings = await self._asked("/metrics", self._observer.readings(self._left))

    def _load(self) -> str:
        waiting, cache = self.readings.waiting or 0, self.readings.cache or 0.0
        if waiting >= self.limits.queue:
            return f"{waiting} requests waiting (limit {self.limits.queue})"
        if cache >= self.limits.cache:
            return f"KV cache full: {cache:.0%} in use (limit {self.limits.cache:.0%})"
        return ""

    @property
    def _what(self) -> str:
        return "vector" if self.target.pooling else "token"

    @property
    def _left(self) -> float:
        return max(0.0, self._ends - time.monotonic())

    @property
    def _limit(self) -> str:
        return f"{self.limits.seconds:g} s"


def _unreachable(target: CheckTarget, error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"{target.place} refuses connections"
    if is_unknown_name(error):
        return f"host name {target.host} cannot be resolved"
    if isinstance(error, OSError) and error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"{target.place} cannot be reached: no route to host"
    return f"{target.place} closed the connection or does not speak HTTP"


def _named(served: Sequence[str]) -> str:
    """The model ids as one short, printable line; a server may send anything."""
    first = "".join(c if c.isprintable() else "?" for c in served[0])[:100] if served else "no model"
    return first if len(served) < 2 else f"{first} and {len(served) - 1} more"
