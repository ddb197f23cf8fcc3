"""Certificates made by hand, for the tests of what they permit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workflow_composer.calibration.certify.certificate import (
    CalibrationData,
    Certificate,
    CertifiedTier,
    Group,
    ModelIdentity,
    RequestForm,
    TierGuarantee,
)
from workflow_composer.calibration.scores.scores import Calibrator, ScoreModel

CONFIDENT = ScoreModel(("mean_logprob",), (0.0,), (1.0,), (1.0,), 0.0, Calibrator("platt", ((1.0, 0.0),)))
"""Half for a mean log-probability of 0, less below: 0.475 for -0.1, 0.119 for -2."""


def guarantee(threshold: float | None = 0.4, straight_up: float | None = None) -> TierGuarantee:
    """One tier's line."""
    return TierGuarantee(threshold, 100, 50, 1, 0.08, 0.05, 0.3, "certified", straight_up=straight_up)


def group(*thresholds: float | None, first: int = 0, straight_up: float | None = None, last_wrong: float = 0.05) -> Group:
    """A group with these thresholds; ``straight_up`` is its first tier's."""
    tiers = tuple(guarantee(one, straight_up if at == 0 else None) for at, one in enumerate(thresholds))
    return Group(first, 100, tiers, 3, 0.1, 0.01, last_wrong)


def certificate(
    names: Sequence[str] = ("small", "large"),
    groups: Mapping[str, Group] | None = None,
    *,
    identity: Mapping[str, Any] | None = None,
    score: ScoreModel | None = CONFIDENT,
    alpha: float = 0.1,
    **request: Any,
) -> Certificate:
    """Two tiers at temperature 0 unless told otherwise; ``request`` is what the requests had in common."""
    fields = {"backend": "fake", "top_logprobs": 5, "temperature": 0.0, **(identity or {})}
    tiers = tuple(CertifiedTier(name, ModelIdentity(name, **{"model": name, **fields}), score) for name in names)
    return Certificate(
        alpha,
        0.1,
        "fixed_sequence",
        tiers,
        groups or {"*": group(*[0.4] * len(names))},
        CalibrationData("pairs.jsonl", "0" * 64, 1000, 300, 700, 0),
        RequestForm(**request),
        "2026-01-01T00:00:00+00:00",
        "0.0",
    )
