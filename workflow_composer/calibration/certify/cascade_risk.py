"""Simultaneous guarantees for all tiers of a cascade and all groups of requests.

A request escalates from tier to tier until one accepts its answer: its score is at least the tier's threshold. `certify`
chooses all thresholds of a group from one set of labelled requests. **Guarantee**: with probability >= 1 - delta over the
labelled requests, for all tiers t of the group simultaneously,

    P(wrong | accepted by tier t) <= alpha,   hence   P(wrong | accepted by the cascade) <= alpha,
    and   P(wrong) <= returned_bound   for all answers returned, those of exhausted requests included.

For groups g = 1..G, the caller passes delta / G to each, and the guarantee holds for all groups simultaneously. For a tier
that accepts nothing, it is empty. Assumptions: the group's requests, including new ones, are independent draws from one
distribution, and the `GroupDesign` was made without the calibration requests (from a separate fitting part, for example).

*Why a later tier needs a smaller level than its own share of delta.* It only sees requests that earlier tiers passed on, and
their thresholds were chosen with the same labels: given that choice, the remaining requests are not a random sample. So the
tier is tested for every possible outcome of the earlier tiers. For a *fixed* outcome, the requests that reach the tier are
independent draws from a fixed distribution, and `workflow_composer.calibration.certify.risk` applies at any level. Outcome i
of tier t (a position of its grid, or nothing) has a weight w_t(i), fixed beforehand; the weights of a tier sum to 1. The
level of a tier on the path of actual outcomes is

    delta * share of the tier * product over earlier tiers of w(outcome).

Over all paths, these levels sum to delta * share, so by the union bound the tests hold on every path simultaneously
(weighted Bonferroni). Nine tenths of delta are split evenly over the tiers. One twentieth covers all returned answers: which
answer a request gets depends on the outcomes of all tiers but the last, and so does that level. The last twentieth is
reserved for one more statement about the accepted requests, on the path of all outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc

from workflow_composer.calibration.certify.risk import (
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
    """The design of a tier, fixed before calibration.

    ``likely``: the expected outcome, a position of ``grid``, `NOTHING`, or None without an expectation. A wrong expectation
    reduces coverage but not the guarantee. ``straight_up``: a rejected request with a known score below it escalates
    directly to the last tier.
    """

    grid: Grid
    likely: int | None = None
    straight_up: float | None = None

    def __post_init__(self) -> None:
        if self.likely is not None and not NOTHING <= self.likely < len(self.grid.thresholds):
            raise InputError(f"`likely` must be a position of the grid or {NOTHING}, not {self.likely}")

    def weight(self, threshold: float | None) -> float:
        """Return the share of the level of later tiers assigned to this outcome; the shares of all outcomes sum to 1.

        Proportional to (1 + d) ** -3 at a distance of d positions from the likely outcome; uniform without one. Steep near
        0, where three outcomes in four fell in simulated cascades (1 / (1 + d ** 2) accepted a twelfth less), with a heavy
        tail for unexpected outcomes.
        """
        count = len(self.grid.thresholds) + 1
        if self.likely is None:
            return 1.0 / count
        outcome = NOTHING if threshold is None else self.grid.thresholds.index(threshold)
        total = math.fsum((1 + abs(i - self.likely)) ** -3 for i in range(NOTHING, count - 1))
        return float((1 + abs(outcome - self.likely)) ** -3 / total)


@dataclass(frozen=True)
class GroupDesign:
    """The design of a group: its tiers from the floor up. ``first`` is the index of the floor, its first tier."""

    tiers: tuple[TierDesign, ...]
    first: int = 0

    @property
    def straight_up(self) -> tuple[float | None, ...]:
        """The limit of each tier from ``first`` on."""
        return tuple(tier.straight_up for tier in self.tiers)


@dataclass(frozen=True)
class GroupGuarantee:
    """Result of calibration for a group: a `Selection` for each tier from ``first`` on, and the error of returned answers.

    ``rows``: number of calibration requests. ``returned_wrong`` of their final answers were wrong, including exhausted
    requests (which get the last tier's answer); ``returned_bound`` is an upper bound of that risk at ``returned_level`` and
    part of the guarantee. At ``accepted_level``, the caller may bound one more share among the accepted requests (such as
    the last tier's error on them) within the same delta.
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
        """The threshold of each tier from ``first`` on."""
        return tuple(tier.threshold for tier in self.tiers)

    @property
    def accepted(self) -> int:
        """Number of calibration requests accepted by any tier."""
        return sum(tier.accepted for tier in self.tiers)

    @property
    def wrong(self) -> int:
        """Number of accepted requests with a wrong answer."""
        return sum(tier.wrong for tier in self.tiers)

    @property
    def coverage(self) -> float:
        """Share of calibration requests accepted by any tier; 0.0 without requests."""
        return self.accepted / self.rows if self.rows else 0.0


def climb(
    scores: ArrayLike,
    thresholds: Sequence[float | None],
    straight_up: Sequence[float | None] | None = None,
    first: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the deciding tier of each request [n], as an index into all tiers, and whether that tier accepted it [n].

    ``scores`` [n, tiers] of all tiers; ``thresholds`` and ``straight_up`` of the tiers from ``first`` on. A request that is
    not accepted is exhausted: it gets the last tier's answer.

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
    """Return which requests reach the tier, given which were accepted by earlier tiers."""
    reached = ~accepted
    if index < last:
        for below, limit in enumerate((straight_up or ())[: index - first], start=first):
            if limit is not None:
                # A skipped tier's score has no effect: a request that skips tiers is already bound for the last one.
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
    """Choose grids, starts and likely outcomes of a group from its fitting part.

    ``fit_scores`` [m, tiers] and ``fit_correct`` [m, tiers] of all tiers; scores of rows on which the score model was fitted
    should be out-of-fold, since in-sample scores are too optimistic. ``n``: number of calibration requests of the group,
    ``delta``: the group's. ``straight_up``: limits of the tiers from ``first`` on. Raises `InputError` for invalid input.
    """
    score, right = checked(fit_scores, fit_correct, dimensions=2)
    check_levels(alpha, delta)
    last = score.shape[1] - 1
    if not 0 <= first <= last:
        raise InputError(f"`first` must be a tier from 0 to {last}, not {first}")
    limits = tuple(straight_up) if straight_up is not None else (None,) * (last + 1 - first)
    if len(limits) != last + 1 - first:
        raise InputError(f"`straight_up` needs one entry for each of the {last + 1 - first} tiers from {first} on")
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
    """Return the outcome if ``n`` requests had counts proportional to the fitting part's; None if that is empty.

    Scaled counts need not be integers, so the incomplete beta function replaces the binomial distribution function.
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
    """Choose thresholds for all tiers of a group, with the guarantee stated in the module's docstring.

    ``scores`` [n, tiers], NaN: unknown; ``correct`` [n, tiers]: whether each tier's answer to each request is right.
    Raises `InputError` for invalid input and `ConfigError` for an unknown method.
    """
    score, right = checked(scores, correct, dimensions=2)
    check_levels(alpha, delta)
    first, last = design.first, design.first + len(design.tiers) - 1
    if score.shape[1] != last + 1:
        raise InputError(f"the design has tiers up to index {last}, but the scores have {score.shape[1]} columns")
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
