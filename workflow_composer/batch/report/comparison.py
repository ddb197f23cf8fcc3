"""Comparing runs over the same questions: every figure of a report, with its interval.

All runs are resampled with the same questions. Differences between runs therefore have paired intervals, which are narrower
than the intervals of the separate runs suggest.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workflow_composer.batch.report.run_summary import BINS, DRAWS, RunSummary
from workflow_composer.batch.report.statistics import Bootstrap, Floats, IntervalEstimate, centred, estimate
from workflow_composer.errors import MarkerError
from workflow_composer.markers import is_cascade_marker, parse_route

SINGLE, VOTE, CASCADE = "single tier", "majority vote", "cascade"
"""Kinds of runs; a run with several routes also counts as a cascade."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Graded answers with a confidence from ``low`` to ``high``: mean confidence and share of right ones."""

    low: float
    high: float
    count: int
    confidence: float
    right: IntervalEstimate


@dataclass(frozen=True, slots=True)
class EscalationStep:
    """Questions that escalated from one tier to another; ``share`` is their share of all questions.

    ``known`` of them have graded answers of both tiers: a share ``before`` of these was right before the step and ``after``
    is right after it; ``gain`` is the difference. ``cost`` (dollars) is the second tier's cost for all of them;
    ``per_right`` is the cost per additional right answer, None if there was none.
    """

    before_tier: str
    tier: str
    rows: int
    share: float
    known: int
    before: float
    after: float
    gain: IntervalEstimate
    cost: float
    per_right: float | None


@dataclass(frozen=True, slots=True)
class Passes:
    """pass@k of one tier: for each k, the estimate and how many questions have at least k graded samples."""

    tier: str
    at: tuple[tuple[int, IntervalEstimate, int], ...]


@dataclass(frozen=True, slots=True)
class TierUse:
    """What a tier did in a run: questions it ran for, questions it decided, samples, unreadable samples, and dollars."""

    name: str
    rows: int
    decided: int
    samples: int
    unreadable: int
    cost: float


@dataclass(frozen=True, slots=True)
class RunFigures:
    """All figures of one run. Estimates of accuracies and their differences are shares (0 to 1); costs are dollars.

    ``accepted`` is the share of accepted answers, ``accepted_right`` the share of right ones among them (None if none was
    graded). ``accuracy`` is None without labels; ``lead`` (accuracy minus the reference's) and ``ratio`` (cost over the
    reference's) are None without a reference. ``calibration`` is None if no graded answer has a confidence; ``floor`` is the
    calibration error that perfectly calibrated confidences would show.
    """

    name: str
    kind: str
    routes: int
    rows: int
    failed: int
    unread: int
    doubted: int
    graded: int
    accepted: IntervalEstimate
    accepted_right: IntervalEstimate | None
    accuracy: IntervalEstimate | None
    cost: float
    cost_per_row: IntervalEstimate
    tokens_per_row: float
    seconds_per_row: float
    lead: IntervalEstimate | None
    ratio: IntervalEstimate | None
    tiers: tuple[TierUse, ...]
    bins: tuple[Bin, ...]
    calibration: IntervalEstimate | None
    floor: float
    steps: tuple[EscalationStep, ...]
    passes: tuple[Passes, ...]
    errors: tuple[tuple[str, int, int, str], ...]
    best: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs over the same ``questions``. ``reference`` names the run that the others are compared with."""

    runs: tuple[RunFigures, ...]
    reference: str | None
    questions: int
    resamples: int
    grouped: bool


def compare(
    summaries: Sequence[RunSummary], *, reference: str | None = None, resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Compute every figure. ``reference`` (default: the most expensive single-tier run) must name one of the runs."""
    rows = sum((summary.column("rows") for summary in summaries), np.zeros(len(summaries[0].column("rows"))))
    units = np.flatnonzero(rows)
    bootstrap = Bootstrap(len(units), resamples=resamples, seed=seed)
    drawn = {summary.name: _Sums(summary, units, bootstrap) for summary in summaries}
    kinds = {summary.name: kind_of(summary) for summary in summaries}
    if reference is None:
        singles = [name for name, kind in kinds.items() if kind == SINGLE]
        reference = max(singles, key=lambda name: drawn[name].value("cost"), default=None)
    beside = None if reference is None else drawn[reference]
    figures = [_figures(summary, kinds[summary.name], drawn[summary.name], beside) for summary in summaries]
    questions = int(max(summary.total("rows") for summary in summaries))
    return Comparison(_marked(figures), reference, questions, resamples, questions > len(units))


def kind_of(summary: RunSummary) -> str:
    """Return the kind of a run, by its routes."""
    if len(summary.routes) != 1:
        return CASCADE
    (route,) = summary.routes
    if is_cascade_marker(route):
        return CASCADE
    try:
        voted = parse_route(route).tiers[0].samples > 1
    except MarkerError:
        voted = False
    # The route of a router does not show its tiers.
    return VOTE if voted else CASCADE if len(summary.tiers) > 1 else SINGLE


class _Sums:
    """A run's sums over all questions, and over each resample."""

    def __init__(self, summary: RunSummary, units: NDArray[np.intp], bootstrap: Bootstrap) -> None:
        keys = summary.keys
        columns = [summary.column(key)[units] for key in keys]
        matrix = np.stack(columns, axis=1) if columns else np.zeros((len(units), 0))
        self._place = {key: at for at, key in enumerate(keys)}
        self._values = matrix.sum(axis=0)
        self._draws = bootstrap.sums(matrix)
        self._none = np.zeros(bootstrap.resamples)

    def value(self, *keys: Hashable) -> float:
        """Return the sum of these columns."""
        return float(sum(self._values[self._place[key]] for key in keys if key in self._place))

    def draws(self, *keys: Hashable) -> Floats:
        """Return the sum in each resample: shape ``(resamples,)``."""
        return sum((self._draws[:, self._place[key]] for key in keys if key in self._place), self._none)

    def count(self, *keys: Hashable) -> int:
        """Return `value` as an integer."""
        return round(self.value(*keys))

    def ratio(self, above: Sequence[Hashable], below: Sequence[Hashable]) -> IntervalEstimate:
        """Return a ratio of sums, with its interval."""
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = self.value(*below)
            value = self.value(*above) / whole if whole else math.nan
            return estimate(value, self.draws(*above) / self.draws(*below))


def _figures(summary: RunSummary, kind: str, sums: _Sums, beside: _Sums | None) -> RunFigures:
    rows = sums.count("rows")
    labelled = sums.count("graded") > 0
    bins, calibration, floor = _calibration(sums)
    return RunFigures(
        name=summary.name,
        kind=kind,
        routes=len(summary.routes),
        rows=rows,
        failed=sums.count("failed"),
        unread=sums.count("unread"),
        doubted=sums.count("doubted"),
        graded=sums.count("graded"),
        accepted=_accepted(sums),
        accepted_right=sums.ratio(["right accepted"], ["graded accepted"]) if sums.count("graded accepted") else None,
        accuracy=sums.ratio(["right"], _GRADED) if labelled else None,
        cost=sums.value("cost"),
        cost_per_row=sums.ratio(["cost"], ["rows"]),
        tokens_per_row=sums.value("prompt", "completion") / max(rows, 1),
        seconds_per_row=sums.value("seconds") / max(rows, 1),
        lead=_lead(sums, beside) if labelled else None,
        ratio=_cost_ratio(sums, beside),
        tiers=tuple(_use(name, sums) for name in summary.tiers),
        bins=bins,
        calibration=calibration,
        floor=floor,
        steps=_steps(summary, sums),
        passes=_passes(summary, sums),
        errors=tuple((kind, count, *summary.first_error[kind]) for kind, count in summary.errors.most_common()),
    )


def _accepted(sums: _Sums) -> IntervalEstimate:
    """Return the share of all rows with an accepted answer; failed rows count as not accepted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rows, taken = sums.value("rows"), sums.value("rows") - sums.value("doubted", "failed")
        drawn = 1 - sums.draws("doubted", "failed") / sums.draws("rows")
    return estimate(taken / rows if rows else math.nan, drawn)


_GRADED = ("graded", "failed")
"""A failed row counts as a wrong one."""


def _lead(sums: _Sums, beside: _Sums | None) -> IntervalEstimate | None:
    if beside is None or not beside.value("graded"):
        return None
    value = sums.value("right") / sums.value(*_GRADED) - beside.value("right") / beside.value(*_GRADED)
    with np.errstate(divide="ignore", invalid="ignore"):
        mine, other = (one.draws("right") / one.draws(*_GRADED) for one in (sums, beside))
    return estimate(value, mine - other)


def _cost_ratio(sums: _Sums, beside: _Sums | None) -> IntervalEstimate | None:
    if beside is None or beside.value("cost") <= 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return estimate(sums.value("cost") / beside.value("cost"), sums.draws("cost") / beside.draws("cost"))


def _use(name: str, sums: _Sums) -> TierUse:
    rows, samples, unreadable = (sums.count(("tier", name, what)) for what in ("rows", "samples", "unreadable"))
    return TierUse(name, rows, sums.count(("decided", name)), samples, unreadable, sums.value(("tier", name, "cost")))


def _calibration(sums: _Sums) -> tuple[tuple[Bin, ...], IntervalEstimate | None, float]:
    """Return the bins of confidence, their expected calibration error, and its value for perfect confidences."""
    found, gap, spread = [], 0.0, 0.0
    gaps = np.zeros_like(sums.draws())
    counts = [("bin", place, "count") for place in range(BINS)]
    for place in range(BINS):
        sure, right = ("bin", place, "confidence"), ("bin", place, "right")
        count = sums.count(counts[place])
        if not count:
            continue
        rate = sums.ratio([right], [counts[place]])
        found.append(Bin(place / BINS, (place + 1) / BINS, count, sums.value(sure) / count, rate))
        gap += abs(sums.value(right) - sums.value(sure))
        gaps += np.abs(sums.draws(right) - sums.draws(sure))
        spread += math.sqrt(2 / math.pi * count * rate.value * (1 - rate.value))
    graded = sums.value(*counts)
    if not graded:
        return (), None, math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        return tuple(found), centred(gap / graded, gaps / sums.draws(*counts)), spread / graded


def _steps(summary: RunSummary, sums: _Sums) -> tuple[EscalationStep, ...]:
    found = []
    for key in summary.keys:
        if not (isinstance(key, tuple) and key[0] == "step" and key[3] == "rows"):
            continue
        found.append(_step(key[1], key[2], sums))
    order = {name: at for at, name in enumerate(summary.tiers)}
    return tuple(sorted(found, key=lambda step: (order[step.before_tier], order[step.tier])))


def _step(earlier: str, tier: str, sums: _Sums) -> EscalationStep:
    rows, known, before, after, cost = (
        ("step", earlier, tier, what) for what in ("rows", "known", "before", "after", "cost")
    )
    count, graded = sums.count(rows), sums.count(known)
    share_before, share_after = sums.ratio([before], [known]).value, sums.ratio([after], [known]).value
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = estimate(share_after - share_before, (sums.draws(after) - sums.draws(before)) / sums.draws(known))
    more = gain.value * count if graded else 0.0
    return EscalationStep(
        before_tier=earlier,
        tier=tier,
        rows=count,
        share=count / sums.value("rows"),
        known=graded,
        before=share_before,
        after=share_after,
        gain=gain,
        cost=sums.value(cost),
        per_right=sums.value(cost) / more if more > 0 else None,
    )


def _passes(summary: RunSummary, sums: _Sums) -> tuple[Passes, ...]:
    found = []
    for tier in summary.tiers:
        at = []
        for k in DRAWS:
            rows = ("pass", tier, k, "rows")
            if sums.count(rows):
                at.append((k, sums.ratio([("pass", tier, k, "passed")], [rows]), sums.count(rows)))
        if at:
            found.append(Passes(tier, tuple(at)))
    return tuple(found)


def _marked(figures: Sequence[RunFigures]) -> tuple[RunFigures, ...]:
    """Mark the runs on the Pareto front: no other run is at least as accurate and as cheap, and better in one of the two."""
    from dataclasses import replace

    def beaten(run: RunFigures) -> bool:
        mine = run.accuracy
        assert mine is not None
        for other in figures:
            if other.accuracy is not None and other is not run:
                right, cost = other.accuracy.value - mine.value, other.cost_per_row.value - run.cost_per_row.value
                if right >= 0 and cost <= 0 and (right > 0 or cost < 0):
                    return True
        return False

    return tuple(replace(run, best=run.accuracy is not None and not beaten(run)) for run in figures)
