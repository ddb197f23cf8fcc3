"""Quality of adaptive routing, certified per prompt: how many prompts lose more than a margin.

Tokens of a prompt are dependent, so the unit is the prompt. At a threshold t on the tables' confidence, prompt i has a loss
L_i(t) and is *bad* if L_i(t) > margin. If prompts are exchangeable and each is routed with its own state, the number of bad
ones among n is binomial with the true share R(t), and the tests of `risk` apply: thresholds are tested from strict to
liberal by P(Bin(n, alpha) <= bad) in the fallback procedure (Wiens 2003), so that with probability at least 1 - delta every
threshold that passes has R(t) <= alpha. Thresholds and starts come from other prompts (the fitting part).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workflow_composer.calibration.risk import check_levels, fewest_accepted, most_liberal, p_value, rejected, upper_bound
from workflow_composer.errors import InputError

GRID = (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4)
"""Fixed thresholds on confidence, strict to liberal."""


@dataclass(frozen=True, slots=True)
class ThresholdTest:
    """One threshold: ``bad`` prompts lost more than the margin; ``asked`` is the mean share of gate calls."""

    threshold: float
    bad: int
    p_value: float
    passed: bool
    mean_loss: float
    asked: float


@dataclass(frozen=True, slots=True)
class RouteSelection:
    """The most liberal threshold that passed (None: none passed), and the results of all tests.

    ``bound``: Clopper and Pearson's upper bound, at level delta, of the share of bad prompts at that threshold; 1 if none
    passed.
    """

    threshold: float | None
    prompts: int
    starts: tuple[int, ...]
    tested: tuple[ThresholdTest, ...]
    bound: float
    reason: str


def starts_from(losses: NDArray[np.float64], margin: float, alpha: float) -> tuple[int, ...]:
    """Return the starts of the tests: the strictest threshold, and the most liberal one with few bad prompts in ``losses``.

    ``losses`` [prompts, thresholds] must come from other prompts than the calibration's. "Few" is half of ``alpha``.
    """
    bad = (losses > margin).mean(axis=0)
    safe = np.flatnonzero(bad <= alpha / 2)
    return tuple(sorted({0, int(safe[-1])})) if len(safe) else (0,)


def select_route_threshold(
    thresholds: Sequence[float],
    losses: NDArray[np.float64],
    asked: NDArray[np.float64],
    *,
    starts: Sequence[int],
    margin: float,
    alpha: float,
    delta: float,
) -> RouteSelection:
    """Test ``thresholds`` [t], strict to liberal, on ``losses`` [n, t] of n prompts; ``asked`` [n, t]: shares of gate calls.

    Raises `InputError` for other shapes or values that are not finite.
    """
    check_levels(alpha, delta)
    if (
        losses.ndim != 2
        or losses.shape[1] != len(thresholds)
        or asked.shape != losses.shape
        or not np.isfinite(losses).all()
    ):
        raise InputError(f"losses must be finite, of shape (prompts, {len(thresholds)} thresholds), not {losses.shape}")
    n = len(losses)
    bad = (losses > margin).sum(axis=0)
    p = p_value(bad, np.full(len(thresholds), n), alpha) if n else np.ones(len(thresholds))
    passed = rejected(p, starts, delta)
    tested = tuple(
        ThresholdTest(float(t), int(b), float(q), bool(ok), float(lost), float(share))
        for t, b, q, ok, lost, share in zip(thresholds, bad, p, passed, _mean(losses), _mean(asked), strict=True)
    )
    position = int(most_liberal(passed))
    if position < 0:
        fewest = fewest_accepted(alpha, delta / len(starts))
        few = f"{fewest} prompts are needed even where none is bad, and there are {n}"
        reason = few if n < fewest else f"at no threshold were so few prompts bad that a share of {alpha:g} can be excluded"
        return RouteSelection(None, n, tuple(starts), tested, 1.0, reason)
    bound = min(upper_bound(int(bad[position]), n, delta), alpha)
    reason = f"{bad[position]} of {n} prompts were bad; at a share of {alpha:g} so few have probability {p[position]:.2g}"
    return RouteSelection(float(thresholds[position]), n, tuple(starts), tested, bound, reason)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.mean(axis=0) if len(values) else np.zeros(values.shape[1])
    return found
