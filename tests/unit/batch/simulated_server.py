"""Servers of known capacity in simulated time: what a limiter makes of them can be computed, without any waiting."""

from __future__ import annotations

import heapq
import random
from collections import deque

from workflow_composer.batch.run.limiter import Limiter

REFUSED_AFTER, TIMED_OUT_AFTER = 0.05, 10.0


class Simulation:
    """Sends rows to a server as fast as a limiter lets them; a row's service takes one second on the average.

    ``kind``: ``slots`` works on ``capacity`` rows at a time and keeps the others waiting, ``refusing`` refuses the others,
    ``batching`` works on all at once, each of which it makes slower: n rows in flight give n / (1 + n / capacity) rows per
    second, of which ``capacity`` is the limit. ``spread``: how service times vary; ``hard``: the share of rows that time out
    however idle the server is; ``down``: from when to when it refuses all, or, with ``hangs``,
    lets them wait until their time is over.
    """

    def __init__(self, kind, capacity, *, spread="exponential", hard=0.0, down=(0.0, 0.0), hangs=False, seed=0, **options):
        self.now = 0.0
        self.capacity = capacity
        self.limiter = Limiter(clock=lambda: self.now, **options)
        self.limits, self.times = [], []
        self.refused = 0
        self._hard, self._down, self._hangs = hard, down, hangs
        self.most_in_flight = 0
        self._kind, self._spread, self._random = kind, spread, random.Random(seed)
        self._events, self._waiting, self._busy, self._count = [], deque(), 0, 0

    def run(self, rows, *, change=None):
        """Send so many rows. ``change``: (row, capacity) from when on the capacity is another."""
        begun = 0
        ready = 0.0
        while begun < rows or self._events:
            while begun < rows and self.limiter.room and self.now >= ready:
                self.limiter.begin()
                self._arrive()
                begun += 1
                ready = self.now + self.limiter.pause
            if not self._events:
                self.now = ready
                continue
            when, _, well, served = self._events[0]
            if begun < rows and self.limiter.room and when > ready > self.now:
                self.now = ready
                continue
            heapq.heappop(self._events)
            self.now = when
            self._leave(well=well, served=served)
            if change is not None and len(self.limits) == change[0]:
                self.capacity = change[1]
        return self

    def later(self, share=0.5):
        """Median limit and rows per second in the last part of the run."""
        first = int(len(self.limits) * (1 - share))
        limits = sorted(self.limits[first:])
        return limits[len(limits) // 2], len(limits) / (self.times[-1] - self.times[first])

    def part(self, first, last):
        """Median limit while those rows ended."""
        limits = sorted(self.limits[first:last])
        return limits[len(limits) // 2]

    def _arrive(self):
        self.most_in_flight = max(self.most_in_flight, self.limiter.in_flight)
        if self._down[0] <= self.now < self._down[1]:
            self._end_after(TIMED_OUT_AFTER if self._hangs else REFUSED_AFTER, well=False)
        elif self._kind == "slots" and self._busy >= self.capacity:
            self._waiting.append(None)
        elif self._kind == "refusing" and self._busy >= self.capacity:
            self._end_after(REFUSED_AFTER, well=False)
        else:
            self._serve()

    def _serve(self):
        self._busy += 1
        crowd = 1 + self._busy / self.capacity if self._kind == "batching" else 1.0
        self._end_after(self._service() * crowd, well=True, served=True)

    def _end_after(self, seconds, *, well, served=False):
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, well, served))

    def _leave(self, *, well, served):
        if served:
            self._busy -= 1
            well = well and self._random.random() >= self._hard
            if self._waiting and self._busy < self.capacity:
                self._waiting.popleft()
                self._serve()
        if not well:
            self.refused += 1
            self.limiter.overloaded("CallTimeout" if served or self._hangs else "RateLimited")
        self.limiter.end(well=well)
        self.limits.append(self.limiter.limit)
        self.times.append(self.now)

    def _service(self):
        if self._spread == "constant":
            return 1.0
        if self._spread == "exponential":
            return self._random.expovariate(1.0)
        return self._random.lognormvariate(-0.5, 1.0)
