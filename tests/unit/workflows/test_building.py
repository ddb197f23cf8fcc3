"""Workflows written in Python are those of files, and faults name the line of the step."""

from __future__ import annotations

import inspect
from typing import get_type_hints

import pytest
from pydantic import BaseModel

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowFileError
from workflow_composer.workflows import building
from workflow_composer.workflows.building import WorkflowBuilder
from workflow_composer.workflows.definition import steps
from workflow_composer.workflows.definition.loading import load_workflow

MODELS = {"small": {"backend": "embedded", "path": "small"}}
CONFIG = StrategyConfig(profile_name="mine", models=MODELS, task_routing={"*": "small"})

FILE = """\
workflow: w
inputs: {note: private, id: text}
budget: {run: 20}
steps:
  kind: {prompt: "{{ note }}", answer: [a, b], retries: 3, temperature: 0.5, release: choices}
  each: {for_each: "x in fields.names", prompt: "{{ x }}", at_most: 5, share: true}
  fields: {command: [cat, "-"], with: {text: note}, answer: {names: [text]}, on_error: {default: {names: []}}}
  all: {reduce: rows, group_by: kind, prompt: "{% for r in rows %}{{ r.id }}{% endfor %}"}
output: {id: id, kind: "{{ kind }}"}
tables: {all: all}
"""


def built():
    flow = WorkflowBuilder("w", inputs={"note": "private", "id": "text"}, budget={"run": 20})
    flow.prompt("kind", "{{ note }}", answer=["a", "b"], retries=3, temperature=0.5, release="choices")
    flow.prompt("each", "{{ x }}", for_each="x in fields.names", at_most=5, share=True)
    default = {"default": {"names": []}}
    flow.command("fields", "cat", "-", given={"text": "note"}, answer={"names": ["text"]}, on_error=default)
    flow.prompt("all", "{% for r in rows %}{{ r.id }}{% endfor %}", reduce="rows", group_by="kind")
    flow.output(id="id", kind="{{ kind }}")
    flow.tables(all="all")
    return flow.build(CONFIG)


def test_it_is_the_workflow_of_the_file(tmp_path):
    (tmp_path / "flow.yaml").write_text(FILE)
    one, other = built(), load_workflow(tmp_path / "flow.yaml", config=CONFIG)
    assert one.digest == other.digest
    assert one.order == other.order
    for name, step in one.steps.items():
        same = other.steps[name]
        for key in ("retries", "temperature", "on_error", "share", "level", "needs", "reads", "labels", "per_item"):
            assert getattr(step, key) == getattr(same, key), (name, key)
    assert one.notes == other.notes


class Case(BaseModel):
    gene: str


def test_a_pydantic_class_is_a_form():
    flow = WorkflowBuilder("w", inputs={"id": "text"})
    flow.prompt("a", "{{ id }}", answer=Case)
    flow.output(g="a.gene")
    assert flow.build(CONFIG).steps["a"].form.read('{"gene": "TP53"}').value == Case(gene="TP53")


def test_a_fault_names_the_line_of_the_step():
    flow = WorkflowBuilder("w", inputs={"id": "text"})
    line = inspect.currentframe().f_lineno + 1
    flow.prompt("a", "{{ idd }}", answer=Case)
    flow.output(g="a.gne")
    flow.prompt("a", "again")
    with pytest.raises(WorkflowFileError) as caught:
        flow.build(CONFIG)
    places = [f"{__file__}:{line + at}: " for at in (0, 0, 1)]
    assert [problem.startswith(place) for problem, place in zip(caught.value.problems, places, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("prompt", building.PromptFields),
        ("command", building.ProgramFields),
        ("python", building.ProgramFields),
        ("workflow", building.NestedFields),
        ("human", building.PersonFields),
    ],
)
def test_the_typed_fields_are_the_keys_of_the_file(kind, fields):
    named = {"with" if name == "given" else name for name in get_type_hints(fields)}
    only_of_prompts = {"fold"} - named  # whose fault in a file has a remedy of its own
    assert named == set(steps.KEYS[kind]) - {kind} - only_of_prompts
