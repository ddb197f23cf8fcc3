"""A circuit breaker: an endpoint that keeps failing is left alone for a while.

Closed, calls pass. After ``failures`` consecutive failures it opens and calls are refused at once, which is what makes a
fallback quick. After ``cooldown`` seconds it is half open: one call passes as a probe; its success closes the breaker, its
failure opens it for another cooldown (Nygard, *Release It!*, 2007).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from workflow_composer.errors import CallTimeout, CircuitOpen, ServerFailed, ServerUnreachable

State = Literal["closed", "open", "half-open"]

TELLING = (ServerFailed, ServerUnreachable, CallTimeout)
"""Errors that speak against the endpoint. A refused request or a full queue does not."""


class NoBreaker:
    """Stands where a backend keeps record of each of its servers itself: always closed."""

    state: State = "closed"

    def admit(self) -> bool:
        """Let the call pass."""
        return False

    def succeed(self) -> None:
        """Nothing is counted."""

    def fail(self, error: BaseException, *, probe: bool) -> None:
        """Nothing is counted."""

    def release(self, *, probe: bool) -> None:
        """Nothing is counted."""


class CircuitBreaker:
    """One per endpoint, shared by all requests; safe to use from several threads. ``cooldown`` in seconds."""

    def __init__(
        self, name: str, *, failures: int = 5, cooldown: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._limit = failures
        self._cooldown = cooldown
        self._clock = clock
        self._lock = threading.Lock()
        self._failed = 0
        self._opened_at: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        """What the next call would meet."""
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "half-open" if self._clock() >= self._opened_at + self._cooldown else "open"

    def admit(self) -> bool:
        """Let one call pass, or raise `CircuitOpen`. True where the call is the probe of a half-open breaker.

        Whoever is admitted reports back once, by `succeed`, `fail` or `release`, and says there whether it was the probe.
        """
        opened_at = self._opened_at
        if opened_at is None:  # the common case needs no lock: reading one reference is atomic
            return False
        with self._lock:
            opened_at = self._opened_at
            if opened_at is None:
                return False
            wait = opened_at + self._cooldown - self._clock()
            if wait <= 0 and not self._probing:
                self._probing = True
                return True
        when = f"asked again in {wait:.0f} s" if wait > 0 else "a probe is under way"
        raise CircuitOpen(f"{self.name} failed {self._failed} times in a row and is left alone; {when}")

    def succeed(self) -> None:
        """The call ended well: close."""
        if self._failed == 0 and self._opened_at is None:
            return
        with self._lock:
            self._failed, self._opened_at, self._probing = 0, None, False

    def fail(self, error: BaseException, *, probe: bool) -> None:
        """The call failed with ``error``. Only what speaks against the endpoint counts; any other answer shows it alive."""
        if not isinstance(error, TELLING):
            self.succeed()
            return
        with self._lock:
            self._failed += 1
            if probe or (self._opened_at is None and self._failed >= self._limit):
                self._opened_at = self._clock()
            if probe:
                self._probing = False

    def release(self, *, probe: bool) -> None:
        """The call ended without a verdict (it was cancelled): where it was the probe, another may be."""
        if probe:
            with self._lock:
                self._probing = False
