"""The line that is written about a request."""

from __future__ import annotations

import json
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.metrics.examples import metric


def test_a_line_holds_every_field_under_its_own_name():
    """Someone who reads the file finds the fields of the class, whatever else changes."""
    written = metric(
        success=False,
        error="CallTimeout",
        escalated=True,
        tier=1,
        prompt="Why?",
        alarm="9 of 20 were wrong",
        context="a@1#0",
        strongest_cost=0.25,
        reason="task x is routed to y",
        decision={"plan": "y"},
        cost_known=False,
        estimated=True,
        fault="server",
        refused_keys=["small"],
    )

    assert json.loads(written.to_json()) == asdict(written)


def test_what_is_known_of_the_cost_is_the_rule_and_needs_no_field():
    """Lines that were written before read the same."""
    assert not {"cost_known", "estimated", "fault", "refused_keys"} & set(json.loads(metric().to_json()))


def test_the_whole_decision_is_absent_unless_debugging_is_on():
    """Its texts may hold anything that a server has said."""
    assert "decision" not in json.loads(metric().to_json())
    told = {"plan": "a -> b", "attempts": ['a: ServerFailed in 3 ms: said "no"\n\ud800']}
    assert json.loads(metric(decision=told).to_json())["decision"] == told


def test_the_prompt_is_absent_unless_given():
    """What was asked must not lie about in files that nobody thinks of."""
    assert "prompt" not in json.loads(metric().to_json())


def test_the_alarm_is_absent_unless_there_is_one():
    """Whoever watches the metrics looks for the key."""
    assert "alarm" not in json.loads(metric().to_json())
    assert json.loads(metric(alarm='9 of 20 "right"').to_json())["alarm"] == '9 of 20 "right"'


def test_the_context_is_absent_unless_there_is_one():
    """Most requests have none."""
    assert "context" not in json.loads(metric().to_json())


def test_times_are_rounded_to_microseconds_and_costs_are_not():
    """A cost may be a millionth of a cent; a latency of fifteen digits is noise."""
    line = json.loads(metric(latency_ms=1.23456789, cost=1.23456789e-9).to_json())

    assert line["latency_ms"] == 1.235
    assert line["cost"] == 1.23456789e-9


@given(st.text(), st.text(), st.floats(0, 1e6))
def test_any_text_survives(name, prompt, cost):
    """Quotes, line ends, lone surrogates: one line of JSON, and the same text when it is read."""
    line = metric(candidate=name, prompt=prompt, cost=cost).to_json()

    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    found = json.loads(line)
    assert (found["candidate"], found["prompt"], found["cost"]) == (name, prompt, cost)
