"""Steps over all rows: groups, folding, what is left out, and steps that follow."""

import pytest

from tests.unit.workflows.running.kit import one_by_one
from workflow_composer.errors import ServerFailed
from workflow_composer.workflows.running.over_rows import run_over_rows

GROUPS = """
    workflow: groups
    inputs: {g: json, t: text}
    steps:
      a: {prompt: "read {{ t }}"}
      each:
        reduce: rows
        group_by: g
        prompt: "join {% for r in rows %}[{{ r.a }}]{% endfor %}"
        fold: "fold {% for p in parts %}<{{ p }}>{% endfor %}"
    output: {a: "{{ a }}"}
    tables: {each: each}
"""


def echo(model, prompt):
    return prompt.removeprefix("read ")


async def test_keys_of_groups_keep_their_types_and_stand_in_the_order_of_appearance(bench):
    made = bench(echo)
    rows = [{"g": g, "t": str(at)} for at, g in enumerate(["A", "A", "B", "B", "B", None, "1", 1, "A"])]
    _, results = await made.over(made.flow(GROUPS), *rows)
    found = results["each"]
    assert [(one["group"], one["rows"]) for one in found.value] == [("A", 3), ("B", 3), (None, 1), ("1", 1), (1, 1)]
    assert found.value[0]["value"] == "join [0][1][8]"
    assert len([one for one in made.prompts if one.startswith("join")]) == 5


async def test_a_group_that_does_not_fit_is_folded_in_order_and_the_same_each_time(bench):
    made = bench(lambda model, prompt: prompt[:12] if prompt.startswith("join") else echo(model, prompt))
    made.room = 14
    rows = [{"g": "A", "t": "word " * 8 + str(at)} for at in range(5)] + [{"g": "B", "t": "short"}]
    _, results = await made.over(made.flow(GROUPS), *rows)
    joins = [one for one in made.prompts if one.startswith(("join", "fold"))]
    assert [one.count("[") for one in joins if one.startswith("join")] == [1, 1, 1, 1, 1, 1]
    made.room = 28
    made.again()
    _, results = await made.over(made.flow(GROUPS), *rows)
    joins = [one for one in made.prompts if one.startswith("join")]
    assert [one.count("[") for one in joins] == [2, 2]  # the fifth alone, and B, are known already
    assert [one.count("<") for one in made.prompts if one.startswith("fold")] == [3]
    assert results["each"].value[1] == {"group": "B", "rows": 1, "value": "join [short]"}
    made.again()
    again = await made.over(made.flow(GROUPS), *rows)
    assert (made.calls, again[1]["each"].value) == (0, results["each"].value)


async def test_a_row_that_does_not_fit_alone_is_named(bench):
    made = bench(lambda model, prompt: "ok" if prompt.startswith("join") else echo(model, prompt))
    rows = [{"g": "A", "t": "short"}, {"g": "A", "t": "word " * 200}, {"g": "A", "t": "short too"}]
    flow = made.flow(GROUPS)
    outcomes = await made.run(flow, *rows)
    made.room = 50
    found = await run_over_rows(flow.steps["each"], one_by_one(outcomes), made.world())
    assert found.value == [{"group": "A", "rows": 3, "value": "ok"}]
    assert found.notes[0].startswith("row 2 left out of group A: it has about 2")
    assert made.prompts[-1] == "join [short][short too]"


async def test_a_private_group_is_told_by_its_number(bench):
    made = bench(lambda model, prompt: "ok" if prompt.startswith("join") else echo(model, prompt))
    rows = [{"g": "Ann Lee", "t": "short"}, {"g": "Ann Lee", "t": "word " * 200}, {"g": "Bo Ek", "t": "word " * 200}]
    flow = made.flow(GROUPS.replace("g: json", "g: private"))
    outcomes = await made.run(flow, *rows)
    made.room = 50
    found = await run_over_rows(flow.steps["each"], one_by_one(outcomes), made.world())
    told = "\n".join([*found.notes, found.reason, *(one.reason for one in found.items)])
    assert "group 1" in told
    assert "group 2: no row" in told
    assert not any(name in told for name in ("Ann", "Bo"))


async def test_without_fold_a_group_that_does_not_fit_fails(bench):
    made = bench(echo)
    flow = made.flow(GROUPS.replace('fold: "fold', 'system: "fold').replace("{% for p in parts %}<{{ p }}>{% endfor %}", ""))
    made.room = 10
    _, results = await made.over(flow, *({"g": "A", "t": "word word word"} for _ in range(9)))
    assert (results["each"].state, results["each"].kind) == ("failed", "too_long")
    assert "write fold" in results["each"].reason


async def test_failed_rows_are_left_out_and_counted(bench):
    made = bench(lambda model, prompt: ServerFailed("down") if prompt == "read 1" else echo(model, prompt))
    rows = [{"g": "A", "t": str(at)} for at in range(3)]
    outcomes, results = await made.over(made.flow(GROUPS), *rows)
    assert results["each"].value == [{"group": "A", "rows": 2, "value": "join [0][2]"}]
    assert results["each"].notes == ("1 row left out: the row is failed",)
    assert [one.state for one in outcomes] == ["done", "failed", "done"]


async def test_rows_that_read_a_step_of_the_run_wait_for_it(bench):
    made = bench(lambda model, prompt: f"S({prompt})")
    flow = made.flow(
        """
        workflow: barrier
        inputs: {n: number}
        steps:
          s: {reduce: rows, keep: n > 1, prompt: "{% for r in rows %}{{ r.n }},{% endfor %}"}
          t: {prompt: "after {{ s }}"}
          own: {prompt: "own {{ n }} {{ s }}"}
        output: {own: "{{ own }}", t: "{{ t }}"}
        """
    )
    first = await made.run(flow, {"n": 1}, {"n": 2})
    assert [one.pending for one in first] == [frozenset({"own"})] * 2
    assert made.calls == 0
    outcomes, results = await made.over(flow, {"n": 1}, {"n": 2}, {"n": 3})
    assert results["s"].value == "S(2,3,)"
    assert results["s"].notes == ("1 row left out: not `n > 1`",)
    assert results["t"].value == "S(after S(2,3,))"
    assert outcomes[1].output == {"own": "S(own 2 S(2,3,))", "t": results["t"].value}
    assert len([one for one in made.prompts if one.startswith("after")]) == 1


@pytest.mark.parametrize(("keep", "left"), [("a is done", "not `a is done`"), ('a == "0"', "a is failed")])
async def test_keep_decides_alone(bench, keep, left):
    made = bench(lambda model, prompt: ServerFailed("down") if prompt == "read 1" else echo(model, prompt))
    flow = made.flow(GROUPS.replace("group_by: g", f"keep: '{keep}'"))
    _, results = await made.over(flow, *({"g": "A", "t": str(at)} for at in range(2)))
    assert results["each"].value == "join [0]"
    assert results["each"].notes == (f"1 row left out: {left}",)


async def test_a_group_of_which_no_row_fits_fails_and_the_others_stand(bench):
    made = bench(echo)
    flow = made.flow(GROUPS)
    outcomes = await made.run(flow, {"g": "A", "t": "short"}, {"g": "B", "t": "word " * 200})
    made.room = 50
    found = await run_over_rows(flow.steps["each"], one_by_one(outcomes), made.world())
    assert (found.state, found.kind) == ("failed", "too_long")
    assert "group B" in found.reason
    assert [one["value"] for one in found.value] == ["join [short]", None]
    assert [one for one in made.prompts if "join" in one] == ["join [short]"]


async def test_what_needs_a_failed_step_of_the_run_is_not_run(bench):
    made = bench(lambda model, prompt: ServerFailed("down") if prompt.startswith("S") else prompt)
    flow = made.flow(
        """
        workflow: chain
        inputs: {n: text}
        steps:
          s: {reduce: rows, prompt: "S{% for r in rows %}{{ r.n }}{% endfor %}", answer: {of: text}}
          groups: {reduce: rows, group_by: s.of, prompt: "G{% for r in rows %}{{ r.n }}{% endfor %}"}
          after: {prompt: "after {{ groups }}"}
        output: {n: "{{ n }}"}
        tables: {groups: groups}
        """
    )
    _, results = await made.over(flow, {"n": "1"})
    assert {name: result.state for name, result in results.items()} == {
        "s": "failed",
        "groups": "not_run",
        "after": "not_run",
    }
    assert results["groups"].reason == "needs s, which failed"
