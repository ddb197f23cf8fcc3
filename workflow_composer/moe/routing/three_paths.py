"""Three paths of a repeated decision (table, cache, or a call to the learned router), and a bound on those calls.

`ThreePaths` serves tokens of a model (`system`) and requests of an orchestrator (`routers.adaptive`). It handles keys and
counts only; its owner knows the meaning of the keys and stores the decisions.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from workflow_composer.errors import ConfigError
from workflow_composer.moe.routing.cache import Clock, RouteCache, Slots
from workflow_composer.moe.routing.hashing import Keys

__all__ = ["Choice", "Clock", "ExpensiveShare", "RouteCache", "ThreePaths", "Way"]


# ------------------------------------------------------------------------------------------------------------------ budget
#
# A budget that holds for every prefix: of the first n decisions, at most share * (n + 1) may call the gate.
#
# The bound is arithmetic, not statistical: a call is refused if granting it would exceed the bound. *Proof.* Let
# a(n) = floor(share * (n + 1) + extra) and g(n) the number granted among the first n. g(0) = 0 <= a(0). If
# g(n - 1) <= a(n - 1), then either decision n is not granted and g(n) = g(n - 1) <= a(n - 1) <= a(n), because a does not
# decrease; or it is granted, only if g(n - 1) + 1 <= a(n). Nothing is assumed about which decisions want a call.
#
# *A batch* is granted exactly the calls that its decisions would get one by one: with w(i) = 1 if decision i wants a call,
# g(i) = min(g(i - 1) + w(i), a(i)), because a(i) >= g(i - 1) by the above. Unrolled, with W = cumsum(w):
#
# g(i) = W(i) + min(0, min over j <= i of a(j) - W(j)),
#
# which takes a cumulative sum and a cumulative minimum.


_FINEST = 10**9  # shares are truncated to nine places, so that products fit into 64 bits for batches of up to 2 ** 33


class ExpensiveShare:
    """Grants at most ``share * (n + 1) + extra`` of the first n decisions, for every n; thread-safe.

    ``share`` is from 0 to 1, in exact decimal arithmetic; ``extra`` is a number of additional calls, at the start or
    later. Raises `ConfigError` for other values.

    >>> budget = ExpensiveShare(0.15)
    >>> [budget.take() for _ in range(8)]  # 0.15 * 7 is the first to exceed 1
    [False, False, False, False, False, True, False, False]
    """

    def __init__(self, share: float = 0.15, *, extra: int = 0) -> None:
        if not 0 <= share <= 1 or extra < 0:
            raise ConfigError(f"share must be from 0 to 1 and extra at least 0, not {share!r} and {extra!r}")
        exact = Fraction(int(Decimal(str(share)) * _FINEST), _FINEST)
        self._up, self._down = exact.numerator, exact.denominator
        self.share, self.extra = share, extra
        self._lock = threading.Lock()
        self._decisions = 0
        self._granted = 0
        self._worst = 0.0

    @property
    def decisions(self) -> int:
        """Number of decisions, whether or not they wanted or were granted a call."""
        return self._decisions

    @property
    def granted(self) -> int:
        """Number of granted calls."""
        return self._granted

    @property
    def worst(self) -> float:
        """The maximum of granted / (n + 1) over all prefixes."""
        return self._worst

    def allowed(self, decisions: int) -> int:
        """The maximum number of calls in the first ``decisions`` decisions."""
        return self._up * (decisions + 1) // self._down + self.extra

    def take(self, *, wants: bool = True) -> bool:
        """Count one decision; return whether it may call the gate."""
        with self._lock:
            self._decisions += 1
            if not wants or self._granted >= self.allowed(self._decisions):
                return False
            self._granted += 1
            self._worst = max(self._worst, self._granted / (self._decisions + 1))
            return True

    def grant(self, decisions: int, wanting: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Count a batch of decisions; return which of those at the ascending positions ``wanting`` [k] may call the gate.

        Equals `take` one by one, but atomically.
        """
        with self._lock:
            limits = self._limits(wanting)
            wanted = np.arange(1, len(wanting) + 1)
            reached = wanted + np.minimum(np.minimum.accumulate(limits - wanted), 0) if len(wanting) else wanted
            may = np.diff(reached, prepend=0) > 0
            self._count(decisions, wanting[may], reached[may])
            return may

    def grant_keys(self, decisions: int, wanting: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Like `grant`, but a decision needs no call once an earlier one of this batch with the same key [k] was granted.

        Keys are small integers. Slow, because sequential: use it only if keys repeat and the budget may be exhausted.
        """
        with self._lock:
            spared = bytearray(int(keys.max()) + 1 if len(keys) else 0)
            granted, may = 0, np.zeros(len(wanting), np.bool_)
            for at, (key, limit) in enumerate(zip(keys.tolist(), self._limits(wanting).tolist(), strict=True)):
                if granted < limit and not spared[key]:
                    granted += 1
                    may[at] = True
                    spared[key] = 1
            self._count(decisions, wanting[may], np.arange(1, granted + 1))
            return may

    def affords(self, wanting: NDArray[np.int64]) -> bool:
        """Whether `grant` would grant all of these decisions."""
        with self._lock:
            return bool(np.all(self._limits(wanting) >= np.arange(1, len(wanting) + 1)))

    def reset(self) -> None:
        """Reset all counts."""
        with self._lock:
            self._decisions = self._granted = 0
            self._worst = 0.0

    def _limits(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many more calls may be granted up to and including each position of a batch."""
        whole, rest = divmod(self._up * (self._decisions + 2), self._down)
        found: NDArray[np.int64] = (self._up * positions + rest) // self._down + (whole + self.extra - self._granted)
        return found

    def _count(self, decisions: int, positions: NDArray[np.int64], ranks: NDArray[np.int64]) -> None:
        if len(positions):
            shares = (self._granted + ranks) / (self._decisions + positions + 2)
            self._worst = max(self._worst, float(shares.max()))
        self._decisions += decisions
        self._granted += len(positions)


# ------------------------------------------------------------------------------------------------------------------- paths

Positions = NDArray[np.int64]


class Way(IntEnum):
    """How a decision was made."""

    FAST = 0
    """From a precomputed table."""
    CACHED = 1
    """From the cache of recent decisions with the same key."""
    LEARNED = 2
    """From a call to the learned router."""
    FORCED = 3
    """From the best guess, because the call budget is used up."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The paths of a batch of n decisions.

    ``paths`` [n] are values of `Way`. ``cached`` are the positions found in the cache, with their ``slots``. ``ask`` are the
    positions that need a call, and ``asked`` their distinct keys. ``repeats`` are positions whose key repeats one of those
    within the batch: their decision is that of ``ask[repeated]``.
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
        share, extra: at most ``share * (n + 1) + extra`` of the first n decisions are calls, for every n.
        entries, ttl, clock: as in `RouteCache`.
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
        self.budget = ExpensiveShare(share, extra=extra)
        self.cache = RouteCache(entries, ttl, clock)
        self.lock = threading.RLock()
        self._counts = np.zeros(len(Way), np.int64)
        self._lookups = 0

    def choose(self, decisions: int, unknown: Positions, keys: Keys) -> Choice:
        """Return the paths of a batch; those at ascending positions ``unknown`` [u] are in no table and have ``keys`` [u].

        Equals one decision after the other, except that a batch evicts cache entries only at its end.
        """
        paths = np.full(decisions, Way.FAST, np.uint8)
        with self.lock:
            slots = self.cache.find(keys)
            hit = slots >= 0
            missing = np.flatnonzero(~hit)
            ask, repeats, repeated = self._granted(decisions, unknown, keys, missing)
            paths[unknown] = np.where(hit, np.uint8(Way.CACHED), np.uint8(Way.FORCED))
            paths[unknown[ask]] = Way.LEARNED
            paths[unknown[repeats]] = Way.CACHED
            self._counts += np.bincount(paths, minlength=len(Way))
            self._lookups += len(unknown)
        return Choice(paths, unknown[hit], slots[hit], unknown[ask], keys[ask], unknown[repeats], repeated)

    def _granted(
        self, decisions: int, unknown: Positions, keys: Keys, missing: Positions
    ) -> tuple[Positions, Positions, Positions]:
        """Return indices of missing keys: those that may be called for, those that repeat one of them, and which one."""
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
        # A granted call decides all later positions with the same key, but no earlier one.
        asked_at = np.full(len(first), -1, np.int64)
        asked_at[which[np.searchsorted(missing, ask)]] = np.arange(len(ask))
        leader = asked_at[which]
        later = np.flatnonzero((leader >= 0) & (missing > ask[leader])) if len(ask) else none
        return ask, missing[later], leader[later]

    def store(self, keys: Keys) -> Slots:
        """Return slots in which the owner stores the learned decisions; -1 for those without room. Hold ``lock``."""
        with self.lock:
            return self.cache.put(keys)

    def counts(self) -> dict[str, float]:
        """Return the decisions in total and by path, their shares, the cache's hit rate, and the largest learned share."""
        with self.lock:
            total = int(self._counts.sum())
            by_path = {path.name.lower(): int(self._counts[path]) for path in Way}
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
