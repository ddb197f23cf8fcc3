"""Summary of a metrics file: rates, latencies, tokens, costs.

The file is read once, line by line; only sums and one number per latency (for exact percentiles) are kept in memory.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from workflow_composer.errors import InputError
from workflow_composer.storage.lines import lines, lines_after

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_TEXTS = ("timestamp", "strategy", "task_type", "model_used", "candidate")
_NUMBERS = ("latency_ms", "overhead_ms", "prompt_tokens", "completion_tokens", "cost", "fallback_depth")
NO_ANSWER = "(no answer)"


def parse_duration(text: str) -> timedelta:
    """Parse ``30m``, ``24h``, ``7d``, ``2w``, ``1.5h``, ``90s``. Raises `InputError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    if match is None:
        raise InputError(f"{text!r} is not a duration", hint="for example 30m, 24h, 7d or 2w")
    try:
        return timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError:
        raise InputError(f"the duration {text!r} is too long", hint="leave it out to read everything") from None


# ------------------------------------------------------------------------------------------------------------- reading


def read_metrics(path: Path) -> Iterator[Mapping[str, Any] | None]:
    """Yield the file's metrics in order; None for a damaged line. Raises `InputError` if the file cannot be read.

    A line is damaged if it is not a JSON object with a metric's fields, for example if it is truncated or not UTF-8.
    """
    if not path.exists():
        raise InputError(f"no metrics file at {path}", hint="send a request first, or name another file with --file")
    for line in lines(path):
        if line.strip():
            yield read_line(line)


def read_line(line: bytes) -> Mapping[str, Any] | None:
    """Return the metric of a line; None if it is damaged."""
    try:
        found = json.loads(line)
        return found if isinstance(found, dict) and _well_formed(found) else None
    except (ValueError, RecursionError, OverflowError):  # UnicodeDecodeError is a ValueError
        return None


def _well_formed(found: Mapping[str, Any]) -> bool:
    return (
        all(isinstance(found.get(name), str) for name in _TEXTS)
        and all(_is_number(found.get(name)) for name in _NUMBERS)
        and isinstance(found.get("success"), bool)
        and isinstance(found.get("escalated"), bool)
        and _time(found["timestamp"]) is not None
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


# ---------------------------------------------------------------------------------------------------------- the numbers


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Exact percentiles by nearest rank: the smallest value that at least this share of the values does not exceed."""

    count: int
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles | None:
        """Compute the percentiles; None if there are no values.

        >>> Percentiles.of(range(1, 101))
        Percentiles(count=100, p50=50, p95=95, p99=99)
        """
        ordered = sorted(values)
        if not ordered:
            return None
        ranks = (ordered[(len(ordered) * percent + 99) // 100 - 1] for percent in (50, 95, 99))
        return cls(len(ordered), *ranks)


@dataclass(slots=True)
class RequestSums:
    """Sums over a group of requests; cost in dollars.

    Of ``unpriced`` requests the cost is not, or only partly, known, because the profile has no price for a model; of
    ``estimated`` ones, because a server reported no tokens or a call was broken off.
    """

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0
    estimated: int = 0

    def add(self, metric: Mapping[str, Any]) -> None:
        """Count one more request."""
        self.requests += 1
        self.errors += not metric["success"]
        self.prompt_tokens += metric["prompt_tokens"]
        self.completion_tokens += metric["completion_tokens"]
        self.cost += metric["cost"]
        self.unpriced += metric.get("cost_known") is False
        self.estimated += metric.get("estimated") is True

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; the cost is None if nothing of it is known."""
        return {**asdict(self), "cost": self.known_cost}

    @property
    def known_cost(self) -> float | None:
        """What is known of the cost; None if nothing is."""
        return None if self.unpriced and not self.cost else self.cost


@dataclass(slots=True)
class Summary:
    """Summary of the metrics of a period.

    ``fallbacks`` counts requests that ended at a later candidate of a tier, because calls failed; ``escalations`` those
    that ended in a later tier, because an answer was not accepted. Latencies are those of answered requests. A request's
    whole cost, including rejected tiers, counts for the model that answered.
    """

    total: RequestSums = field(default_factory=RequestSums)
    fallbacks: int = 0
    escalations: int = 0
    damaged_lines: int = 0
    first: datetime | None = None
    last: datetime | None = None
    by_model: dict[str, RequestSums] = field(default_factory=dict)
    by_strategy: dict[str, RequestSums] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    latencies: dict[str, array[float]] = field(default_factory=dict)
    overheads: array[float] = field(default_factory=lambda: array("d"))

    def rate(self, count: int) -> float | None:
        """Return ``count`` as a share of all requests; None if there are none."""
        return count / self.total.requests if self.total.requests else None

    def damage(self) -> None:
        """Count a damaged line."""
        self.damaged_lines += 1

    def add(self, metric: Mapping[str, Any], at: datetime) -> None:
        """Count one more request."""
        self.total.add(metric)
        self.fallbacks += metric["fallback_depth"] > 0
        self.escalations += metric["escalated"]
        self.first = at if self.first is None else min(self.first, at)
        self.last = at if self.last is None else max(self.last, at)
        self.by_strategy.setdefault(metric["strategy"], RequestSums()).add(metric)
        self.by_model.setdefault(metric["model_used"] or NO_ANSWER, RequestSums()).add(metric)
        self.overheads.append(metric["overhead_ms"])
        if metric["success"]:
            self.latencies.setdefault(metric["task_type"], array("d")).append(metric["latency_ms"])
        else:
            kind = str(metric.get("error"))
            self.errors[kind] = self.errors.get(kind, 0) + 1

    def latency(self) -> dict[str, Percentiles]:
        """Return latencies in milliseconds by task, the most frequent task first."""
        ordered = sorted(self.latencies.items(), key=lambda item: -len(item[1]))
        return {task: found for task, values in ordered if (found := Percentiles.of(values)) is not None}

    def overhead(self) -> Percentiles | None:
        """Return the time in milliseconds that requests took besides waiting for models."""
        return Percentiles.of(self.overheads)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers for JSON; rates are between 0 and 1, or None if there were no requests."""
        overhead = self.overhead()
        return {
            "requests": self.total.requests,
            "first": self.first.isoformat() if self.first else None,
            "last": self.last.isoformat() if self.last else None,
            "damaged_lines": self.damaged_lines,
            "fallback_rate": self.rate(self.fallbacks),
            "escalation_rate": self.rate(self.escalations),
            "error_rate": self.rate(self.total.errors),
            "errors": dict(sorted(self.errors.items(), key=lambda item: -item[1])),
            "latency_ms": {task: asdict(found) for task, found in self.latency().items()},
            "overhead_ms": asdict(overhead) if overhead else None,
            "prompt_tokens": self.total.prompt_tokens,
            "completion_tokens": self.total.completion_tokens,
            "cost": self.total.known_cost,
            "unpriced": self.total.unpriced,
            "estimated": self.total.estimated,
            "by_model": {name: tally.to_dict() for name, tally in _by_cost(self.by_model)},
            "by_strategy": {name: tally.to_dict() for name, tally in _by_cost(self.by_strategy)},
        }


def _by_cost(groups: Mapping[str, RequestSums]) -> list[tuple[str, RequestSums]]:
    return sorted(groups.items(), key=lambda item: (-item[1].cost, -item[1].requests))


def summarize(
    path: Path,
    *,
    since: timedelta | None = None,
    now: datetime | None = None,
    only: Callable[[Mapping[str, Any]], bool] = lambda metric: True,
) -> Summary:
    """Summarize the requests in a metrics file for which ``only`` is true, starting ``since`` before ``now`` (None: all).

    Raises `InputError`.
    """
    summary = Summary()
    for metric, at in metrics_since(path, since, now, damaged=summary.damage):
        if only(metric):
            summary.add(metric, at)
    return summary


_DISORDER = timedelta(minutes=10)
"""How much earlier a metric may be than one that stands before it: programs write to one file, and clocks are set."""


def summarize_today(path: Path, *, now: datetime | None = None) -> Summary:
    """Summarize the requests since midnight, local time, without reading the days before. Raises `InputError`.

    A file that does not exist has no requests.
    """
    moment = now or datetime.now().astimezone()
    start = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    summary = Summary()
    if not path.exists():
        return summary

    def is_before(line: bytes) -> bool | None:
        found = read_line(line)
        at = None if found is None else _time(found["timestamp"])
        return None if at is None else at < start - _DISORDER

    for line in lines_after(path, is_before):
        metric = read_line(line)
        at = None if metric is None else _time(metric["timestamp"])
        if metric is None or at is None:
            summary.damage()
        elif at >= start:
            summary.add(metric, at)
    return summary


def metrics_since(
    path: Path, since: timedelta | None, now: datetime | None = None, *, damaged: Callable[[], None] = lambda: None
) -> Iterator[tuple[Mapping[str, Any], datetime]]:
    """Yield the metrics since ``since`` before ``now`` with their times; ``damaged`` is called for each damaged line."""
    try:
        start = None if since is None else (now or datetime.now(UTC)) - since
    except OverflowError:
        start = None
    for metric in read_metrics(path):
        at = None if metric is None else _time(metric["timestamp"])
        if metric is None or at is None:
            damaged()
        elif start is None or at >= start:
            yield metric, at
