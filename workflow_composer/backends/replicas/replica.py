"""One of several servers of a role: its load and its reliability."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from workflow_composer.backends.replicas.observer import Readings
from workflow_composer.errors import (
    AuthenticationFailed,
    CallTimeout,
    ModelError,
    ModelNotFound,
    RateLimited,
    ServerUnreachable,
)

if TYPE_CHECKING:
    from workflow_composer.backends.openai.backend import OpenAICompatibleBackend

FIRST_PAUSE = 0.5
"""Seconds for which a server is avoided after its first failure; doubles with each further one."""
FRESH = 3.0
"""Seconds for which a server's own metrics stay valid."""
SILENT = 2
"""Consecutive unanswered queries for metrics after which other servers are preferred: this one may hang."""


class Standing(IntEnum):
    """Reliability of a server, best first. Calls go to the best available."""

    GOOD = 0
    UNKNOWN = 1
    DOUBTFUL = 2
    """It failed a moment ago, or does not respond; used only if no other is left."""
    OUT = 3
    """It has failed repeatedly; not used until its pause ends or it answers a query for its metrics."""


@dataclass(frozen=True, slots=True)
class ReplicaPlace:
    """A server's address and its model; ``registered``: it comes from the registry, not from the profile.

    ``length``: the tokens of its context; None: unknown. ``key``: the key that the fleet has made for it. ``refused`` says
    why it gets no calls, with the remedy.
    """

    url: str
    model: str | None = None
    registered: bool = False
    length: int | None = None
    key: str = field(default="", repr=False)
    refused: tuple[str, str] | None = None


class Replica:
    """The state of one server. ``calls`` changes under its set's lock. Times are monotonic seconds."""

    def __init__(
        self, place: ReplicaPlace, backend: OpenAICompatibleBackend, *, failures: int, longest_pause: float
    ) -> None:
        self.place = place
        self.backend = backend
        self.calls = 0
        self.failed = 0
        self.refused = ""
        self._limit = failures
        self._longest = longest_pause
        self._in_a_row = 0
        self._failed: set[object] = set()
        self._pause_ends = float("-inf")
        self._unreachable = False
        self._good = place.registered  # its supervisor renewed the entry within the last seconds
        self._others = 0.0
        self._pressure = 1.0
        self._told_at = float("-inf")
        self._silent = 0

    def standing(self, now: float) -> Standing:
        """Return its current reliability."""
        if now < self._pause_ends:
            return Standing.OUT if self._in_a_row >= self._limit else Standing.DOUBTFUL
        if self._silent >= SILENT:
            return Standing.DOUBTFUL
        return Standing.GOOD if self._good else Standing.UNKNOWN

    def load(self, now: float) -> float:
        """Return its number of calls: this process's, plus those of other clients by its own metrics, if recent.

        A nearly full cache increases the weight of each call up to twofold, because the next prompt would evict another.
        """
        if now - self._told_at > FRESH:
            return float(self.calls)
        return (self.calls + self._others) * self._pressure

    def pause_left(self, now: float) -> float:
        """Return the seconds until it is used again."""
        return max(0.0, self._pause_ends - now)

    def succeeded(self) -> None:
        """Record a successful call."""
        self._pause_ends, self._good, self._unreachable, self._silent = float("-inf"), True, False, 0
        self._start_anew()

    def failed_by(self, error: ModelError, now: float, request: object = None) -> bool:
        """Record an error that is the server's fault. Return whether the server was healthy until now.

        ``request`` identifies the request whose call failed (None: unknown): several failures of one count once.
        """
        was_well = self._good and self._in_a_row == 0
        self.failed += 1
        if request not in self._failed:
            self._in_a_row += 1
            if request is not None and len(self._failed) < self._limit:  # beyond it, a request more or less changes nothing
                self._failed.add(request)
        # A server with a hanging engine may still deliver metrics.
        self._unreachable = isinstance(error, ServerUnreachable) or not error.sent
        self._good = False
        self._pause_ends = now + min(self._longest, FIRST_PAUSE * 2.0 ** min(self._in_a_row - 1, 20))
        return was_well

    def told(self, readings: Readings, calls: int, now: float) -> None:
        """Record its metrics, queried while ``calls`` of this process were in flight there."""
        self._silent = 0
        if self._unreachable:  # it is reachable again
            self._pause_ends, self._unreachable = float("-inf"), False
            self._start_anew()
        self._good = self._good or self._in_a_row == 0
        if readings.requests is not None:
            self._others = max(0.0, readings.requests - calls)
            self._pressure = 1.0 + 10.0 * max(0.0, min(1.0, readings.cache or 0.0) - 0.9)
            self._told_at = now

    def _start_anew(self) -> None:
        self._in_a_row = 0
        if self._failed:
            self._failed.clear()

    def said_nothing(self, *, refused: bool, now: float) -> None:
        """Record a missing response; ``refused``: no connection at all, so a call would fail too."""
        self._silent += 1
        if refused:
            self._good, self._unreachable = False, True
            self._pause_ends = max(self._pause_ends, now + FRESH)


def speaks_against(error: ModelError) -> bool:
    """Whether to prefer other servers: the error is this one's fault, or it serves another model or wants another key."""
    if isinstance(error, AuthenticationFailed):
        return error.status is not None  # a missing key is missing for every server
    return error.fault == "server" or isinstance(error, ModelNotFound)


def another_may_answer(error: ModelError) -> bool:
    """Whether to try another server at once. After a timeout no time is left for another."""
    if isinstance(error, CallTimeout):
        return not error.sent
    return speaks_against(error) or isinstance(error, RateLimited)
