"""``workflow test --run``: a changed file against what an earlier run was answered; no model is called."""

from __future__ import annotations

import json

import pytest

from tests.integration.workflows.kit import DONE, SOME_FAILED, WRONG
from tests.integration.workflows.scripted import Said

pytestmark = pytest.mark.integration
SECRET = "zebra-7731"

FLOW = """
    workflow: recorded
    inputs: {t: private, n: number}
    steps:
      kind:
        model: mv_cascade_small_k1_t0.0_large_k1_t0.0
        prompt: "kind of {{ t }}"
        answer: [case, trial]
        retries: 0
      words: {when: 'kind == "case"', prompt: "words of {{ t }}", answer: [text], on_error: skip}
      each: {for_each: "w in words", prompt: "each {{ w }}"}
      size: {python: "sizes:size", with: {words: words}, answer: number}
      pub: {prompt: "number {{ n }}"}
      all: {reduce: rows, prompt: "all {% for r in rows %}{{ r.pub }}{% endfor %}"}
    output:
      kind: "{{ kind }}"
      each: "{{ each | default([]) }}"
      size: "{{ size | default(0) }}"
      pub: "{{ pub }}"
      all: "{{ all }}"
"""


@pytest.fixture
def ran(desk):
    """A desk with a run: the second row needs the large model, the third fails."""
    desk.file(FLOW)
    (desk.folder / "sizes.py").write_text("def size(words):\n    return len(words)\n")
    desk.table([{"t": f"{SECRET} {n}", "n": n} for n in range(3)])
    desk.small.says(f"kind of {SECRET} 0", "case").says(f"kind of {SECRET} 2", Said(status=500)).says("kind", "hm")
    desk.large.says(f"kind of {SECRET} 2", Said(status=500)).says("kind", "trial")
    desk.small.says("words", '["p", "q"]').says("each", lambda call: call.prompt.upper()).says("number", "fine").says(
        "all", "sum"
    )
    desk.run().ended(SOME_FAILED)
    desk.reset()
    return desk


def compared(desk, *more):
    ran = desk.does("workflow", "test", "flow.yaml", "--run", "out.jsonl", "--input", "in.jsonl", "--json", *more)
    assert desk.calls == 0
    assert SECRET not in ran.said
    return ran.code, json.loads(ran.out)


def test_the_same_file_gives_the_same_table(ran):
    code, found = compared(ran)
    assert (code, found["differences"], found["missing"]) == (DONE, [], {})
    assert list(found["asked_again"]) == ["kind"]  # the server's fault: as any run would
    ran.run("-o", "other.csv", output="other.csv").ended(SOME_FAILED)
    ran.reset()
    told = ran.does("workflow", "test", "flow.yaml", "--run", "other.csv", "--input", "in.jsonl").ended(DONE)
    assert "3 rows: as in the run" in told.err
    assert ran.calls == 0


def test_a_changed_prompt_gets_the_answers_of_its_place_and_says_how_many(ran):
    ran.edit("kind of {{ t }}", "the kind of {{ t }}")
    ran.edit('"each {{ w }}"', '"every {{ w }}"')
    code, found = compared(ran)
    assert (code, found["differences"], found["missing"]) == (DONE, [], {})
    assert found["asked_again"]["each"] == {"its prompt changed": 2}
    assert found["asked_again"]["kind"]["its prompt changed"] == 3


def test_what_differs_is_told_by_row_and_column_and_private_values_by_their_length(ran):
    ran.edit('kind == "case"', 'kind == "trial"')
    ran.edit(
        '"number {{ n }}"}', '"number {{ n }}", accept: {python: "sizes:good"}, retries: 0, on_error: {default: "none"}}'
    )
    (ran.folder / "sizes.py").write_text(
        "def size(words):\n    return len(words)\ndef good(text):\n    return text != 'fine'\n"
    )
    code, found = compared(ran)
    assert code == SOME_FAILED
    told = "\n".join(found["differences"])
    assert 'row 1: each is [], in the run "(private, ' in told
    assert 'row 1: pub is "none", in the run "fine"' in told
    assert found["missing"] == {"words": 1}  # of the second row, where the run did not ask


def test_another_form_a_new_step_and_a_column_less_are_differences(ran):
    ran.edit("answer: [case, trial]", "answer: [report, trial]")
    ran.edit('kind == "case"', 'kind == "report"')
    ran.edit("pub: {prompt", "new: {prompt: 'new {{ n }}'}\n  pub: {prompt")
    ran.edit('all: "{{ all }}"', 'new: "{{ new }}"')
    code, found = compared(ran)
    told = "\n".join(found["differences"])
    assert code == SOME_FAILED
    assert "there is no column all any more" in told
    assert 'row 1: kind is null, in the run "(private, 4 characters)"' in told
    assert "row 2: kind" not in told
    assert found["missing"]["new"] == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "--answers TEST or --run OUTPUT"),
        (("--run", "out.jsonl"), "--input TABLE"),
        (("--run", "none.csv", "--input", "in.jsonl"), "no run"),
        (("--run", "in.jsonl", "--input", "in.jsonl"), "no run"),
    ],
)
def test_what_is_missing_is_told(ran, options, told):
    assert told in ran.does("workflow", "test", "flow.yaml", *options).ended(WRONG).said


def test_a_run_with_labels_says_at_which_step_rows_go_wrong_and_asks_nothing_again(ran):
    ran.table([{"t": f"{SECRET} {n}", "n": n, "kind is": "Case", "size is": 2} for n in range(3)])
    labels = ("--label", "kind=kind is", "--label", "size = size is")
    before = [row["_state"] for row in ran.run().rows]
    ran.reset()
    done = ran.run(*labels).ended(SOME_FAILED)
    assert [row["_state"] for row in done.rows] == before
    assert (
        ran.calls == ran.small.count(f"kind of {SECRET} 2") + ran.large.count(f"kind of {SECRET} 2") == 2
    )  # servers' faults
    told = done.summary["accuracy"]
    assert (told["rows"], told["wrong"]) == (3, 2)
    assert told["lost_at"] == {"kind": 2}
    assert told["steps"]["size"] == {"graded": 3, "right": 1, "accuracy": 1 / 3, "after_right": {"graded": 1, "right": 1}}
    assert "2 of 3 rows are wrong in the end: 2 since kind" in done.err
    kept = [json.loads(line)["graded"] for line in ran.folder.joinpath("out.jsonl.journal.lineage").read_text().splitlines()]
    assert kept == [{"kind": True, "size": True}, *[{"kind": False, "size": False}] * 2]
    for wrong in ("kind", "none=kind is", "kind=none"):
        assert "--label" in ran.run("--label", wrong).ended(WRONG).said
