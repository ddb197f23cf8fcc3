"""What servers of models bear: for each address one count of calls under way and one limit, for all runs of this process.

A server that answers 429 above n calls has told its limit: from then on fewer than n are made, and only after many answers
one more is tried again, each time after twice as many. What one run has been told, the others and the next ones know.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig

_FIRST_PROBE = 64
"""Answers after which one call more than a server once refused is tried."""


class RefusalCap:
    """The most calls under way that a server has borne: below what it last refused, and one more from time to time."""

    def __init__(self) -> None:
        self.limit: float = float("inf")
        self._wait = _FIRST_PROBE
        self._answered = 0
        self._deaf = 0

    def refused(self, under_way: int) -> None:
        """Note that a call was refused while so many were under way. Those that were under way then teach nothing more."""
        if self._deaf:
            return
        known = self.limit < float("inf")
        fewer = under_way - 1 if known else under_way // 2
        self.limit = max(1, min(self.limit, fewer))
        self._wait = 2 * self._wait if known else self._wait
        self._answered, self._deaf = 0, under_way

    def ended(self, *, well: bool) -> None:
        """Note that a call has ended."""
        self._deaf = max(0, self._deaf - 1)
        if not well or self.limit == float("inf"):
            return
        self._answered += 1
        if self._answered >= self._wait:
            self._answered = 0
            self.limit += 1


class Waiters(Protocol):
    """Those of one run who wait until a server bears one more."""

    def nudge(self) -> None:
        """Look again whether one may begin; called from any thread."""
        ...


class ServerLoad:
    """The calls under way to one server, of all runs, and their limit. For any thread."""

    def __init__(self) -> None:
        self._cap = RefusalCap()
        self._lock = threading.Lock()
        self._waiters: weakref.WeakSet[Waiters] = weakref.WeakSet()
        self.in_flight = 0

    @property
    def limit(self) -> float:
        """How many calls may be under way; infinite as long as none was refused."""
        return self._cap.limit

    def begin(self, *, anyway: bool = False) -> bool:
        """Count a call that begins, if the server bears one more, or ``anyway``; return whether it was counted."""
        with self._lock:
            if not anyway and self.in_flight >= self._cap.limit:
                return False
            self.in_flight += 1
            return True

    def end(self, *, well: bool) -> None:
        """Count a call that has ended; ``well``: with an answer."""
        with self._lock:
            self.in_flight -= 1
            self._cap.ended(well=well)
            waiters = tuple(self._waiters)
        for one in waiters:
            one.nudge()

    def refused(self) -> None:
        """Note that the server has refused a call."""
        with self._lock:
            self._cap.refused(self.in_flight)

    def wait(self, waiters: Waiters) -> None:
        """Nudge these whenever a call has ended."""
        with self._lock:
            self._waiters.add(waiters)


_loads: dict[str, ServerLoad] = {}
_loads_lock = threading.Lock()


def load_of(server: str) -> ServerLoad:
    """Return the load of the server at an address; empty: one of the caller's own, because its address is not known."""
    if not server:
        return ServerLoad()
    with _loads_lock:
        return _loads.setdefault(server, ServerLoad())


def addresses(config: StrategyConfig) -> Callable[[str], str]:
    """Return a function that returns the address behind a model's name in the profile; empty: it has none."""
    specs = config.backend_specs()

    def of(name: str) -> str:
        spec = specs.get(name)
        if spec is None:
            return ""
        return spec.base_url or " ".join(config.servers_of(spec.endpoint))

    return of
