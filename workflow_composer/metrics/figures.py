"""Data for the dashboard, computed from live metrics or a metrics file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from workflow_composer.metrics.live import COUNTS, RECENT, SUMS, LiveMetrics
from workflow_composer.metrics.record import RoutingMetric
from workflow_composer.metrics.summary import metrics_since

PERIODS = {"hour": (3600, 10), "day": (86_400, 60), "90 days": (7_776_000, 3600)}
"""Periods of a chart: their length, and the width of the live metrics' buckets to use, in seconds."""
SLOTS = 72
"""Bars of a chart."""
RECENT_OF_FILE = 10 * RECENT
_RATE_SECONDS = 60.0
_FIELDS = tuple(name for name in RoutingMetric.__slots__ if name != "prompt")


def figures(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """Return totals, percentiles and time series of a snapshot of `LiveMetrics`.

    Percentiles come from histograms, so they are only as exact as the buckets; None if nothing was counted. ``tiers`` are
    numbered from 0, as in metric lines; each has the models that answered in it, the busiest first.
    """
    series: Sequence[Mapping[str, Any]] = snapshot["series"]
    latency, overhead = _added(series, "latency"), _added(series, "overhead")
    since_a_minute = snapshot["now"] - _RATE_SECONDS
    return {
        "since": snapshot["since"],
        "until": snapshot["now"],
        "total": {name: sum(one.get(name, 0) for one in series) for name in (*COUNTS, *SUMS)},
        "rate_now": sum(bucket[1] for bucket in snapshot["history"]["10"] if bucket[0] >= since_a_minute),
        "latency": _percentiles(snapshot["latency_bounds"], latency),
        "overhead": _percentiles(snapshot["overhead_bounds"], overhead),
        "models": _by(series, "model", snapshot["latency_bounds"]),
        "tiers": _tiers(series, snapshot["latency_bounds"]),
        "errors": snapshot["errors"],
        "refused_keys": snapshot.get("refused_keys", {}),
        "course": {name: course(snapshot, seconds, width) for name, (seconds, width) in PERIODS.items()},
        "recent": snapshot["recent"],
    }


def course(snapshot: Mapping[str, Any], seconds: int, width: int) -> list[list[int]]:
    """Count answered and failed requests in each of `SLOTS` equal parts of the last ``seconds``."""
    slots = [[0, 0] for _ in range(SLOTS)]
    start = snapshot["now"] - seconds
    for at, requests, errors, *_ in snapshot["history"][str(width)]:
        slot = min(SLOTS - 1, int((at - start) * SLOTS // seconds))
        if slot >= 0:
            slots[slot][0] += requests - errors
            slots[slot][1] += errors
    return slots


def snapshot_of_file(
    path: Path,
    *,
    since: timedelta | None = None,
    now: datetime | None = None,
    only: Callable[[Mapping[str, Any]], bool] = lambda metric: True,
) -> dict[str, Any]:
    """Return the snapshot of a metrics file, starting ``since`` before ``now``, of the requests for which ``only`` is true.

    It has ten times as many decisions as that of a service. Raises `InputError`.
    """
    moment = 0.0
    live = LiveMetrics(clock=lambda: moment, recent=RECENT_OF_FILE)
    first = None
    for metric, at in metrics_since(path, since, now):
        if not only(metric):
            continue
        moment = max(moment, at.timestamp())
        first = moment if first is None else first
        live.write(RoutingMetric(**{**_MISSING, **{name: metric[name] for name in _FIELDS if name in metric}}))
    return {**live.snapshot(), "since": first or 0.0}


_MISSING: dict[str, Any] = {
    "request_id": "",
    "router": "",
    "query_length": 0,
    "tier": 0,
    "error": None,
    "attempts": 1,
}
"""Defaults of optional fields; the reader checks the others."""


def percentile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Return a percentile of a histogram, interpolated within its bucket; beyond the last bound, that bound.

    >>> percentile([10.0, 20.0], [0, 4, 0], 0.5)
    15.0
    """
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    for number, count in enumerate(counts[:-1]):
        if count and below + count >= wanted:
            low = bounds[number - 1] if number else 0.0
            return low + (bounds[number] - low) * (wanted - below) / count
        below += count
    return bounds[-1]


def _percentiles(bounds: Sequence[float], counts: Sequence[int]) -> dict[str, float | None]:
    return {f"p{percent}": percentile(bounds, counts, percent / 100) for percent in (50, 95, 99)}


def _added(series: Sequence[Mapping[str, Any]], name: str) -> list[int]:
    return [sum(counts) for counts in zip(*(one[name] for one in series), strict=True)]


def _tiers(series: Sequence[Mapping[str, Any]], bounds: Sequence[float]) -> list[dict[str, Any]]:
    found = sorted(_by(series, "tier", bounds), key=lambda one: one["tier"])
    for one in found:
        models = _by([part for part in series if part["tier"] == one["tier"]], "model", bounds)
        one["models"] = [model["name"] for model in models if model["name"]]
    return found


def _by(series: Sequence[Mapping[str, Any]], label: str, bounds: Sequence[float]) -> list[dict[str, Any]]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for one in series:
        groups.setdefault(one[label], []).append(one)
    key = "name" if label == "model" else label
    found = [
        {
            key: value,
            **{name: sum(one.get(name, 0) for one in group) for name in ("requests", "errors", "cost", "unpriced")},
            "p50": percentile(bounds, _added(group, "latency"), 0.5),
        }
        for value, group in groups.items()
    ]
    return sorted(found, key=lambda one: -one["requests"])
