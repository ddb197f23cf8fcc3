"""The cache state of one layer's experts in bounded memory, shared by the simulator and the real offloading."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum

from workflow_composer.errors import ConfigError


class Keep(StrEnum):
    """Eviction policy of a full cache."""

    NOTHING = "nothing"
    """Keep nothing: every use is a transfer."""
    LRU = "lru"
    """Evict the least recently used expert."""
    LFU = "lfu"
    """Evict the least frequently used expert, among ties the least recently used."""
    PINNED = "pinned"
    """Keep a fixed set; the other experts share the remaining slots by `LRU`."""


class ExpertCache:
    """One layer's experts in ``slots`` slots.

    ``pinned`` are the experts kept under `Keep.PINNED`, at most ``slots - 1``. Experts that are being loaded or used are
    protected from eviction. Not thread-safe. Raises `ConfigError` for inconsistent sizes.
    """

    def __init__(self, slots: int, keep: Keep, *, pinned: Iterable[int] = ()) -> None:
        self.slots, self.keep = slots, keep
        self.pinned = frozenset(pinned)
        if slots < 1 or len(self.pinned) > slots - 1:
            raise ConfigError(f"{slots} slots are too few to pin {len(self.pinned)} experts and load another one")
        self._slot_of: dict[int, int] = {}
        self._free = list(range(slots - 1, -1, -1))
        self._used: dict[int, int] = {}
        self._count: dict[int, int] = {}
        self._tick = 0

    def __contains__(self, expert: int) -> bool:
        return expert in self._slot_of

    def __len__(self) -> int:
        return len(self._slot_of)

    def slot(self, expert: int) -> int | None:
        """Return the expert's slot, or None."""
        return self._slot_of.get(expert)

    def use(self, expert: int) -> None:
        """Record that a token used the expert, resident or not."""
        self._tick += 1
        self._used[expert] = self._tick
        self._count[expert] = self._count.get(expert, 0) + 1

    def place(self, expert: int, protected: Collection[int] = ()) -> int | None:
        """Assign a slot to the expert, evicting another one if necessary; None if all others are protected.

        A new expert counts as used now, so that a prefetched expert is not evicted next.
        """
        found = self._slot_of.get(expert)
        if found is not None:
            return found
        if not self._free:
            victim = self._victim(protected)
            if victim is None:
                return None
            self.drop(victim)
        self._slot_of[expert] = self._free.pop()
        self._tick += 1
        self._used[expert] = self._tick
        return self._slot_of[expert]

    def drop(self, expert: int) -> None:
        """Remove the expert."""
        slot = self._slot_of.pop(expert, None)
        if slot is not None:
            self._free.append(slot)

    def through(self, experts: Iterable[int]) -> None:
        """End a token's pass through the layer with these experts; drop those that the policy does not keep."""
        if self.keep is Keep.NOTHING:
            for expert in list(experts):
                self.drop(expert)

    def _victim(self, protected: Collection[int]) -> int | None:
        free = [expert for expert in self._slot_of if expert not in protected and expert not in self.pinned]
        if not free:
            return None
        if self.keep is Keep.LFU:
            return min(free, key=lambda expert: (self._count.get(expert, 0), self._used[expert]))
        return min(free, key=lambda expert: self._used[expert])
