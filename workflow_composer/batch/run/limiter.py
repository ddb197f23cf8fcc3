"""How many rows may be in flight: as many as still make the whole faster, and fewer when servers say that it is too much.

**Growth.** In rounds, throughput (rows per second that came out well) is measured at one limit, then at a higher or lower
one. A step from a to b > a in flight is worth it where throughput x grows by at least a share `WORTH` of what it would grow
by if no row had to wait: x_b / x_a - 1 >= WORTH (b / a - 1). (By Little's law, in flight = throughput x latency; the rest of
the step would only make rows wait longer.) Steps up that are worth it are taken, and so are steps down that cost little.
Where neither is to be had the limit stays, and is tried ever more seldom. Latency alone, by which services limit themselves
(Vegas, Gradient2: Netflix, concurrency-limits), is no guide here: a server that works in batches answers each row later with
every further row and does more per second all the same.

**Decrease.** Where the servers of more than a share `TOO_MANY` of the latest rows refused or broke, the limit is halved at
once (multiplicative decrease: Chiu and Jain 1989; TCP, RFC 5681), and the limit at which that happened is not tried again
for some rounds. Rows that were in flight at a cut do not cause another. A call that ran out of time counts half, for it may
be the question that is long; where throughput falls in step with a cut that such calls have caused, they are not caused by
load: the cut is taken back, and twice as many are borne from then on. Where nothing has come out well since the last cut,
there is a pause before each further row, doubled each time: a server that is down must not turn a whole data set into
errors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Self

WORTH = 0.2
TOO_MANY = 0.125
OVERLOAD = frozenset({"RateLimited", "ServerUnreachable", "CallTimeout", "CircuitOpen"})
"""Errors that say that too much is in flight, or that a server is down."""

_DOUBTFUL = "CallTimeout"

_FEWEST = 32
"""Rows from which something can be told: fewer than this say more about chance than about a server."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

FEWEST_IN_FLIGHT = 4
"""A server that cannot take so many lets them wait; with fewer, chance would decide about the pace."""


class Limiter:
    """The number of rows that may be in flight, from ``least`` to ``most``. Told of every row by `begin` and `end`.

    It does not wait itself: whoever begins rows looks at `room` and `pause` before each. ``clock`` gives seconds.
    """

    def __init__(
        self, *, least: int = 1, most: int = 512, start: int = 16, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not 1 <= least <= most:
            raise ValueError(f"no limit is at least {least} and at most {most}")
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
        """So many rows at a time; None: as many as make the whole faster."""
        if concurrency is None:
            return cls(least=FEWEST_IN_FLIGHT)
        return cls(least=concurrency, most=concurrency, start=concurrency)

    @property
    def limit(self) -> int:
        """Rows that may be in flight."""
        return self._search.limit

    @property
    def room(self) -> bool:
        """Whether another row may begin. It should wait for `pause` seconds first, where that is not 0."""
        return self.in_flight < self.limit

    def begin(self) -> None:
        """A row is on its way."""
        self.in_flight += 1
        self._round.filled(self.in_flight, self.limit)

    def end(self, *, well: bool) -> None:
        """A row is over; ``well`` where it has an answer."""
        self.in_flight -= 1
        self._deaf = max(self._deaf - 1, 0)
        if well:
            self._any_well, self.pause = True, 0.0
        self._rows += 1
        if self._rows >= 2 * max(self.limit, _FEWEST):
            # the past is forgotten by halves
            self._signals, self._doubtful, self._rows = self._signals / 2, self._doubtful / 2, self._rows / 2
        if self._round.ended(self._clock(), well=well):
            if self._round.full and self._search.measured(self._round.throughput):
                self._borne = max(self._borne, 2 * self._share_at_cut)
            self._begin_round()

    def overloaded(self, error: str) -> None:
        """Calls of a row ended with an error of `OVERLOAD`, whatever became of it. Once a row at most, before its `end`."""
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
    """Throughput at one limit: ``settling`` rows that were under way before are left out, then ``wanted`` are timed.

    ``full``: the limit was reached, so that it is what throughput depends on.
    """

    def __init__(self, now: float, settling: int, wanted: int) -> None:
        self._settling = settling
        self._left = wanted
        self._since = now
        self._well = 0
        self.full = False
        self.throughput = 0.0

    def filled(self, in_flight: int, limit: int) -> None:
        """So many rows are in flight."""
        self.full = self.full or in_flight >= limit

    def ended(self, now: float, *, well: bool) -> bool:
        """A row is over. Returns whether the round is."""
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
"""A limit, and rows per second at it."""


class _Search:
    """Climbs throughput over the limit, by the rule at the head of the module."""

    _quick, _steady = 2.0, 1.5
    _memory = 16
    _longest_rest = 16

    def __init__(self, least: int, most: int, start: int) -> None:
        self._least, self._most = least, most
        self.limit = start
        self._base: _Point | None = None  # what to compare with
        self._before: _Point | None = None  # what there was before a cut that may be a mistake
        self._step = self._quick
        self._up = True
        self._refused = 0
        self._rest = self._resting = 0
        self._ceiling, self._memory_left = math.inf, 0

    @property
    def wanted(self) -> int:
        """Rows to time: enough to tell a step from noise, and half as many as long as steps are large."""
        return max(_FEWEST, 2 * self.limit) if self._step == self._steady else max(_FEWEST // 2, self.limit)

    @property
    def is_new_here(self) -> bool:
        """Whether no throughput is known yet to compare with."""
        return self._base is None

    def measured(self, throughput: float) -> bool:
        """Go on from what the round at this limit has shown. Returns whether it has shown the last cut to be a mistake."""
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
        """Halve the limit; do not come near it for a while. ``doubtful``: unless throughput tells to go back."""
        self._before = self._base if doubtful else None
        self._ceiling, self._memory_left = 0.9 * self.limit, self._memory
        self.limit = max(self.limit // 2, self._least)
        self._base, self._step, self._up = None, self._steady, True
        self._refused = self._rest = self._resting = 0

    def _try(self) -> None:
        """Take a step for the next round, in the direction of the last good one where it is possible."""
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
