"""A bounded cache from context keys to slots, in arrays: 24 bytes per entry and 48 to 96 for the index, nothing else.

What a slot stands for (experts, weights, a plan) is the owner's, in arrays or a list of as many places.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from workflow_composer.errors import ConfigError
from workflow_composer.moe.hashing import Keys
from workflow_composer.moe.index import HashIndex, Slots

Clock = Callable[[], float]


class RouteCache:
    """At most ``entries`` keys; an entry is good for ``ttl`` seconds, and the least recently used one gives way.

    Not thread-safe: a slot may be given to another key as soon as the owner's lock is released. Raises `ConfigError` for
    sizes that are not positive.
    """

    def __init__(self, entries: int = 1000, ttl: float = 60.0, clock: Clock = time.monotonic) -> None:
        if entries < 1 or not ttl > 0:
            raise ConfigError(f"a cache needs at least one entry and a positive ttl, not {entries!r} and {ttl!r}")
        self.entries, self.ttl, self._clock = entries, ttl, clock
        self._index = HashIndex(entries)
        self._keys = np.zeros(entries, np.uint64)
        self._born = np.zeros(entries, np.float64)
        self._used = np.zeros(entries, np.int64)
        self._size = 0
        self._tick = 0

    def __len__(self) -> int:
        """Number of entries, including expired ones that were not replaced yet."""
        return self._size

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes, fixed at construction."""
        return self._index.nbytes + self._keys.nbytes + self._born.nbytes + self._used.nbytes

    def find(self, keys: Keys) -> Slots:
        """Return the slot of each key [n], -1 if it is missing or expired. Found keys count as used, in this order."""
        slots = self._index.find(keys)
        there = np.flatnonzero(slots >= 0)
        found = slots[there]
        if self._size and self._born[: self._size].min() + self.ttl <= self._clock():
            fresh = self._born[found] + self.ttl > self._clock()
            slots[there[~fresh]] = -1
            there, found = there[fresh], found[fresh]
        self._used[found] = self._tick + 1 + there  # of a key that occurs twice the last use counts
        self._tick += len(keys)
        return slots

    def put(self, keys: Keys) -> Slots:
        """A slot for each key, no two alike, from now on theirs; the oldest use gives way.

        -1 where more keys come than there are entries: the last ones stay.
        """
        dropped = max(0, len(keys) - self.entries)
        kept = keys[dropped:]
        slots = self._index.find(kept)
        self._touch(slots[slots >= 0])
        missing = np.flatnonzero(slots < 0)
        if len(missing):
            slots[missing] = self._free(len(missing))
            self._keys[slots[missing]] = kept[missing]
            self._index.add(kept[missing], slots[missing])
        self._touch(slots)
        return np.concatenate([np.full(dropped, -1, np.int32), slots])

    def clear(self) -> None:
        """Remove all entries."""
        self._index.clear()
        self._size = 0

    def _touch(self, slots: Slots) -> None:
        self._born[slots] = self._clock()
        self._used[slots] = np.arange(self._tick + 1, self._tick + 1 + len(slots))
        self._tick += len(slots)

    def _free(self, count: int) -> Slots:
        """Slots that nobody has, ``count`` of them, after evicting what was used longest ago where necessary."""
        fresh = min(count, self.entries - self._size)
        slots = np.arange(self._size, self._size + fresh, dtype=np.int32)
        self._size += fresh
        if fresh == count:
            return slots
        # Ticks are unique, so this is the order of use.
        old = np.argpartition(self._used[: self._size - fresh], count - fresh - 1)[: count - fresh].astype(np.int32)
        self._index.remove(self._keys[old])
        return np.concatenate([slots, old])
