"""What the dashboard shows, from live metrics and from a file."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.metrics.examples import metric
from workflow_composer.metrics.figures import figures, percentile, snapshot_of_file
from workflow_composer.metrics.live import LATENCY_BOUNDS, RECENT, SPANS, LiveMetrics, merged
from workflow_composer.metrics.page import page, policy

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def live(*metrics):
    """Live metrics that have counted these, all at one time."""
    found = LiveMetrics(clock=NOW.timestamp)
    for one in metrics:
        found.write(one)
    return found


def test_totals_shares_and_failures_are_those_of_the_requests():
    found = figures(
        live(
            metric(candidate="small", cost=1.0, latency_ms=7.0),
            metric(candidate="small", cost=2.0, success=False, error="CallTimeout"),
            metric(candidate="large", cost=4.0, tier=1, escalated=True, strongest_cost=8.0, fallback_depth=1),
        ).snapshot()
    )
    total = found["total"]
    assert (total["requests"], total["errors"], total["escalations"], total["fallbacks"]) == (3, 1, 1, 1)
    assert total["cost"] == 7.0
    assert (total["compared_cost"], total["strongest_cost"]) == (4.0, 8.0)  # the others had no tier to compare with
    assert [(one["name"], one["requests"], one["cost"]) for one in found["models"]] == [("small", 2, 3.0), ("large", 1, 4.0)]
    assert [(one["tier"], one["requests"], one["models"]) for one in found["tiers"]] == [
        (0, 2, ["small"]),
        (1, 1, ["large"]),
    ]
    assert found["errors"] == {"CallTimeout": 1}
    assert found["rate_now"] == 3


def test_a_tier_names_the_models_that_answered_in_it_the_busiest_first():
    """A request that nobody could be asked for names none."""
    made = [metric(candidate=name) for name in ("b", "a", "a", "")]
    (tier,) = figures(live(*made, metric(candidate="c", task_type="t")).snapshot())["tiers"]
    assert (tier["models"][0], sorted(tier["models"])) == ("a", ["a", "b", "c"])


def test_before_the_first_request_there_are_no_percentiles():
    found = figures(live().snapshot())
    assert found["latency"] == {"p50": None, "p95": None, "p99": None}
    assert found["models"] == []
    assert found["total"]["requests"] == 0


@given(st.lists(st.floats(0.001, 290_000), min_size=2, max_size=200))
def test_a_percentile_lies_in_the_bucket_of_the_exact_one(latencies):
    """It is as exact as the histogram."""
    counts = live(*(metric(latency_ms=value) for value in latencies)).snapshot()["series"][0]["latency"]
    found = percentile(LATENCY_BOUNDS, counts, 0.5)
    edges = [0.0, *LATENCY_BOUNDS]
    ordered = sorted(latencies)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    assert found is not None
    assert any(a <= found <= b and (a <= low <= b or a <= high <= b) for a, b in pairwise(edges))


def test_several_workers_are_shown_as_one():
    one, two = live(metric(candidate="a"), metric(candidate="b")), live(metric(candidate="a", success=False, error="X"))
    found = figures(merged([one.snapshot(), two.snapshot()]))
    assert found["total"]["requests"] == 3
    assert {m["name"]: m["requests"] for m in found["models"]} == {"a": 2, "b": 1}
    assert [sum(map(sum, slots)) for slots in found["course"].values()] == [3, 3, 3]


def test_the_course_of_time_is_of_the_same_length_however_much_happened():
    """The bars of an hour, a day and ninety days; what is older than a chart is not on it."""
    moment = NOW.timestamp()
    found = LiveMetrics(clock=lambda: moment)
    for hours in (100, 30, 2, 0):
        moment = NOW.timestamp() - hours * 3600
        found.write(metric(success=hours != 2, error=None if hours != 2 else "X"))
    courses = figures(found.snapshot())["course"]
    assert {name: len(slots) for name, slots in courses.items()} == {"hour": 72, "day": 72, "90 days": 72}
    assert {name: [sum(column) for column in zip(*slots, strict=True)] for name, slots in courses.items()} == {
        "hour": [1, 0],
        "day": [1, 1],
        "90 days": [3, 1],
    }
    assert courses["day"][-1] == [1, 0]
    assert courses["day"][66] == [0, 1]  # 22 of 24 hours


def test_what_is_kept_is_bounded_however_long_it_runs():
    moment = NOW.timestamp()
    found = LiveMetrics(clock=lambda: moment)
    for number in range(5000):
        moment += 7.0
        found.write(metric(candidate=f"m{number}", task_type=f"t{number}"))
    snapshot = found.snapshot()
    assert len(snapshot["recent"]) == RECENT
    assert len(snapshot["series"]) < 1100
    assert all(len(snapshot["history"][str(span)]) <= count for span, count in SPANS)
    assert sum(one["requests"] for one in snapshot["series"]) == 5000


def test_a_file_gives_what_the_service_would_have_shown(tmp_path):
    """The times are those of the file; damaged lines and fields of another version are passed over."""
    path = tmp_path / "m.jsonl"
    lines = [metric(timestamp=(NOW - timedelta(hours=hours)).isoformat(), reason="why") for hours in (30, 2, 1)]
    old = json.loads(lines[0].to_json())
    for name in ("request_id", "router", "attempts"):
        old.pop(name)
    path.write_bytes(json.dumps({**old, "colour": 3}).encode() + b'\n{"half": \n' + lines[1].to_json() + lines[2].to_json())
    whole = figures(snapshot_of_file(path))
    assert whole["total"]["requests"] == 3
    assert whole["since"] == (NOW - timedelta(hours=30)).timestamp()
    assert whole["until"] == (NOW - timedelta(hours=1)).timestamp()
    assert whole["recent"][-1]["reason"] == "why"
    day = figures(snapshot_of_file(path, since=timedelta(hours=24), now=NOW))
    assert day["total"]["requests"] == 2


def test_recent_decisions_hold_no_prompt():
    found = figures(live(metric(prompt="secret", reason="why", decision={"plan": "a"})).snapshot())
    assert "secret" not in json.dumps(found)
    assert found["recent"][0]["decision"] == {"plan": "a"}


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<!--<script>", "&lt;"])
def test_no_name_can_end_the_block_of_data(name):
    """What is embedded in the page reads back as it was, and holds no tag."""
    text = page({"live": False, "title": name})
    embedded = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert "<" not in embedded
    assert json.loads(embedded)["title"] == name


def test_the_page_allows_nothing_but_its_own_style_and_script():
    """Its policy names both by digest; there is no address of another host in it."""
    assert "unsafe" not in policy()
    assert "http" not in policy()
    assert policy() in page({})
    assert "https://" not in page().replace("http://www.w3.org/2000/svg", "")
