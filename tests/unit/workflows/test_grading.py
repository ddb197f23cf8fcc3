"""Answers beside the right ones: what equals a label, and at which step a row went wrong."""

from __future__ import annotations

import textwrap

import pytest

from workflow_composer import StrategyConfig
from workflow_composer.answers.output_form import output_form
from workflow_composer.errors import InputError
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.grading import LATER, RunGrades, is_right, lines_of
from workflow_composer.workflows.opening import GivenRows
from workflow_composer.workflows.running.results import RowOutcome, Scope, StepResult

FLOW = """
    workflow: graded
    inputs: {t: text}
    steps:
      z: {prompt: "{{ t }}", answer: [a, b]}
      m: {prompt: "{{ z }}", answer: number}
      all: {reduce: rows, prompt: "all"}
    output: {end: "{{ m }}"}
"""
ROWS = [{"t": "x", "right z": "A.", "right m": "7", "right end": "7"}]


@pytest.fixture
def grades(tmp_path):
    path = tmp_path / "flow.yaml"
    path.write_text(textwrap.dedent(FLOW))
    own = {"models": {"m": {"backend": "vllm", "base_url": "http://127.0.0.1:9"}}, "task_routing": {"*": "m"}}
    flow = load_workflow(path, config=StrategyConfig(profile_name="p", **own))
    return lambda labels, rows=ROWS: RunGrades(flow, labels, GivenRows(rows))


def outcome(z, m, end):
    """A row; None: the step has failed."""
    made = {
        name: StepResult(state="failed", kind="server") if value is None else StepResult(state="done", value=value)
        for name, value in (("z", z), ("m", m))
    }
    return RowOutcome(row="1", state="done", steps=made, scope=Scope({}), output={"end": end})


async def test_the_first_wrong_step_of_a_row_has_lost_it(grades):
    made = grades({"m": "right m", "end": "right end", "z": "right z"})
    found = [
        await made.add(one, ROWS[0])
        for one in (
            outcome("a", 7, 7),
            outcome("b", 8, 8),
            outcome("b", 7, 7),  # a wrong step that does no harm loses nothing
            outcome("a", 8, 8),
            outcome("a", 9, 9),
            outcome("a", 7, 1),
            outcome(None, None, None),
        )
    ]
    assert found[1] == {"end": False, "z": False, "m": False}
    assert made.data["lost_at"] == {"z": 2, "m": 2, LATER: 1}
    assert (made.data["rows"], made.data["wrong"]) == (7, 5)
    assert made.data["steps"]["z"] == {"graded": 7, "right": 4, "accuracy": 4 / 7, "after_right": {"graded": 7, "right": 4}}
    assert made.data["steps"]["m"]["after_right"] == {"graded": 4, "right": 2}
    assert made.data["columns"]["end"]["right"] == 2
    assert len(lines_of(made.data)) == 4


async def test_without_a_column_the_last_graded_step_is_the_end_and_rows_without_a_label_count_nothing(grades):
    made = grades({"z": "right z", "m": "right m"})
    await made.add(outcome("b", 7, 7), ROWS[0])
    assert await made.add(outcome("b", 8, 8), {"t": "x", "right z": " ", "right m": None}) == {}
    await made.add(outcome("b", 8, 8), {"t": "x", "right z": "a"})
    assert (made.data["rows"], made.data["wrong"], made.data["lost_at"]) == (2, 1, {"z": 1})


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"zz": "right z"}, "no step or output column 'zz'"),
        ({"all": "right z"}, "no step or output column 'all'"),
        ({"z": "rihgt z"}, "no column 'rihgt z'"),
    ],
)
def test_what_cannot_be_graded_is_refused(grades, labels, told):
    with pytest.raises(InputError, match=told):
        grades(labels)
    assert grades({"z": "late"}, [{"t": "x"}, {"t": "y", "late": "a"}])


@pytest.mark.parametrize(
    ("value", "label", "form", "right"),
    [
        ("case", "Case.", ["case", "trial"], True),
        ("case", "trial", ["case", "trial"], False),
        ("case", "something", ["case", "trial"], False),
        (12, " 12.0 ", "number", True),
        (12, 12, None, True),
        (12, "13", None, False),
        (12, "twelve", None, False),
        (True, "yes", None, True),
        (True, 1, None, False),
        (False, "false", None, True),
        (["a", "b"], '["a", "b"]', None, True),
        ({"a": 1, "b": None}, {"b": None, "a": 1}, None, True),
        ({"a": 1}, '{"a": 1}', {"a": "number"}, True),
        ({"a": 1}, '{"a": 2}', {"a": "number"}, False),
        ("She has 12 + 7 = 19.", "19", None, True),
        ("Paris", "paris", None, True),
        (None, "x", None, False),
        ("x", "", None, None),
        ("x", None, None, None),
    ],
)
async def test_what_is_right(value, label, form, right):
    assert await is_right(value, label, None if form is None else output_form(form)) is right
