"""Reading metrics back: every figure by a case small enough to count by hand."""

from __future__ import annotations

import doctest
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.metrics.examples import NOON, metric
from workflow_composer.errors import InputError
from workflow_composer.metrics import summary as module
from workflow_composer.metrics.summary import Percentiles, parse_duration, summarize, summarize_today


@pytest.fixture
def file_of(tmp_path):
    """Writes metrics and raw lines to a file."""

    def write(*lines):
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b"".join(line if isinstance(line, bytes) else line.to_json() for line in lines))
        return path

    return write


def at(**ago):
    """A metric's timestamp so long before noon."""
    return (NOON - timedelta(**ago)).isoformat(timespec="milliseconds")


def test_examples_in_the_docstrings_run():
    """What the documentation shows is true."""
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("30m", {"minutes": 30}),
        ("24h", {"hours": 24}),
        ("7d", {"days": 7}),
        ("2w", {"weeks": 2}),
        (" 1.5H ", {"hours": 1.5}),
    ],
)
def test_lengths_of_time(text, meant):
    """The forms that people write."""
    assert parse_duration(text) == timedelta(**meant)


@pytest.mark.parametrize("text", ["", "24", "h", "-3h", "24 hours ago", "9" * 30 + "d"])
def test_what_is_no_length_of_time_is_refused(text):
    """A wrong unit must not silently mean another period."""
    with pytest.raises(InputError) as caught:
        parse_duration(text)
    assert caught.value.hint


def test_rates_count_fallback_escalation_and_errors_apart(file_of):
    """Three different things that can happen to a request, alone or together."""
    path = file_of(
        metric(),
        metric(fallback_depth=2),
        metric(tier=1, escalated=True, fallback_depth=1),
        metric(success=False, error="AllCandidatesFailed"),
    )
    found = summarize(path).to_dict()

    assert (found["fallback_rate"], found["escalation_rate"], found["error_rate"]) == (0.5, 0.25, 0.25)
    assert found["errors"] == {"AllCandidatesFailed": 1}


def test_latencies_are_given_by_task_and_of_answered_requests_only(file_of):
    """A request that fails at once would make its task look fast."""
    path = file_of(
        *(metric(task_type="code", latency_ms=float(ms)) for ms in range(1, 201)),
        metric(task_type="math", latency_ms=7.0),
        metric(task_type="math", latency_ms=0.1, success=False, error="RoutingError"),
    )
    found = summarize(path).to_dict()["latency_ms"]

    assert found == {
        "code": {"count": 200, "p50": 100.0, "p95": 190.0, "p99": 198.0},
        "math": {"count": 1, "p50": 7.0, "p95": 7.0, "p99": 7.0},
    }
    assert list(found) == ["code", "math"]


def test_overhead_is_of_all_requests(file_of):
    """What the orchestrator itself cost in time."""
    path = file_of(metric(overhead_ms=1.0), metric(overhead_ms=3.0, success=False, error="CallTimeout"))

    assert summarize(path).to_dict()["overhead_ms"] == {"count": 2, "p50": 1.0, "p95": 3.0, "p99": 3.0}


def test_tokens_and_costs_are_added_up_in_total_by_model_and_by_strategy(file_of):
    """Failed requests cost money, too, though no model answered."""
    path = file_of(
        metric(model_used="small", cost=0.25, prompt_tokens=1, completion_tokens=2),
        metric(model_used="large", cost=1.5, strategy="other", prompt_tokens=10, completion_tokens=20),
        metric(model_used="", cost=0.5, success=False, error="CallTimeout", prompt_tokens=100, completion_tokens=0),
    )
    found = summarize(path).to_dict()

    assert (found["cost"], found["prompt_tokens"], found["completion_tokens"]) == (2.25, 111, 22)
    assert {name: tally["cost"] for name, tally in found["by_model"].items()} == {
        "large": 1.5,
        "(no answer)": 0.5,
        "small": 0.25,
    }
    assert found["by_strategy"]["mine"] == {
        "requests": 2,
        "errors": 1,
        "prompt_tokens": 101,
        "completion_tokens": 2,
        "cost": 0.75,
        "unpriced": 0,
        "estimated": 0,
    }
    assert found["by_strategy"]["other"]["requests"] == 1


def test_a_cost_of_which_nothing_is_known_is_no_zero(file_of):
    """Of some requests there is no price; what is known of the others remains."""
    free, priced = metric(model_used="free", cost=0.0, cost_known=False), metric(model_used="paid", cost=0.5, estimated=True)
    found = summarize(file_of(free, priced)).to_dict()
    assert (found["cost"], found["unpriced"], found["estimated"]) == (0.5, 1, 1)
    assert {name: tally["cost"] for name, tally in found["by_model"].items()} == {"paid": 0.5, "free": None}
    assert summarize(file_of(free)).to_dict()["cost"] is None


def test_since_leaves_out_what_is_older(file_of):
    """The edge belongs to the period; a timestamp of another zone, or of none (UTC), is understood."""
    path = file_of(
        metric(timestamp=at(hours=25)),
        metric(timestamp=at(hours=24)),
        metric(timestamp="2026-03-01T13:30:00+02:00"),
        metric(timestamp="2026-03-01T11:45:00"),
    )

    assert summarize(path, since=timedelta(hours=24), now=NOON).total.requests == 3
    assert summarize(path, since=timedelta(minutes=20), now=NOON).total.requests == 1
    assert summarize(path, since=timedelta(days=99999999)).total.requests == 4
    assert summarize(path).total.requests == 4


@pytest.mark.parametrize(
    "damage",
    [
        b'{"timestamp": "2026-03-01T11:45',
        b"\xff\xfe\x00 not text\n",
        b"[1, 2]\n",
        b"12\n",
        b'{"timestamp": "2026-03-01T11:45:00"}\n',
        b"[" * 100_000 + b"\n",
        metric(timestamp="yesterday").to_json(),
        metric(cost=float("inf")).to_json(),
        metric().to_json().replace(b'"prompt_tokens":10', b'"prompt_tokens":"10"'),
        metric().to_json().replace(b'"prompt_tokens":10', b'"prompt_tokens":1' + b"0" * 400),
        metric().to_json().replace(b'"success":true', b'"success":1'),
    ],
)
def test_damaged_lines_are_counted_and_spoil_nothing(file_of, damage):
    """Half a line, bytes that are no text, a JSON value that is no metric."""
    path = file_of(metric(), b"\n", metric(), damage)
    found = summarize(path)

    assert (found.total.requests, found.damaged_lines) == (2, 1)
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_empty_file_is_a_summary_of_nothing(file_of):
    """Rates of nothing are unknown, not zero."""
    found = summarize(file_of()).to_dict()

    assert found["requests"] == 0
    assert found["error_rate"] is None
    assert found["overhead_ms"] is None


def test_a_missing_file_says_what_to_do(tmp_path):
    """The first question of someone who has not sent a request yet."""
    with pytest.raises(InputError, match="no metrics file at") as caught:
        summarize(tmp_path / "none.jsonl")
    assert "--file" in caught.value.hint


def test_a_directory_is_no_metrics_file(tmp_path):
    """The error is the system's own, in words."""
    with pytest.raises(InputError, match="Is a directory"):
        summarize(tmp_path)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_by_nearest_rank(values):
    """Each is a value that occurred, reached by its share of the values and not by more than needed."""
    found = Percentiles.of(values)
    for percent, value in ((50, found.p50), (95, found.p95), (99, found.p99)):
        assert value in values
        assert sum(v <= value for v in values) * 100 >= percent * len(values)
        assert sum(v < value for v in values) * 100 < percent * len(values)


def test_today_begins_at_midnight_of_the_own_clock(file_of):
    """Lines of yesterday, damaged ones, and those that were written out of order by minutes."""
    east = timezone(timedelta(hours=9))
    now = datetime(2026, 3, 2, 15, 0, tzinfo=east)

    def when(*hours_and_minutes):
        return datetime(2026, 3, *hours_and_minutes, tzinfo=east).astimezone(UTC).isoformat(timespec="milliseconds")

    days = [metric(timestamp=when(1, hour, 0), cost=8.0) for hour in range(24)]
    late = [metric(timestamp=when(2, 0, 1), cost=0.5), metric(timestamp=when(1, 23, 59), cost=8.0)]
    path = file_of(*days, *late, b"half a li\n", metric(timestamp=when(2, 14, 0), cost=0.25, success=False))
    found = summarize_today(path, now=now)

    assert (found.total.requests, found.total.errors, found.total.cost, found.damaged_lines) == (2, 1, 0.75, 1)
    assert summarize_today(path.with_name("none"), now=now).total.requests == 0
