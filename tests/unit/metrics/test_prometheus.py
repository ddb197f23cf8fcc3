"""What a scrape gives."""

from __future__ import annotations

import pytest

from tests.unit.metrics.examples import metric
from workflow_composer.metrics.live import LiveMetrics, merged
from workflow_composer.metrics.prometheus import Gauge, breaker_gauge, exposition

parser = pytest.importorskip("prometheus_client.parser")


def scraped(snapshot, *gauges):
    """Samples by name; each a list of labels and value."""
    found = {}
    for family in parser.text_string_to_metric_families(exposition(snapshot, gauges).decode()):
        for sample in family.samples:
            found.setdefault(sample.name.removeprefix("workflow_composer_"), []).append((sample.labels, sample.value))
    return found


def live(*metrics):
    """Live metrics that have counted these."""
    found = LiveMetrics()
    for one in metrics:
        found.write(one)
    return found


def test_counts_are_by_strategy_router_task_model_and_tier():
    found = scraped(
        live(
            metric(candidate="small", cost=0.5, fallback_depth=1),
            metric(candidate="small", success=False, error="CallTimeout", fault="server"),
            metric(candidate="large", tier=1, escalated=True),
        ).snapshot()
    )
    by_model = {labels["model"]: value for labels, value in found["requests_total"]}
    assert by_model == {"small": 2, "large": 1}
    assert set(found["requests_total"][0][0]) == {"strategy", "router", "task", "model", "tier"}
    assert sum(value for _, value in found["request_errors_total"]) == 1
    assert sum(value for _, value in found["fallbacks_total"]) == 1
    assert sum(value for _, value in found["escalations_total"]) == 1
    assert ({"type": "CallTimeout"}, 1.0) in found["errors_by_type_total"]
    assert found["errors_by_fault_total"] == [({"fault": "server"}, 1.0)]


def test_histograms_are_cumulative_and_in_seconds():
    found = scraped(live(metric(latency_ms=7.0), metric(latency_ms=700.0)).snapshot())
    buckets = [(float(labels["le"]), value) for labels, value in found["request_duration_seconds_bucket"]]
    assert buckets == sorted(buckets)
    assert dict(buckets)[0.01] == 1
    assert buckets[-1] == (float("inf"), 2)
    assert found["request_duration_seconds_sum"][0][1] == pytest.approx(0.707)
    assert found["request_duration_seconds_count"][0][1] == 2


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\b", "ü", "{}"])
def test_any_name_survives(name):
    found = scraped(live(metric(candidate=name, task_type=name)).snapshot())
    assert found["requests_total"][0][0]["model"] == name


def test_names_from_outside_make_no_series_without_end():
    found = live(*(metric(task_type=f"t{number}") for number in range(3000)))
    assert len(scraped(found.snapshot())["requests_total"]) <= 1010


def test_several_workers_add_up():
    both = merged([live(metric()).snapshot(), live(metric(), metric()).snapshot()])
    assert scraped(both)["requests_total"][0][1] == 3


def test_refused_keys_are_counted_by_model_over_all_workers():
    refused = metric(candidate="large", attempts=2, refused_keys=("small",))
    both = merged([live(refused, metric()).snapshot(), live(refused, metric(refused_keys=["other"])).snapshot()])
    found = scraped(both)["refused_keys_total"]
    assert {labels["model"]: value for labels, value in found} == {"small": 2, "other": 1}
    old = {name: value for name, value in live(metric()).snapshot().items() if name != "refused_keys"}
    assert "refused_keys_total" not in scraped(merged([old, old]))  # a worker of an earlier version counts none


def test_gauges_tell_the_moment():
    states = breaker_gauge({"a": "closed", "b": "open", "c": "half-open"})
    found = scraped(live().snapshot(), states, Gauge("requests_in_flight", "x", [({}, 3)]))
    assert {labels["model"]: value for labels, value in found["breaker_state"]} == {"a": 0, "b": 2, "c": 1}
    assert found["requests_in_flight"] == [({}, 3.0)]
