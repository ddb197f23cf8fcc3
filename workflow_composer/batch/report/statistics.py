"""Intervals by bootstrap over questions, and the scores of predicted probabilities.

**Assumption.** The questions are an independent random sample of the population of interest.

**Guarantee.** Percentile intervals: the middle 95 % of a statistic over data sets drawn from these questions with
replacement (Efron and Tibshirani 1993, chapter 13). They are asymptotically correct; with fewer than about 50 questions, or
if nearly all answers are right (or wrong), they are too narrow.

**Pairing.** One `Bootstrap` uses the same resamples for everything that is computed with it, so differences between runs on
the same questions have intervals as well.

**Not covered.** Variation between repeated runs, wrong labels, other kinds of questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GROUPS = 20_000
"""Number of random groups into which more questions than this are divided; see `Bootstrap`."""

_AT_ONCE = 4_000_000
"""Weights computed at a time: 32 MB."""


class IntervalEstimate(NamedTuple):
    """A statistic and its interval. ``low`` and ``high`` are NaN if undefined."""

    value: float
    low: float
    high: float


class Bootstrap:
    """Resamples of ``questions`` questions. All statistics of one object use the same resamples.

    More than `GROUPS` questions are divided at random into that many groups of equal size (up to one question), and groups
    are resampled: the interval's width then equals that of resampling questions up to a relative random error of
    ``1 / sqrt(2 * GROUPS)``, half a percent.
    """

    def __init__(self, questions: int, *, resamples: int = 1000, seed: int = 0) -> None:
        self.questions = questions
        self.resamples = resamples
        self._seed = seed
        self.units = min(questions, GROUPS)
        self.unit = np.arange(questions)
        if questions > GROUPS:
            self.unit = np.random.default_rng([seed, 1]).permutation(questions) % GROUPS

    def weights(self) -> Iterator[Floats]:
        """Yield how often each unit is drawn, in blocks of resamples: shapes ``(b, units)``, ``resamples`` rows in total."""
        random = np.random.default_rng([self._seed, 2])
        block = max(1, min(self.resamples, _AT_ONCE // max(self.units, 1)))
        for start in range(0, self.resamples, block):
            rows = min(block, self.resamples - start)
            drawn = random.integers(self.units, size=(rows, self.units)) + np.arange(rows)[:, None] * self.units
            yield np.bincount(drawn.ravel(), minlength=rows * self.units).reshape(rows, self.units).astype(np.float64)

    def sums(self, values: Floats) -> Floats:
        """Return the sums over each resample: from shape ``(questions, m)`` to ``(resamples, m)``."""
        if not self.questions:
            return np.full((self.resamples, values.shape[1]), np.nan)
        if self.units < self.questions:
            columns = [np.bincount(self.unit, weights=column, minlength=self.units) for column in values.T]
            values = np.stack(columns, axis=1) if columns else np.empty((self.units, 0))
        return np.concatenate([weights @ values for weights in self.weights()])

    def estimate(
        self,
        values: Floats,
        statistic: Callable[[Floats], Any],
        interval: Callable[[float, Floats], IntervalEstimate] | None = None,
    ) -> IntervalEstimate:
        """Return a statistic of sums with its interval, computed by ``interval`` (default: `estimate`).

        ``values`` has the shape ``(questions, m)``; ``statistic`` maps sums of shape ``(..., m)`` to shape ``(...)``.

        >>> right = np.array([[1.0, 1.0]] * 80 + [[0.0, 1.0]] * 20)
        >>> accuracy = Bootstrap(100).estimate(right, lambda sums: sums[..., 0] / sums[..., 1])
        >>> accuracy.value, accuracy.low < 0.8 < accuracy.high
        (0.8, True)
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return (interval or estimate)(float(statistic(values.sum(axis=0))), statistic(self.sums(values)))


def estimate(value: float, draws: Floats, level: float = 0.95) -> IntervalEstimate:
    """Return a value and the middle ``level`` of its draws, ignoring draws in which it is undefined (NaN)."""
    defined = draws[np.isfinite(draws)]
    if not len(defined) or not np.isfinite(value):
        return IntervalEstimate(value, float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return IntervalEstimate(value, float(low), float(high))


def centred(value: float, draws: Floats) -> IntervalEstimate:
    """Like `estimate`, for a statistic with a positive noise bias, such as a mean of absolute values.

    Resamples contain the noise twice, so all their values may exceed the statistic. They are shifted back by their mean
    excess, but not below 0: the interval then shows how much the statistic itself varies.
    """
    defined = draws[np.isfinite(draws)]
    return estimate(value, np.maximum(defined - defined.mean() + value, 0.0) if len(defined) else defined)


# ---------------------------------------------------------------------------------------------- predicted probabilities


def brier(predicted: Floats, right: Floats) -> Floats:
    """Return the Brier score of each question: the mean squared error of ``predicted`` over samples of which a share
    ``right`` is right (Brier 1950). Lower is better; a constant 0.5 scores 0.25.
    """
    return right * (1 - predicted) ** 2 + (1 - right) * predicted**2


def equal_bins(predicted: Floats, bins: int = 10) -> NDArray[np.intp]:
    """Return the bin of each prediction, with equal numbers of predictions per bin as far as ties allow."""
    last = np.ceil(np.arange(1, bins) * len(predicted) / bins).astype(np.intp) - 1  # of each bin, by rank
    edges = np.unique(np.sort(predicted)[last]) if len(predicted) else np.empty(0)
    return np.searchsorted(edges, predicted, side="left")


def calibration_columns(predicted: Floats, right: Floats, bin_of: NDArray[np.intp], known: Floats | None = None) -> Floats:
    """Return the columns whose sums determine `calibration_error`: right minus predicted per bin, and last a count.

    ``known`` (0 or 1) excludes questions. Shape ``(questions, bins + 1)``.
    """
    known = np.ones(len(predicted)) if known is None else known
    columns = np.zeros((len(predicted), int(bin_of.max(initial=0)) + 2))
    columns[np.arange(len(predicted)), bin_of] = np.where(known > 0, right - predicted, 0.0)
    columns[:, -1] = known
    return columns


def calibration_error(sums: Floats) -> Floats:
    """Return the expected calibration error (ECE): the mean difference of predicted and actual rates over bins.

    Naeini, Cooper, Hauskrecht 2015. Noise within bins increases it, so it is positive even for perfect predictions, on
    average by `calibration_floor`. Use `centred` for its interval.
    """
    return np.asarray(np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1])


def calibration_floor(columns: Floats) -> float:
    """Return the expected `calibration_error` of perfect predictions on as many questions, from chance alone.

    The mean absolute value of a normal variable is ``sqrt(2 / pi)`` standard deviations; a bin's excess has about the
    variance of the sum of its questions' squared differences.
    """
    known = columns[:, -1].sum()
    return float(np.sqrt(2 / np.pi * (columns[:, :-1] ** 2).sum(axis=0)).sum() / known) if known else float("nan")


def auroc(predicted: Floats, right: Floats) -> float:
    """Return the probability that a right sample has a higher prediction than a wrong one; ties count half.

    ``right`` is the share of each question's samples that are right; a question's samples have a total weight of 1. NaN if
    all are right, or all wrong.

    >>> auroc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1.0, 1.0, 0.0, 0.0]))
    0.875
    """
    return float(_areas(predicted, right)(np.ones((1, len(predicted))))[0])


def auroc_draws(predicted: Floats, right: Floats, bootstrap: Bootstrap) -> Floats:
    """Return the `auroc` of each resample: shape ``(resamples,)``."""
    areas = _areas(predicted, right)
    rows = max(1, _AT_ONCE // max(len(predicted), 1))  # weights per question need more memory than weights per unit
    return np.concatenate(
        [
            areas(weights[at : at + rows][:, bootstrap.unit])
            for weights in bootstrap.weights()
            for at in range(0, len(weights), rows)
        ]
    )


def _areas(predicted: Floats, right: Floats) -> Callable[[Floats], Floats]:
    """Return a function from rows of weights per question to areas."""
    order = np.argsort(predicted, kind="stable")
    values = np.flatnonzero(np.diff(predicted[order], prepend=np.nan) != 0)  # where each begins; ties are one
    share = right[order]

    def areas(weights: Floats) -> Floats:
        if not len(values):
            return np.full(len(weights), np.nan)
        weights = weights[:, order]
        positive = np.add.reduceat(weights * share, values, axis=1)
        negative = np.add.reduceat(weights * (1 - share), values, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1)))

    return areas


def pass_at(right: int, samples: int, drawn: int) -> float:
    """Return pass@k: the probability that at least one of ``drawn`` samples is right, given ``right`` of ``samples``.

    Unbiased: ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021). NaN if there are fewer than ``drawn`` samples.
    """
    from math import comb

    return float("nan") if drawn > samples else 1 - comb(samples - right, drawn) / comb(samples, drawn)
