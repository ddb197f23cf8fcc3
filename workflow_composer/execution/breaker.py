"""The circuit breaker: stops calls to an endpoint that keeps failing; `execution.fault` says which failures count."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Literal

from workflow_composer.errors import CircuitOpen
from workflow_composer.execution.fault import counts

_LONGEST = 300
"""Characters of the last failure that are kept."""

State = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Stops calls to an endpoint that keeps failing. Shared by all requests; thread-safe.

    While it is closed, calls pass. After ``failures`` consecutive failures (infinite: never), it opens and rejects calls
    immediately, which makes fallback fast. After ``cooldown`` seconds it is half-open: one call passes as a probe. If the
    probe succeeds, the breaker closes; if it fails, the breaker opens for another cooldown (Nygard, *Release It!*, 2007). A
    probe that has no result after a cooldown (a long answer) keeps the others out no longer: another one passes.
    """

    def __init__(
        self, name: str, *, failures: float = 5, cooldown: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.failed = 0
        self._last = ""
        self._limit = failures
        self._cooldown = cooldown
        self._clock = clock
        self._lock = threading.Lock()
        self._opened_at: float | None = None
        self._probe_ends = -math.inf

    @property
    def state(self) -> State:
        """The state that the next call would find."""
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "half-open" if self._clock() >= self._opened_at + self._cooldown else "open"

    def admit(self) -> bool:
        """Admit one call and return whether it is the probe of a half-open breaker; raise `CircuitOpen` otherwise.

        Each admitted call must then call `succeed`, `fail` or `release` once, and pass on this flag.
        """
        with self._lock:
            opened_at = self._opened_at
            if opened_at is None:
                return False
            now = self._clock()
            wait = opened_at + self._cooldown - now
            if wait <= 0 and now >= self._probe_ends:
                self._probe_ends = now + self._cooldown
                return True
        when = f"next try in {wait:.0f} s" if wait > 0 else "a probe is in progress"
        what = f"{self.name} failed {self.failed} times in a row, so its circuit breaker is open; {when}"
        raise CircuitOpen(f"{what}; the last failure: {self._last}")

    def succeed(self) -> None:
        """Record a successful call and close the breaker."""
        with self._lock:
            self.failed, self._opened_at, self._probe_ends = 0, None, -math.inf

    def fail(self, error: BaseException, *, probe: bool) -> None:
        """Record a failed call. Only the server's own faults count; any other reply shows that the endpoint responds.

        An error without a reply of the server says nothing about it: the call was never sent, or ended at our own limit.
        """
        if not counts(error):
            if getattr(error, "status", None) is None:
                self.release(probe=probe)
            else:
                self.succeed()
            return
        with self._lock:
            self.failed += 1
            self._last = f"{type(error).__name__}: {error}"[:_LONGEST]
            if probe or (self._opened_at is None and self.failed >= self._limit):
                self._opened_at = self._clock()
            if probe:
                self._probe_ends = -math.inf

    def release(self, *, probe: bool) -> None:
        """Record a call that ended without a result (it was cancelled). If it was the probe, allow another one."""
        if probe:
            with self._lock:
                self._probe_ends = -math.inf
