"""When to call the same endpoint again, and the deadline that every attempt of a request shares."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from workflow_composer.errors import ModelError
from workflow_composer.types import TIMER_EARLY


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter: the n-th pause is uniform in [0, min(max_delay, base_delay * 2**n)].

    ``attempts`` is the number of calls to one candidate, the first one included. Delays in seconds. Full jitter because it
    spreads a crowd of clients best (Brooker, "Exponential Backoff And Jitter", 2015).
    """

    attempts: int = 3
    base_delay: float = 0.25
    max_delay: float = 8.0
    random: Callable[[], float] = field(default=random.random, repr=False)

    def pause(self, error: ModelError, tried: int, *, others_left: bool, time_left: float) -> float | None:
        """Seconds to wait before the next call to the same candidate; None to give it up.

        ``tried`` calls have been made. A ``Retry-After`` is honoured as the least pause. Where it asks for more than
        ``max_delay``, another candidate is preferred, and only the last one is waited for, if ``time_left`` allows.
        """
        if not error.retryable or tried >= self.attempts:
            return None
        pause = self.random() * min(self.max_delay, self.base_delay * 2.0 ** (tried - 1))
        if error.retry_after is not None:
            if error.retry_after > self.max_delay and others_left:
                return None
            pause += error.retry_after
        return pause if pause < time_left else None


class Deadline:
    """The moment by which a request must be over, on the monotonic clock; without a limit it never comes."""

    __slots__ = ("_clock", "at")

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.at = None if seconds is None else clock() + seconds

    @property
    def left(self) -> float:
        """Seconds left; infinite without a limit, never below zero."""
        return float("inf") if self.at is None else max(0.0, self.at - self._clock())

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.at is not None and self._clock() >= self.at

    @property
    def nearly_over(self) -> bool:
        """Whether the time is up as far as a timer can tell: it may fire early by as much as its loop is behind."""
        return self.at is not None and self._clock() >= self.at - TIMER_EARLY
