"""Score models: the probability that an answer is right, computed from signals in pure Python; `fitting` learns them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from workflow_composer.calibration.scores.signals import FeedbackSignal
from workflow_composer.errors import InputError

FEATURES = (
    "mean_logprob",
    "min_logprob",
    "sequence_logprob",
    "log_length",
    "logprob_q05",
    "logprob_q25",
    "logprob_q50",
    "binary_entropy",
    "low_confidence_ratio",
    "entropy",
    "margin",
    "min_margin",
    "tail_mass",
)
"""Fields of `FeedbackSignal` that a score model may use."""

Form = Literal["platt", "isotonic"]


@dataclass(frozen=True, slots=True)
class Calibrator:
    """Maps a logit to a calibrated probability: of answers with a score of .9, about nine in ten are right.

    ``platt``: logistic(a x + b), ``knots`` being ((a, b),) (Platt 1999). ``isotonic``: non-decreasing and linear between the
    ``knots`` (x, probability), constant beyond them (Zadrozny and Elkan 2002).
    """

    form: Form
    knots: tuple[tuple[float, float], ...]

    def __call__(self, logit: float) -> float:
        """The probability for a logit."""
        if self.form == "platt":
            ((slope, offset),) = self.knots
            return logistic(slope * logit + offset)
        after = bisect_right(self.knots, (logit, math.inf))
        if after == 0:
            return self.knots[0][1]
        if after == len(self.knots):
            return self.knots[-1][1]
        (x0, y0), (x1, y1) = self.knots[after - 1], self.knots[after]
        return y0 + (y1 - y0) * (logit - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True)
class ScoreModel:
    """Logistic regression on standardised features, followed by a non-decreasing calibrator.

    ``weights`` apply to ``(feature - center) / scale``. `probability` is None if a feature is unknown.
    """

    features: tuple[str, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    calibrator: Calibrator

    def probability(self, signal: FeedbackSignal) -> float | None:
        """The estimated probability that the answer is right."""
        values = [getattr(signal, name) for name in self.features]
        return None if None in values else self.calibrator(self.logit(values))

    def logit(self, values: Sequence[float]) -> float:
        """The regression's value for one answer's features, in the order of ``features``."""
        parts = zip(values, self.center, self.scale, self.weights, strict=True)
        return self.intercept + math.fsum((value - center) / scale * weight for value, center, scale, weight in parts)

    def highest(self, ranges: Sequence[tuple[float, float]]) -> float:
        """Return the largest probability for features within these ranges, each taken at its better end."""
        best = [high if weight >= 0 else low for (low, high), weight in zip(ranges, self.weights, strict=True)]
        return self.calibrator(self.logit(best))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {name: _plain(getattr(self, name)) for name in self.__slots__ if name != "calibrator"}
        knots = [list(knot) for knot in self.calibrator.knots]
        return data | {"calibrator": {"form": self.calibrator.form, "knots": knots}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ScoreModel:
        """Build a model from parsed JSON, the inverse of `to_dict`. Raises `InputError` if ``data`` is invalid."""
        try:
            features = tuple(map(str, data["features"]))
            center, scale, weights = (tuple(map(_number, data[name])) for name in ("center", "scale", "weights"))
            form = data["calibrator"]["form"]
            knots = tuple((_number(x), _number(y)) for x, y in data["calibrator"]["knots"])
            model = cls(features, center, scale, weights, _number(data["intercept"]), Calibrator(form, knots))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"invalid score model: {type(error).__name__}: {error}") from None
        model._check()
        return model

    def _check(self) -> None:
        if unknown := set(self.features) - set(FEATURES):
            raise InputError(
                f"unknown features: {', '.join(sorted(unknown))}", hint=f"known features: {', '.join(FEATURES)}"
            )
        if not len(self.features) == len(self.center) == len(self.scale) == len(self.weights):
            raise InputError("a score model needs one center, scale and weight per feature")
        if any(scale <= 0 for scale in self.scale):
            raise InputError("the scales of a score model must be positive")
        knots, form = self.calibrator.knots, self.calibrator.form
        if form == "platt" and not (len(knots) == 1 and knots[0][0] >= 0):
            raise InputError("a Platt calibrator needs one non-negative slope and one offset")
        if form == "isotonic" and not (
            knots and _rises([x for x, _ in knots], strictly=True) and _rises([y for _, y in knots])
        ):
            raise InputError("the knots of an isotonic calibrator must be increasing")
        if form not in ("platt", "isotonic"):
            raise InputError(f"unknown calibrator {form!r}", hint="known: platt, isotonic")


def logistic(x: float) -> float:
    """1 / (1 + exp(-x)), also where exp would overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    power = math.exp(x)
    return power / (1.0 + power)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def _rises(values: Sequence[float], *, strictly: bool = False) -> bool:
    return all(a < b if strictly else a <= b for a, b in pairwise(values))
