"""From labelled requests to a certificate: split the rows, learn scores, fix the tests, test, certify.

The rows of each group are split in two by a hash of id and seed, so neither the order of the file nor the content of a row
decides its part. Everything learned or chosen freely (scores, grids, starts, expectations, limits for escalating directly to
the last tier) comes from the fitting part; everything guaranteed comes from the calibration part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workflow_composer import __version__
from workflow_composer.calibration.certify.certificate import (
    CalibrationData,
    Certificate,
    CertifiedTier,
    ModelIdentity,
    RequestForm,
)
from workflow_composer.calibration.certify.group import Bools, GroupWork, Limits, TierRows
from workflow_composer.calibration.certify.pairs import CalibrationTable, TierColumn
from workflow_composer.calibration.certify.risk import METHODS, check_levels
from workflow_composer.calibration.scores.fitting import fit_with_scores, probabilities
from workflow_composer.calibration.scores.scores import ScoreModel
from workflow_composer.calibration.scores.signal_table import Floats
from workflow_composer.errors import ConfigError, InputError
from workflow_composer.types import ANY_TASK

# --------------------------------------------------------------------------------------------------------------- verifying
#
# Verify a certificate by recomputing it from its data.


NOT_COMPARED = ("created", "version", "notes", "data.source")


def verify(certificate: Certificate, table: CalibrationTable) -> list[str]:
    """Recompute every number from the data; return one line per difference, empty if the certificate is reproduced.

    Limits for escalating directly to the last tier are taken from the certificate: they depend on prices, which it does not
    contain, and any limits are valid.
    """
    if tuple(tier.name for tier in certificate.tiers) != table.names:
        there, here = ", ".join(tier.name for tier in certificate.tiers), ", ".join(table.names)
        return [f"tiers: {there} in the certificate, {here} in the data"]
    found = differences("", certificate, again(certificate, table))
    return [line for line in found if line.partition(":")[0] not in NOT_COMPARED]


def differences(place: str, one: Any, other: Any) -> Sequence[str]:
    """Describe where two values differ, field by field; numbers within rounding errors count as equal."""
    if is_dataclass(one) and type(one) is type(other):
        names = [field.name for field in fields(one)]
        pairs = {_join(place, name): (getattr(one, name), getattr(other, name)) for name in names}
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        pairs = {_join(place, name): (one.get(name), other.get(name)) for name in sorted({*one, *other})}
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = {f"{place}[{at}]": pair for at, pair in enumerate(zip(one, other, strict=True))}
    elif _same(one, other):
        return []
    else:
        return [f"{place}: {one!r} in the certificate, {other!r} from the data"]
    return [line for name, pair in pairs.items() for line in differences(name, *pair)]


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)) and not isinstance(other, bool):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-9)
    return bool(one == other)


FEWEST_FITTING = 50
"""Minimum number of rows in a group's fitting part, capped at half of the group."""

Escalation = Literal["next", "predicted"]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """The requested guarantee and the split. ``floors``: group -> index of its first tier."""

    alpha: float
    delta: float
    method: str
    group_by: str | None
    fit_share: float
    seed: int
    floors: Mapping[str, int] = field(default_factory=dict)

    def check(self, table: CalibrationTable) -> None:
        """Raise `InputError` or `ConfigError` if the settings are invalid."""
        check_levels(self.alpha, self.delta)
        if not 0 < self.fit_share < 1:
            fault = f"the share of rows for fitting must be between 0 and 1, not {self.fit_share!r}"
            raise InputError(fault, hint="a typical value is 0.3")
        if self.group_by not in {None, "group"}:
            raise ConfigError(f"cannot group requests by {self.group_by!r}", hint="allowed: group (the task type)")
        if self.method not in METHODS:
            raise ConfigError(f"unknown test method {self.method!r}", hint=f"known methods: {', '.join(METHODS)}")
        if len(table) < 2:
            raise InputError(f"{table.source}: one request is not enough to calibrate", hint="use several hundred")


def calibrate(
    table: CalibrationTable,
    *,
    alpha: float = 0.1,
    delta: float = 0.1,
    method: str = "fixed_sequence",
    group_by: str | None = None,
    task_floors: Mapping[str, int | str] | None = None,
    escalation: Escalation = "next",
    coverage: float | None = None,
    identities: Sequence[ModelIdentity] | None = None,
    request: RequestForm | None = None,
    fit_share: float = 0.3,
    seed: int = 0,
) -> Certificate:
    """Find thresholds for every tier and group with the guarantee of `Certificate`; delta is split evenly over the groups.

    ``group_by``: "group" certifies each of the table's groups separately, None all together. ``task_floors``: group -> tier
    (index or name) at which its requests start. ``escalation``: "predicted" also sets a score below which a request goes
    directly to the last tier if that is estimated to be cheaper; it needs the table's costs. ``coverage``: share of requests
    that should be accepted; raises `InfeasibleTarget` if no score can reach it. ``identities``: the models of the tiers. If
    nothing can be certified for a group, the certificate contains it with the reason.

    Raises `ConfigError` and `InputError` for invalid settings or data.
    """
    floors = _floors(table, group_by, task_floors or {})
    settings = Settings(alpha, delta, method, group_by, fit_share, seed, floors)
    settings.check(table)
    if escalation == "predicted" and table.costs is None:
        fault = "predicted escalation needs costs, and the table has none"
        raise ConfigError(fault, hint="record costs, or use a profile with prices")
    work, tiers = _prepare(table, settings, identities)
    if coverage is not None:
        for group in work:
            group.check_feasible(coverage)
    limits = {group.name: group.predicted_limits() for group in work} if escalation == "predicted" else {}
    return _certificate(table, settings, work, limits, tiers, request or RequestForm())


def again(certificate: Certificate, table: CalibrationTable) -> Certificate:
    """Calibrate again with the settings of a certificate, including its limits for escalating directly to the last tier."""
    data, groups = certificate.data, certificate.groups
    floors = {name: group.first for name, group in groups.items()}
    settings = Settings(
        certificate.alpha, certificate.delta, certificate.method, data.group_by, data.fit_share, data.seed, floors
    )
    settings.check(table)
    work, tiers = _prepare(table, settings, [tier.identity for tier in certificate.tiers])
    limits = {name: tuple(tier.straight_up for tier in group.tiers) for name, group in groups.items()}
    return _certificate(table, settings, work, limits, tiers, certificate.request)


def _floors(table: CalibrationTable, group_by: str | None, floors: Mapping[str, int | str]) -> dict[str, int]:
    """Group -> index of its first tier."""
    found: dict[str, int] = {}
    for task, tier in floors.items():
        index = table.names.index(tier) if isinstance(tier, str) and tier in table.names else tier
        if isinstance(index, str) or not 0 <= index < len(table.tiers):
            raise ConfigError(f"unknown tier {tier!r} as floor of {task!r}", hint=f"tiers: {', '.join(table.names)}")
        if task != ANY_TASK and group_by is None:
            fault = f"task {task!r} has its own floor, but requests are not grouped by task"
            raise ConfigError(fault, hint="add --group-by group")
        found[task] = index
    return found


def _prepare(
    table: CalibrationTable, settings: Settings, identities: Sequence[ModelIdentity] | None
) -> tuple[list[GroupWork], tuple[CertifiedTier, ...]]:
    """Return each group's rows with their scores, and the tiers with their score models."""
    parts = split(table, group_by=settings.group_by, fit_share=settings.fit_share, seed=settings.seed)
    fitting = np.sort(np.concatenate([part.fitting for part in parts.values()]))
    fitted = [_fit(tier, table.correct[:, at], fitting, table.ids, settings.seed) for at, tier in enumerate(table.tiers)]
    scores = np.column_stack([found for _, found in fitted])

    def rows(places: Places) -> TierRows:
        return TierRows(scores[places], table.correct[places], None if table.costs is None else table.costs[places])

    share = settings.delta / len(parts)
    work = [
        GroupWork(name, rows(part.fitting), rows(part.calibrating), settings.floors.get(name, 0), settings.alpha, share)
        for name, part in parts.items()
    ]
    named = identities or [ModelIdentity(tier.name) for tier in table.tiers]
    tiers = [
        CertifiedTier(tier.name, identity, model)
        for tier, identity, (model, _) in zip(table.tiers, named, fitted, strict=True)
    ]
    return work, tuple(tiers)


def _certificate(
    table: CalibrationTable,
    settings: Settings,
    work: Sequence[GroupWork],
    limits: Mapping[str, Limits],
    tiers: tuple[CertifiedTier, ...],
    request: RequestForm,
) -> Certificate:
    return Certificate(
        alpha=settings.alpha,
        delta=settings.delta,
        method=settings.method,
        tiers=tiers,
        groups={group.name: group.certify(limits.get(group.name), settings.method) for group in work},
        data=CalibrationData(
            table.source,
            table.digest,
            rows=len(table),
            fitted=sum(len(group.fitting) for group in work),
            calibrated=sum(len(group.calibrating) for group in work),
            seed=settings.seed,
            group_by=settings.group_by,
            fit_share=settings.fit_share,
        ),
        request=request,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        notes=table.notes,
    )


# ------------------------------------------------------------------------------------------------------------- the split


@dataclass(frozen=True)
class GroupSplit:
    """Indices of a group's rows in the table."""

    fitting: Places
    calibrating: Places


def split(table: CalibrationTable, *, group_by: str | None, fit_share: float, seed: int) -> dict[str, GroupSplit]:
    """Split each group's rows in two parts, in an order that depends on ids and seed only."""
    members: dict[str, list[int]] = {}
    for at, group in enumerate(table.groups):
        members.setdefault(group if group_by else ANY_TASK, []).append(at)
    parts: dict[str, GroupSplit] = {}
    for name in sorted(members):
        rows = np.array(sorted(members[name], key=lambda at: _lot(seed, table.ids[at])), dtype=np.int64)
        count = max(round(fit_share * len(rows)), min(FEWEST_FITTING, len(rows) // 2))
        count = min(count, len(rows) - 1)
        parts[name] = GroupSplit(rows[:count], rows[count:])
    return parts


def _lot(seed: int, identifier: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{identifier}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _fit(
    tier: TierColumn, correct: Bools, fitting: Places, ids: Sequence[str], seed: int
) -> tuple[ScoreModel | None, Floats]:
    """Return a tier's score model and all rows' scores [n]; those of the fitting part are out-of-fold."""
    if tier.signals is None:
        assert tier.given is not None  # a tier has either signals or given scores
        return None, tier.given
    ordered = np.array(sorted(fitting, key=lambda at: _lot(seed, ids[at])), dtype=np.int64)
    columns = {name: column[ordered] for name, column in tier.signals.columns.items()}
    model, held_out = fit_with_scores(columns, correct[ordered], seed=seed)
    scores = probabilities(model, tier.signals)
    scores[ordered] = held_out
    return model, scores
