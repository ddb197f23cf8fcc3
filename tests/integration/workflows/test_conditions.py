"""Conditions are true or false, and skipping has a reason."""

from __future__ import annotations

from tests.integration.workflows.kit import DONE, SOME_FAILED, line_of, rows_of


def test_g19_what_those_see_who_depend_on_a_skipped_step(desk):
    desk.small.says("", lambda call: f"R({call.prompt})")
    desk.table(rows_of(3))
    desk.file("""
        workflow: skipped
        inputs: {n: number}
        steps:
          a:
            when: n != 2
            prompt: "a {{ n }}"
          b: {prompt: "b {{ n }} {{ a }}"}
          c: {prompt: "c {{ n }} {{ a | default('none') }}"}
          d: {prompt: "d {{ n }} {{ b }}"}
          e: {prompt: "e {{ n }}"}
        output: {a: "{{ a }}", b: "{{ b }}", c: "{{ c }}", d: "{{ d }}", e: "{{ e }}", why: "{{ b._error | default('') }}"}
    """)
    ran = desk.run().ended(DONE)
    assert ran.states == ["done"] * 3
    first, second, third = ran.rows
    assert second["a"] is second["b"] is second["d"] is None
    assert (second["c"], second["e"]) == ("R(c 2 none)", "R(e 2)")
    assert "a" in second["why"]
    assert "skipped" in second["why"]
    for number, row in ((1, first), (3, third)):
        assert row["d"] == f"R(d {number} R(b {number} R(a {number})))"
    assert {step: ran.steps[step]["skipped"] for step in "abcde"} == {"a": 1, "b": 1, "c": 0, "d": 1, "e": 0}
    assert sum(ran.steps["b"]["reasons"].values()) == 1
    assert desk.calls == 12


CONDITIONS = """
    workflow: conditions
    inputs: {t: text}
    steps:
      a:
        prompt: "make {{ t }}"
        answer: {flag: text, score: text, tags: {x: number}}
      s1: {when: a.flag, prompt: "s1"}
      s2: {when: a.score > 5, prompt: "s2"}
      s3: {when: a.tags == "x", prompt: "s3"}
      s5: {when: a.flag == "true", prompt: "s5"}
      s6: {when: not a.tags, prompt: "s6"}
    output: {s1: "{{ s1 }}", s2: "{{ s2 }}", s3: "{{ s3 }}", s5: "{{ s5 }}", s6: "{{ s6 }}"}
"""


def test_g20_a_condition_that_is_not_true_or_false(desk):
    desk.small.says("make", {"flag": "false", "score": "10", "tags": {"x": 1}})
    desk.table([{"t": "x"}])
    desk.file(CONDITIONS)
    ran = desk.run().ended(SOME_FAILED)
    assert [len(desk.small.asked(f"s{n}")) for n in range(1, 7)] == [0] * 6
    assert {step: ran.steps[step]["failed"] for step in ("s1", "s2", "s3", "s5", "s6")} == {
        "s1": 1,
        "s2": 1,
        "s3": 1,
        "s5": 0,
        "s6": 1,
    }
    assert ran.steps["s5"]["skipped"] == 1
    errors = {step: next(error for error in ran.rows[0]["_errors"] if step in error) for step in ("s1", "s2", "s3", "s6")}
    assert "text" in errors["s1"]
    assert "number" in errors["s2"]
    assert "object" in errors["s6"]


def test_g20_a_field_that_does_not_exist_is_refused_when_the_file_is_read(desk):
    desk.table([{"t": "x"}])
    path = desk.file(CONDITIONS.replace("a.flag == ", "a.missing == "))
    desk.refused("missing", "s5", line=line_of(path, "missing"))


def test_g20_the_same_in_inputs_of_any_form(desk):
    """Nothing, a word, a number, a list as truth: four failures; only true runs."""
    desk.table([{"j": {"f": value}} for value in (None, "false", 0, [], True, False)])
    desk.file("""
        workflow: truth
        inputs: {j: json}
        steps:
          a: {when: j.f, prompt: "ran"}
        output: {a: "{{ a }}"}
    """)
    ran = desk.run().ended(SOME_FAILED)
    assert ran.steps["a"]["failed"] == 4
    assert ran.steps["a"]["skipped"] == 1
    assert desk.calls == 1
    assert ran.states[4:] == ["done", "done"]
