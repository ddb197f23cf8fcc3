"""The servers of one role: the current ones, the choice for each call, and the removed ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from workflow_composer.backends.balance import choose
from workflow_composer.backends.pricing import GpuMeter
from workflow_composer.backends.replica import Place, Replica, Standing, speaks_against
from workflow_composer.errors import CallTimeout, CircuitOpen, EgressDenied, ModelError

GONE = 2.0
"""Seconds for which a server removed from the registry is still used if there is no other: on a network file system, a
file that is being replaced may be missing for a moment."""


class ReplicaSet:
    """Servers of one role; thread-safe. ``make`` makes the replica for a place, or raises `EgressDenied`."""

    def __init__(
        self,
        make: Callable[[Place], Replica],
        report: Callable[[str], None],
        *,
        role: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.meter = GpuMeter(clock)
        self.meter.use(0)
        self._make = make
        self._report = report
        self._role = role
        self._clock = clock
        self._lock = threading.Lock()
        self._there: dict[Place, Replica] = {}
        self._gone: dict[Place, tuple[Replica, float]] = {}
        self._refused: dict[Place, str] = {}

    def adopt(self, places: Collection[Place]) -> None:
        """Set the current servers. Servers that stay, or that return within `GONE` seconds, keep their state."""
        with self._lock:
            now = self._clock()
            for place in [place for place in self._there if place not in places]:
                self._gone[place] = (self._there.pop(place), now)
            self._refused = {place: why for place, why in self._refused.items() if place in places}
            for place in places:
                if place in self._refused or place in self._there:
                    continue
                if place in self._gone:
                    self._there[place] = self._gone.pop(place)[0]
                else:
                    self._begin(place)

    def _begin(self, place: Place) -> None:
        try:
            self._there[place] = self._make(place)
        except EgressDenied as error:
            self._refuse(place, error)

    def _refuse(self, place: Place, error: EgressDenied) -> None:
        self._refused[place] = error.message
        self._report(f"a server of {self._role} is rejected: {error.message}")

    @property
    def replicas(self) -> list[Replica]:
        """The current servers."""
        with self._lock:
            return list(self._there.values())

    @property
    def refused(self) -> list[str]:
        """The reasons why servers were rejected."""
        with self._lock:
            return list(self._refused.values())

    @contextmanager
    def lent(self, key: bytes | None, tried: Collection[Place]) -> Iterator[Replica | None]:
        """Yield the best server not among ``tried``, counted as busy within the block; None if there is none.

        Raises `CircuitOpen` if all servers have failed repeatedly. A `ModelError` from the block is recorded for the server.
        """
        replica = self._take(key, tried)
        if replica is None:
            yield None
            return
        try:
            yield replica
        except ModelError as error:
            self._give_back(replica, error)
            raise
        except EgressDenied as error:
            self._give_back(replica, None)
            self._turn_away(replica, error)
            raise
        except BaseException:
            self._give_back(replica, None)
            raise
        else:
            self._give_back(replica, None)
            replica.succeeded()

    def _take(self, key: bytes | None, tried: Collection[Place]) -> Replica | None:
        with self._lock:
            now = self._clock()
            open_to = {place: replica for place, replica in self._there.items() if place not in tried}
            if not open_to and not self._there:
                lately = {place: replica for place, (replica, since) in self._gone.items() if now - since < GONE}
                open_to = {place: replica for place, replica in lately.items() if place not in tried}
            if not open_to:
                return None
            best = min(replica.standing(now) for replica in open_to.values())
            if best is Standing.OUT:
                if tried:
                    return None
                raise self._all_out(open_to.values(), now)
            fit = {r.place.url: r for r in open_to.values() if r.standing(now) is best}
            replica = fit[choose(key, {url: r.load(now) for url, r in fit.items()})]
            replica.calls += 1
            self._meter()
            return replica

    def _all_out(self, replicas: Iterable[Replica], now: float) -> CircuitOpen:
        wait = min(replica.pause_left(now) for replica in replicas)
        return CircuitOpen(
            f"every server of {self._role} has failed repeatedly; the next attempt is possible in at most {wait:.0f} s"
        )

    def late(self, replica: Replica) -> None:
        """Record that a cancelled call had used its whole time."""
        with self._lock:
            replica.failed_by(CallTimeout("no answer in time"), self._clock())

    def _give_back(self, replica: Replica, error: ModelError | None) -> None:
        with self._lock:
            replica.calls -= 1
            self._meter()
            told = error is not None and speaks_against(error) and replica.failed_by(error, self._clock())
        if told and error is not None:
            self._report(f"a server of {self._role} failed and is avoided for a moment: {error.message}")

    def _turn_away(self, replica: Replica, error: EgressDenied) -> None:
        """Remove a server whose name resolves to a forbidden address, which only a connection reveals."""
        with self._lock:
            if self._there.pop(replica.place, None) is not None:
                self._gone[replica.place] = (replica, float("-inf"))
                self._refuse(replica.place, error)

    def _meter(self) -> None:
        there, gone = self._there.values(), (replica for replica, _ in self._gone.values())
        self.meter.use(sum(replica.calls > 0 for replica in (*there, *gone)))

    def ended(self) -> list[Replica]:
        """Return the removed servers whose last call has ended, each once."""
        with self._lock:
            now = self._clock()
            over = [p for p, (replica, since) in self._gone.items() if not replica.calls and now - since >= GONE]
            return [self._gone.pop(place)[0] for place in over]

    def everyone(self) -> list[Replica]:
        """Remove and return all servers, including removed ones."""
        with self._lock:
            found = [*self._there.values(), *(replica for replica, _ in self._gone.values())]
            self._there, self._gone = {}, {}
            return found
