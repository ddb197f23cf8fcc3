"""One server's check: does it answer, serve the model that it should, and give one token (or one vector) in time?"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from workflow_composer.backends.http.connection import Broken, TooLong
from workflow_composer.backends.observer import Late, Observer
from workflow_composer.backends.readings import Readings
from workflow_composer.backends.resolving import is_unknown_name
from workflow_composer.errors import EgressDenied
from workflow_composer.fleet.asking import observing

T = TypeVar("T")

Verdict = Literal["up", "overloaded", "down"]

GRACE = 5.0
"""Seconds beyond the limit in which a server that gave no token may still show that it works on something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is asked. ``key_variable`` is where ``key`` came from, for messages; the key itself never stands in one."""

    host: str
    port: int
    model: str
    pooling: bool = False
    key: str | None = None
    key_variable: str | None = None

    @property
    def place(self) -> str:
        """Host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds for the whole check; waiting requests and share of the cache from which a server is overloaded."""

    seconds: float = 30.0
    queue: int = 100
    cache: float = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What came of it. ``reason`` is one line, empty where all is well; ``seconds`` is how long the check took.

    ``overloaded``: it works, but more is asked of it than it can do; starting it again would only lose requests.
    ``curable``: starting a server that is down again may help; it does not where the monitor lacks the server's key.
    """

    verdict: Verdict
    reason: str = ""
    readings: Readings = field(default_factory=Readings)
    seconds: float = 0.0
    curable: bool = True


class _Down(Exception):
    """Why a server is down, in one line."""


class _Unauthorized(_Down):
    """It wants another key than the monitor has."""


async def check(target: Target, limits: Limits = Limits(), *, probe: bool = True) -> Check:
    """Check a server; without ``probe`` no token is asked for. Raises nothing that a server could bring about.

    Takes at most ``limits.seconds``, and `GRACE` more where the server gives no token but says what it is doing.
    """
    begun = time.monotonic()
    readings, curable = Readings(), True
    verdict: Verdict
    try:
        async with observing(target.host, target.port, target.key) as observer:
            server = _Server(target, observer, limits)
            try:
                reason = await server.examine(probe=probe)
            finally:
                readings = server.readings
        verdict = "overloaded" if reason else "up"
    except _Down as down:
        reason, verdict, curable = str(down), "down", not isinstance(down, _Unauthorized)
    except EgressDenied:
        reason, verdict = f"{target.host} is not the name of a host", "down"
    seconds = time.monotonic() - begun
    return Check(verdict=verdict, reason=reason, readings=readings, seconds=seconds, curable=curable)


class _Server:
    """The questions to one server, in order, all within one deadline."""

    def __init__(self, target: Target, observer: Observer, limits: Limits) -> None:
        self.target = target
        self.limits = limits
        self.readings = Readings()
        self._observer = observer
        self._ends = time.monotonic() + limits.seconds

    async def examine(self, *, probe: bool) -> str:
        """Why it counts as overloaded; empty where it does not. Raises `_Down`."""
        status = await self._heard("/health", self._observer.health(self._left))
        if status != 200:
            raise _Down(f"{self.target.place} answers, but its /health says {status}")
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
        """The answer. Raises `_Down` where there is none in time."""
        try:
            return await self._asked(path, question)
        except Late as late:
            if late.begun:
                raise _Down(f"{self.target.place} gave no whole answer within {self._limit}: it hangs") from None
            if late.connected:
                raise _Down(f"port {self.target.port} is open, but no answer within {self._limit}: it hangs") from None
            raise _Down(f"{self.target.place} cannot be reached: no connection within {self._limit}") from None

    async def _asked(self, path: str, question: Awaitable[T]) -> T:
        """The answer. Raises `Late` where there is none in time, and `_Down` for every other fault."""
        try:
            return await question
        except Late:
            raise
        except TooLong:
            raise _Down(f"{self.target.place}{path} answers without end") from None
        except (OSError, Broken, ValueError) as error:  # ValueError: a key that no header can carry
            raise _Down(_unreachable(self.target, error)) from None

    async def _identify(self) -> None:
        found = await self._heard("/v1/models", self._observer.models(self._left))
        if found.status in (401, 403):
            raise _Unauthorized(self._unauthorized(found.status))
        if found.models is None:
            says = f"/v1/models says {found.status}"
            raise _Down(f"what answers on {self.target.place} is no OpenAI-compatible server: {says}")
        if self.target.model not in found.models:
            raise _Down(f"{self.target.place} serves {_named(found.models)}, not {self.target.model}")

    def _unauthorized(self, status: int) -> str:
        variable = self.target.key_variable
        if variable is None:
            return f"{self.target.place} wants a key ({status}), but its role names no api_key_env"
        if self.target.key is None:
            return f"{self.target.place} wants a key ({status}), but ${variable} is not set here"
        return f"{self.target.place} refuses the key in ${variable} ({status})"

    async def _probe(self) -> None:
        """Ask for one token or one vector. Raises `Late`."""
        if self.target.pooling:
            question = self._asked("/v1/embeddings", self._observer.one_vector(self.target.model, self._left))
        else:
            question = self._asked("/v1/completions", self._observer.one_token(self.target.model, self._left))
        given = await question
        if given.status in (401, 403):
            raise _Unauthorized(self._unauthorized(given.status))
        if given.status != 200:
            raise _Down(f"{self.target.place} answers a request for one {self._what} with status {given.status}")
        if not given.whole:
            raise _Down(f"{self.target.place} answers a request for one {self._what} without a {self._what}")

    async def _without_token(self) -> str:
        """It hangs, unless its counters show that it worked on something else while the probe waited. Raises `_Down`."""
        before = self.readings.work
        self._ends = time.monotonic() + GRACE
        await self._read()
        if self.readings.work > before:
            return f"no {self._what} within {self._limit}, but it works: {self.readings.waiting or 0} requests wait"
        raise _Down(f"port {self.target.port} is open, but no {self._what} within {self._limit}: it hangs")

    async def _read(self) -> None:
        """Read the metrics; a server that has none is not down for that."""
        with contextlib.suppress(Late, _Down):
            self.readings = await self._asked("/metrics", self._observer.readings(self._left))

    def _load(self) -> str:
        waiting, cache = self.readings.waiting or 0, self.readings.cache or 0.0
        if waiting >= self.limits.queue:
            return f"{waiting} requests wait (limit {self.limits.queue})"
        if cache >= self.limits.cache:
            return f"its cache is full: {cache:.0%} in use (limit {self.limits.cache:.0%})"
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


def _unreachable(target: Target, error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"{target.place} refuses connections"
    if is_unknown_name(error):
        return f"the name {target.host} cannot be resolved"
    if isinstance(error, OSError) and error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"{target.place} cannot be reached: no route"
    return f"{target.place} broke the connection off, or speaks no HTTP"


def _named(served: Sequence[str]) -> str:
    """The ids for a message: one line, however hostile the server."""
    first = "".join(c if c.isprintable() else "?" for c in served[0])[:100] if served else "no model"
    return first if len(served) < 2 else f"{first} and {len(served) - 1} more"
