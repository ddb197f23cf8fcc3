"""One group of requests: what the fitting part fixes about it, and what the calibrating part then certifies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workflow_composer.calibration import cascade_risk, risk
from workflow_composer.calibration.certificate import Group, TierGuarantee
from workflow_composer.calibration.signal_table import Floats
from workflow_composer.errors import InfeasibleTarget, InputError
from workflow_composer.types import ANY_TASK

LIMITS_TRIED = 20
"""Quantiles of a tier's score that are tried as a limit for going straight up."""

Limits = tuple[float | None, ...]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Requests and what every tier makes of them: ``scores`` [n, tiers] (NaN: unknown), ``correct`` and ``costs`` alike."""

    scores: Floats
    correct: Bools
    costs: Floats | None

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class GroupWork:
    """A group's two parts, and what is demanded of it; ``delta`` is its share, ``first`` the index of its lowest tier."""

    name: str
    fitting: Rows
    calibrating: Rows
    first: int
    alpha: float
    delta: float

    def certify(self, straight_up: Limits | None, method: str) -> Group:
        """Test on the calibrating part what the fitting part has fixed."""
        scores, correct = self.calibrating.scores, self.calibrating.correct
        design = self._design(straight_up)
        found = cascade_risk.certify(scores, correct, design, alpha=self.alpha, delta=self.delta, method=method)
        visited = visits(scores, found.thresholds, design.straight_up, self.first)
        deciding, accepted = cascade_risk.climb(scores, found.thresholds, design.straight_up, self.first)
        below = scores.shape[1] - 1 - self.first
        level = found.accepted_level / max(below, 1)
        # An audit by the last tier leaves out what that tier has accepted itself, and each tier is watched by itself.
        audited = [accepted & (deciding == self.first + at) for at in range(below)]
        errs = [risk.upper_bound(int(np.sum(~correct[rows, -1])), int(rows.sum()), level) for rows in audited if rows.any()]
        tiers = [
            self._guarantee(selection, limit, correct[visited[:, at], at])
            for at, (selection, limit) in enumerate(zip(found.tiers, design.straight_up, strict=True), start=self.first)
        ]
        return Group(
            first=self.first,
            rows=found.rows,
            tiers=tuple(tiers),
            returned_wrong=found.returned_wrong,
            returned_bound=found.returned_bound,
            returned_level=found.returned_level,
            last_wrong=max(errs, default=1.0),
            last_level=level,
        )

    def predicted_limits(self) -> Limits:
        """Below which score of a tier going straight to the last one would have been cheapest on the fitting part.

        The thresholds are taken to be the expected ones; limits are chosen from the top of the cascade downwards.
        """
        scores, costs = self.fitting.scores, self.fitting.costs
        assert costs is not None  # whoever wants limits has seen to it
        expected = self._design(None).tiers
        thresholds = [
            None if tier.likely is None or tier.likely < 0 else tier.grid.thresholds[tier.likely] for tier in expected
        ]
        limits: list[float | None] = [None] * len(expected)
        for position in range(len(expected) - 3, -1, -1):
            cheapest = paid(scores, costs, thresholds, limits, self.first)
            for limit in _quantiles(scores[:, self.first + position]):
                tried = [*limits[:position], limit, *limits[position + 1 :]]
                if (price := paid(scores, costs, thresholds, tried, self.first)) < cheapest:
                    cheapest, limits = price, tried
        return tuple(limits)

    def check_feasible(self, coverage: float) -> None:
        """Refuse a coverage that no scores could reach; wrongly so with probability at most the group's delta.

        A cascade can at best accept the requests that some tier answers right, so mu is the share that none does.
        """
        if not 0 < coverage <= 1:
            raise InputError(f"coverage must be above 0 and at most 1, not {coverage!r}")
        correct = self.calibrating.correct[:, self.first :]
        base = risk.lower_bound(int(np.sum(~correct.any(axis=1))), len(correct), self.delta)
        if coverage > (highest := risk.highest_coverage(base, self.alpha)):
            group = "" if self.name == ANY_TASK else f" of group {self.name!r}"
            raise InfeasibleTarget(
                f"no scores can accept {coverage:g} of the requests{group} at an error of {self.alpha:g}: a share of at "
                f"least mu = {base:.3f} is answered right by no tier (confidence {1 - self.delta:g}), and coverage is at "
                f"most (1 - mu) / (1 - alpha) = {highest:.3f}",
                hint="ask for less coverage, allow a larger alpha, or use a model that is right more often",
            )

    def _design(self, straight_up: Limits | None) -> cascade_risk.GroupDesign:
        return cascade_risk.design(
            self.fitting.scores,
            self.fitting.correct,
            n=len(self.calibrating),
            alpha=self.alpha,
            delta=self.delta,
            first=self.first,
            straight_up=straight_up,
        )

    def _guarantee(self, found: risk.Selection, limit: float | None, correct: Bools) -> TierGuarantee:
        return TierGuarantee(
            threshold=found.threshold,
            reached=found.reached,
            accepted=found.accepted,
            wrong=found.wrong,
            bound=found.bound,
            level=found.level,
            base_error=float(np.mean(~correct)) if len(correct) else 0.0,
            reason=found.reason,
            labels_needed=self._requests_needed(found),
            straight_up=limit,
        )

    def _requests_needed(self, found: risk.Selection) -> int | None:
        """More requests for the whole calibration, where so many more are needed at the tier itself.

        A tier that fewer requests reached than could show anything is given as many as could: that the few were answered
        wrong does not say that no number would do.
        """
        needed, fewest = found.labels_needed, risk.fewest_accepted(self.alpha, found.level)
        if needed is None and found.threshold is None and found.reached < fewest:
            needed = fewest - found.reached
        if needed is None:
            return None
        reaching = found.reached / len(self.calibrating) if found.reached else 1.0
        calibrating = len(self.calibrating) / (len(self.calibrating) + len(self.fitting))
        return math.ceil(needed / reaching / calibrating)


def _quantiles(scores: Floats) -> list[float]:
    known = scores[~np.isnan(scores)]
    if not len(known):
        return []
    return [float(score) for score in np.unique(np.quantile(known, np.linspace(0, 1, LIMITS_TRIED + 1)[1:]))]


def visits(scores: Floats, thresholds: Sequence[float | None], straight_up: Sequence[float | None], first: int) -> Bools:
    """Which tiers each request is answered by on its way [n, tiers]; arguments as of `cascade_risk.climb`."""
    found = np.zeros(scores.shape, dtype=np.bool_)
    last = scores.shape[1] - 1
    climbing = np.ones(len(scores), dtype=np.bool_)
    going_on = climbing.copy()
    for at, (threshold, limit) in enumerate(zip(thresholds, straight_up, strict=True), start=first):
        found[:, at] = climbing & (going_on | (at == last))
        accepted = found[:, at] & (scores[:, at] >= (math.inf if threshold is None else threshold))
        climbing = climbing & ~accepted
        if limit is not None:
            going_on = going_on & ~(found[:, at] & (scores[:, at] < limit))
    return found


def paid(
    scores: Floats, costs: Floats, thresholds: Sequence[float | None], straight_up: Sequence[float | None], first: int
) -> float:
    """Dollars that all requests together cost on their ways.

    A tier that accepts nothing and sends nobody straight up is not asked, so nobody pays for it; the last one is.
    """
    visited = visits(scores, thresholds, straight_up, first)
    for at, (threshold, limit) in enumerate(zip(thresholds[:-1], straight_up, strict=False), start=first):
        if threshold is None and limit is None:
            visited[:, at] = False
    return float(np.sum(costs[visited]))
