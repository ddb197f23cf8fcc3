"""One server's check: does it answer, serve the model that it should, and give one token (or one vector) in time?"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from workflow_composer.fleet.readings import Readings, read_metrics
from workflow_composer.fleet.web import Line, OutOfTime, TooLarge

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


def check(target: Target, limits: Limits = Limits(), *, probe: bool = True) -> Check:
    """Check a server; without ``probe`` no token is asked for. Raises nothing that a server could bring about.

    Takes at most ``limits.seconds``, and `GRACE` more where the server gives no token but says what it is doing.
    """
    begun = time.monotonic()
    with Line(limits.seconds, target.key) as line:
        server = _Server(target, line, limits)
        try:
            reason = server.examine(probe=probe)
            verdict: Verdict = "overloaded" if reason else "up"
            curable = True
        except _Down as down:
            reason, verdict, curable = str(down), "down", not isinstance(down, _Unauthorized)
    seconds = time.monotonic() - begun
    return Check(verdict=verdict, reason=reason, readings=server.readings, seconds=seconds, curable=curable)


class _Server:
    """The questions to one server, in order."""

    def __init__(self, target: Target, line: Line, limits: Limits) -> None:
        self.target = target
        self.line = line
        self.limits = limits
        self.readings = Readings()

    def examine(self, *, probe: bool) -> str:
        """Why it counts as overloaded; empty where it does not. Raises `_Down`."""
        status, _ = self._ask("GET", "/health")
        if status != 200:
            raise _Down(f"{self.target.place} answers, but its /health says {status}")
        self._identify()
        self._read()
        if probe:
            try:
                self._probe()
            except OutOfTime:
                return self._without_token()
            self._read()
        return self._load()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        try:
            return self._exchange(method, path, body)
        except OutOfTime as late:
            if late.connected:
                raise _Down(f"port {self.target.port} is open, but no answer within {self._limit}: it hangs") from None
            raise _Down(f"{self.target.place} cannot be reached: no connection within {self._limit}") from None

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        import requests

        try:
            return self.line.ask(method, f"http://{self.target.place}{path}", body)
        except TooLarge:
            raise _Down(f"{self.target.place}{path} answers without end") from None
        except (requests.RequestException, ValueError) as error:  # ValueError: a host that is no name
            raise _Down(_unreachable(self.target, error)) from None

    def _identify(self) -> None:
        status, body = self._ask("GET", "/v1/models")
        if status in (401, 403):
            raise _Unauthorized(self._unauthorized(status))
        served = _models(body) if status == 200 else None
        if served is None:
            raise _Down(f"what answers on {self.target.place} is no OpenAI-compatible server: /v1/models says {status}")
        if self.target.model not in served:
            raise _Down(f"{self.target.place} serves {_named(served)}, not {self.target.model}")

    def _unauthorized(self, status: int) -> str:
        variable = self.target.key_variable
        if variable is None:
            return f"{self.target.place} wants a key ({status}), but its role names no api_key_env"
        if self.target.key is None:
            return f"{self.target.place} wants a key ({status}), but ${variable} is not set here"
        return f"{self.target.place} refuses the key in ${variable} ({status})"

    def _probe(self) -> None:
        """Ask for one token or one vector. Raises `OutOfTime`."""
        if self.target.pooling:
            path, what = "/v1/embeddings", "vector"
            body: dict[str, Any] = {"model": self.target.model, "input": ["1"]}
        else:
            path, what = "/v1/completions", "token"
            body = {"model": self.target.model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        status, answer = self._exchange("POST", path, body)
        if status in (401, 403):
            raise _Unauthorized(self._unauthorized(status))
        if status != 200:
            raise _Down(f"{self.target.place} answers a request for one {what} with status {status}")
        if not _is_answer(answer, pooling=self.target.pooling):
            raise _Down(f"{self.target.place} answers a request for one {what} without a {what}")

    def _without_token(self) -> str:
        """It hangs, unless its counters show that it worked on something else while the probe waited. Raises `_Down`."""
        before = self.readings.work
        self.line.ends = time.monotonic() + GRACE
        self._read()
        if self.readings.work > before:
            return f"no {self._what} within {self._limit}, but it works: {self.readings.waiting or 0} requests wait"
        raise _Down(f"port {self.target.port} is open, but no {self._what} within {self._limit}: it hangs")

    def _read(self) -> None:
        """Read the metrics; a server that has none is not down for that."""
        with contextlib.suppress(OutOfTime, _Down):
            status, body = self._exchange("GET", "/metrics")
            if status == 200:
                self.readings = read_metrics(body.decode("utf-8", "replace"))

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
    def _limit(self) -> str:
        return f"{self.limits.seconds:g} s"


def _unreachable(target: Target, error: Exception) -> str:
    text = str(error).lower()
    if "refused" in text:
        return f"{target.place} refuses connections"
    if "resolve" in text or "name or service" in text:
        return f"the name {target.host} cannot be resolved"
    if "no route" in text or "unreachable" in text:
        return f"{target.place} cannot be reached: no route"
    return f"{target.place} broke the connection off, or speaks no HTTP"


def _models(body: bytes) -> list[str] | None:
    """The ids that a server lists; None where the answer is no list of models."""
    try:
        listed = json.loads(body)["data"]
        return [str(model["id"]) for model in listed]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _named(served: list[str]) -> str:
    """The ids for a message: one line, however hostile the server."""
    first = "".join(c if c.isprintable() else "?" for c in served[0])[:100] if served else "no model"
    return first if len(served) < 2 else f"{first} and {len(served) - 1} more"


def _is_answer(body: bytes, *, pooling: bool) -> bool:
    try:
        answer = json.loads(body)
        if pooling:
            return len(answer["data"][0]["embedding"]) > 0
        return isinstance(answer["choices"][0]["text"], str)
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
