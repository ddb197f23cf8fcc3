"""Training and testing a probe. Training needs scikit-learn; prediction needs only the resulting numbers.

Labels are samples of answers, each right or wrong. The samples of a question have a total weight of one, because the probe
sees only the question. Scores are cross-validated: training, calibration included, is repeated without each fifth of the
questions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.batch.planning import features
from workflow_composer.batch.planning.policies import Floats, Questions
from workflow_composer.batch.planning.probe import FARTHEST, Interval, Probe, Scores, TierPredictor, Tokens, Training
from workflow_composer.batch.report.statistics import (
    Bootstrap,
    IntervalEstimate,
    auroc,
    auroc_draws,
    brier,
    calibration_columns,
    calibration_error,
    calibration_floor,
    centred,
    equal_bins,
    estimate,
)
from workflow_composer.batch.run.records import RowRecord
from workflow_composer.errors import InputError

FEWEST_QUESTIONS = 50
"""Fewest labelled questions per tier: with fewer, neither training nor scoring is meaningful."""

FEWEST_OF_A_KIND = 5
"""Fewest right, and fewest wrong, samples (in units of questions); with fewer, the prediction is a constant."""

MANY_QUESTIONS = 1000
"""From this number on, calibration is isotonic; below, a sigmoid with two parameters (Niculescu-Mizil and Caruana 2005)."""

PENALTY = 0.1
"""scikit-learn's C. From 0.01 to 1 the AUROC on four data sets changes by less than 0.03 (docs/batch-policies.md)."""

_FOLDS = 5


@dataclass(frozen=True, slots=True)
class _Labels:
    """One tier's labels: the feature matrix of its questions, and each question's share of right samples."""

    matrix: NDArray[np.float32]
    right: Floats
    samples: int

    def __len__(self) -> int:
        return len(self.right)

    def part(self, rows: NDArray[np.intp], columns: slice = slice(None)) -> _Labels:
        """Return a subset of the questions and of the features."""
        return _Labels(self.matrix[rows, columns], self.right[rows], self.samples)


def train(
    samples: Any,
    tiers: Sequence[str],
    *,
    dataset: str,
    digest: str = "",
    models: Mapping[str, str] | None = None,
    date: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Probe:
    """Train and score a probe for ``tiers`` (names, cheapest first).

    ``samples`` is a table (pandas or Arrow) with one row per sample: ``question``, ``model`` (the tier's name) and
    ``correct`` (true or false), and optionally ``tokens`` and ``prompt_tokens`` (the columns of recorded samples).
    ``dataset`` and ``digest`` identify the data, ``models`` the model of each tier.

    Raises `InputError` if columns are missing or a tier has fewer than `FEWEST_QUESTIONS` labelled questions.
    """
    table = _table(samples)
    found = _labels(table, tiers)
    predictors = {}
    for tier, labels in found.items():
        predictor = _fit(labels, seed)
        scores = None if predictor.constant is not None else _scores(labels, seed, resamples)
        predictors[tier] = predictor.model_copy(update={"scores": scores})
    training = Training(
        dataset=dataset,
        digest=digest,
        rows=int(table["question"].nunique()),
        date=date or datetime.now(UTC).isoformat(timespec="seconds"),
        models=dict(models or {}),
        libraries={name: version(name) for name in ("numpy", "scikit-learn", "workflow-composer")},
    )
    return Probe(training=training, tokens=_tokens(table, tiers), tiers=predictors)


def evaluate(probe: Probe, samples: Any, *, resamples: int = 1000, seed: int = 0) -> dict[str, Scores]:
    """Return the scores of a probe's predictions on another data set (``samples`` as in `train`), for each tier it knows.

    ``constant`` is the training data's rate, the best prediction without a probe; ``length`` is not scored.
    """
    table = _table(samples)
    tiers = [tier for tier in probe.tiers if (table["model"] == tier).any()]
    scores = {}
    for tier, labels in _labels(table, tiers).items():
        predicted = {"probe": probe.tiers[tier].success(labels.matrix)}
        trained = probe.tiers[tier].scores
        if trained is not None:
            predicted["constant"] = np.full(len(labels), trained.right)
        scores[tier] = _scored(predicted, labels.right, Bootstrap(len(labels), resamples=resamples, seed=seed))
    return scores


def samples_of(records: Iterable[RowRecord], question: Callable[[int], str]) -> Any:
    """Return the graded samples of a run's records as a table for `train`.

    ``question`` maps a row's number to its text. Tokens are averages over the samples of a tier's call.
    """
    import pandas as pd

    rows: list[tuple[str, str, bool, float, float]] = []
    for record in records:
        for tier in record.tiers:
            if tier.right:
                text, tokens = question(record.row), tier.completion_tokens / len(tier.right)
                rows.extend((text, tier.name, right, tokens, float(tier.prompt_tokens)) for right in tier.right)
    return pd.DataFrame(rows, columns=["question", "model", "correct", "tokens", "prompt_tokens"])


# --------------------------------------------------------------------------------------------------------- the labels


def _table(samples: Any) -> Any:
    table = samples.to_pandas() if hasattr(samples, "to_pandas") else samples
    missing = [name for name in ("question", "model", "correct") if name not in getattr(table, "columns", ())]
    if missing:
        raise InputError(
            f"samples for a probe lack the columns {', '.join(missing)}", hint="add question, model and correct"
        )
    table = table[table["correct"].notna()].sort_values("question", kind="stable")
    if not table["correct"].isin([True, False]).all():
        raise InputError("samples for a probe: `correct` must be true or false")
    return table.assign(correct=table["correct"].astype(float))


def _labels(table: Any, tiers: Sequence[str]) -> dict[str, _Labels]:
    found = {}
    for tier in tiers:
        by_question = table[table["model"] == tier].groupby("question", sort=True)["correct"]
        shares = by_question.mean()
        if len(shares) < FEWEST_QUESTIONS:
            raise InputError(
                f"a probe needs at least {FEWEST_QUESTIONS} labelled questions per tier; {tier!r} has {len(shares)}",
                hint=f"tiers with labels: {', '.join(map(str, table['model'].unique())) or 'none'}",
            )
        matrix = Questions(shares.index.tolist()).features
        found[tier] = _Labels(matrix, shares.to_numpy(np.float64), int(by_question.size().sum()))
    return found


def _tokens(table: Any, tiers: Sequence[str]) -> Tokens | None:
    """Return token averages; None unless the table has tokens of every tier."""
    if "tokens" not in table.columns:
        return None
    answers = {tier: float(table.loc[table["model"] == tier, "tokens"].mean()) for tier in tiers}
    if not all(np.isfinite(value) for value in answers.values()):
        return None
    slope, beside = 0.25, 0.0
    if "prompt_tokens" in table.columns:
        known = table.loc[table["prompt_tokens"].notna(), ["question", "prompt_tokens"]].drop_duplicates("question")
        lengths = known["question"].str.len().to_numpy(np.float64)
        prompts = known["prompt_tokens"].to_numpy(np.float64)
        if len(known) and lengths.any():
            slope, beside = np.polyfit(lengths, prompts, 1) if np.ptp(lengths) > 0 else (-1.0, 0.0)
            if slope < 0 or beside < 0:  # impossible for counts: use the plain ratio instead
                slope, beside = prompts.sum() / lengths.sum(), 0.0
    return Tokens(per_character=float(slope), per_prompt=float(beside), answers=answers)


# --------------------------------------------------------------------------------------------------------- the fitting


def _fit(labels: _Labels, seed: int) -> TierPredictor:
    """Fit and calibrate one tier's predictor."""
    right, wrong = float(labels.right.sum()), float((1 - labels.right).sum())
    sizes: dict[str, Any] = {"questions": len(labels), "samples": labels.samples}
    if min(right, wrong) < FEWEST_OF_A_KIND:
        kind = "right" if wrong < right else "wrong"
        note = f"constant prediction, because nearly every sample is {kind}"
        return TierPredictor(constant=(right + 0.5) / (len(labels) + 1), note=note, **sizes)
    model = _regression(labels)
    scores = np.empty(len(labels))
    for rest, held_out in _folds(len(labels), seed):
        scores[held_out] = _score(_regression(labels.part(rest)), labels.matrix[held_out])
    mean, scale, coefficients, intercept = model
    return TierPredictor(
        mean=mean.tolist(),
        scale=scale.tolist(),
        coefficients=coefficients.tolist(),
        intercept=intercept,
        **_calibration(scores, labels.right),
        **sizes,
    )


_Regression = tuple[Floats, Floats, Floats, float]


def _regression(labels: _Labels) -> _Regression:
    """Return the features' mean and scale, and the coefficients and intercept of a logistic regression."""
    mean = labels.matrix.mean(axis=0, dtype=np.float64)
    scale = labels.matrix.std(axis=0, dtype=np.float64)
    scale[scale < 1e-6] = 1.0  # the same in every question
    near = np.clip((labels.matrix - mean) / scale, -FARTHEST, FARTHEST)
    coefficients, intercept = _logistic(near, labels.right, PENALTY)
    return mean, scale, coefficients, intercept


def _logistic(inputs: Floats, right: Floats, penalty: float) -> tuple[Floats, float]:
    """Fit scikit-learn's logistic regression; each row counts as right with weight ``right`` and as wrong with the rest."""
    from sklearn.linear_model import LogisticRegression

    weights = np.concatenate([right, 1 - right])
    kinds = np.repeat([1, 0], len(right))
    used = weights > 0
    if len(np.unique(kinds[used])) < 2:  # a fold without right samples, or without wrong ones
        return np.zeros(inputs.shape[1]), 5.0 if right.any() else -5.0
    model = LogisticRegression(C=penalty, solver="newton-cholesky")  # few columns: much faster than the default
    with warnings.catch_warnings():
        # If a line search fails from rounding errors, scikit-learn falls back to lbfgs with a warning; results are as good.
        warnings.filterwarnings("ignore", message=r"(?s).*resort to lbfgs")
        model.fit(np.concatenate([inputs, inputs])[used], kinds[used], sample_weight=weights[used])
    return model.coef_[0], float(model.intercept_[0])


def _score(model: _Regression, matrix: NDArray[np.float32]) -> Floats:
    mean, scale, coefficients, intercept = model
    near: Floats = np.clip((matrix - mean) / scale, -FARTHEST, FARTHEST)
    return near @ coefficients + intercept


def _calibration(scores: Floats, right: Floats) -> dict[str, Any]:
    """Fit the map from scores of held-out questions to probabilities.

    It never returns 0 or 1, because a finite number of questions cannot establish certainty.
    """
    if len(right) < MANY_QUESTIONS:
        (slope,), shift = _logistic(scores[:, None], right, penalty=1e3)
        if slope <= 0:  # the scores do not predict held-out questions
            rate = right.mean()
            return {"sigmoid": (0.0, float(np.log(rate / (1 - rate))))}
        return {"sigmoid": (float(slope), shift)}
    from sklearn.isotonic import IsotonicRegression

    least = 1 / (len(right) + 2)
    curve = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(scores, right)
    return {"isotonic": tuple(zip(curve.X_thresholds_.tolist(), curve.y_thresholds_.tolist(), strict=True))}


def _folds(count: int, seed: int) -> Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    order = np.random.default_rng(seed).permutation(count)
    for fold in range(_FOLDS):
        held_out = order % _FOLDS == fold
        yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


# --------------------------------------------------------------------------------------------------------- the scoring


def _scores(labels: _Labels, seed: int, resamples: int) -> Scores:
    """Train without each fold in turn, and score the predictions for it."""
    length = features.NAMES.index("characters")
    predicted = {name: np.empty(len(labels)) for name in ("probe", "length", "constant")}
    only_length = np.zeros_like(labels.matrix)
    only_length[:, length] = labels.matrix[:, length]
    short = _Labels(only_length, labels.right, labels.samples)
    for rest, held_out in _folds(len(labels), seed + 1):
        for name, source in (("probe", labels), ("length", short)):
            predicted[name][held_out] = _fit(source.part(rest), seed).success(source.matrix[held_out])
        predicted["constant"][held_out] = labels.right[rest].mean()
    return _scored(predicted, labels.right, Bootstrap(len(labels), resamples=resamples, seed=seed))


def _scored(predicted: Mapping[str, Floats], right: Floats, bootstrap: Bootstrap) -> Scores:
    """Return all scores of all predictors, on the same resamples."""
    areas = {name: auroc(values, right) for name, values in predicted.items()}
    drawn = {name: auroc_draws(values, right, bootstrap) for name, values in predicted.items()}
    areas["constant"], drawn["constant"] = 0.5, np.full(bootstrap.resamples, np.nan)  # by definition: it ranks nothing
    errors = {name: brier(values, right) for name, values in predicted.items()}
    calibrations, floors = {}, {}
    for name, values in predicted.items():
        columns = calibration_columns(values, right, equal_bins(values))
        calibrations[name] = _interval(bootstrap.estimate(columns, calibration_error, centred))
        floors[name] = calibration_floor(columns)
    gain = {}
    if "length" in predicted:
        lead = areas["probe"] - areas["length"], drawn["probe"] - drawn["length"]
        gain = {"auroc": _interval(estimate(*lead)), "brier": _mean(errors["length"] - errors["probe"], bootstrap)}
    return Scores(
        questions=len(right),
        right=float(right.mean()),
        auroc={name: _interval(estimate(areas[name], drawn[name])) for name in predicted},
        brier={name: _mean(values, bootstrap) for name, values in errors.items()},
        calibration=calibrations,
        floor=floors,
        gain=gain,
    )


def _mean(values: Floats, bootstrap: Bootstrap) -> Interval:
    columns = np.column_stack([values, np.ones(len(values))])
    return _interval(bootstrap.estimate(columns, lambda sums: sums[..., 0] / sums[..., 1]))


def _interval(found: IntervalEstimate) -> Interval:
    bounded = np.isfinite(found.low)
    return Interval(value=found.value, low=found.low if bounded else None, high=found.high if bounded else None)
