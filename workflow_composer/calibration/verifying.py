"""Verify a certificate by recomputing it from its data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from workflow_composer.calibration.calibrating import again
from workflow_composer.calibration.certificate import Certificate
from workflow_composer.calibration.pairs import CalibrationTable

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
