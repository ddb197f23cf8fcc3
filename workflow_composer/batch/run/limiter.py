"""The concurrency limit of a batch: raise it while throughput grows, lower it when servers are overloaded.

**Growth.** The limiter measures throughput (successful rows per second) in rounds, at one limit and then at a higher or
lower one. A step from a to b > a rows in flight is worth it if throughput x grows by at least a share `WORTH` of its growth
without queueing: x_b / x_a - 1 >= WORTH (b / a - 1). (By Little's law, in flight = throughput x latency; the rest of the
step only adds latency.) The limiter takes steps up that are worth it and steps down that cost little. If neither exists, it
keeps the limit and probes less and less often. Latency alone, as used by Vegas and Gradient2 (Netflix, concurrency-limits),
does not work here: on a batching server each further row adds latency to every row, and throughput grows all the same.

**Decrease.** If more than a share `TOO_MANY` of the latest rows met an overloaded or failing server, the limit is halved at
once (multiplicative decrease: Chiu and Jain 1989; TCP, RFC 5681), and the limit at which that happened is avoided for some
rounds. Rows that were in flight at a cut do not cause another. A timeout counts half, because the question itself may take
long. If throughput falls in proportion to a cut that timeouts have caused, load is not their cause: the cut is undone, and
twice the share is tolerated from then on. If no row has succeeded since the last cut, there is a pause before each further
row, doubled each time, so that a server that is down does not turn a whole data set into errors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Self

WORTH = 0.2
TOO_MANY = 0.125
OVERLOAD = frozenset({"RateLimited", "ServerUnreachable", "CallTimeout", "CircuitOpen"})
"""Errors of an overloaded or unreachable server."""

_DOUBTFUL = "CallTimeout"

_FEWEST = 32
"""Fewest rows to judge by; with fewer, chance dominates."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

FEWEST_IN_FLIGHT = 4
"""Lowest automatic limit: a server can queue so few rows, and with fewer, chance would decide the pace."""


class Limiter:
    """The number of rows that may be in flight, from ``least`` to ``most``. Call `begin` and `end` for every row.

    The limiter does not wait: the caller checks `room` and `pause` before each row. ``clock`` returns seconds.
    """

    def __init__(
        self, *, least: int = 1, most: int = 512, start: int = 16, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not 1 <= least <= most:
            raise ValueError(f"limits must satisfy 1 <= least <= most, not least={least}, most={most}")
        self._clock = clock
        self._search = _Search(least, most, min(max(start, least), most))
        self._signals = self._doubtful = self._rows = 0.0
        self._borne, self._share_at_cut = TOO_MANY, 0.0
        self._deaf = 0
        self._any_well = True
        self.in_flight = 0
        self.pause = 0.0
        self._begin_round()

    @classmethod
    def of(cls, concurrency: int | None) -> Self:
        """Return a limiter fixed at ``concurrency`` rows; None: one that adapts to throughput."""
        if concurrency is None:
            return cls(least=FEWEST_IN_FLIGHT)
        return cls(least=concurrency, most=concurrency, start=concurrency)

    @property
    def limit(self) -> int:
        """Rows that may be in flight."""
        return self._search.limit

    @property
    def room(self) -> bool:
        """Whether another row may begin; wait `pause` seconds first if that is not 0."""
        return self.in_flight < self.limit

    def begin(self) -> None:
        """Count a row that begins."""
        self.in_flight += 1
        self._round.filled(self.in_flight, self.limit)

    def end(self, *, well: bool) -> None:
        """Count a row that has ended; ``well``: it has an answer."""
        self.in_flight -= 1
        self._deaf = max(self._deaf - 1, 0)
        if well:
            self._any_well, self.pause = True, 0.0
        self._rows += 1
        if self._rows >= 2 * max(self.limit, _FEWEST):
            # decay: older rows count half
            self._signals, self._doubtful, self._rows = self._signals / 2, self._doubtful / 2, self._rows / 2
        if self._round.ended(self._clock(), well=well):
            if self._round.full and self._search.measured(self._round.throughput):
                self._borne = max(self._borne, 2 * self._share_at_cut)
            self._begin_round()

    def overloaded(self, error: str) -> None:
        """Count a row that met an error of `OVERLOAD`, even if it was answered later. At most once per row, before `end`."""
        if self._deaf:
            return
        self._signals += 0.5 if error == _DOUBTFUL else 1.0
        self._doubtful += error == _DOUBTFUL
        doubtful = self._any_well and self._doubtful > self._signals  # more than two of three ran out of time
        share = self._signals / max(self._rows, _FEWEST)
        if share > self._borne and not (doubtful and self._search.is_new_here):
            if not self._any_well:
                self.pause = min(max(2 * self.pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            self._search.cut(doubtful=doubtful)
            self._share_at_cut = share
            self._deaf, self._any_well = self.in_flight, False
            self._signals = self._doubtful = self._rows = 0.0
            self._begin_round()

    def _begin_round(self) -> None:
        self._round = _Round(self._clock(), self.in_flight, self._search.wanted)
        self._round.filled(self.in_flight, self.limit)


class _Round:
    """Throughput at one limit: skip the ``settling`` rows that were in flight before, then time ``wanted`` rows.

    ``full``: the limit was reached, so throughput depends on it.
    """

    def __init__(self, now: float, settling: int, wanted: int) -> None:
        self._settling = settling
        self._left = wanted
        self._since = now
        self._well = 0
        self.full = False
        self.throughput = 0.0

    def filled(self, in_flight: int, limit: int) -> None:
        """Note the number of rows in flight."""
        self.full = self.full or in_flight >= limit

    def ended(self, now: float, *, well: bool) -> bool:
        """Count a row that has ended; return whether the round is complete."""
        if self._settling:
            self._settling -= 1
            self._since = now
            return False
        self._left -= 1
        self._well += well
        if self._left:
            return False
        self.throughput = self._well / max(now - self._since, 1e-9)
        return True


_Point = tuple[int, float]
"""A limit and the throughput at it (rows per second)."""


class _Search:
    """Hill climbing of throughput over the limit; the module's docstring gives the rule."""

    _quick, _steady = 2.0, 1.5
    _memory = 16
    _longest_rest = 16

    def __init__(self, least: int, most: int, start: int) -> None:
        self._least, self._most = least, most
        self.limit = start
        self._base: _Point | None = None  # the point to compare with
        self._before: _Point | None = None  # the point before a cut that may be a mistake
        self._step = self._quick
        self._up = True
        self._refused = 0
        self._rest = self._resting = 0
        self._ceiling, self._memory_left = math.inf, 0

    @property
    def wanted(self) -> int:
        """Rows to time: enough to tell a step from noise; half as many while steps are large."""
        return max(_FEWEST, 2 * self.limit) if self._step == self._steady else max(_FEWEST // 2, self.limit)

    @property
    def is_new_here(self) -> bool:
        """Whether there is no throughput to compare with yet."""
        return self._base is None

    def measured(self, throughput: float) -> bool:
        """Choose the next limit from this round's throughput; return whether the last cut proved to be a mistake."""
        here = self.limit, throughput
        before, self._before = self._before, None
        if before is not None and _grows(here, before) and 2 * throughput / self.limit > before[1] / before[0]:
            self.limit, self._base, self._ceiling = before[0], None, math.inf
            return True
        self._memory_left -= 1
        if self._memory_left <= 0:
            self._ceiling = math.inf
        if self._base is None or self._base[0] == self.limit:
            self._base = here
            if self._resting:
                self._resting -= 1
            else:
                self._try()
        elif _grows(*sorted([self._base, here])) == (self.limit > self._base[0]):
            self._base = here
            self._refused = self._rest = 0
            self._try()
        else:
            self._go_back(self._base[0])
        return False

    def cut(self, *, doubtful: bool) -> None:
        """Halve the limit and avoid the old one for some rounds. ``doubtful``: undo the cut if throughput falls with it."""
        self._before = self._base if doubtful else None
        self._ceiling, self._memory_left = 0.9 * self.limit, self._memory
        self.limit = max(self.limit // 2, self._least)
        self._base, self._step, self._up = None, self._steady, True
        self._refused = self._rest = self._resting = 0

    def _try(self) -> None:
        """Take a step for the next round, if possible in the direction of the last good one."""
        up = math.ceil(min(self.limit * self._step, self._ceiling, self._most))
        down = max(int(self.limit / self._steady), self._least)
        if self._up and up <= self.limit:
            self._up = False
        elif not self._up and down == self.limit:
            self._up = True
        self.limit = max(up, self.limit) if self._up else down

    def _go_back(self, limit: int) -> None:
        self.limit, self._step, self._up = limit, self._steady, not self._up
        self._refused += 1
        if self._refused == 2:
            self._refused = 0
            self._rest = self._resting = min(max(2 * self._rest, 2), self._longest_rest)


def _grows(low: _Point, high: _Point) -> bool:
    """Whether the step from the lower to the higher limit is worth it."""
    (a, x_a), (b, x_b) = low, high
    return b > a and x_b > x_a * (1.0 + WORTH * (b / a - 1.0))
