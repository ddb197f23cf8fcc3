"""Choosing requests from a metrics file, and explaining one."""

from __future__ import annotations

import json

import pytest

from tests.unit.metrics.examples import metric
from workflow_composer.errors import InputError
from workflow_composer.metrics.selecting import RequestFilter, explained, found_request
from workflow_composer.metrics.summary import read_line, summarize

LINES = [
    metric(request_id="req-aa1", task_type="code", candidate="small", model_used="qwen"),
    metric(request_id="req-aa2", task_type="code", candidate="large", success=False, error="CallTimeout", fault="server"),
    metric(request_id="req-bb1", task_type="math", candidate="large", success=False, error="BadRequest", fault="caller"),
]


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "m.jsonl"
    place.write_bytes(b"".join(line.to_json() for line in LINES) + b'{"half')
    return place


@pytest.mark.parametrize(
    ("selection", "requests"),
    [
        (RequestFilter(), 3),
        (RequestFilter(task="code"), 2),
        (RequestFilter(model="large"), 2),
        (RequestFilter(model="qwen"), 1),
        (RequestFilter(error="any"), 2),
        (RequestFilter(error="CallTimeout"), 1),
        (RequestFilter(error="caller"), 1),
        (RequestFilter(task="code", error="caller"), 0),
        (RequestFilter(owns=lambda identity: identity.startswith("req-aa")), 2),
    ],
)
def test_a_summary_counts_the_chosen_requests_only(path, selection, requests):
    found = summarize(path, only=selection)
    assert found.total.requests == requests
    assert found.damaged_lines == 1


@pytest.mark.parametrize(
    "asked", ["req-bb1", " req-bb1\n", "req-b", "chatcmpl-req-bb1", "cmpl-req-bb1", "msg_req-bb1", "resp_req-bb1"]
)
def test_a_request_is_found_by_what_a_person_has_of_its_id(path, asked):
    (found,) = found_request(path, asked)
    assert found["task_type"] == "math"


def test_the_whole_id_wins_over_one_that_it_begins(path):
    with path.open("ab") as file:
        file.write(b"\n" + metric(request_id="req-aa11").to_json())
    assert [one["request_id"] for one in found_request(path, "req-aa1")] == ["req-aa1"]


def test_a_request_with_several_lines_has_them_all(path):
    with path.open("ab") as file:
        file.write(b"\n" + metric(request_id="req-bb1", task_type="again").to_json())
    assert [one["task_type"] for one in found_request(path, "req-bb1")] == ["math", "again"]


@pytest.mark.parametrize(("asked", "told"), [("req-a", "req-aa1, req-aa2"), ("req-zz", "2026-03-01 12:00"), ("", "header")])
def test_what_is_not_there_or_not_one_is_an_error_with_a_way_on(path, asked, told):
    with pytest.raises(InputError) as raised:
        found_request(path, asked)
    assert told in raised.value.hint


def test_the_last_request_needs_no_id(path, tmp_path):
    path.write_bytes(path.read_bytes().replace(b'{"half', b""))
    assert [one["request_id"] for one in found_request(path, "last")] == ["req-bb1"]
    for damaged in (b"", b"{"):
        (tmp_path / "other.jsonl").write_bytes(damaged)
        with pytest.raises(InputError, match="the last line"):
            found_request(tmp_path / "other.jsonl", "last")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no metrics file"):
        found_request(tmp_path / "none.jsonl", "req-1")


DECISION = {
    "plan": "a -> b",
    "left_out": ["c: its key is not set (C_KEY)"],
    "attempts": ["a: ServerFailed in 3 ms: no GPU", "b: CallTimeout in 9 ms"],
    "tiers": ["low: no answer: every candidate failed"],
    "notes": ["k was lowered"],
    "error": "AllCandidatesFailed: no model answered",
}


def test_an_explanation_has_everything_but_the_prompt():
    line = metric(
        decision=DECISION, prompt="my secret", success=False, error="AllCandidatesFailed", fault="server", reason="why"
    )
    rows = explained(read_line(line.to_json()))
    text = json.dumps(rows)
    assert [
        part for part in ("a -> b", "C_KEY", "no GPU", "k was lowered", "every candidate failed", "why") if part not in text
    ] == []
    assert [title for title, _ in rows if title == "attempt"] == ["attempt", "attempt"]
    assert "my secret" not in text
    assert "debug_routing" not in text


def test_without_debugging_it_says_how_more_is_kept_and_explains_old_lines():
    """A line of an earlier version has fewer fields."""
    old = json.loads(metric().to_json())
    for name in ("request_id", "router", "attempts", "tier"):
        del old[name]
    text = json.dumps(explained(read_line(json.dumps(old).encode())))
    assert "debug_routing" in text
    assert "answered by small" in text


def test_an_unknown_cost_is_not_nothing():
    assert ("cost", "unknown, 10 prompt and 5 completion tokens") in explained(
        read_line(metric(cost=0.0, cost_known=False).to_json())
    )
    assert "(estimated)" in json.dumps(explained(read_line(metric(estimated=True).to_json())))
