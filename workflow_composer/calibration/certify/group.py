"""Calibrate one group of requests: design the tests on the fitting part, certify on the calibration part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workflow_composer.calibration.certify import cascade_risk, risk
from workflow_composer.calibration.certify.certificate import Group, TierGuarantee
from workflow_composer.calibration.scores.signal_table import Floats
from workflow_composer.errors import InfeasibleTarget, InputError
from workflow_composer.types import ANY_TASK

LIMITS_TRIED = 20
"""Number of score quantiles tried as a limit for escalating directly to the last tier."""

Limits = tuple[float | None, ...]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class TierRows:
    """Requests with each tier's results: ``scores``, ``correct`` and ``costs`` [n, tiers]; NaN: unknown score."""

    scores: Floats
    correct: Bools
    costs: Floats | None

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class GroupWork:
    """A group's two parts and its target; ``delta`` is the group's share, ``first`` the index of its lowest tier."""

    name: str
    fitting: TierRows
    calibrating: TierRows
    first: int
    alpha: float
    delta: float

    def certify(self, straight_up: Limits | None, method: str) -> Group:
        """Run the tests designed on the fitting part on the calibration part."""
        scores, correct = self.calibrating.scores, self.calibrating.correct
        design = self._design(straight_up)
        found = cascade_risk.certify(scores, correct, design, alpha=self.alpha, delta=self.delta, method=method)
        visited = visits(scores, found.thresholds, design.straight_up, self.first)
        deciding, accepted = cascade_risk.climb(scores, found.thresholds, design.straight_up, self.first)
        below = scores.shape[1] - 1 - self.first
        level = found.accepted_level / max(below, 1)
        # Audits by the last tier skip its own answers, and each tier is monitored separately.
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
        """Choose each tier's limit for escalating directly to the last tier: the cheapest one on the fitting part.

        Uses the expected thresholds; limits are chosen from the last tier backwards.
        """
        scores, costs = self.fitting.scores, self.fitting.costs
        assert costs is not None  # checked by `calibrate`
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
        """Raise `InfeasibleTarget` if no score can reach this coverage; wrong with probability at most the group's delta.

        A cascade can at best accept the requests that some tier answers right; mu is the share that no tier does.
        """
        if not 0 < coverage <= 1:
            raise InputError(f"coverage must be greater than 0 and at most 1, not {coverage!r}")
        correct = self.calibrating.correct[:, self.first :]
        base = risk.lower_bound(int(np.sum(~correct.any(axis=1))), len(correct), self.delta)
        if coverage > (highest := risk.highest_coverage(base, self.alpha)):
            group = "" if self.name == ANY_TASK else f" of group {self.name!r}"
            raise InfeasibleTarget(
                f"no score can accept {coverage:g} of the requests{group} at an error of {self.alpha:g}: mu, the share of "
                f"requests that all tiers answer wrong, is at least {base:.3f} (confidence {1 - self.delta:g}), so coverage "
                f"is at most (1 - mu) / (1 - alpha) = {highest:.3f}",
                hint="request less coverage, raise alpha, or use a more accurate model",
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
        """Convert the labels needed at a tier into additional requests for the whole calibration.

        If too few requests reached the tier to certify anything, assume the minimum number: errors among so few do not show
        that more would not help.
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
    """Return which tiers answer each request [n, tiers]; arguments as in `cascade_risk.climb`."""
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
    """Return the total cost of all requests in dollars.

    A tier that accepts nothing and has no limit for direct escalation is not called and costs nothing, except the last one.
    """
    visited = visits(scores, thresholds, straight_up, first)
    for at, (threshold, limit) in enumerate(zip(thresholds[:-1], straight_up, strict=False), start=first):
        if threshold is None and limit is None:
            visited[:, at] = False
    return float(np.sum(costs[visited]))
