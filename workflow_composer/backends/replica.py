"""One of several servers of a role: what it has to do, and whether it can be relied on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from workflow_composer.backends.readings import Readings
from workflow_composer.errors import (
    AuthenticationFailed,
    CallTimeout,
    ModelError,
    ModelNotFound,
    RateLimited,
    ServerFailed,
    ServerUnreachable,
)

if TYPE_CHECKING:
    from workflow_composer.backends.openai_compatible import OpenAICompatibleBackend

FIRST_PAUSE = 0.5
"""Seconds that a server is passed over after its first failure; doubles with each further one."""
FRESH = 3.0
"""Seconds for which what a server has said of itself counts."""
SILENT = 2
"""Questions for its metrics in a row that a server leaves unanswered before others are preferred: it may hang."""


class Standing(IntEnum):
    """How much speaks for a server, best first. Calls go to the best that there is."""

    GOOD = 0
    UNKNOWN = 1
    DOUBTFUL = 2
    """It failed a moment ago, or says nothing; asked only where no other is left."""
    OUT = 3
    """It has failed again and again; left alone until its pause is over or it answers a question for its metrics."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is and which model is asked for there; ``registered``: the registry says so, not the profile."""

    url: str
    model: str | None = None
    registered: bool = False


class Replica:
    """The state of one server. ``calls`` changes under its set's lock. Times are monotonic seconds."""

    def __init__(self, place: Place, backend: OpenAICompatibleBackend, *, failures: int, longest_pause: float) -> None:
        self.place = place
        self.backend = backend
        self.calls = 0
        self.failed = 0
        self.refused = ""
        self._limit = failures
        self._longest = longest_pause
        self._in_a_row = 0
        self._pause_ends = float("-inf")
        self._unreachable = False
        self._good = place.registered  # it has been renewed within the last seconds by who watches over it
        self._others = 0.0
        self._pressure = 1.0
        self._told_at = float("-inf")
        self._silent = 0

    def standing(self, now: float) -> Standing:
        """What speaks for it."""
        if now < self._pause_ends:
            return Standing.OUT if self._in_a_row >= self._limit else Standing.DOUBTFUL
        if self._silent >= SILENT:
            return Standing.DOUBTFUL
        return Standing.GOOD if self._good else Standing.UNKNOWN

    def load(self, now: float) -> float:
        """Calls that it has: this process's, and others' by its own count as long as that is fresh.

        A cache that is nearly full makes each of them weigh more, up to twice: the next prompt would push out another.
        """
        if now - self._told_at > FRESH:
            return float(self.calls)
        return (self.calls + self._others) * self._pressure

    def pause_left(self, now: float) -> float:
        """Seconds until it is asked again."""
        return max(0.0, self._pause_ends - now)

    def succeeded(self) -> None:
        """A call ended well."""
        self._in_a_row, self._pause_ends, self._good, self._unreachable, self._silent = 0, float("-inf"), True, False, 0

    def failed_by(self, error: ModelError, now: float) -> bool:
        """A call ended in an error that speaks against the server. True where it was well until now."""
        was_well = self._good and self._in_a_row == 0
        self.failed += 1
        self._in_a_row += 1
        # Metrics that come say nothing against an engine that hangs behind them.
        self._unreachable = isinstance(error, ServerUnreachable) or not error.sent
        self._good = False
        self._pause_ends = now + min(self._longest, FIRST_PAUSE * 2.0 ** min(self._in_a_row - 1, 20))
        return was_well

    def told(self, readings: Readings, calls: int, now: float) -> None:
        """It has answered a question for its metrics, when ``calls`` of this process's were under way there."""
        self._silent = 0
        if self._unreachable:  # what had kept calls from it is over
            self._in_a_row, self._pause_ends, self._unreachable = 0, float("-inf"), False
        self._good = self._good or self._in_a_row == 0
        if readings.requests is not None:
            self._others = max(0.0, readings.requests - calls)
            self._pressure = 1.0 + 10.0 * max(0.0, min(1.0, readings.cache or 0.0) - 0.9)
            self._told_at = now

    def said_nothing(self, *, refused: bool, now: float) -> None:
        """It has not answered; ``refused``: there is no connection at all, so a call would fail, too."""
        self._silent += 1
        if refused:
            self._good, self._unreachable = False, True
            self._pause_ends = max(self._pause_ends, now + FRESH)


def speaks_against(error: ModelError) -> bool:
    """Whether an error is the server's fault: it is not there, breaks, is another one than was thought, or is too late."""
    if isinstance(error, AuthenticationFailed):
        return error.status is not None  # a missing key is nobody's fault but ours
    if isinstance(error, CallTimeout):
        return not error.by_request
    return isinstance(error, (ServerUnreachable, ServerFailed, ModelNotFound))


def another_may_answer(error: ModelError) -> bool:
    """Whether it is worth asking another server at once. One that ran out of time has left none for another."""
    if isinstance(error, CallTimeout):
        return not error.sent
    return speaks_against(error) or isinstance(error, RateLimited)
