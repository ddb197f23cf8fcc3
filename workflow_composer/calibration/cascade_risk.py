"""A guarantee for every tier of a cascade, and for every group of requests, at once.

A request climbs from tier to tier until one accepts its answer: its score there is at least the tier's threshold. `certify`
chooses all thresholds of a group from one set of labelled requests. **Guarantee**: with probability >= 1 - delta over the
labelled requests, for every tier t of the group at once,

    P(wrong | accepted by tier t) <= alpha,   hence   P(wrong | accepted by the cascade) <= alpha,
    and   P(wrong) <= returned_bound   for all answers returned, those of exhausted requests included.

For groups g = 1..G the caller gives each delta / G, and all of it holds for all groups at once. A tier of which nothing is
accepted states nothing. It assumes that the group's requests are independent draws of one distribution, new ones included,
and that the `GroupDesign` was made without the labelled requests that certify (from a separate fitting part, say).

*Why a later tier needs more than its own share of delta.* It only sees what earlier tiers passed on, and their thresholds
were chosen with the same labels: given the choice, the requests that remain are no longer a plain sample. So the tier is
tested for every outcome that the earlier tiers could have had. For a *fixed* outcome the requests that reach the tier are
independent draws of a fixed distribution, and `workflow_composer.calibration.risk` applies at any level. Outcome i of tier t
(a position of its grid, or nothing) has a weight w_t(i), fixed beforehand, and these add up to 1. The level of a tier on the
path of outcomes that happened is

    delta * share of the tier * product over earlier tiers of w(outcome).

Summed over all paths that is delta * share, so by the union bound the tests of all paths are right together, whichever path
is taken (weighted Bonferroni). Nine tenths of delta are split evenly over the tiers from the first. One twentieth is for all
answers returned: which answer a request gets depends on the outcomes of all tiers but the last, and so does that level. The
last twentieth is kept for one more statement about the requests that the cascade accepts, on the path of all outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc

from workflow_composer.calibration.risk import (
    Floats,
    Grid,
    Selection,
    check_levels,
    checked,
    grid_from,
    most_liberal,
    rejected,
    select,
    upper_bound,
)
from workflow_composer.errors import InputError

NOTHING = -1
SHARE_TIERS, SHARE_RETURNED, SHARE_ACCEPTED = 0.9, 0.05, 0.05


@dataclass(frozen=True)
class TierDesign:
    """What is fixed about a tier before calibrating.

    ``likely``: the outcome expected, a position of ``grid``, `NOTHING`, or None where there is no expectation. A wrong one
    costs coverage, never the guarantee. ``straight_up``: a request whose score is known and below it, and not accepted, goes
    straight to the last tier.
    """

    grid: Grid
    likely: int | None = None
    straight_up: float | None = None

    def __post_init__(self) -> None:
        if self.likely is not None and not NOTHING <= self.likely < len(self.grid.thresholds):
            raise InputError(f"the likely outcome must be a position of the grid or {NOTHING}, not {self.likely}")

    def weight(self, threshold: float | None) -> float:
        """What share of the level of later tiers is kept for this outcome; over all outcomes they add up to 1.

        Proportional to (1 + d) ** -3 at a distance of d positions from the likely one, and equal without one. Steep
        near 0, where three outcomes in four fell in simulated cascades (1 / (1 + d ** 2) accepted a twelfth less there), and
        with a heavy tail, so that a surprise is not the end.
        """
        count = len(self.grid.thresholds) + 1
        if self.likely is None:
            return 1.0 / count
        outcome = NOTHING if threshold is None else self.grid.thresholds.index(threshold)
        total = math.fsum((1 + abs(i - self.likely)) ** -3 for i in range(NOTHING, count - 1))
        return float((1 + abs(outcome - self.likely)) ** -3 / total)


@dataclass(frozen=True)
class GroupDesign:
    """What is fixed about a group: its tiers from the first one up. ``first`` is the index of that tier, the floor."""

    tiers: tuple[TierDesign, ...]
    first: int = 0

    @property
    def straight_up(self) -> tuple[float | None, ...]:
        """Of each tier from the first."""
        return tuple(tier.straight_up for tier in self.tiers)


@dataclass(frozen=True)
class GroupGuarantee:
    """What calibration yields for a group: a `Selection` for each tier from ``first`` up, and the error of all returned.

    ``rows`` labelled requests calibrated. ``returned_wrong`` of their final answers were wrong, exhausted requests' (the
    last tier's answer) included; ``returned_bound`` is an upper bound on that risk, part of the guarantee, at
    ``returned_level``. ``accepted_level`` is a level at which the caller may bound one more share among the requests that
    the cascade accepts (how often the last tier would be wrong on them, say), within the same delta.
    """

    tiers: tuple[Selection, ...]
    first: int
    rows: int
    returned_wrong: int
    returned_bound: float
    returned_level: float
    accepted_level: float

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        """Of each tier from the first."""
        return tuple(tier.threshold for tier in self.tiers)

    @property
    def accepted(self) -> int:
        """Labelled requests that some tier accepted."""
        return sum(tier.accepted for tier in self.tiers)

    @property
    def wrong(self) -> int:
        """Those of them that were wrong."""
        return sum(tier.wrong for tier in self.tiers)

    @property
    def coverage(self) -> float:
        """The share of the labelled requests that some tier accepted; 0.0 where there were none."""
        return self.accepted / self.rows if self.rows else 0.0


def climb(
    scores: ArrayLike,
    thresholds: Sequence[float | None],
    straight_up: Sequence[float | None] | None = None,
    first: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which tier decides each request [n], as an index into all tiers, and whether it was accepted there [n].

    ``scores`` [n, tiers] of all tiers; ``thresholds`` and ``straight_up`` of the tiers from ``first`` up. Not accepted means
    exhausted: the answer is the last tier's.

    >>> climb([[0.9, 0.1], [0.4, 0.8], [0.4, float("nan")]], [0.5, 0.5])
    (array([0, 1, 1]), array([ True,  True, False]))
    """
    score = np.asarray(scores, np.float64)
    last = first + len(thresholds) - 1
    tier = np.full(len(score), last, np.int64)
    accepted = np.zeros(len(score), np.bool_)
    for position, threshold in enumerate(thresholds):
        index = first + position
        reached = _reach(score, accepted, straight_up, first, index, last)
        taken = reached & _accepts(score[:, index], threshold)
        tier[taken], accepted[taken] = index, True
    return tier, accepted


def _accepts(score: Floats, threshold: float | None) -> NDArray[np.bool_]:
    return np.zeros(score.shape, np.bool_) if threshold is None else score >= threshold


def _reach(
    score: Floats,
    accepted: NDArray[np.bool_],
    straight_up: Sequence[float | None] | None,
    first: int,
    index: int,
    last: int,
) -> NDArray[np.bool_]:
    """Which requests reach that tier, given which have been accepted below it."""
    reached = ~accepted
    if index < last:
        for below, limit in enumerate((straight_up or ())[: index - first], start=first):
            if limit is not None:
                # A tier that a request has skipped cannot send it on: but it is on its way to the last one already.
                reached &= ~(score[:, below] < limit)
    return reached


def design(
    fit_scores: ArrayLike,
    fit_correct: ArrayLike,
    *,
    n: int,
    alpha: float,
    delta: float,
    first: int = 0,
    straight_up: Sequence[float | None] | None = None,
) -> GroupDesign:
    """Grids, starts and likely outcomes for a group, from a fitting part that will not calibrate.

    ``fit_scores`` [m, tiers] and ``fit_correct`` [m, tiers] of all tiers; scores of requests on which the score model was
    learned should be out-of-fold, else too much is expected of it. ``n`` is how many requests of the group will calibrate,
    ``delta`` the group's. ``straight_up``: of each tier from ``first`` up. Raises `InputError` for input it cannot read.
    """
    score, right = checked(fit_scores, fit_correct, dimensions=2)
    check_levels(alpha, delta)
    last = score.shape[1] - 1
    if not 0 <= first <= last:
        raise InputError(f"the first tier is {first}, and there are tiers 0 to {last}")
    limits = tuple(straight_up) if straight_up is not None else (None,) * (last + 1 - first)
    if len(limits) != last + 1 - first:
        raise InputError(f"straight_up must have a limit, or none, for each of the {last + 1 - first} tiers from {first}")
    accepted = np.zeros(len(score), np.bool_)
    level = _tier_level(delta, last + 1 - first)
    tiers: list[TierDesign] = []
    for index in range(first, last + 1):
        reached = _reach(score, accepted, limits, first, index, last)
        expected = round(n * float(np.mean(reached))) if len(score) else n
        grid = grid_from(score[reached, index], n=expected, alpha=alpha, level=level)
        likely = _expected_outcome(score[reached, index], right[reached, index], grid, expected, alpha=alpha, level=level)
        tier = TierDesign(grid, likely, limits[index - first])
        threshold = None if likely in {None, NOTHING} else grid.thresholds[likely]
        accepted |= reached & _accepts(score[:, index], threshold)
        level *= tier.weight(threshold)
        tiers.append(tier)
    return GroupDesign(tuple(tiers), first)


def _expected_outcome(
    score: Floats, right: NDArray[np.bool_], grid: Grid, n: int, *, alpha: float, level: float
) -> int | None:
    """The outcome if ``n`` requests had the fitting part's counts in proportion; None where it has no request.

    A count need not be whole then, so the binomial distribution function is taken as the incomplete beta function.
    """
    if not len(score):
        return None
    accepts = score[:, None] >= np.array(grid.thresholds)
    accepted = accepts.sum(axis=0) * (n / len(score))
    wrong = (accepts & ~right[:, None]).sum(axis=0) * (n / len(score))
    p = np.where(wrong < accepted, betainc(np.maximum(accepted - wrong, 1e-9), wrong + 1, 1 - alpha), 1.0)
    return int(most_liberal(rejected(p, grid.starts, level)))


def _tier_level(delta: float, tiers: int) -> float:
    return delta * SHARE_TIERS / tiers


def certify(
    scores: ArrayLike,
    correct: ArrayLike,
    design: GroupDesign,
    *,
    alpha: float,
    delta: float,
    method: str = "fixed_sequence",
) -> GroupGuarantee:
    """Thresholds for all tiers of a group, with the guarantee that the module states.

    ``scores`` [n, tiers], NaN unknown; ``correct`` [n, tiers]: for every request, whether each tier's answer is right.
    Raises `InputError` for input that cannot be read so, and `ConfigError` for an unknown method.
    """
    score, right = checked(scores, correct, dimensions=2)
    check_levels(alpha, delta)
    first, last = design.first, design.first + len(design.tiers) - 1
    if score.shape[1] != last + 1:
        raise InputError(f"the design has tiers up to {last}, and the scores have {score.shape[1]} columns")
    if not design.tiers:
        raise InputError("the design has no tiers")
    accepted = np.zeros(len(score), np.bool_)
    tier_level, path_weight = _tier_level(delta, len(design.tiers)), 1.0
    chosen: list[Selection] = []
    for index, tier in enumerate(design.tiers, start=first):
        reached = _reach(score, accepted, design.straight_up, first, index, last)
        level, before_last = tier_level * path_weight, path_weight
        found = select(score[reached, index], right[reached, index], tier.grid, alpha=alpha, delta=level, method=method)
        chosen.append(found)
        accepted |= reached & _accepts(score[:, index], found.threshold)
        path_weight *= tier.weight(found.threshold)
    deciding, _ = climb(score, [found.threshold for found in chosen], design.straight_up, first)
    returned_wrong = int(np.sum(~right[np.arange(len(score)), deciding]))
    returned_level, accepted_level = delta * SHARE_RETURNED * before_last, delta * SHARE_ACCEPTED * path_weight
    bound = upper_bound(returned_wrong, len(score), returned_level)
    return GroupGuarantee(tuple(chosen), first, len(score), returned_wrong, bound, returned_level, accepted_level)
