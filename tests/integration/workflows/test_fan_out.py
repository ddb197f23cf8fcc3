"""A step for each item of a list."""

from __future__ import annotations

import json
import re

from tests.integration.workflows.kit import DONE, SOME_FAILED
from tests.integration.workflows.scripted import Said


def test_g14_an_empty_list(desk):
    desk.small.says("find", {"genes": []})
    desk.table([{"t": "x"}])
    desk.file("""
        workflow: empty
        inputs: {t: text}
        steps:
          a:
            prompt: "find {{ t }}"
            answer: {genes: [text]}
          b:
            for_each: g in a.genes
            prompt: "about {{ g }}"
          c: {prompt: "all: {{ b }}"}
          d:
            for_each: x in b
            prompt: "again {{ x }}"
        output: {b: "{{ b }}", c: "{{ c }}", d: "{{ d }}", states: "{{ b._state }} {{ d._state }}"}
    """)
    ran = desk.run().ended(DONE)
    assert desk.small.prompts()[1:] == ["all: []"]
    (row,) = ran.rows
    assert (row["b"], row["d"], row["states"], row["_state"]) == ([], [], "done done", "done")
    assert row["c"]


def fan(desk, *, skip):
    desk.small.says("item p", "P").says("item q", Said(status=500)).says("item r", "R")
    desk.table([{"items": ["p", "q", "r"]}, {"items": ["p", "r"]}])
    trouble = "\n            on_error: skip" if skip else ""
    desk.file(f"""
        workflow: fan
        inputs: {{items: json}}
        steps:
          a:
            for_each: i in items{trouble}
            prompt: "item {{{{ i }}}}"
          b:
            for_each: x in a
            prompt: "next {{{{ x }}}}"
          plain: {{prompt: "plain {{{{ a }}}}"}}
          good: {{prompt: "good {{{{ a | done }}}}"}}
        output:
          a: "{{{{ a | default(null) }}}}"
          b: "{{{{ b | default(null) }}}}"
          plain: "{{{{ plain | default(null) }}}}"
          good: "{{{{ good | default(null) }}}}"
    """)


def test_g15_one_item_fails_and_with_it_the_step_of_the_row(desk):
    fan(desk, skip=False)
    ran = desk.run().ended(SOME_FAILED)
    assert desk.small.count("item p") == 2
    assert desk.small.count("item q") == 1
    first, second = ran.rows
    assert first["a"] is first["b"] is first["plain"] is first["good"] is None
    assert re.search(r"item 2|\[1\]", ran.errors(1))
    assert "500" in ran.errors(1)
    assert second["a"] == ["P", "R"]
    assert second["_state"] == "done"
    desk.reset()
    desk.run().ended(SOME_FAILED)
    assert desk.small.prompts() == ["item q"]


def test_g15_items_that_fail_may_be_skipped(desk):
    fan(desk, skip=True)
    ran = desk.run().ended(SOME_FAILED)
    first, second = ran.rows
    assert first["a"] == ["P", None, "R"]
    assert len(first["b"]) == 3
    assert first["b"][1] is None
    assert first["plain"] is None
    assert "plain" in ran.errors(1)
    assert "item 2" in ran.errors(1)
    assert sorted(desk.small.prompts("good")) == ['good ["P", "R"]'] * 2
    assert desk.small.prompts("plain") == ['plain ["P", "R"]']
    assert desk.small.count("next ") == 4
    assert second["_state"] == "done"


def test_g16_order_under_uneven_speed(desk):
    def reply(call):
        number = int(re.search(r"item (\d+)", call.prompt)[1])
        return Said(f"R{number}", delay=0.2 if number % 2 == 0 else 0.001)

    desk.small.says("item", reply)
    desk.table([{"n": n, "items": list(range(20))} for n in range(10)])
    desk.file("""
        workflow: order
        inputs: {items: json}
        steps:
          a:
            for_each: i in items
            prompt: "item {{ i }}"
          b: {prompt: "all {{ a }}"}
        output: {a: "{{ a }}"}
    """)
    ran = desk.run("--concurrency", "40").ended(DONE)
    expected = [f"R{number}" for number in range(20)]
    assert ran.column("a") == [expected] * 10
    assert desk.small.prompts("all") == [f"all {json.dumps(expected)}"] * 10
    assert desk.calls == 210


TEAMS = [{"n": "A", "m": ["x", "y"]}, {"n": "B", "m": []}, {"n": "C", "m": ["z"]}]


def test_g17_fan_out_within_fan_out(desk):
    desk.small.says("", lambda call: call.prompt)
    desk.table([{"teams": TEAMS}])
    desk.file("""
        workflow: nested
        inputs: {teams: json}
        steps:
          per:
            for_each: team in teams
            steps:
              each:
                for_each: member in team.m
                prompt: "{{ team.n }}-{{ member }}"
        output: {per: "{{ per }}"}
    """)
    ran = desk.run().ended(DONE)
    assert [team["each"] for team in ran.rows[0]["per"]] == [["A-x", "A-y"], [], ["C-z"]]
    assert sorted(desk.small.prompts()) == ["A-x", "A-y", "C-z"]


def test_g17_after_the_inner_loop_the_outer_item_is_still_the_team(desk):
    desk.small.says("", lambda call: call.prompt)
    desk.table([{"teams": TEAMS}])
    desk.file("""
        workflow: nested
        inputs: {teams: json}
        steps:
          per:
            for_each: team in teams
            steps:
              each:
                for_each: member in team.m
                prompt: "{{ team.n }}-{{ member }}"
              after: {prompt: "{{ team.n }} has {{ each }}"}
          last:
            for_each: p in per
            prompt: "so: {{ p.after }}"
        output: {per: "{{ per }}", last: "{{ last }}"}
    """)
    ran = desk.run().ended(DONE)
    afters = ['A has ["A-x", "A-y"]', "B has []", 'C has ["C-z"]']
    assert [team["after"] for team in ran.rows[0]["per"]] == afters
    assert ran.rows[0]["last"] == [f"so: {after}" for after in afters]


FOR_EACH = """
    workflow: limits
    inputs: {j: json}
    steps:
      a:
        for_each: g in j.genes
        prompt: "about {{ g }}"
    output: {a: "{{ a }}"}
"""


def test_g18_a_limit_is_never_silent(desk):
    desk.table([{"j": {"genes": [str(n) for n in range(12_000)]}}])
    desk.file(FOR_EACH)
    ran = desk.run().ended(SOME_FAILED)
    assert desk.calls == 0
    said = ran.errors(1).replace(",", "")
    assert "12000" in said
    assert "10000" in said


def test_g18_a_text_is_not_a_list_and_a_list_of_one_is_one(desk):
    desk.table([{"j": {"genes": "BRCA1"}}, {"j": {"genes": ["TP53"]}}, {"j": {"genes": {"x": 1}}}, {"j": {"genes": 5}}])
    desk.file(FOR_EACH)
    ran = desk.run().ended(SOME_FAILED)
    assert desk.small.prompts() == ["about TP53"]
    assert [row["_state"] == "done" for row in ran.rows] == [False, True, False, False]
    assert "list" in ran.errors(1)
    assert "text" in ran.errors(1)
    assert len(ran.rows[1]["a"]) == 1
