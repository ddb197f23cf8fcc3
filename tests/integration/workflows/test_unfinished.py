"""A question that takes several calls, and a run that is killed within it: what has come is not asked for again."""

from __future__ import annotations

import json

import pytest

from tests.integration.workflows.kit import DONE, killed, rows_of
from tests.integration.workflows.scripted import Said

AT_ONCE = [{"cascade": {"stopping": "decided", "draw": "at_once"}}, "cascading_provider"]
VOTES = """
    workflow: votes
    inputs: {t: text}
    steps:
      a:
        model: mv_cascade_small_k5_t0.7
        prompt: "vote {{ t }}"
        answer: ["x", "z"]
    output: {a: "{{ a }}", tries: "{{ a._attempts }}", cost: "{{ a._cost }}"}
"""


def replies(desk):
    """The entries of the journal that hold what a question has got before its answer."""
    lines = desk.journal().read_text("utf-8").splitlines()[1:]
    return [entry for line in lines if (entry := json.loads(line))["kind"] == "reply"]


@pytest.fixture
def votes(desk):
    desk.profile(routers=AT_ONCE)
    desk.table(rows_of(1))
    desk.file(VOTES)
    return desk


def wait_for_replies(desk, count, process):
    desk.wait_until_kept([f'~{number}"' for number in range(1, count + 1)], count, process)


def test_votes_that_have_come_count_and_only_the_others_are_drawn(votes):
    answers = iter(["x", Said(hang=True), "z", Said(hang=True), "x"])
    votes.small.says("vote", lambda call: next(answers))
    process = votes.running()
    wait_for_replies(votes, 3, process)
    killed(process)
    assert sorted(entry["sample"]["text"] for entry in replies(votes)) == ["x", "x", "z"]
    votes.reset()
    votes.small.forget().says("vote", "z")
    ran = votes.run().ended(DONE)
    assert votes.small.draws("vote") == 2
    assert ran.rows[0]["a"] == "z", "two of five were z before, two are now"
    assert ran.rows[0]["tries"] == 5
    assert ran.rows[0]["cost"] == pytest.approx(5 * 1e-6)
    assert ran.summary["cost"] == pytest.approx(5 * 1e-6)
    assert ran.summary["cost_now"] == pytest.approx(2 * 1e-6)
    assert ran.summary["calls"] == 2
    votes.reset()
    again = votes.run().ended(DONE)
    assert votes.calls == 0
    assert again.output.read_bytes() == ran.output.read_bytes()
    assert again.summary["cost"] == pytest.approx(5 * 1e-6)


def test_votes_of_an_answered_question_are_not_used_when_it_is_asked_anew(votes):
    votes.small.says("vote", "x")
    votes.run().ended(DONE)
    votes.reset()
    votes.small.forget().says("vote", "z")
    ran = votes.run("--redo", "a").ended(DONE)
    assert (votes.small.draws("vote"), ran.rows[0]["a"]) == (5, "z")


def test_votes_of_another_question_are_no_votes_of_this_one(votes):
    votes.small.says("vote", "x", "x", Said(hang=True))
    process = votes.running()
    wait_for_replies(votes, 2, process)
    killed(process)
    votes.reset()
    votes.edit("vote {{ t }}", "vote now {{ t }}")
    votes.small.forget().says("vote", "z")
    ran = votes.run().ended(DONE)
    assert (votes.small.draws("vote"), ran.rows[0]["a"]) == (5, "z")


def test_the_votes_of_a_lower_tier_are_kept_while_a_higher_one_is_asked(votes):
    votes.edit("mv_cascade_small_k5_t0.7", "mv_cascade_small_k3_t0.7_large_k1_t0.0")
    votes.small.says("vote", "x", "z", "no vote")
    votes.large.says("vote", Said(hang=True))
    process = votes.running()
    votes.large.wait_for(1)
    killed(process)
    small = votes.small.count()
    votes.reset()
    votes.large.forget().says("vote", "z")
    ran = votes.run().ended(DONE)
    assert (votes.small.count(), votes.large.count()) == (0, 1)
    assert (ran.rows[0]["a"], ran.rows[0]["tries"]) == ("z", small + 1)


def test_a_refused_reply_is_not_asked_for_again_while_the_next_one_is_under_way(desk):
    desk.table(rows_of(1))
    desk.file("""
        workflow: one
        inputs: {t: text}
        steps:
          a: {prompt: "kind {{ t }}", answer: [case, trial], retries: 2}
        output: {a: "{{ a }}", tries: "{{ a._attempts }}"}
    """)
    desk.small.says("kind", "perhaps", "who knows", Said(hang=True))
    process = desk.running()
    desk.small.wait_for(3)
    killed(process)
    third = desk.small.calls[2].text
    desk.reset()
    desk.small.forget().says("kind", "case")
    ran = desk.run().ended(DONE)
    assert [call.text for call in desk.small.calls] == [third]
    assert (ran.rows[0]["a"], ran.rows[0]["tries"]) == ("case", 3)


def test_refused_replies_do_not_refuse_a_question_that_is_tried_again(desk):
    desk.table(rows_of(1))
    desk.file("""
        workflow: one
        inputs: {t: text}
        steps:
          a: {prompt: "kind {{ t }}", answer: [case, trial], retries: 1}
        output: {a: "{{ a }}"}
    """)
    desk.small.says("kind", "perhaps", "who knows")
    desk.run().ended(1)
    desk.small.forget().says("kind", "case")
    ran = desk.run("--retry", "invalid").ended(DONE)
    assert (desk.small.count(), ran.rows[0]["a"]) == (1, "case")


JUDGED = """
    workflow: judged
    inputs: {t: text}
    steps:
      a:
        prompt: "write {{ t }}"
        accept: {judge: large, ask: "Is it good?"}
    output: {a: "{{ a }}"}
"""


def test_what_a_judge_has_said_is_kept_while_another_answer_is_asked_for(desk):
    desk.table(rows_of(1))
    desk.file(JUDGED)
    desk.small.says("write", "one", Said(hang=True))
    desk.large.says("good", "no")
    process = desk.running()
    desk.small.wait_for(2)
    killed(process)
    desk.reset()
    desk.small.forget().says("write", "two")
    desk.large.forget().says("good", "yes")
    ran = desk.run().ended(DONE)
    assert (desk.small.count(), desk.large.count(), ran.rows[0]["a"]) == (1, 1, "two")


def test_an_answer_is_kept_while_its_judge_is_asked(desk):
    desk.table(rows_of(1))
    desk.file(JUDGED)
    desk.small.says("write", "one")
    desk.large.says("good", Said(hang=True))
    process = desk.running()
    desk.large.wait_for(1)
    killed(process)
    desk.reset()
    desk.small.forget().says("write", "two")
    desk.large.forget().says("good", "yes")
    ran = desk.run().ended(DONE)
    assert (desk.small.count(), desk.large.count(), ran.rows[0]["a"]) == (0, 1, "one")
