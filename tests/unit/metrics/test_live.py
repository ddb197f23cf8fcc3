"""Counts since the service began: added up rightly, bounded, and the same however many workers have counted."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.metrics.examples import metric
from workflow_composer.metrics.live import (
    COUNTS,
    LABELS,
    MOST_SERIES,
    OTHER,
    RECENT,
    LiveMetrics,
    SharedMetrics,
    forget,
    merged,
    shown,
)

metrics = st.builds(
    metric,
    candidate=st.sampled_from("abc"),
    task_type=st.sampled_from("xy"),
    tier=st.integers(0, 2),
    fallback_depth=st.integers(0, 2),
    escalated=st.booleans(),
    success=st.booleans(),
    error=st.sampled_from([None, "CallTimeout", "ServerFailed"]),
    latency_ms=st.floats(0, 1e6),
    overhead_ms=st.floats(0, 1e3),
    prompt_tokens=st.integers(0, 9),
    cost=st.integers(0, 9).map(float),
)


def live(found, *, now=1000.0):
    """Live metrics that have counted these."""
    made = LiveMetrics(clock=lambda: now)
    for one in found:
        made.write(one)
    return made


def by_labels(snapshot):
    """Series by their labels; sums rounded, since they were added in another order."""
    rows = {}
    for one in snapshot["series"]:
        rows[tuple(one[name] for name in LABELS)] = {
            name: pytest.approx(value) if isinstance(value, float) else value for name, value in one.items()
        }
    return rows


@given(st.lists(metrics, max_size=12), st.lists(metrics, max_size=12), st.lists(metrics, max_size=12))
def test_several_workers_come_to_what_one_would_have_counted(one, two, three):
    alone = live([*one, *two, *three]).snapshot()
    together = merged([live(part).snapshot() for part in (one, two, three)])
    assert by_labels(together) == by_labels(alone)
    assert together["errors"] == alone["errors"]
    for span, buckets in alone["history"].items():
        assert [pytest.approx(bucket) for bucket in together["history"][span]] == buckets


@given(st.lists(metrics, max_size=20))
def test_every_request_is_in_one_bucket_of_each_histogram(found):
    for one in live(found).snapshot()["series"]:
        assert sum(one["latency"]) == sum(one["overhead"]) == one["requests"]
        assert all(one[name] >= 0 for name in COUNTS)


def test_a_latency_on_a_bound_belongs_below_it():
    """As Prometheus has it: ``le`` means less or equal."""
    (one,) = live([metric(latency_ms=5.0), metric(latency_ms=5.001)]).snapshot()["series"]
    assert one["latency"][:2] == [1, 1]


def test_merging_changes_none_of_its_parts():
    parts = [live([metric()]).snapshot() for _ in range(2)]
    before = json.dumps(parts)
    merged(parts)
    assert json.dumps(parts) == before


def test_nothing_at_all_can_be_merged():
    assert merged([])["series"] == []


def test_beyond_the_most_series_names_are_counted_as_other_and_no_request_is_lost():
    found = live(metric(task_type=f"t{n}", candidate=f"m{n}", tier=n % 40) for n in range(MOST_SERIES + 500)).snapshot()
    assert len(found["series"]) <= MOST_SERIES + 10
    assert sum(one["requests"] for one in found["series"]) == MOST_SERIES + 500
    assert sum(one["requests"] for one in found["series"] if one["task"] == OTHER) == 500


def test_of_recent_decisions_the_last_are_kept_without_prompts():
    found = live(metric(request_id=f"r{n}", prompt="secret") for n in range(RECENT + 5)).snapshot()["recent"]
    assert [found[0]["request_id"], found[-1]["request_id"]] == ["r5", f"r{RECENT + 4}"]
    assert "secret" not in json.dumps(found)
    assert "prompt" not in shown(metric(prompt="secret"))


def test_a_snapshot_is_not_changed_by_what_is_counted_later():
    counting = live([metric()])
    before = counting.snapshot()
    text = json.dumps(before)
    counting.write(metric())
    assert json.dumps(before) == text


def test_what_cannot_be_saved_leaves_the_file_of_before_and_hurts_nobody(tmp_path):
    shared = SharedMetrics(live([metric()]), tmp_path, 0)
    shared.save()
    before = (tmp_path / "metrics-0.json").read_bytes()
    (tmp_path / f"metrics-0.{os.getpid()}.new").mkdir()  # neither written nor removed as a file
    shared.save()
    assert (tmp_path / "metrics-0.json").read_bytes() == before
    assert shared.all()["series"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff"])
def test_a_file_that_is_none_is_left_out(tmp_path, content):
    (tmp_path / "metrics-1.json").write_bytes(content)
    shared = SharedMetrics(live([metric()]), tmp_path, 0)
    assert sum(one["requests"] for one in shared.all()["series"]) == 1
    assert SharedMetrics(live([]), tmp_path, 1).own()["series"] == []


def test_alone_there_are_no_files_and_forgetting_none_is_no_error(tmp_path):
    shared = SharedMetrics(live([metric()]))
    shared.save()
    assert shared.all() == shared.own()
    forget(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_counters_never_fall_when_a_worker_is_replaced_again_and_again(tmp_path):
    seen = []
    for _ in range(5):
        shared = SharedMetrics(live([metric()]), tmp_path, 0)
        shared.save()
        seen.append(sum(one["requests"] for one in shared.all()["series"]))
    assert seen == [1, 2, 3, 4, 5]


def test_tasks_that_the_profile_does_not_know_share_one_series_and_crowd_out_nothing():
    """A client may name any task; a model that is first used afterwards still has a series of its own."""
    found = LiveMetrics(tasks=lambda: {"known"})
    for number in range(MOST_SERIES + 100):
        found.write(metric(task_type=f"t{number}", candidate="m"))
    for task in ("known", "*"):
        found.write(metric(task_type=task, candidate="late"))
    series = {(one["task"], one["model"]): one["requests"] for one in found.snapshot()["series"]}
    assert series == {(OTHER, "m"): MOST_SERIES + 100, ("known", "late"): 1, ("*", "late"): 1}
