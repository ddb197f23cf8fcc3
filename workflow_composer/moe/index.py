"""A hash index in two arrays: from keys of 64 bits to slots, looked up a batch at a time.

Open addressing with linear probing (Knuth, TAOCP 3, 6.4, algorithm L), at most a quarter full: 48 to 96 bytes per key. Keys
must be well mixed already; their low bits are the place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workflow_composer.moe.hashing import Keys

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
