"""Money, time and limits."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.integration.workflows.kit import DONE, SOME_FAILED, STOPPED, WAITING, WRONG, rows_of
from tests.integration.workflows.scripted import Said


def test_g28_a_budget_with_eight_at_a_time(desk):
    """4.75 are spent; calls cost .09; two fit."""
    desk.profile(small={"output_price": 90}, large={"output_price": 250})
    desk.small.tokens = desk.large.tokens = 1000
    desk.table([{"n": n, "late": n <= 8} for n in range(1, 20)])
    desk.file("""
        workflow: budget
        inputs: {n: number, late: json}
        steps:
          a: {model: large, prompt: "first {{ n }}"}
          b:
            when: late
            model: small
            prompt: "second {{ n }}"
        output: {a: "{{ a }}", b: "{{ b | default(null) }}"}
    """)
    desk.run("--only", "a", "--run-budget", "5").ended(DONE)
    assert desk.large.count() == 19
    stopped = desk.run("--run-budget", "5", "--concurrency", "8").ended(STOPPED)
    assert desk.small.count() == 2
    assert stopped.summary["state"] == "stopped: budget"
    assert stopped.summary["cost"] == pytest.approx(4.93)
    assert desk.large.count() == 19
    assert len(stopped.rows) == 19
    ended = desk.run("--run-budget", "6", "--concurrency", "8").ended(DONE)
    assert desk.small.count() == 8
    assert len(set(desk.small.prompts())) == 8
    assert desk.large.count() == 19
    assert ended.summary["cost"] == pytest.approx(4.75 + 8 * 0.09)


def test_g29_estimates_too_high_do_not_stop_a_run(desk):
    desk.profile(small={"output_price": 100})
    desk.small.tokens, desk.small.delay = 100, 0.02
    desk.table(rows_of(50))
    desk.file("""
        workflow: estimates
        inputs: {t: text}
        budget: {run: $1}
        steps:
          a: {prompt: "first {{ t }}", tokens: 4000}
        output: {a: "{{ a }}"}
    """)
    ran = desk.run("--concurrency", "10").ended(DONE)
    assert ran.summary["cost"] == pytest.approx(0.50)
    assert ran.summary["done"] == 50


INNER = """
    workflow: inner
    inputs: {t: text}
    steps:
      one: {prompt: "one {{ t }}", tokens: 1000}
      two: {prompt: "two {{ one }}", tokens: 1000}
      three: {prompt: "three {{ two }}", tokens: 1000, answer: number, retries: 0}
    output: {three: "{{ three }}"}
"""
OUTER = """
    workflow: outer
    inputs: {t: text}
    steps:
      direct: {prompt: "direct {{ t }}", tokens: 1000}
      inner:
        workflow: inner.yaml
        with: {t: direct}
    output: {direct: "{{ direct }}", three: "{{ inner.three | default(null) }}"}
"""


def inner_and_outer(desk):
    desk.profile(small={"output_price": 100})
    desk.small.tokens = 1000
    desk.small.says("direct", lambda call: call.prompt.split()[-1])
    for step in ("one", "two"):
        desk.small.says(step + " ", lambda call: call.prompt.split()[-1])
    desk.small.says("three", "no number at all")
    desk.table(rows_of(4))
    desk.file(INNER, "inner.yaml")
    desk.file(OUTER)


def test_g30_inner_workflows_count(desk):
    inner_and_outer(desk)
    ran = desk.run().ended(SOME_FAILED)
    assert desk.calls == 16
    assert ran.summary["cost"] == pytest.approx(1.60)
    costs = {path: step["cost"] for path, step in ran.steps.items()}
    assert costs["direct"] == pytest.approx(0.40)
    assert [costs[f"inner/{step}"] for step in ("one", "two", "three")] == pytest.approx([0.40] * 3)


def test_g30_a_rows_budget_holds_in_the_inner_workflow_too(desk):
    inner_and_outer(desk)
    ran = desk.run("--row-budget", "0.35")
    assert ran.code in (SOME_FAILED, STOPPED), ran.said
    assert desk.calls == 12
    assert desk.small.count("three") == 0
    assert all(state != "done" for state in ran.states)
    assert all("budget" in ran.errors(row) for row in range(1, 5))


@pytest.mark.parametrize("name", ["flow.yaml", "./flow.yaml"])
def test_g30_a_workflow_that_contains_itself_is_refused(desk, name):
    desk.table(rows_of(1))
    desk.file(OUTER.replace("inner.yaml", name))
    desk.refused("inner")


def test_g30_two_workflows_that_contain_each_other_are_refused(desk):
    desk.table(rows_of(1))
    desk.file(OUTER)
    desk.file(OUTER.replace("inner.yaml", "flow.yaml"), "inner.yaml")
    desk.refused("inner.yaml")


def pairs(desk, rows):
    desk.table(rows_of(rows))
    desk.file("""
        workflow: limits
        inputs: {t: text}
        steps:
          a: {prompt: "first {{ t }}"}
          b: {prompt: "second {{ a }}"}
        output: {a: "{{ a }}", b: "{{ b }}"}
    """)


def test_g31_one_limit_for_all_steps(desk):
    desk.small.most, desk.small.delay = 5, 0.05
    pairs(desk, 200)
    ran = desk.run("--concurrency", "16").ended(DONE)
    assert set(ran.states) == {"done"}
    asked = desk.small.count()
    assert asked - len(desk.small.refused) == 400
    late = [number for number in desk.small.refused if number >= asked // 2]
    assert len(late) < 0.05 * (asked - asked // 2)


def test_g31_a_server_that_stops_for_three_seconds_loses_nothing(desk):
    desk.small.delay = 0.01
    pairs(desk, 60)
    process = desk.running("--concurrency", "8")
    desk.small.wait_for(40)
    desk.small.server.freeze()
    time.sleep(3)  # what is tested is a server that says nothing for so long
    desk.small.server.thaw()
    out, err = process.communicate(timeout=120)
    assert process.returncode == DONE, err
    assert json.loads(out)["done"] == 60


def test_g31_a_server_that_starts_anew_loses_nothing(desk):
    """For three seconds every call is refused with 503."""
    desk.small.delay = 0.01
    pairs(desk, 60)
    process = desk.running("--concurrency", "8")
    desk.small.wait_for(40)
    with desk.small.gone(3):
        _, err = process.communicate(timeout=120)
    assert process.returncode in (DONE, SOME_FAILED), err
    ran = desk.run("--concurrency", "8").ended(DONE)
    assert ran.summary["done"] == 60


def test_g32_a_call_that_never_returns_and_a_text_that_is_too_long(desk):
    desk.profile(small={"context_length": 30_000})
    desk.small.says("row-5;", Said(hang=True))
    rows = rows_of(100)
    rows[5]["t"] = "word " * 30_632
    desk.table(rows)
    desk.file("""
        workflow: slow
        inputs: {t: text}
        steps:
          a: {prompt: "first {{ t }}", model: small, timeout: 1s}
        output: {a: "{{ a }}"}
    """)
    ran = desk.run("--concurrency", "8").ended(SOME_FAILED)
    assert [number for number, state in enumerate(ran.states, 1) if state != "done"] == [5, 6]
    assert desk.small.count("word word") == 0
    assert re.search(r"tim", ran.errors(5))
    said = ran.errors(6).replace(",", "")
    assert "30000" in said
    assert len(re.findall(r"\d{5,}", said)) >= 2
    assert ran.summary["done"] == 98


PERSON = """
    workflow: person
    inputs: {n: number, t: text}
    steps:
      kind: {prompt: "kind {{ t }}", answer: [pathogenic, benign, unclear]}
      review:
        when: kind == "unclear"
        human: "Which is {{ t }}?"
        answer: [pathogenic, benign]
      last: {prompt: "last {{ review | default(kind) }} {{ t }}"}
    output: {n: "{{ n }}", kind: "{{ review | default(kind) }}", last: "{{ last }}"}
"""


def person(desk):
    desk.small.says("kind", lambda call: "unclear" if int(re.search(r"row-(\d+)", call.prompt)[1]) > 16 else "benign")
    desk.small.says("last", lambda call: f"L({call.prompt})")
    desk.table(rows_of(20))
    return desk.file(PERSON)


def test_g33_waiting_for_a_person(desk):
    person(desk)
    ran = desk.run().ended(WAITING)
    assert ran.summary["state"] == "waiting"
    assert ran.summary["waiting"] == 4
    assert "4" in ran.err
    assert desk.small.count("last") == 16
    assert ran.states == ["done"] * 16 + ["waiting"] * 4
    desk.reset()
    desk.run().ended(WAITING)
    assert desk.calls == 0
    assert desk.answer("18", "review", "unclear").code == WRONG
    desk.answer("18", "review", "benign").ended(DONE)
    desk.answer("19", "review", "pathogenic").ended(DONE)
    ran = desk.run().ended(WAITING)
    assert sorted(desk.small.prompts()) == ["last benign row-18;", "last pathogenic row-19;"]
    assert ran.states == ["done"] * 16 + ["waiting", "done", "done", "waiting"]
    assert ran.rows[17]["kind"] == "benign"


def test_g33_a_time_limit_may_be_set_with_what_happens_then(desk):
    path = person(desk)
    path.write_text(
        path.read_text().replace(
            "    answer: [pathogenic, benign]\n",
            "    answer: [pathogenic, benign]\n    waits: {at_most: 1s, then: benign}\n",
        )
    )
    desk.run()
    time.sleep(1.1)
    ran = desk.run().ended(DONE)
    assert ran.states[-4:] == ["done"] * 4
    assert ran.column("kind")[-4:] == ["benign"] * 4
