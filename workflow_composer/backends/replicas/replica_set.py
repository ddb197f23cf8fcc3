"""The servers of one role: the current ones, the choice for each call, and the removed ones."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from workflow_composer.backends.pricing import GpuMeter
from workflow_composer.backends.replicas.replica import Replica, ReplicaPlace, Standing, speaks_against
from workflow_composer.errors import CallTimeout, CircuitOpen, EgressDenied, ModelError
from workflow_composer.types import Message, texts

# ----------------------------------------------------------------------------------------------------------------- balance
#
# Load balancing with prefix affinity: a request goes to the server that probably caches its prefix, unless overloaded.
#
# A server that has cached a long context answers the next question about it without prefilling it again, so requests with
# the same prefix should go to the same server. Rendezvous hashing (Thaler and Ravishankar, 1998) ranks the servers for each
# prefix: all clients compute the same ranking without communication, and adding or removing a server moves only the prefixes
# of that server. A bound on the load (after Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads",
# 2018) sends a request to the next server in rank if the first has more than its share, so that a popular context is cached
# on a second server instead of queueing at the first. Pure functions; ``benchmarks/balancing.py`` compares alternatives.


WORTH = 256
"""Minimum length in characters of a prefix that is worth affinity: four blocks of vLLM's cache, of 16 tokens each."""
CONTEXT = 4096
"""Characters of the system messages that identify a context."""
BEGINNING = 1024
"""Characters that identify a conversation if the system messages are too short."""
FACTOR = 1.25
"""Multiple of the mean load up to which a server keeps its own prefixes."""
SLACK = 4.0
"""Calls that any server may have regardless of the others: a small batch costs hardly more than one call."""


def prefix_key(messages: Sequence[Message]) -> bytes | None:
    """Return a digest of the prefix that requests sharing a cache have in common; None if it is too short to matter.

    The prefix is the leading system messages if they are long enough to be a context; otherwise it includes the first
    message after them, which the turns of a conversation share, as do questions about a text quoted first.

    >>> context = {"role": "system", "content": "The rules of the house. " * 20}
    >>> asked = [prefix_key([context, {"role": "user", "content": question}]) for question in ("Why?", "When?")]
    >>> asked[0] == asked[1], prefix_key([{"role": "user", "content": "Why?"}])
    (True, None)
    """
    leading: list[str] = []
    for message in messages:
        if message.get("role") not in ("system", "developer"):
            break
        leading.extend(texts(message))
    context = "\n".join(leading)
    if len(context) >= WORTH:
        return _digest("system", context[:CONTEXT])
    first = next((message for message in messages if message.get("role") not in ("system", "developer")), None)
    beginning = "\n".join([context, *(() if first is None else texts(first))])[:BEGINNING]
    return _digest("first", beginning) if len(beginning) >= WORTH else None


def _digest(kind: str, text: str) -> bytes:
    return hashlib.blake2b(f"{kind}\n{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def preference(key: bytes, servers: Iterable[str]) -> list[str]:
    """Return the servers ranked for this key, best first."""
    return sorted(servers, key=lambda server: (_weight(key, server), server), reverse=True)


def _weight(key: bytes, server: str) -> bytes:
    return hashlib.blake2b(server.encode(), key=key, digest_size=8).digest()


def bound(loads: Iterable[float]) -> float:
    """Return the load up to which a server accepts another call. The least loaded server never exceeds it.

    >>> bound([0.0, 1.0]), bound([30.0, 10.0])
    (4.0, 25.0)
    """
    known = list(loads)
    return max(SLACK, FACTOR * sum(known) / len(known))


def choose(key: bytes | None, loads: Mapping[str, float]) -> str:
    """Return the server for a request. ``loads`` maps each server (at least one) to its number of calls.

    It is the first in the key's ranking whose load is within the bound; without a key, a random one of the least loaded.
    """
    if key is not None:
        limit = bound(loads.values())
        for server in preference(key, loads):
            if loads[server] <= limit:
                return server
    least = min(loads.values())
    return random.choice([server for server, load in loads.items() if load <= least])


GONE = 2.0
"""Seconds for which a server removed from the registry is still used if there is no other: on a network file system, a
file that is being replaced may be missing for a moment."""


class ReplicaSet:
    """Servers of one role; thread-safe. ``make`` makes the replica for a place, or raises `EgressDenied`."""

    def __init__(
        self,
        make: Callable[[ReplicaPlace], Replica],
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
        self._there: dict[ReplicaPlace, Replica] = {}
        self._gone: dict[ReplicaPlace, tuple[Replica, float]] = {}
        self._refused: dict[ReplicaPlace, EgressDenied] = {}

    def adopt(self, places: Collection[ReplicaPlace]) -> None:
        """Set the current servers. Servers that stay, or that return within `GONE` seconds, keep their state."""
        with self._lock:
            now = self._clock()
            for place in [place for place in self._there if place not in places]:
                self._gone[place] = (self._there.pop(place), now)
            self._refused = {place: error for place, error in self._refused.items() if place in places}
            for place in places:
                if place in self._refused or place in self._there:
                    continue
                if place in self._gone:
                    self._there[place] = self._gone.pop(place)[0]
                else:
                    self._begin(place)

    def _begin(self, place: ReplicaPlace) -> None:
        try:
            self._there[place] = self._make(place)
        except EgressDenied as error:
            self._refuse(place, error)

    def _refuse(self, place: ReplicaPlace, error: EgressDenied) -> None:
        self._refused[place] = error
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
            return [error.message for error in self._refused.values()]

    @property
    def remedies(self) -> list[str]:
        """What helps where servers were rejected, each once."""
        with self._lock:
            return list(dict.fromkeys(error.hint for error in self._refused.values() if error.hint))

    def no_longer_than(self, place: ReplicaPlace) -> set[ReplicaPlace]:
        """The places whose context is not known to be longer than that of ``place``."""
        with self._lock:
            most = float("inf") if place.length is None else place.length
            return {other for other in (*self._there, *self._gone) if other.length is None or other.length <= most}

    @contextmanager
    def lent(self, key: bytes | None, tried: Collection[ReplicaPlace], request: object = None) -> Iterator[Replica | None]:
        """Yield the best server not among ``tried``, counted as busy within the block; None if there is none.

        Raises `CircuitOpen` if all servers have failed repeatedly. A `ModelError` from the block is recorded for the server,
        once per ``request``.
        """
        replica = self._take(key, tried)
        if replica is None:
            yield None
            return
        try:
            yield replica
        except ModelError as error:
            self._give_back(replica, error, request)
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

    def _take(self, key: bytes | None, tried: Collection[ReplicaPlace]) -> Replica | None:
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

    def late(self, replica: Replica, request: object) -> None:
        """Record that a cancelled call had used its whole time."""
        with self._lock:
            replica.failed_by(CallTimeout("no answer in time"), self._clock(), request)

    def _give_back(self, replica: Replica, error: ModelError | None, request: object = None) -> None:
        with self._lock:
            replica.calls -= 1
            self._meter()
            told = error is not None and speaks_against(error) and replica.failed_by(error, self._clock(), request)
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
