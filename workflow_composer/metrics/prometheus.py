"""Live metrics in Prometheus' text format, written by `prometheus_client`, which is imported at the first scrape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflow_composer.metrics.live import LABELS

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PREFIX = "workflow_composer_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = (
    ("requests", "requests", "Requests that ended, with or without an answer."),
    ("errors", "request_errors", "Requests that ended without an answer."),
    ("fallbacks", "fallbacks", "Requests answered by a fallback candidate of their tier, because calls failed."),
    ("escalations", "escalations", "Requests answered by a later tier, because an answer was not accepted."),
    ("unpriced", "requests_cost_unknown", "Requests whose cost is unknown, because the profile has no price for a model."),
    ("estimated", "requests_cost_estimated", "Requests whose tokens are estimated: not reported, or broken off."),
    ("cost", "cost_dollars", "Cost of requests in dollars, including failed attempts and rejected tiers."),
)
_REFUSED = "Calls in vain, because a model's server refused the service's key (401, 403), or the key is not set."
_STATES = {"closed": 0, "half-open": 1, "open": 2}


@dataclass(frozen=True, slots=True)
class Gauge:
    """A gauge: name without prefix, help, and a value for each set of labels."""

    name: str
    help: str
    values: Sequence[tuple[Mapping[str, str], float]]


def breaker_gauge(states: Mapping[str, str]) -> Gauge:
    """Return the gauge of every model's circuit breaker."""
    text = "0: closed, calls pass; 1: half-open, one call probes the model; 2: open, calls are suspended."
    return Gauge("breaker_state", text, [({"model": name}, _STATES.get(state, 2)) for name, state in states.items()])


def exposition(snapshot: Mapping[str, Any], gauges: Sequence[Gauge]) -> bytes:
    """Return the response to a scrape."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Collector:
        def collect(self) -> Iterator[Metric]:
            yield from _metrics(snapshot, gauges)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


def _metrics(snapshot: Mapping[str, Any], gauges: Sequence[Gauge]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    series = [(tuple(str(one[label]) for label in LABELS), one) for one in snapshot["series"]]
    for field, name, text in _COUNTERS:
        counter = CounterMetricFamily(PREFIX + name, text, labels=LABELS)
        for labels, one in series:
            counter.add_metric(labels, one.get(field, 0))
        yield counter
    tokens = CounterMetricFamily(PREFIX + "tokens", "Tokens of prompts and answers.", labels=(*LABELS, "kind"))
    for labels, one in series:
        tokens.add_metric((*labels, "prompt"), one["prompt_tokens"])
        tokens.add_metric((*labels, "completion"), one["completion_tokens"])
    yield tokens
    kinds = CounterMetricFamily(
        PREFIX + "errors_by_type", "Requests that ended without an answer, by error.", labels=("type",)
    )
    for kind, count in snapshot["errors"].items():
        kinds.add_metric((kind,), count)
    yield kinds
    faults = CounterMetricFamily(PREFIX + "errors_by_fault", "The same, by whose fault it is.", labels=("fault",))
    for fault, count in snapshot.get("faults", {}).items():
        faults.add_metric((fault,), count)
    yield faults
    refused = CounterMetricFamily(PREFIX + "refused_keys", _REFUSED, labels=("model",))
    for model, (count, _) in snapshot.get("refused_keys", {}).items():
        refused.add_metric((model,), count)
    yield refused
    for field, name, text in (
        ("latency", "request_duration_seconds", "Time from a request's arrival to its end."),
        ("overhead", "overhead_seconds", "Part of a request's duration not spent waiting for models."),
    ):
        histogram = HistogramMetricFamily(PREFIX + name, text, labels=LABELS)
        bounds = [f"{bound / 1000.0:g}" for bound in snapshot[f"{field}_bounds"]]
        for labels, one in series:
            histogram.add_metric(labels, _cumulative(bounds, one[field]), one[f"{field}_sum"] / 1000.0)
        yield histogram
    for gauge in gauges:
        names = tuple(gauge.values[0][0]) if gauge.values else ()
        family = GaugeMetricFamily(PREFIX + gauge.name, gauge.help, labels=names)
        for labelled, value in gauge.values:
            family.add_metric(tuple(labelled.values()), value)
        yield family


def _cumulative(bounds: Sequence[str], counts: Sequence[int]) -> list[tuple[str, float]]:
    total, found = 0, []
    for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
