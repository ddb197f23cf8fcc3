"""A bounded cache from context keys to slots, in arrays: 24 bytes per entry and 48 to 96 for the index, nothing else.

What a slot stands for (experts, weights, a plan) is the owner's, in arrays or a list of as many places.
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
# A hash index in two arrays: from keys of 64 bits to slots, looked up a batch at a time.
#
# Open addressing with linear probing (Knuth, TAOCP 3, 6.4, algorithm L), at most a quarter full: 48 to 96 bytes per key.
# Keys must be well mixed already; their low bits are the place.


Slots = NDArray[np.int32]
_EMPTY, _GONE = -1, -2


class HashIndex:
    """Holds up to ``capacity`` keys, each with a slot >= 0. Not thread-safe; whoever owns it locks."""

    def __init__(self, capacity: int) -> None:
        size = 1 << max(3, (4 * capacity - 1).bit_length())
        self._mask = np.uint64(size - 1)
        self._keys = np.zeros(size, np.uint64)
        self._slots = np.full(size, _EMPTY, np.int32)
        self._gone = 0

    @property
    def nbytes(self) -> int:
        """What the arrays take, in bytes; fixed at construction."""
        return self._keys.nbytes + self._slots.nbytes

    def find(self, keys: Keys) -> Slots:
        """The slot of each key, -1 where there is none; shape [n]."""
        return self._probe(keys)[1]

    def _probe(self, keys: Keys) -> tuple[NDArray[np.int64], Slots]:
        """Where each key stands, and its slot; where it is not there, the place is that of the gap that says so."""
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
        """Enter keys that are not there yet, no two alike, each with a slot of its own."""
        place = (keys & self._mask).view(np.int64)
        last = int(self._mask)
        pending = np.arange(len(keys))
        while len(pending):
            wanted = place[pending]
            free = self._slots[wanted] < 0
            mine, at = pending[free], wanted[free]
            self._slots[at] = slots[mine]
            won = self._slots[at] == slots[mine]  # of several that want one place, the last that was written
            self._keys[at[won]] = keys[mine[won]]
            pending = np.concatenate([pending[~free], mine[~won]])
            place[pending] = (place[pending] + 1) & last

    def remove(self, keys: Keys) -> None:
        """Take out keys that are there, no two alike."""
        place, _ = self._probe(keys)
        self._slots[place] = _GONE
        self._gone += len(keys)  # gaps that were filled again count as well: rebuilding is cheap
        if self._gone * 8 > len(self._slots):
            self._rebuild()

    def clear(self) -> None:
        """Take everything out."""
        self._slots.fill(_EMPTY)
        self._gone = 0

    def _rebuild(self) -> None:
        """Enter everything anew: gaps left behind by removed keys make probing longer."""
        alive = self._slots >= 0
        keys, slots = self._keys[alive], self._slots[alive]
        self.clear()
        self.add(keys, slots)


pass  # MERGED

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
