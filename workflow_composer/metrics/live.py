"""Counters since the start of the service: cheap to update, small, and easy to sum over workers.

Names of tasks come from requests: those that the profile does not know share the label "other". Beyond `MOST_SERIES`
combinations, new ones do too.
"""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from workflow_composer.metrics.record import RoutingMetric
from workflow_composer.storage.replacing import replace_file
from workflow_composer.types import ANY_TASK

# -------------------------------------------------------------------------------------------------------------- live files
#
# Live metrics of several workers: each worker saves its own to a file, and any worker can sum them.
#
# A worker that replaces a crashed one continues from its counts, so that no counter decreases.


class SharedMetrics:
    """The metrics of this worker and of the others. Without a directory there are no others."""

    def __init__(self, live: LiveMetrics, directory: Path | None = None, number: int = 0) -> None:
        self._live = live
        self._directory = directory
        self._path = None if directory is None else directory / f"metrics-{number}.json"
        self._before = None if self._path is None else _read(self._path)

    def own(self) -> dict[str, Any]:
        """Return the counts of this worker and its predecessors."""
        now = self._live.snapshot()
        return now if self._before is None else merged([self._before, now])

    def all(self) -> dict[str, Any]:
        """Return the counts of all workers."""
        if self._directory is None or self._path is None:
            return self.own()
        others = [_read(path) for path in sorted(self._directory.glob("metrics-*.json")) if path != self._path]
        return merged([self.own(), *(found for found in others if found is not None)])

    def save(self) -> None:
        """Save the counts for the other workers; blocks. If that fails, their sums lag until a later save succeeds."""
        self._write(self.own())

    async def asave(self) -> None:
        """Like `save`, without blocking the event loop."""
        await asyncio.to_thread(self._write, self.own())

    def _write(self, counted: Mapping[str, Any]) -> None:
        if self._path is not None:
            with suppress(OSError):
                replace_file(self._path, json.dumps(counted))


def forget(directory: Path) -> None:
    """Reset the counters: remove the files of an earlier service's workers."""
    for path in directory.glob("metrics-*.json"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "series" in found else None


LATENCY_BOUNDS = (5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5)
"""Upper bounds of the latency buckets in milliseconds."""
OVERHEAD_BOUNDS = (0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 100.0)
"""Upper bounds of the buckets of the orchestrator's overhead in milliseconds."""
MOST_SERIES = 1000
RECENT = 100
"""Number of recent decisions to keep."""
SPANS = ((10, 360), (60, 1440), (3600, 2160))
"""Width of a bucket in seconds, and how many are kept: an hour by 10 seconds, a day by minutes, 90 days by hours."""
OTHER = "other"
_NEVER = (0, 0.0)
"""How often a model's server has refused the service's key, and when it last did: not yet."""

LABELS = ("strategy", "router", "task", "model", "tier")
COUNTS = ("requests", "errors", "fallbacks", "escalations", "prompt_tokens", "completion_tokens", "unpriced", "estimated")
SUMS = ("cost", "latency_sum", "overhead_sum", "compared_cost", "strongest_cost")


class Series:
    """Counts of one combination of labels. Times in milliseconds, cost in dollars; buckets are not cumulative.

    Of ``unpriced`` requests the cost is not, or only partly, known; that of ``estimated`` ones is estimated.
    ``compared_cost`` is the part of ``cost`` for which the cost of the strongest tier alone is known.
    """

    __slots__ = (*COUNTS, *SUMS, "latency", "overhead")

    def __init__(self) -> None:
        self.requests = self.errors = self.fallbacks = self.escalations = 0
        self.prompt_tokens = self.completion_tokens = self.unpriced = self.estimated = 0
        self.cost = self.latency_sum = self.overhead_sum = self.compared_cost = self.strongest_cost = 0.0
        self.latency = [0] * (len(LATENCY_BOUNDS) + 1)
        self.overhead = [0] * (len(OVERHEAD_BOUNDS) + 1)


class LiveMetrics:
    """A metrics sink that counts. Only one event loop may write; `snapshot` may be called at any time, from any thread.

    ``tasks`` returns the tasks that have series of their own; without it, all have. ``recent``: decisions to keep.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        tasks: Callable[[], Collection[str]] | None = None,
        recent: int = RECENT,
    ) -> None:
        self._clock = clock
        self.tasks = tasks
        self._since = clock()
        self._series: dict[tuple[str, str, str, str, int], Series] = {}
        self._kinds: dict[str, int] = {}
        self._faults: dict[str, int] = {}
        self._refused: dict[str, tuple[int, float]] = {}
        self._recent: deque[tuple[RoutingMetric, float]] = deque(maxlen=recent)
        self._history: dict[int, deque[list[float]]] = {span: deque(maxlen=count) for span, count in SPANS}

    def write(self, metric: RoutingMetric) -> None:
        """Count one metric."""
        labels = (metric.strategy, metric.router, metric.task_type, metric.candidate, metric.tier)
        series = self._series.get(labels)
        if series is None:
            series = self._new(labels)
        latency, failed = metric.latency_ms, not metric.success
        series.requests += 1
        series.prompt_tokens += metric.prompt_tokens
        series.completion_tokens += metric.completion_tokens
        series.cost += metric.cost
        series.latency_sum += latency
        series.overhead_sum += metric.overhead_ms
        series.latency[bisect_left(LATENCY_BOUNDS, latency)] += 1
        series.overhead[bisect_left(OVERHEAD_BOUNDS, metric.overhead_ms)] += 1
        if metric.strongest_cost is not None:
            series.compared_cost += metric.cost
            series.strongest_cost += metric.strongest_cost
        if not metric.cost_known:
            series.unpriced += 1
        if metric.estimated:
            series.estimated += 1
        if metric.fallback_depth:
            series.fallbacks += 1
        if metric.escalated:
            series.escalations += 1
        if failed:
            series.errors += 1
            self._kinds[metric.error or OTHER] = self._kinds.get(metric.error or OTHER, 0) + 1
            self._faults[metric.fault or OTHER] = self._faults.get(metric.fault or OTHER, 0) + 1
        now = self._clock()
        for name in metric.refused_keys:
            self._refused[name] = self._refused.get(name, _NEVER)[0] + 1, now
        self._recent.append((metric, now))
        for span, buckets in self._history.items():
            start = now - now % span
            if not buckets or buckets[-1][0] != start:
                buckets.append([start, 0, 0, 0.0, 0.0])
            bucket = buckets[-1]
            bucket[1] += 1
            bucket[2] += failed
            bucket[3] += latency
            bucket[4] += metric.cost

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _new(self, labels: tuple[str, str, str, str, int]) -> Series:
        """Return the series of labels that have none of their own yet."""
        strategy, router, task, model, tier = labels
        if self.tasks is not None and task != ANY_TASK and task not in self.tasks():
            task = OTHER
        found = self._series.get((strategy, router, task, model, tier))
        if found is None:
            if len(self._series) >= MOST_SERIES:
                task, model, tier = OTHER, OTHER, min(tier, 9)
            found = self._series.setdefault((strategy, router, task, model, tier), Series())
        return found

    def snapshot(self) -> dict[str, Any]:
        """Return all counters as plain data."""
        series = []
        for labels, counts in list(self._series.items()):
            values = {name: getattr(counts, name) for name in (*COUNTS, *SUMS)}
            lists = {"latency": list(counts.latency), "overhead": list(counts.overhead)}
            series.append({**dict(zip(LABELS, labels, strict=True)), **values, **lists})
        return {
            "since": self._since,
            "now": self._clock(),
            "latency_bounds": list(LATENCY_BOUNDS),
            "overhead_bounds": list(OVERHEAD_BOUNDS),
            "series": series,
            "errors": dict(self._kinds),
            "faults": dict(self._faults),
            "refused_keys": {name: list(found) for name, found in list(self._refused.items())},
            "history": {str(span): [list(bucket) for bucket in buckets] for span, buckets in self._history.items()},
            "recent": [shown(metric) for metric, _ in list(self._recent)],
        }


def shown(metric: RoutingMetric) -> dict[str, Any]:
    """Return a metric as plain data, without the prompt."""
    return {name: getattr(metric, name) for name in RoutingMetric.__slots__ if name != "prompt"}


def merged(snapshots: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the snapshots of several workers."""
    found = list(snapshots)
    if len(found) == 1:
        return dict(found[0])
    series: dict[tuple[Any, ...], dict[str, Any]] = {}
    kinds: dict[str, int] = {}
    faults: dict[str, int] = {}
    refused: dict[str, list[float]] = {}
    history: dict[str, dict[float, list[float]]] = {str(span): {} for span, _ in SPANS}
    recent: list[dict[str, Any]] = []
    for snapshot in found:
        for one in snapshot["series"]:
            _add_series(series, one)
        for kind, count in snapshot["errors"].items():
            kinds[kind] = kinds.get(kind, 0) + count
        for fault, count in snapshot.get("faults", {}).items():  # a worker of an earlier version has none
            faults[fault] = faults.get(fault, 0) + count
        for name, (count, at) in snapshot.get("refused_keys", {}).items():
            before, last = refused.get(name, _NEVER)
            refused[name] = [before + count, max(last, at)]
        for span, buckets in snapshot["history"].items():
            for start, *values in buckets:
                total = history[span].setdefault(start, [0.0] * len(values))
                history[span][start] = [a + b for a, b in zip(total, values, strict=True)]
        recent += snapshot["recent"]
    return {
        "since": min((one["since"] for one in found), default=0.0),
        "now": max((one["now"] for one in found), default=0.0),
        "latency_bounds": list(LATENCY_BOUNDS),
        "overhead_bounds": list(OVERHEAD_BOUNDS),
        "series": list(series.values()),
        "errors": kinds,
        "faults": faults,
        "refused_keys": refused,
        "history": {str(span): _latest(history[str(span)], count) for span, count in SPANS},
        "recent": sorted(recent, key=lambda one: str(one["timestamp"]))[-RECENT:],
    }


def _latest(buckets: Mapping[float, list[float]], count: int) -> list[list[float]]:
    return [[start, *values] for start, values in sorted(buckets.items())[-count:]]


def _add_series(series: dict[tuple[Any, ...], dict[str, Any]], one: Mapping[str, Any]) -> None:
    key = tuple(one[label] for label in LABELS)
    if key not in series and len(series) >= MOST_SERIES:
        one = {**one, "task": OTHER, "model": OTHER, "tier": min(one["tier"], 9)}
        key = tuple(one[label] for label in LABELS)
    total = series.get(key)
    if total is None:
        series[key] = {**one, "latency": list(one["latency"]), "overhead": list(one["overhead"])}
        return
    for name in (*COUNTS, *SUMS):
        total[name] = total.get(name, 0) + one.get(name, 0)
    for name in ("latency", "overhead"):
        total[name] = [a + b for a, b in zip(total[name], one[name], strict=True)]
