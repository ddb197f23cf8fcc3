"""A bounded cache from context keys to slots, in arrays: 24 bytes per entry, plus 48 to 96 for the index.

The owner stores the values of the slots (experts, weights, a plan) in arrays or a list of the same length.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from workflow_composer.errors import ConfigError
from workflow_composer.moe.routing.hashing import Keys

# ------------------------------------------------------------------------------------------------------------------- index
#
# A hash index in two arrays: from 64-bit keys to slots, looked up in batches. Open addressing with linear probing (Knuth,
# TAOCP 3, 6.4, algorithm L), at most a quarter full: 48 to 96 bytes per key. The low bits of a key are its position, so keys
# must be well mixed.


Slots = NDArray[np.int32]
_EMPTY, _GONE = -1, -2


class HashIndex:
    """Holds up to ``capacity`` keys, each with a slot >= 0. Not thread-safe; the owner must lock."""

    def __init__(self, capacity: int) -> None:
        size = 1 << max(3, (4 * capacity - 1).bit_length())
        self._mask = np.uint64(size - 1)
        self._keys = np.zeros(size, np.uint64)
        self._slots = np.full(size, _EMPTY, np.int32)
        self._gone = 0

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes; fixed at construction."""
        return self._keys.nbytes + self._slots.nbytes

    def find(self, keys: Keys) -> Slots:
        """Return the slot of each key [n], -1 if it is missing."""
        return self._probe(keys)[1]

    def _probe(self, keys: Keys) -> tuple[NDArray[np.int64], Slots]:
        """Return each key's position and slot; for a missing key, the position of the gap that ended the search."""
        place = (keys & self._mask).view(np.int64)
        slots = self._slots[place]
        there = (self._keys[place] == keys) & (slots >= 0)
        pending = np.flatnonzero(~there & (slots != _EMPTY))
        found = np.where(there, slots, np.int32(_EMPTY))
        last = int(self._mask)
        while len(pending):
            place[pending] = step = (place[pending] + 1) & last
            slots = self._slots[step]
            there = (self._keys[step] == keys[pending]) & (slots >= 0)
            found[pending[there]] = slots[there]
            pending = pending[~there & (slots != _EMPTY)]
        return place, found

    def add(self, keys: Keys, slots: Slots) -> None:
        """Add distinct new keys, each with a distinct slot."""
        place = (keys & self._mask).view(np.int64)
        last = int(self._mask)
        pending = np.arange(len(keys))
        while len(pending):
            wanted = place[pending]
            free = self._slots[wanted] < 0
            mine, at = pending[free], wanted[free]
            self._slots[at] = slots[mine]
            won = self._slots[at] == slots[mine]  # of several keys for one position, the last one written
            self._keys[at[won]] = keys[mine[won]]
            pending = np.concatenate([pending[~free], mine[~won]])
            place[pending] = (place[pending] + 1) & last

    def remove(self, keys: Keys) -> None:
        """Remove distinct existing keys."""
        place, _ = self._probe(keys)
        self._slots[place] = _GONE
        self._gone += len(keys)  # refilled gaps count as well: rebuilding is cheap
        if self._gone * 8 > len(self._slots):
            self._rebuild()

    def clear(self) -> None:
        """Remove all keys."""
        self._slots.fill(_EMPTY)
        self._gone = 0

    def _rebuild(self) -> None:
        """Rebuild the index, because the gaps of removed keys make probing longer."""
        alive = self._slots >= 0
        keys, slots = self._keys[alive], self._slots[alive]
        self.clear()
        self.add(keys, slots)


# ------------------------------------------------------------------------------------------------------------------- cache

Clock = Callable[[], float]


class RouteCache:
    """A cache of at most ``entries`` keys; an entry expires after ``ttl`` seconds, and the least recently used is evicted.

    Not thread-safe: a slot may be reassigned as soon as the owner releases its lock. Raises `ConfigError` for sizes that are
    not positive.
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
        self._used[found] = self._tick + 1 + there  # the last use of a repeated key counts
        self._tick += len(keys)
        return slots

    def put(self, keys: Keys) -> Slots:
        """Assign a slot to each of these distinct keys and return the slots; the least recently used keys are evicted.

        With more keys than entries, only the last ones get a slot; the others get -1.
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
        """Return ``count`` free slots, after evicting the least recently used keys if necessary."""
        fresh = min(count, self.entries - self._size)
        slots = np.arange(self._size, self._size + fresh, dtype=np.int32)
        self._size += fresh
        if fresh == count:
            return slots
        # Ticks are unique, so their order is the order of use.
        old = np.argpartition(self._used[: self._size - fresh], count - fresh - 1)[: count - fresh].astype(np.int32)
        self._index.remove(self._keys[old])
        return np.concatenate([slots, old])
