"""The progress of a batch."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from workflow_composer.batch.run.records import Head

_WINDOW = 60.0

MANY_UNREADABLE = 20
"""A run in which this many answers in a row cannot be read probably wastes its money."""

MOST_UNREADABLE = 0.05
"""With a larger share of unreadable answers, an accuracy tells more about the reading than about the model."""


def accuracy(right: float, graded: float) -> float | None:
    """Return the share of right answers among the rows with a label, failed and unreadable ones included; None if none."""
    return right / graded if graded else None


def is_unreliable(unreadable: float, answered: float) -> bool:
    """Whether too many answers are unreadable to rank a run by its accuracy."""
    return unreadable > MOST_UNREADABLE * answered


@dataclass(slots=True)
class Tally:
    """The progress of a run of ``total`` rows (None: not known yet). ``clock`` returns seconds.

    ``answered`` counts rows with an answer, ``earlier`` those of them from an earlier run; ``errors`` counts the failed rows
    of this run. ``tiers``: answered rows by the name of the deciding tier. ``graded`` rows have a label, and ``correct``
    of them were right; failed ones count as wrong. ``cost`` (dollars) is the cost of all runs, failed rows included,
    ``cost_now`` of this run; ``unpriced`` and ``unpriced_now`` rows of them have an unknown cost, of which only a part is
    counted. ``in_flight`` rows are in flight, of at most ``limit``. ``unreadable`` answers count as wrong; ``cut_off`` of
    them reached their token limit. ``in_a_row``: the unreadable answers of this run since the last readable one.
    ``stopped_by`` names what stopped the run early; empty: nothing did.
    """

    total: int | None
    clock: Callable[[], float] = time.monotonic
    answered: int = 0
    earlier: int = 0
    errors: int = 0
    tiers: Counter[str] = field(default_factory=Counter)
    graded: int = 0
    correct: int = 0
    cost: float = 0.0
    cost_now: float = 0.0
    in_flight: int = 0
    limit: int = 0
    unreadable: int = 0
    cut_off: int = 0
    unpriced: int = 0
    unpriced_now: int = 0
    in_a_row: int = 0
    stopped_by: str = ""
    _started: float = field(init=False)
    _marks: deque[tuple[float, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Count time from now on."""
        self._started = self.clock()
        self._marks = deque([(self._started, self.done)])

    @property
    def done(self) -> int:
        """The number of rows that have ended, with an answer or an error."""
        return self.answered + self.errors

    @property
    def accuracy(self) -> float | None:
        """The share of correct answers among the graded rows; None if there are none."""
        return accuracy(self.correct, self.graded)

    @property
    def is_unreliable(self) -> bool:
        """Whether more than `MOST_UNREADABLE` of the answers are unreadable."""
        return is_unreliable(self.unreadable, self.answered)

    @property
    def shares(self) -> Mapping[str, float]:
        """The share of the answered rows that each tier decided."""
        return {name: count / self.answered for name, count in self.tiers.items()}

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self._started

    @property
    def rows_per_second(self) -> float | None:
        """Throughput over the last minute; None before the first row."""
        since, before = self._marks[0]
        rows = self.done - before
        return rows / max(self.clock() - since, 1e-9) if rows else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds left at the pace of the last minute; None before the first row and without a known total."""
        pace = self.rows_per_second
        return None if pace is None or self.total is None else (self.total - self.done) / pace

    def add(self, head: Head, *, again: bool = False) -> None:
        """Count a row of this run; ``again``: it failed before in this run and was tried again."""
        self.cost += head.cost
        self.cost_now += head.cost
        self.unpriced += not head.priced
        self.unpriced_now += not head.priced
        self.errors -= again
        self.graded -= again and head.correct is not None
        if head.error is None:
            self._answered(head)
        else:
            self.errors += 1
            self.graded += head.correct is not None
        if head.unreadable:
            self.in_a_row += 1
        elif head.error is None:
            self.in_a_row = 0
        now = self.clock()
        if now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, self.done))
            while now - self._marks[1][0] > _WINDOW:
                self._marks.popleft()

    def add_earlier(self, head: Head) -> None:
        """Count a record of an earlier run: an answer, or the cost of a failed row.

        Only the cost counts of a row beyond the total, which an earlier run with a higher limit answered.
        """
        self.cost += head.cost
        self.unpriced += not head.priced
        if head.error is None and (self.total is None or head.row < self.total):
            self.earlier += 1
            self._answered(head)
            self._marks[0] = (self._started, self.done)

    def _answered(self, head: Head) -> None:
        self.answered += 1
        self.tiers[head.deciding] += 1
        self.unreadable += head.unreadable
        self.cut_off += head.cut_off
        if head.correct is not None:
            self.graded += 1
            self.correct += head.correct
