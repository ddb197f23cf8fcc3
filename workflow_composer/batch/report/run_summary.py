"""RunSummary: the sums over a run's records, in constant memory.

Every figure of a report is a ratio of sums over questions. Sums are kept per *unit*: each of the first `GROUPS` questions is
a unit, and further questions are assigned to units at random. Resampling units gives the intervals
(`workflow_composer.batch.report.statistics`). A unit depends only on the row's number, so runs over the same rows are
compared question by question.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable, Iterable
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from workflow_composer.batch.report.statistics import GROUPS, Floats, pass_at
from workflow_composer.batch.run.records import RowRecord, TierRecord

BINS = 10
"""Number of bins of confidence, of equal width; the last one includes 1."""

DRAWS = (1, 2, 4, 8, 16, 32)
"""The values of k for pass@k."""

_MOST_ERRORS = 100
_FEW_ANSWERS = 2
"""Different answers that are remembered: enough to tell whether all are the same."""


class RunSummary:
    """One run of one data set. `add` records in any order, each row once; then read `column` and `total`.

    Columns by key; each is a count of questions or a sum over them:

    - ``rows``, ``failed``, ``unread`` (answered without a readable final answer), ``cut off`` of these by their length,
      ``empty`` of these without any text, ``doubted`` (returned, not accepted)
    - ``graded`` (rows with a label, failed ones included), ``right``, and ``right accepted``, ``graded accepted`` among
      accepted answers
    - ``cost`` (dollars, as far as known), ``unpriced`` (rows whose cost is not fully known), ``prompt``, ``completion``
      (tokens), ``uncounted`` (answered rows whose tokens nobody counted), ``seconds``
    - ``("decided", tier)``: rows whose answer is this tier's
    - ``("bin", b, what)``: graded rows whose confidence is in bin b: ``count``, ``confidence``, ``right``
    - ``("step", a, b, what)``: rows that escalated from tier a to b: ``rows``, ``cost`` (of b), and, for those with grades
      of both answers, ``known``, ``before``, ``after``
    - ``("tier", name, what)``: rows that the tier ran for: ``rows``, ``samples``, ``unreadable``, ``cost``; ``accepted``
      answers of it, and ``graded`` and ``right`` ones among them
    - ``("pass", name, k, what)``: rows with at least k graded samples of the tier, whose number was fixed in advance:
      ``rows``, ``passed`` (pass@k)

    ``early`` are tiers with graded samples whose number depended on the answers; ``models`` the models that answered, by
    tier; ``read_by`` counts the ways in which answers were read; ``only_answer`` is the answer if all are the same;
    ``first_wrong`` is (row, answer, label) of the first answer that was read and is wrong.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.tiers: dict[str, None] = {}
        self.routes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.first_error: dict[str, tuple[int, str]] = {}
        self.early: dict[str, None] = {}
        self.models: dict[str, dict[str, None]] = {}
        self.read_by: Counter[str] = Counter()
        self.first_wrong: tuple[int, str, str | None] | None = None
        self._answers: set[str] = set()
        self._columns: dict[Hashable, array[float]] = {}
        self._seen = np.zeros(1024, np.bool_)

    @classmethod
    def of(cls, name: str, records: Iterable[RowRecord], *, only: NDArray[np.bool_] | None = None) -> Self:
        """Return the sums of a run; ``only`` marks the rows to include."""
        made = cls(name)
        for record in records:
            if only is None or (record.row < len(only) and only[record.row]):
                made.add(record)
        return made

    # --------------------------------------------------------------------------------------------------------- reading

    @property
    def only_answer(self) -> str | None:
        """The answer that all readable rows have in common, if there is one and there are several rows."""
        alone = len(self._answers) == 1 and self.total("rows") - self.total("failed") - self.total("unread") > 1
        return next(iter(self._answers)) if alone else None

    @property
    def seen(self) -> NDArray[np.bool_]:
        """The rows of the run: True at each row's number; its length is the highest number plus one."""
        present = np.flatnonzero(self._seen)
        return self._seen[: present[-1] + 1] if len(present) else self._seen[:0]

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """The keys of the columns that are not zero."""
        return tuple(self._columns)

    def column(self, key: Hashable) -> Floats:
        """Return a column's sums per unit: shape ``(GROUPS,)``."""
        found = self._columns.get(key)
        return np.zeros(GROUPS) if found is None else np.array(found)

    def total(self, key: Hashable) -> float:
        """Return a column's sum over all rows."""
        return float(self.column(key).sum())

    # ---------------------------------------------------------------------------------------------------------- adding

    def add(self, record: RowRecord) -> None:
        """Add a row. Raises ValueError if it was added before."""
        row = record.row
        if row >= len(self._seen):
            self._seen = np.concatenate([self._seen, np.zeros(max(row + 1, len(self._seen)), np.bool_)])
        if self._seen[row]:
            raise ValueError(f"duplicate row {row}")
        self._seen[row] = True
        unit = unit_of(row)
        self.routes[record.route] += 1
        self._put("rows", unit, 1)
        self._put("cost", unit, record.cost)
        self._put("unpriced", unit, not record.priced)
        self._put("prompt", unit, record.prompt_tokens)
        self._put("completion", unit, record.completion_tokens)
        self._put("seconds", unit, record.seconds)
        if record.error is not None:
            self._failed(record, unit)
        else:
            self._answered(record, unit)
        self._steps(record, unit)

    def _failed(self, record: RowRecord, unit: int) -> None:
        assert record.error is not None
        kind, message = record.error
        if kind in self.errors or len(self.errors) < _MOST_ERRORS:
            self.errors[kind] += 1
            self.first_error.setdefault(kind, (record.row, message))
        self._put("failed", unit, 1)
        self._put("graded", unit, record.correct is not None)

    def _answered(self, record: RowRecord, unit: int) -> None:
        self._put(("decided", record.deciding), unit, 1)
        self._put("doubted", unit, not record.accepted)
        self._put("uncounted", unit, not record.prompt_tokens)
        self._read(record, unit)
        if record.accepted:
            decided = ("tier", record.deciding)
            self._put((*decided, "accepted"), unit, 1)
            self._put((*decided, "graded"), unit, record.correct is not None)
            self._put((*decided, "right"), unit, record.correct is True)
        if record.correct is None:
            return
        right = record.correct
        self._put("graded", unit, 1)
        self._put("right", unit, right)
        self._put("graded accepted", unit, record.accepted)
        self._put("right accepted", unit, record.accepted and right)
        if record.confidence is not None:
            place = min(max(int(record.confidence * BINS), 0), BINS - 1)
            self._put(("bin", place, "count"), unit, 1)
            self._put(("bin", place, "confidence"), unit, record.confidence)
            self._put(("bin", place, "right"), unit, right)

    def _read(self, record: RowRecord, unit: int) -> None:
        answer = record.answer
        if answer is None:
            self._put("unread", unit, 1)
            self._put("cut off", unit, record.cut_off)
            self._put("empty", unit, _is_empty(record))
            return
        self.read_by[record.read_by or ""] += 1
        if len(self._answers) < _FEW_ANSWERS:
            self._answers.add(answer)
        if record.correct is False and (self.first_wrong is None or record.row < self.first_wrong[0]):
            self.first_wrong = record.row, answer, None if record.label is None else str(record.label)

    def _steps(self, record: RowRecord, unit: int) -> None:
        before: tuple[str, bool | None] | None = None
        for position, tier in enumerate(record.tiers):
            name = tier.name
            self.tiers[name] = None
            self.models.setdefault(name, {})[tier.model] = None
            rows, samples, unreadable, cost = _tier_keys(name)
            self._put(rows, unit, 1)
            self._put(samples, unit, tier.samples)
            self._put(unreadable, unit, tier.unreadable)
            self._put(cost, unit, tier.cost)
            if not tier.fixed and len(tier.right) > 1:
                self.early[name] = None
            for count, passed, share in _passes(name, len(tier.right), sum(tier.right)) if tier.fixed else ():
                self._put(count, unit, 1)
                self._put(passed, unit, share)
            right = record.correct if position == record.tier else leader_right(tier)
            if before is not None:
                self._step(before, (name, right), tier.cost, unit)
            before = name, right

    def _step(self, before: tuple[str, bool | None], after: tuple[str, bool | None], cost: float, unit: int) -> None:
        (earlier, was_right), (tier, right) = before, after
        self._put(("step", earlier, tier, "rows"), unit, 1)
        self._put(("step", earlier, tier, "cost"), unit, cost)
        if was_right is not None and right is not None:
            self._put(("step", earlier, tier, "known"), unit, 1)
            self._put(("step", earlier, tier, "before"), unit, was_right)
            self._put(("step", earlier, tier, "after"), unit, right)

    def _put(self, key: Hashable, unit: int, value: float) -> None:
        if value:
            column = self._columns.get(key)
            if column is None:
                column = self._columns[key] = array("d", bytes(8 * GROUPS))
            column[unit] += value


def _is_empty(record: RowRecord) -> bool:
    """Whether the deciding tier's texts were kept and have nothing in them."""
    texts = record.tiers[record.tier].texts if record.tiers else ()
    return bool(texts) and not any(text.strip() for text in texts)


@lru_cache(maxsize=4096)
def _tier_keys(name: str) -> tuple[Hashable, Hashable, Hashable, Hashable]:
    """Return the keys of a tier's columns for rows, samples, unreadable samples and cost."""
    return ("tier", name, "rows"), ("tier", name, "samples"), ("tier", name, "unreadable"), ("tier", name, "cost")


@lru_cache(maxsize=4096)
def _passes(name: str, samples: int, right: int) -> tuple[tuple[Hashable, Hashable, float], ...]:
    """Return, for each k of pass@k up to the number of samples, the keys of its two columns and the value."""
    return tuple(
        (("pass", name, k, "rows"), ("pass", name, k, "passed"), pass_at(right, samples, k)) for k in DRAWS if k <= samples
    )


def unit_of(row: int) -> int:
    """Return the unit of a row: its number, or from `GROUPS` on a pseudo-random one (SplitMix64's mixing function)."""
    if row < GROUPS:
        return row
    mixed = (row * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 31)) % GROUPS


def leader_right(tier: TierRecord) -> bool | None:
    """Whether a tier's leading answer was right, from its votes and its samples' grades; None if that is undetermined.

    All right samples have the same answer, the label's; it leads if it has the leader's number of votes. In a tie the answer
    that came first leads: the right one if the first sample was right, a wrong one if every sample is part of the tie.
    """
    right = sum(tier.right)
    if not tier.right:
        return None
    if right == 0 or not tier.votes:
        return False
    counts = [count for _, count in tier.votes]
    if right != counts[0]:
        return False if right in counts else None
    tied = counts.count(right)
    if tied == 1 or tier.right[0]:
        return True
    return False if tied * right == len(tier.right) else None
