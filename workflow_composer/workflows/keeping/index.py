"""Where the entries of a row are in a journal: a hash table in flat arrays, for millions of entries."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

_SMALLEST = 1 << 10
_NONE = 0


class EntryIndex:
    """Offsets of entries by the number (64 bits, not 0) of what they belong to. Belongs to one thread.

    Memory: 16 bytes an entry, and 16 bytes a key at a load of at most two thirds. Entries of a key are chained, the newest
    first. Open addressing with linear probing; keys are digests, so their low bits are as good as a hash.
    """

    def __init__(self) -> None:
        self._mask = _SMALLEST - 1
        self._keys = array("Q", bytes(8 * _SMALLEST))
        self._newest = array("Q", bytes(8 * _SMALLEST))
        self._used = 0
        self._offsets = array("Q", [0])  # entry 0 stands for none
        self._before = array("Q", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def add(self, key: int, offset: int) -> None:
        """Add an entry."""
        keys, mask = self._keys, self._mask
        at = key & mask
        while (found := keys[at]) != key and found != _NONE:
            at = (at + 1) & mask
        self._before.append(self._newest[at])
        self._newest[at] = len(self._offsets)
        self._offsets.append(offset)
        if found == _NONE:
            keys[at] = key
            self._used += 1
            if 3 * self._used > 2 * mask:
                self._grow()

    def offsets(self, key: int) -> list[int]:
        """Return the offsets of a key's entries, the oldest first."""
        keys, mask = self._keys, self._mask
        at = key & mask
        while (found := keys[at]) != key:
            if found == _NONE:
                return []
            at = (at + 1) & mask
        return list(self._chain(self._newest[at]))[::-1]

    def _chain(self, entry: int) -> Iterator[int]:
        while entry:
            yield self._offsets[entry]
            entry = self._before[entry]

    def _grow(self) -> None:
        size = 2 * (self._mask + 1)
        mask = self._mask = size - 1
        before, newest_before = self._keys, self._newest
        keys, newest = array("Q", bytes(8 * size)), array("Q", bytes(8 * size))
        for key, entry in zip(before, newest_before, strict=True):
            if key != _NONE:
                at = key & mask
                while keys[at] != _NONE:
                    at = (at + 1) & mask
                keys[at], newest[at] = key, entry
        self._keys, self._newest = keys, newest
