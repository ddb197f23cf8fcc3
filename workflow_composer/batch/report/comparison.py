"""Comparing runs over the same questions: every figure of a report, with its interval.

Shares of questions and their differences have closed-form intervals and exact tests
(`workflow_composer.batch.report.proportions`); means and ratios are bootstrapped, all runs with the same questions. Both
compare runs question by question, which is sharper than the intervals of the separate runs suggest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from workflow_composer.batch.report.proportions import holm, mcnemar, paired_difference, share_of
from workflow_composer.batch.report.run_summary import BINS, DRAWS, RunSummary
from workflow_composer.batch.report.statistics import Bootstrap, Floats, IntervalEstimate, centred, estimate
from workflow_composer.batch.run.tally import is_unreliable
from workflow_composer.errors import MarkerError
from workflow_composer.markers import is_cascade_marker, parse_route

SINGLE, VOTE, CASCADE = "single tier", "majority vote", "cascade"
"""Kinds of runs; a run with several routes also counts as a cascade."""

COST, TOKENS, SECONDS, NOTHING = "cost", "tokens", "seconds", ""
"""What runs are compared by beside their accuracy: by dollars, or, where a cost is unknown or all are 0, by the others.

Nothing is left if nobody counted tokens and the answers were replayed.
"""

SIGNIFICANT = 0.05
"""A p-value below this, adjusted for the number of comparisons, tells two runs apart."""


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
    is right after it; ``gain`` is the difference. ``cost`` (dollars) is the second tier's cost for all of them, if known;
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
    cost: float | None
    per_right: float | None


@dataclass(frozen=True, slots=True)
class Passes:
    """pass@k of one tier: for each k, the estimate and how many questions have at least k graded samples."""

    tier: str
    at: tuple[tuple[int, IntervalEstimate, int], ...]


@dataclass(frozen=True, slots=True)
class TierUse:
    """What a tier did in a run: questions it ran for, questions it decided, samples, unreadable samples, and dollars.

    ``accepted`` is the share of accepted answers among the questions it ran for; ``wrong`` the share of wrong ones among
    those that it accepted and that have a label (NaN if there are none), ``checked`` their number.
    """

    name: str
    rows: int
    decided: int
    samples: int
    unreadable: int
    cost: float
    accepted: IntervalEstimate
    wrong: IntervalEstimate
    checked: int
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFigures:
    """All figures of one run. Estimates of accuracies and their differences are shares (0 to 1); costs are dollars.

    Failed and unreadable rows with a label count as wrong. ``cut_off`` unreadable answers reached their token limit,
    ``empty`` ones have no text. ``accepted`` is the share of accepted answers, ``accepted_right`` the share of right ones
    among them (None if none was graded). ``accuracy`` is None without labels; ``lead`` (accuracy minus the reference's), its
    adjusted ``p_value`` and ``ratios`` (cost, tokens, seconds over the reference's) are None or empty without a reference.
    The cost of ``unpriced`` rows is not fully known, nor are the tokens of ``uncounted`` ones. ``calibration`` is None if no
    graded answer has a confidence; ``floor`` is the calibration error that perfectly calibrated confidences would show. The
    rest as in `RunSummary`.
    """

    name: str
    kind: str
    routes: int
    rows: int
    failed: int
    unread: int
    cut_off: int
    empty: int
    doubted: int
    graded: int
    right: int
    accepted: IntervalEstimate
    accepted_right: IntervalEstimate | None
    accuracy: IntervalEstimate | None
    unreadable: IntervalEstimate
    cost: float
    unpriced: int
    uncounted: int
    cost_per_row: IntervalEstimate
    tokens_per_row: IntervalEstimate
    seconds_per_row: IntervalEstimate
    lead: IntervalEstimate | None
    p_value: float | None
    ratios: Mapping[str, IntervalEstimate]
    tiers: tuple[TierUse, ...]
    bins: tuple[Bin, ...]
    calibration: IntervalEstimate | None
    floor: float
    steps: tuple[EscalationStep, ...]
    passes: tuple[Passes, ...]
    errors: tuple[tuple[str, int, int, str], ...]
    route_names: tuple[str, ...] = ()
    early: tuple[str, ...] = ()
    read_by: tuple[tuple[str, int], ...] = ()
    only_answer: str | None = None
    first_wrong: tuple[int, str, str | None] | None = None
    best: bool = False

    @property
    def is_ranked(self) -> bool:
        """Whether the accuracy tells of the model: it is known, and few enough answers are unreadable."""
        return self.accuracy is not None and not is_unreliable(self.unread, self.rows - self.failed)

    @property
    def ratio(self) -> IntervalEstimate | None:
        """The cost over the reference's; None without a reference."""
        return self.ratios.get(COST)

    def amount(self, basis: str) -> IntervalEstimate:
        """Return what a question takes: dollars, tokens or seconds."""
        nothing = IntervalEstimate(0.0, 0.0, 0.0)
        return {COST: self.cost_per_row, TOKENS: self.tokens_per_row, SECONDS: self.seconds_per_row}.get(basis, nothing)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs over the same ``questions``. ``reference`` names the run that the others are compared with.

    ``basis`` is what they are compared by beside accuracy. ``ranking`` has the ranked runs, the most accurate first, each
    with the adjusted p-value of the comparison with the one before it (None for the first).
    """

    runs: tuple[RunFigures, ...]
    reference: str | None
    questions: int
    resamples: int
    grouped: bool
    basis: str = COST
    timed: bool = True
    ranking: tuple[tuple[RunFigures, float | None], ...] = ()


def compare(
    summaries: Sequence[RunSummary],
    *,
    reference: str | None = None,
    timed: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compute every figure. ``reference`` must name one of the runs. Not ``timed``: seconds are not those of the models.

    By default it is the most expensive single-tier run that can be ranked, or, if costs are not known, the most accurate.
    """
    rows = sum((summary.column("rows") for summary in summaries), np.zeros(len(summaries[0].column("rows"))))
    units = np.flatnonzero(rows)
    bootstrap = Bootstrap(len(units), resamples=resamples, seed=seed)
    drawn = {summary.name: _Sums(summary, units, bootstrap) for summary in summaries}
    kinds = {summary.name: kind_of(summary) for summary in summaries}
    basis = _basis(list(drawn.values()), timed=timed)
    if reference is None:
        reference = _reference({name: sums for name, sums in drawn.items() if kinds[name] == SINGLE}, basis)
    beside = None if reference is None else drawn[reference]
    tests = _tests([(name, reference) for name in drawn if reference not in (None, name)], drawn)
    figures = [_figures(summary, kinds[summary.name], drawn, beside, tests) for summary in summaries]
    questions = int(max(summary.total("rows") for summary in summaries))
    runs = _marked(figures, basis)
    grouped = questions > len(units)
    return Comparison(runs, reference, questions, resamples, grouped, basis, timed, _ranking(runs, drawn))


def _basis(runs: Sequence[_Sums], *, timed: bool) -> str:
    if all(not sums.value("unpriced") for sums in runs) and any(sums.value("cost") for sums in runs):
        return COST
    if not any(sums.value("uncounted") for sums in runs):
        return TOKENS
    return SECONDS if timed else NOTHING


def _reference(singles: Mapping[str, _Sums], basis: str) -> str | None:
    ranked = {name: sums for name, sums in singles.items() if not sums.is_unreliable} or singles
    worth = "cost" if basis == COST else "right"
    return max(ranked, key=lambda name: ranked[name].value(worth), default=None)


def _tests(pairs: Sequence[tuple[str, str | None]], drawn: Mapping[str, _Sums]) -> dict[tuple[str, str | None], float]:
    """Return the p-value of each pair of runs, adjusted for the number of pairs."""
    known = [(one, other) for one, other in pairs if other is not None and drawn[one].value("graded")]
    known = [(one, other) for one, other in known if drawn[other].value("graded")]
    found = [drawn[one].differs(drawn[other]) for one, other in known]
    return dict(zip(known, holm(found), strict=True))


def _ranking(runs: Sequence[RunFigures], drawn: Mapping[str, _Sums]) -> tuple[tuple[RunFigures, float | None], ...]:
    order = sorted((run for run in runs if run.is_ranked), key=lambda run: -run.right / run.graded)
    pairs: list[tuple[str, str | None]] = [(after.name, before.name) for before, after in itertools.pairwise(order)]
    tests = _tests(pairs, drawn)
    return tuple((run, tests.get(pair)) for run, pair in zip(order, [("", None), *pairs], strict=False))


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
        self._matrix = matrix
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

    @property
    def is_unreliable(self) -> bool:
        """Whether too many answers are unreadable."""
        return is_unreliable(self.value("unread"), self.value("rows") - self.value("failed"))

    @property
    def is_grouped(self) -> bool:
        """Whether columns are sums over several questions."""
        return bool(self._column("rows").max(initial=0) > 1)

    def lead(self, key: Hashable, other: _Sums, others: Hashable, of: Hashable) -> IntervalEstimate:
        """Return the difference between two columns of 0 and 1 per question, as a share of the column ``of``."""
        whole = self.value(of)
        if not self.is_grouped:
            ahead = self._column(key) - other._column(others)
            return paired_difference(float(ahead[ahead > 0].sum()), float(-ahead[ahead < 0].sum()), whole)
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = (self.draws(key) - other.draws(others)) / self.draws(of)
        return estimate((self.value(key) - other.value(others)) / whole if whole else math.nan, draws)

    def differs(self, other: _Sums) -> float:
        """Return the p-value of the difference in accuracy from another run over the same questions."""
        ahead = self._column("right") - other._column("right")
        if not self.is_grouped:
            return mcnemar(round(ahead[ahead > 0].sum()), round(-ahead[ahead < 0].sum()))
        spread = math.sqrt(float((ahead**2).sum()))  # groups are independent; under the null hypothesis their mean is 0
        return math.erfc(abs(float(ahead.sum())) / spread / math.sqrt(2)) if spread else 1.0

    def _column(self, key: Hashable) -> Floats:
        place = self._place.get(key)
        return np.zeros(len(self._matrix)) if place is None else self._matrix[:, place]

    def share(self, above: Sequence[Hashable], below: Sequence[Hashable]) -> IntervalEstimate:
        """Return a share of questions, with its interval."""
        return share_of(self.value(*above), self.value(*below))

    def ratio(self, above: Sequence[Hashable], below: Sequence[Hashable]) -> IntervalEstimate:
        """Return a ratio of sums, with its interval."""
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = self.value(*below)
            value = self.value(*above) / whole if whole else math.nan
            return estimate(value, self.draws(*above) / self.draws(*below))


def _figures(
    summary: RunSummary,
    kind: str,
    drawn: Mapping[str, _Sums],
    beside: _Sums | None,
    tests: Mapping[tuple[str, str | None], float],
) -> RunFigures:
    sums = drawn[summary.name]
    labelled = sums.count("graded") > 0
    bins, calibration, floor = _calibration(sums)
    rows, failed, unread = (sums.count(name) for name in ("rows", "failed", "unread"))
    return RunFigures(
        name=summary.name,
        kind=kind,
        routes=len(summary.routes),
        route_names=tuple(summary.routes),
        rows=rows,
        failed=failed,
        unread=unread,
        empty=sums.count("empty"),
        doubted=sums.count("doubted"),
        graded=sums.count("graded"),
        right=sums.count("right"),
        cut_off=sums.count("cut off"),
        accepted=_accepted(sums),
        accepted_right=sums.share(["right accepted"], ["graded accepted"]) if sums.count("graded accepted") else None,
        accuracy=sums.share(["right"], ["graded"]) if labelled else None,
        unreadable=share_of(unread, rows - failed),
        cost=sums.value("cost"),
        unpriced=sums.count("unpriced"),
        uncounted=sums.count("uncounted"),
        cost_per_row=sums.ratio(["cost"], ["rows"]),
        tokens_per_row=sums.ratio(["prompt", "completion"], ["rows"]),
        seconds_per_row=sums.ratio(["seconds"], ["rows"]),
        lead=_lead(sums, beside) if labelled else None,
        p_value=next((p for (name, _), p in tests.items() if name == summary.name), None),
        ratios={basis: found for basis, keys in _AMOUNTS.items() if (found := _ratio(sums, beside, keys))},
        tiers=tuple(_use(summary, name, sums) for name in summary.tiers),
        bins=bins,
        calibration=calibration,
        floor=floor,
        steps=_steps(summary, sums),
        passes=_passes(summary, sums),
        errors=tuple((kind, count, *summary.first_error[kind]) for kind, count in summary.errors.most_common()),
        early=tuple(summary.early),
        read_by=tuple(summary.read_by.most_common()),
        only_answer=summary.only_answer,
        first_wrong=summary.first_wrong,
    )


def _accepted(sums: _Sums) -> IntervalEstimate:
    """Return the share of all rows with an accepted answer; failed rows count as not accepted."""
    return share_of(sums.value("rows") - sums.value("doubted", "failed"), sums.value("rows"))


_AMOUNTS: Mapping[str, tuple[str, ...]] = {COST: ("cost",), TOKENS: ("prompt", "completion"), SECONDS: ("seconds",)}


def _lead(sums: _Sums, beside: _Sums | None) -> IntervalEstimate | None:
    if beside is None or not beside.value("graded"):
        return None
    return sums.lead("right", beside, "right", "graded")


def _ratio(sums: _Sums, beside: _Sums | None, keys: Sequence[str]) -> IntervalEstimate | None:
    if beside is None or beside.value(*keys) <= 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return estimate(sums.value(*keys) / beside.value(*keys), sums.draws(*keys) / beside.draws(*keys))


def _use(summary: RunSummary, name: str, sums: _Sums) -> TierUse:
    rows, samples, unreadable, accepted, graded, right = (
        sums.count(("tier", name, what)) for what in ("rows", "samples", "unreadable", "accepted", "graded", "right")
    )
    return TierUse(
        name,
        rows,
        sums.count(("decided", name)),
        samples,
        unreadable,
        sums.value(("tier", name, "cost")),
        share_of(accepted, rows),
        share_of(graded - right, graded),
        graded,
        tuple(summary.models.get(name, ())),
    )


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
        rate = sums.share([right], [counts[place]])
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
    gain = sums.lead(after, sums, before, known)
    more = gain.value * count if graded else 0.0
    return EscalationStep(
        before_tier=earlier,
        tier=tier,
        rows=count,
        share=count / sums.value("rows"),
        known=graded,
        before=sums.value(before) / graded if graded else math.nan,
        after=sums.value(after) / graded if graded else math.nan,
        gain=gain,
        cost=None if sums.value("unpriced") else sums.value(cost),
        per_right=sums.value(cost) / more if more > 0 else None,
    )


def _passes(summary: RunSummary, sums: _Sums) -> tuple[Passes, ...]:
    found = []
    for tier in summary.tiers:
        at = []
        for k in DRAWS:
            rows = ("pass", tier, k, "rows")
            if sums.count(rows):
                at.append((k, _pass(sums, ("pass", tier, k, "passed"), rows), sums.count(rows)))
        if at:
            found.append(Passes(tier, tuple(at)))
    return tuple(found)


def _pass(sums: _Sums, passed: Hashable, rows: Hashable) -> IntervalEstimate:
    """Return a mean of probabilities; if all are 0 or all are 1, no resample differs, and Wilson's interval is valid."""
    value = sums.value(passed) / sums.value(rows)
    return share_of(sums.value(passed), sums.value(rows)) if value in (0.0, 1.0) else sums.ratio([passed], [rows])


def _marked(figures: Sequence[RunFigures], basis: str) -> tuple[RunFigures, ...]:
    """Mark the ranked runs on the Pareto front: no other is as accurate, takes as little, and is better in one of both."""

    def beaten(run: RunFigures) -> bool:
        assert run.accuracy is not None  # it is ranked
        for other in figures:
            if other.is_ranked and other.accuracy is not None and other is not run:
                right, takes = (
                    other.accuracy.value - run.accuracy.value,
                    other.amount(basis).value - run.amount(basis).value,
                )
                if right >= 0 and takes <= 0 and (right > 0 or takes < 0):
                    return True
        return False

    return tuple(replace(run, best=run.is_ranked and not beaten(run)) for run in figures)
