"""Quality of a certificate's scores on its calibration rows, and the cascade's cost on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workflow_composer.calibration.certify.calibrate import Places, split
from workflow_composer.calibration.certify.certificate import Certificate, Group, TierGuarantee
from workflow_composer.calibration.certify.group import paid, visits
from workflow_composer.calibration.certify.pairs import CalibrationTable
from workflow_composer.calibration.scores.fitting import aurc, auroc, expected_calibration_error, probabilities
from workflow_composer.calibration.scores.signal_table import Floats


@dataclass(frozen=True)
class ScoreQuality:
    """Quality of one tier's scores on all calibration rows of a group; None: undefined. ``known``: rows with a score.

    ``error`` is the share of wrong answers among all rows. ``calibration_error`` is None if scores are not probabilities.
    """

    tier: str
    rows: int
    known: int
    error: float
    auroc: float | None
    aurc: float | None
    calibration_error: float | None


@dataclass(frozen=True)
class Spending:
    """Dollars per request on the calibration rows; ``always_last``: if the last tier answered every request."""

    cascade: float
    always_last: float

    @property
    def saved(self) -> float | None:
        """Share of ``always_last`` that the cascade saves; negative if it costs more."""
        return 1.0 - self.cascade / self.always_last if self.always_last > 0 else None


@dataclass(frozen=True)
class Assessment:
    """Score quality and costs of a group on the calibration rows; not part of the guarantee."""

    scores: tuple[ScoreQuality, ...]
    spending: Spending | None


def assess(certificate: Certificate, table: CalibrationTable) -> dict[str, Assessment]:
    """Assess each group. ``table`` must be the table from which the certificate was made."""
    scores = tier_scores(certificate, table)
    return {
        name: _assess(certificate.groups[name], table, scores, rows)
        for name, rows in calibrating_rows(certificate, table).items()
    }


@dataclass(frozen=True)
class Evidence:
    """The calibration rows that reached a tier of a group: ``scores`` and ``correct`` [n]; NaN: unknown."""

    group: str
    tier: str
    guarantee: TierGuarantee
    scores: Floats
    correct: NDArray[np.bool_]

    @property
    def known(self) -> int:
        """Rows with a score."""
        return int(np.sum(~np.isnan(self.scores)))


def evidence(certificate: Certificate, table: CalibrationTable) -> Iterator[Evidence]:
    """Yield the rows behind each tier's guarantee. ``table`` must be the table from which the certificate was made."""
    scores = tier_scores(certificate, table)
    for name, rows in calibrating_rows(certificate, table).items():
        group = certificate.groups[name]
        thresholds, limits = _rules(group)
        visited = visits(scores[rows], thresholds, limits, group.first)
        for at, guarantee in enumerate(group.tiers, start=group.first):
            reached = rows[visited[:, at]]
            yield Evidence(name, table.names[at], guarantee, scores[reached, at], table.correct[reached, at])


def are_probabilities(scores: Floats) -> bool:
    """Whether at least one score is known and all known scores lie between 0 and 1."""
    known = scores[~np.isnan(scores)]
    return len(known) > 0 and bool(((known >= 0) & (known <= 1)).all())


def tier_scores(certificate: Certificate, table: CalibrationTable) -> Floats:
    """Compute all rows' scores with the certificate's score models [n, tiers]; NaN: unknown."""
    columns: list[Floats] = []
    for certified, tier in zip(certificate.tiers, table.tiers, strict=True):
        if certified.score is not None and tier.signals is not None:
            columns.append(probabilities(certified.score, tier.signals))
        else:
            columns.append(np.full(len(table), math.nan) if tier.given is None else tier.given)
    return np.column_stack(columns)


def calibrating_rows(certificate: Certificate, table: CalibrationTable) -> Mapping[str, Places]:
    """Indices of each group's calibration rows."""
    data = certificate.data
    parts = split(table, group_by=data.group_by, fit_share=data.fit_share, seed=data.seed)
    return {name: part.calibrating for name, part in parts.items()}


def _assess(group: Group, table: CalibrationTable, scores: Floats, rows: Places) -> Assessment:
    names = table.names[group.first :]
    qualities = [
        _quality(name, scores[rows, at], table.correct[rows, at]) for at, name in enumerate(names, start=group.first)
    ]
    return Assessment(tuple(qualities), _spending(group, table, scores[rows], rows))


def _quality(tier: str, scores: Floats, correct: NDArray[np.bool_]) -> ScoreQuality:
    return ScoreQuality(
        tier=tier,
        rows=len(scores),
        known=int(np.sum(~np.isnan(scores))),
        error=float(np.mean(~correct)),
        auroc=auroc(scores, correct),
        aurc=aurc(scores, correct),
        calibration_error=expected_calibration_error(scores, correct) if are_probabilities(scores) else None,
    )


def _spending(group: Group, table: CalibrationTable, scores: Floats, rows: Places) -> Spending | None:
    if table.costs is None:
        return None
    costs = table.costs[rows]
    thresholds, limits = _rules(group)
    cascade = paid(scores, costs, thresholds, limits, group.first) / len(rows)
    return Spending(cascade, float(np.mean(costs[:, -1])))


def _rules(group: Group) -> tuple[list[float | None], list[float | None]]:
    """Each tier's threshold and limit for escalating directly to the last tier."""
    return [tier.threshold for tier in group.tiers], [tier.straight_up for tier in group.tiers]
