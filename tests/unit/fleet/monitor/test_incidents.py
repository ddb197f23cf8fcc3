"""The state machine of incidents: what is told, and when a server is started again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_composer.fleet.monitor.incidents import SETTLE, WINDOW, Memory, RestartRules, advance, next_restart

RULES = RestartRules(restarts=3, backoff=10.0)
ROUND = 300.0

sightings = st.lists(
    st.tuples(st.sampled_from(["up", "overloaded", "down", "waiting", "unwanted"]), st.floats(0.1, 4000.0)), max_size=80
)
rules = st.builds(RestartRules, restarts=st.integers(0, 6), backoff=st.floats(0.1, 1000.0))


class Story:
    """Steps one after the other, with everything that was told and done."""

    def __init__(self, rules=RULES):
        self.memory, self.rules, self.now = Memory(), rules, 1e9
        self.told, self.restarts, self.steps = [], [], []

    def see(self, *seen, after=ROUND, ours=True):
        for one in seen:
            self.now += after
            step = advance(self.memory, one, f"reason {one}", self.now, self.rules, ours=ours)
            self.memory = step.memory
            self.told += step.tell
            self.restarts += [self.now] if step.restart else []
            self.steps.append(step)
        return self


def test_a_failure_is_told_once_restarted_and_its_end_told_once():
    story = Story().see("up", "down", "down", "waiting", "up", "up", "up")
    assert story.told == ["down", "recovered"]
    assert len(story.restarts) == 2
    assert story.memory.phase == "healthy"


def test_what_is_well_is_left_alone():
    assert Story().see("up", "waiting", "up", "unwanted").told == []


def test_what_was_stopped_on_purpose_is_neither_told_nor_started():
    story = Story().see("unwanted", "unwanted")
    assert (story.told, story.restarts) == ([], [])


def test_an_incident_whose_server_is_stopped_on_purpose_ends():
    assert Story().see("down", "unwanted", "unwanted").told == ["down", "ended"]


def test_a_server_that_still_starts_is_not_started_again():
    story = Story().see("down", "waiting", "waiting", "waiting")
    assert len(story.restarts) == 1


def test_pauses_double_and_the_cap_asks_for_a_person_once():
    story = Story(RestartRules(restarts=3, backoff=100.0)).see(*["down"] * 40, after=30.0)
    gaps = [later - earlier for earlier, later in zip(story.restarts, story.restarts[1:], strict=False)]
    assert [round(gap) for gap in gaps] == [120, 210]
    assert story.told == ["down", "person"]
    assert story.steps[-1].why_not == "restarted 3 times within 6 hours: manual action required"


def test_after_six_hours_it_is_tried_again_and_no_second_person_is_asked():
    story = Story().see(*["down"] * 200)
    assert story.told == ["down", "person"]
    assert len(story.restarts) > 3
    for begin in story.restarts:
        assert len([at for at in story.restarts if begin <= at < begin + WINDOW]) <= 3


def test_with_no_restarts_allowed_a_person_is_asked_at_once():
    story = Story(RestartRules(restarts=0)).see("down", "down")
    assert (story.told, story.restarts) == (["down", "person"], [])


def test_what_is_not_the_monitors_is_told_of_and_not_started():
    story = Story().see("down", "down", ours=False)
    assert (story.told, story.restarts) == (["down"], [])


def test_overload_is_told_and_never_restarted():
    story = Story().see("overloaded", "overloaded", "up", "up")
    assert (story.told, story.restarts) == (["overloaded", "recovered"], [])


def test_overload_that_becomes_a_failure_is_one_incident():
    assert Story().see("overloaded", "down", "overloaded", "up").told == ["overloaded", "down", "recovered"]


def test_a_server_that_flaps_is_told_of_less_and_less():
    """Up and down every five minutes for a day: two messages an incident, and incidents last longer and longer."""
    story = Story(RestartRules(restarts=1000, backoff=0.1)).see(*["down", "up"] * 144)
    assert story.told[:3] == ["down", "recovered", "down"]
    assert len(story.told) <= 4


def test_the_second_incident_ends_when_it_has_been_well_for_a_while():
    story = Story().see("down", "up", "down", "up")
    assert story.told == ["down", "recovered", "down"]
    story.see("up", after=SETTLE)
    assert story.told[-1] == "recovered"


def test_a_clock_that_was_set_back_ends_nothing():
    step = advance(Memory(phase="down", since=1000.0, told=("down",), restarts=(1000.0,)), "down", "", 1.0, RULES)
    assert not step.restart
    assert step.tell == ()


@settings(max_examples=400, deadline=None)
@given(sightings, rules)
def test_alerts_and_ends_take_turns_whatever_happens(seen, rules):
    """Of one incident each kind is told once at most, the first is no end, and an end is told only of what was told."""
    story = Story(rules)
    for one, after in seen:
        story.see(one, after=after)
    incident = []
    for kind in story.told:
        if kind in ("recovered", "ended"):
            assert incident, "an end without a beginning"
            incident = []
        else:
            assert kind not in incident
            incident.append(kind)
    assert bool(incident) == (story.memory.phase != "healthy")


@settings(max_examples=400, deadline=None)
@given(sightings, rules)
def test_restarts_keep_to_cap_and_backoff_whatever_happens(seen, rules):
    story = Story(rules)
    for one, after in seen:
        before = story.memory
        story.see(one, after=after)
        if story.steps[-1].restart:
            assert one == "down"
            recent = [at for at in before.restarts if story.now - at < WINDOW]
            assert len(recent) < rules.restarts
            assert not recent or story.now >= next_restart(Memory(restarts=tuple(recent)), rules)
        elif one == "down":
            assert story.steps[-1].why_not


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["up", "down"]), st.floats(1.0, 700.0)), min_size=20, max_size=200))
def test_a_mailbox_gets_at_most_ten_incidents_a_day(seen):
    """However a server comes and goes: two at once, then pauses of ten, twenty and forty minutes, then hours."""
    story = Story(RestartRules(restarts=10_000, backoff=0.1))
    begun = story.now
    for one, after in seen:
        story.see(one, after=after)
    days = 1 + (story.now - begun) / 86400
    assert story.told.count("down") <= 10 * days


@given(st.integers(0, 200))
def test_the_backoff_never_overflows(count):
    assert next_restart(Memory(restarts=(0.0,) * count), RestartRules(backoff=86400.0)) < 1e12


@pytest.mark.parametrize("seen", ["up", "overloaded", "down", "waiting", "unwanted"])
def test_a_step_changes_nothing_that_is_not_in_its_memory(seen):
    """It is pure: the same twice gives the same."""
    memory = Memory(phase="down", since=1.0, told=("down",), restarts=(1.0,), incidents=(1.0,))
    assert advance(memory, seen, "r", 50.0, RULES) == advance(memory, seen, "r", 50.0, RULES)
