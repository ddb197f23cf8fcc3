"""Learn a score from signals and measure its quality. Labels used here must not be used again to certify."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workflow_composer.calibration.scores.scores import Calibrator, ScoreModel
from workflow_composer.calibration.scores.signal_table import Floats, SignalTable
from workflow_composer.errors import InputError

SURPRISAL_FEATURES = ("mean_logprob", "min_logprob", "sequence_logprob", "log_length", "low_confidence_ratio")
"""Features if only the chosen tokens' log-probabilities are known."""
DISTRIBUTION_FEATURES = ("mean_logprob", "min_logprob", "sequence_logprob", "log_length", "entropy", "min_margin")
"""Features if the most likely alternatives are also known."""

MANY_ROWS = 1000
"""Number of rows from which calibration is isotonic; below, Platt's sigmoid (Niculescu-Mizil and Caruana 2005)."""
FEWEST_OF_A_KIND = 5
"""Minimum number of right and of wrong answers; with fewer, every answer gets the base rate."""

_FOLDS = 5
_PENALTY = 1.0
_BINS = 10

Bools = NDArray[np.bool_]


def fit_score(
    table: SignalTable | Mapping[str, Floats], correct: ArrayLike, *, features: Sequence[str] | None = None, seed: int = 0
) -> ScoreModel:
    """Learn P(right) from signals: logistic regression on standardised features, calibrated on held-out folds.

    ``table``: columns [n]; ``correct`` [n]. Rows with an unknown feature are left out. Default features:
    `DISTRIBUTION_FEATURES` if all rows with known signals have them, else `SURPRISAL_FEATURES`. If there is nothing to learn
    (all right, all wrong, too few rows, constant features), the score is the share of right answers, with one right and one
    wrong answer added. Raises `InputError` if the lengths differ.
    """
    return fit_with_scores(table, correct, features=features, seed=seed)[0]


def fit_with_scores(
    table: SignalTable | Mapping[str, Floats], correct: ArrayLike, *, features: Sequence[str] | None = None, seed: int = 0
) -> tuple[ScoreModel, Floats]:
    """Like `fit_score`, and also return each row's out-of-fold probability [n]; NaN if unknown.

    In-sample probabilities are too optimistic; out-of-fold ones behave like those of new rows.
    """
    right = np.asarray(correct, dtype=np.bool_)
    names = tuple(default_features(table) if features is None else features)
    matrix = np.column_stack([np.asarray(table[name], dtype=np.float64) for name in names])
    if right.shape != (len(matrix),):
        raise InputError(f"labels must have shape ({len(matrix)},), one per answer, not {right.shape}")
    known = np.isfinite(matrix).all(axis=1)
    scores = np.full(len(matrix), np.nan)
    matrix, right = matrix[known], right[known]
    if min(right.sum(), (~right).sum()) < FEWEST_OF_A_KIND:
        model = _base_rate(names, right)
        scores[known] = _apply(model.calibrator, np.zeros(len(right)))
        return model, scores
    center, scale = matrix.mean(axis=0), matrix.std(axis=0)
    # Rounding can leave a constant feature a tiny standard deviation.
    constant = scale <= 1e-9 * np.maximum(1.0, np.abs(center))
    scale = np.where(constant, 1.0, scale)
    standard = np.where(constant, 0.0, (matrix - center) / scale)
    weights, intercept = _regression(standard, right)
    held_out = _held_out(standard, right, seed)
    calibrator = isotonic(held_out, right) if len(right) >= MANY_ROWS else platt(held_out, right)
    scores[known] = _apply(calibrator, held_out)
    return ScoreModel(names, _tuple(center), _tuple(scale), _tuple(weights), intercept, calibrator), scores


def default_features(table: SignalTable | Mapping[str, Floats]) -> tuple[str, ...]:
    """Return the default features: the richest set that all rows with known signals have."""
    known = ~np.isnan(table["mean_logprob"])
    whole = known.any() and not (np.isnan(table["entropy"]) | np.isnan(table["min_margin"]))[known].any()
    return DISTRIBUTION_FEATURES if whole else SURPRISAL_FEATURES


def probabilities(model: ScoreModel, table: SignalTable | Mapping[str, Floats]) -> Floats:
    """`ScoreModel.probability` of every row [n]; NaN if a feature is unknown."""
    matrix = np.column_stack([np.asarray(table[name], dtype=np.float64) for name in model.features])
    parts = (matrix - np.array(model.center)) / np.array(model.scale) * np.array(model.weights)
    logits = model.intercept + parts.sum(axis=1)
    return _apply(model.calibrator, logits)


def _apply(calibrator: Calibrator, logits: Floats) -> Floats:
    if calibrator.form == "platt":
        ((slope, offset),) = calibrator.knots
        return _logistic(slope * logits + offset)
    knots = np.array(calibrator.knots)
    found: Floats = np.interp(logits, knots[:, 0], knots[:, 1])
    return np.where(np.isnan(logits), np.nan, found)


# -------------------------------------------------------------------------------------------------------- its two parts


def platt(logits: ArrayLike, correct: ArrayLike) -> Calibrator:
    """Fit Platt's sigmoid: logistic regression of the labels on a logit, with smoothed targets (Platt 1999).

    Newton's method in two variables. A negative slope, which would reverse the order, is replaced by 0: the base rate.
    """
    x, right = np.asarray(logits, np.float64), np.asarray(correct, np.bool_)
    good, bad = int(right.sum()), int((~right).sum())
    target = np.where(right, (good + 1) / (good + 2), 1 / (bad + 2))
    constant = math.log((good + 1) / (bad + 1))
    slope, offset = _sigmoid(x, target, constant)
    return Calibrator("platt", ((slope, offset) if slope > 0 else (0.0, constant),))


def _sigmoid(x: Floats, target: Floats, constant: float) -> tuple[float, float]:
    center, spread = float(x.mean()), float(x.std())
    if spread <= 1e-9 * max(1.0, abs(center)):
        return 0.0, constant
    design = np.column_stack([(x - center) / spread, np.ones(len(x))])
    found = np.array([0.0, constant])
    loss = _cross_entropy(design @ found, target)
    for _ in range(100):
        p = _logistic(design @ found)
        gradient = design.T @ (p - target)
        hessian = (design.T * (p * (1.0 - p))) @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while (new := _cross_entropy(design @ (found - step), target)) > loss and np.abs(step).max() > 1e-10:
            step = step / 2
        if new > loss:
            break
        found, gain, loss = found - step, loss - new, new
        if gain < 1e-12 * len(x):
            break
    slope = float(found[0]) / spread
    return slope, float(found[1]) - slope * center


def isotonic(logits: ArrayLike, correct: ArrayLike) -> Calibrator:
    """Fit a non-decreasing step function, made continuous by interpolating between the centers of its steps.

    Interpolation keeps the order of scores that a step would tie. One right and one wrong answer are added to each step, so
    that no probability is 0 or 1.
    """
    from sklearn.isotonic import IsotonicRegression

    x, right = np.asarray(logits, np.float64), np.asarray(correct, np.bool_)
    order = np.argsort(x, kind="stable")
    fitted = IsotonicRegression(out_of_bounds="clip").fit_transform(x[order], right[order])
    step = np.concatenate([[0], np.cumsum(np.diff(fitted) > 1e-12)])
    count = np.bincount(step)
    centers = np.bincount(step, x[order]) / count
    shares = (np.bincount(step, right[order]) + 1) / (count + 2)
    # Smoothing can make a small step decrease; keep the heights non-decreasing.
    heights = np.maximum.accumulate(shares)
    knots = {float(center): float(height) for center, height in zip(centers, heights, strict=True)}
    return Calibrator("isotonic", tuple(sorted(knots.items())))


def _regression(standard: Floats, right: Bools) -> tuple[Floats, float]:
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=_PENALTY, max_iter=1000, tol=1e-8).fit(standard, right)
    return fitted.coef_[0], float(fitted.intercept_[0])


def _held_out(standard: Floats, right: Bools, seed: int) -> Floats:
    """Each row's out-of-fold logit."""
    from sklearn.model_selection import StratifiedKFold

    logits = np.empty(len(right))
    for train, test in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(standard, right):
        weights, intercept = _regression(standard[train], right[train])
        logits[test] = standard[test] @ weights + intercept
    return logits


def _base_rate(names: tuple[str, ...], right: Bools) -> ScoreModel:
    zeros, ones = (0.0,) * len(names), (1.0,) * len(names)
    odds = (int(right.sum()) + 1) / (int((~right).sum()) + 1)
    return ScoreModel(names, zeros, ones, zeros, 0.0, Calibrator("platt", ((0.0, math.log(odds)),)))


def _logistic(x: Floats) -> Floats:
    from scipy.special import expit

    found: Floats = expit(x)
    return found


def _cross_entropy(logits: Floats, target: Floats) -> float:
    return float(np.sum(np.logaddexp(0.0, logits) - target * logits))


def _tuple(values: Floats) -> tuple[float, ...]:
    return tuple(map(float, values))


# ------------------------------------------------------------------------------------------------- how good a score is


def auroc(scores: ArrayLike, correct: ArrayLike) -> float | None:
    """Probability that a right answer scores higher than a wrong one, with ties counting half; None unless both occur.

    Unknown scores (NaN) are left out, as in `aurc` and `expected_calibration_error`.

    >>> auroc([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    0.875
    """
    from scipy.stats import rankdata

    score, right = _known(scores, correct)
    good, bad = int(right.sum()), int((~right).sum())
    if not good or not bad:
        return None
    ranks = rankdata(score)
    return float((ranks[right].sum() - good * (good + 1) / 2) / (good * bad))


def aurc(scores: ArrayLike, correct: ArrayLike) -> float | None:
    """Area under the risk-coverage curve: the error among the k highest scores, averaged over k = 1 .. n.

    The expectation over random orders of equal scores (Geifman et al. 2019). None without rows.

    >>> round(aurc([0.9, 0.8, 0.7], [True, False, True]), 4), round(aurc([0.5, 0.5], [True, False]), 4)
    (0.2778, 0.5)
    """
    score, right = _known(scores, correct)
    if not len(score):
        return None
    levels, group, size = np.unique(-score, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, ~right, minlength=len(levels))
    expected = np.repeat(wrong / size, size)
    return float(np.mean(np.cumsum(expected) / np.arange(1, len(score) + 1)))


def expected_calibration_error(scores: ArrayLike, correct: ArrayLike, bins: int = _BINS) -> float | None:
    """Mean difference between probability and share of right answers over bins of equal width, weighted by rows.

    ``scores`` in [0, 1]. None without rows (Naeini et al. 2015).
    """
    score, right = _known(scores, correct)
    if not len(score):
        return None
    place = np.minimum((score * bins).astype(np.int64), bins - 1)
    gap = np.bincount(place, score, minlength=bins) - np.bincount(place, right, minlength=bins)
    return float(np.abs(gap).sum() / len(score))


def _known(scores: ArrayLike, correct: ArrayLike) -> tuple[Floats, Bools]:
    score, right = np.asarray(scores, np.float64), np.asarray(correct, np.bool_)
    known = ~np.isnan(score)
    return score[known], right[known]
