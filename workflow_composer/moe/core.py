"""Three paths for what is routed again and again (known beforehand, decided lately, or asked), and a bound on asking.

Tokens of a model (`system`) and requests of an orchestrator (`routers.adaptive`) go through the same `ThreePaths`. It knows
keys and counts only; what a key stands for and what is decided is its owner's.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from workflow_composer.moe.budget import Budget
from workflow_composer.moe.cache import Clock, RouteCache
from workflow_composer.moe.hashing import Keys
from workflow_composer.moe.index import Slots

__all__ = ["Budget", "Choice", "Clock", "Path", "RouteCache", "ThreePaths"]

Positions = NDArray[np.int64]


class Path(IntEnum):
    """How a decision was made."""

    FAST = 0
    """From a precomputed table."""
    CACHED = 1
    """From the cache of recent decisions with the same key."""
    LEARNED = 2
    """From a call to the learned router."""
    FORCED = 3
    """From the next best guess, because the call budget is used up."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What is to be done with a batch of n decisions.

    ``paths`` [n] are values of `Path`. ``cached`` positions have ``slots`` of the cache. ``ask`` are the positions to ask
    for; ``asked`` their keys, each once. ``repeats`` are positions that repeat one of those within the batch: their
    decision is that of ``ask[repeated]``.
    """

    paths: NDArray[np.uint8]
    cached: Positions
    slots: Slots
    ask: Positions
    asked: Keys
    repeats: Positions
    repeated: Positions


class ThreePaths:
    """Chooses the path of every decision, and counts. Thread-safe; hold ``lock`` while slots of the cache are in use.

    Args:
        share: asked <= share * (n + 1) + extra after every n decisions.
        extra: see ``share``.
        entries, ttl, clock: those of `RouteCache`.
    """

    def __init__(
        self,
        *,
        share: float = 0.15,
        extra: int = 0,
        entries: int = 1000,
        ttl: float = 60.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.budget = Budget(share, extra=extra)
        self.cache = RouteCache(entries, ttl, clock)
        self.lock = threading.RLock()
        self._counts = np.zeros(len(Path), np.int64)
        self._lookups = 0

    def choose(self, decisions: int, unknown: Positions, keys: Keys) -> Choice:
        """The paths of so many decisions; those at rising positions ``unknown`` [u] are in no table; their ``keys`` [u].

        As one by one, in this order; but what is learned in a batch evicts nothing before its end.
        """
        paths = np.full(decisions, Path.FAST, np.uint8)
        with self.lock:
            slots = self.cache.find(keys)
            hit = slots >= 0
            missing = np.flatnonzero(~hit)
            ask, repeats, repeated = self._granted(decisions, unknown, keys, missing)
            paths[unknown] = np.where(hit, np.uint8(Path.CACHED), np.uint8(Path.FORCED))
            paths[unknown[ask]] = Path.LEARNED
            paths[unknown[repeats]] = Path.CACHED
            self._counts += np.bincount(paths, minlength=len(Path))
            self._lookups += len(unknown)
        return Choice(paths, unknown[hit], slots[hit], unknown[ask], keys[ask], unknown[repeats], repeated)

    def _granted(
        self, decisions: int, unknown: Positions, keys: Keys, missing: Positions
    ) -> tuple[Positions, Positions, Positions]:
        """Of the missing keys: which may be asked for, which repeat one of those, and which one; indices into ``keys``."""
        none = np.zeros(0, np.int64)
        if not len(missing):
            self.budget.grant(decisions, none)
            return none, none, none
        _, first, which = np.unique(keys[missing], return_index=True, return_inverse=True)
        firsts = missing[np.sort(first)]
        if len(firsts) == len(missing) or self.budget.affords(unknown[firsts]):
            may = self.budget.grant(decisions, unknown[firsts])
            ask = firsts[may]
        else:
            ask = missing[self.budget.grant_keys(decisions, unknown[missing], which)]
        if len(firsts) == len(missing):
            return ask, none, none
        # What was granted answers for everything of its key that comes later; what came earlier had no answer.
        asked_at = np.full(len(first), -1, np.int64)
        asked_at[which[np.searchsorted(missing, ask)]] = np.arange(len(ask))
        leader = asked_at[which]
        later = np.flatnonzero((leader >= 0) & (missing > ask[leader])) if len(ask) else none
        return ask, missing[later], leader[later]

    def store(self, keys: Keys) -> Slots:
        """Slots for what was learned, in which the owner keeps it; -1 for what has no room. Hold ``lock``."""
        with self.lock:
            return self.cache.put(keys)

    def counts(self) -> dict[str, float]:
        """Decisions, those of each path and their shares, the cache's hit rate, and the worst prefix's share of asking."""
        with self.lock:
            total = int(self._counts.sum())
            by_path = {path.name.lower(): int(self._counts[path]) for path in Path}
            lookups = self._lookups
            worst = self.budget.worst
        shares = {f"{name}_share": count / total if total else 0.0 for name, count in by_path.items()}
        hit_rate = by_path["cached"] / lookups if lookups else 0.0
        return {"decisions": total, **by_path, **shares, "cache_hit_rate": hit_rate, "worst_prefix_share": worst}

    def reset(self) -> None:
        """Reset the counts and the budget; keep the cache."""
        with self.lock:
            self._counts[:] = 0
            self._lookups = 0
            self.budget.reset()
