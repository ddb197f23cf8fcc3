"""The probe: predicts, from a question alone, whether each tier answers it correctly.

It is trained on one data set (`workflow_composer.batch.planning.probe_training`) and applied to others. It is a logistic
regression on `workflow_composer.batch.planning.features`, calibrated so that of the samples predicted at 0.8 about eight in
ten are right. A saved probe is JSON with numbers and their provenance; loading executes no code from the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from workflow_composer.batch.planning.features import NAMES, VERSION
from workflow_composer.batch.planning.policies import Floats, Questions
from workflow_composer.errors import InputError
from workflow_composer.storage.replacing import replace_file

LARGEST_FILE = 8_000_000
"""Largest valid file of a probe (bytes)."""

FARTHEST = 3.0
"""Features are clipped to this many standard deviations from the training data's mean."""

Fraction = Annotated[float, Field(ge=0, le=1)]


class SavedPart(BaseModel):
    """Base of saved models: no unknown keys, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(SavedPart):
    """A statistic and its 95 % interval by bootstrap over questions; bounds are None if undefined."""

    value: float
    low: float | None = None
    high: float | None = None


class Scores(SavedPart):
    """The quality of predictions on held-out questions.

    ``auroc`` (0.5: chance), ``brier`` (mean squared error) and ``calibration`` (expected calibration error over ten bins
    with equal numbers of questions; ``floor`` is the value of perfect predictions on as many questions), for each of
    ``probe``, ``length`` (the same method on the question's length alone) and ``constant`` (the same number for every
    question). ``gain``: the probe's lead over ``length`` in the first two; above 0 is better.
    """

    questions: int
    right: float
    auroc: Mapping[str, Interval]
    brier: Mapping[str, Interval]
    calibration: Mapping[str, Interval]
    floor: Mapping[str, float]
    gain: Mapping[str, Interval]


class TierPredictor(SavedPart):
    """One tier's numbers. The score of a question with features x is
    ``intercept + sum(coefficients * clip((x - mean) / scale, -FARTHEST, FARTHEST))``.

    ``sigmoid`` (a, b) maps a score s to the probability ``1 / (1 + exp(-(a s + b)))``; ``isotonic`` maps it by linear
    interpolation between its points (score, probability). A tier that was nearly always right, or nearly always wrong, has
    only a ``constant``; ``note`` explains it.
    """

    mean: tuple[float, ...] = ()
    scale: tuple[Annotated[float, Field(gt=0)], ...] = ()
    coefficients: tuple[float, ...] = ()
    intercept: float = 0.0
    sigmoid: tuple[float, float] | None = None
    isotonic: tuple[tuple[float, Fraction], ...] | None = None
    constant: Fraction | None = None
    questions: int
    samples: int
    note: str = ""
    scores: Scores | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if sum(way is not None for way in (self.constant, self.sigmoid, self.isotonic)) != 1:
            raise ValueError("exactly one of constant, sigmoid and isotonic is required")
        if self.constant is None and {len(self.mean), len(self.scale), len(self.coefficients)} != {len(NAMES)}:
            raise ValueError(f"mean, scale and coefficients need {len(NAMES)} numbers each")
        if self.isotonic is not None and (not self.isotonic or list(self.isotonic) != sorted(self.isotonic)):
            raise ValueError("isotonic needs at least one point, in ascending order")
        return self

    def success(self, matrix: NDArray[np.float32]) -> Floats:
        """Return probabilities from a feature matrix: from shape ``(n, features)`` to ``(n,)``."""
        if self.constant is not None:
            return np.full(len(matrix), self.constant)
        scale = np.array(self.scale, np.float32)
        near = (matrix - np.array(self.mean, np.float32)) / scale
        np.clip(near, -FARTHEST, FARTHEST, out=near)
        score = near @ np.array(self.coefficients, np.float32) + np.float32(self.intercept)
        return self.calibrated(score.astype(np.float64))

    def calibrated(self, score: Floats) -> Floats:
        """Return probabilities from scores."""
        if self.isotonic is not None:
            points = np.array(self.isotonic)
            return np.asarray(np.interp(score, points[:, 0], points[:, 1]))
        assert self.sigmoid is not None
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-(self.sigmoid[0] * score + self.sigmoid[1]))))


class Training(SavedPart):
    """What a probe was trained on, when, and with which versions of the libraries."""

    dataset: str
    digest: str = ""
    rows: int
    date: str
    models: Mapping[str, str] = Field(default_factory=dict)
    libraries: Mapping[str, str] = Field(default_factory=dict)


class Tokens(SavedPart):
    """Averages of the training data: prompt tokens per character and per prompt, and tokens per answer of each tier."""

    per_character: Annotated[float, Field(ge=0)]
    per_prompt: Annotated[float, Field(ge=0)]
    answers: Mapping[str, Annotated[float, Field(ge=0)]]


class Probe(SavedPart):
    """A trained probe. Immutable; `load` reads what `save` writes."""

    format: Literal["workflow_composer probe 1"] = "workflow_composer probe 1"
    feature_names: tuple[str, ...] = NAMES
    feature_version: int = VERSION
    training: Training
    tokens: Tokens | None = None
    tiers: Mapping[str, TierPredictor]

    def success(self, questions: Questions, tier: str) -> Floats:
        """Return the probability, for each question, that one sample of ``tier`` is right.

        Raises `InputError` if the probe was not trained for the tier.
        """
        self.check([tier])
        return self.tiers[tier].success(questions.features)

    def check(self, tiers: Sequence[str], models: Mapping[str, str] | None = None) -> None:
        """Raise `InputError` unless the probe was trained for these tiers and, if both are known, these models."""
        missing = [tier for tier in tiers if tier not in self.tiers]
        if missing:
            raise InputError(
                f"the probe (trained on {self.training.dataset}) knows {', '.join(self.tiers)}, not {', '.join(missing)}",
                hint="train a probe with answers of these tiers",
            )
        for tier in tiers:
            trained, now = self.training.models.get(tier), (models or {}).get(tier)
            if trained is not None and now is not None and trained != now:
                raise InputError(
                    f"the probe was trained with model {trained} as tier {tier!r}, which is now {now}",
                    hint="train a probe with answers of this model",
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the probe as JSON, atomically."""
        replace_file(Path(path), json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """Read a saved probe. Raises `InputError` if the file is invalid or the probe has other features."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(LARGEST_FILE + 1)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", hint="train a probe first") from error
        if len(data) > LARGEST_FILE:
            raise InputError(f"{path}: not a probe: larger than {LARGEST_FILE:,} bytes")
        try:
            probe = cls.model_validate_json(data)
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, fault["loc"]))
            raise InputError(f"{path}: invalid probe: {place + ': ' if place else ''}{fault['msg']}") from error
        if probe.feature_version != VERSION or probe.feature_names != NAMES:
            raise InputError(f"{path}: trained with the features of another version", hint="train it again")
        return probe
