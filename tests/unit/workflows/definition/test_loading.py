"""Workflows read from files: what is made of them."""

import pytest

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowFileError
from workflow_composer.workflows.definition.loading import load_workflow

MODELS = {name: {"backend": "embedded", "path": "small"} for name in ("small", "large")}


@pytest.fixture
def config():
    return StrategyConfig(profile_name="mine", models=MODELS, task_routing={"*": "small"})


@pytest.fixture
def load(tmp_path, config):
    def loaded(text, columns=None):
        path = tmp_path / "flow.yaml"
        path.write_text(text)
        return load_workflow(path, config=config, columns=columns)

    return loaded


SIMPLE = """\
workflow: simple
inputs: {id: text, body: text}
steps:
  kind: {prompt: "{{ body }}", answer: [yes, no, unclear]}
  each:
    for_each: w in words.list
    when: w.long
    prompt: "{{ w.text }} {{ kind }}"
  words: {prompt: "{{ body }}", answer: {list: [{text: text, long: truth}]}}
  all: {reduce: rows, keep: each is done, prompt: "{% for r in rows %}{{ r.kind }}{% endfor %}"}
  last: {prompt: "{{ all }}"}
output: {id: id, kind: "{{ kind }}", n: "n={{ kind._attempts }}"}
"""


def test_order_levels_and_needs(load):
    made = load(SIMPLE, ["id", "body", "more"])
    assert made.order == ("kind", "words", "each", "all", "last")
    assert {name: step.level for name, step in made.steps.items()} == {
        "kind": "row",
        "words": "row",
        "each": "row",
        "all": "run",
        "last": "run",
    }
    assert made.steps["each"].needs == {"words", "kind"}
    assert made.steps["each"].per_item
    assert made.steps["all"].reduce.rows == ("kind",)
    assert made.steps["kind"].form.spec == ["yes", "no", "unclear"]


def test_a_misspelt_name_is_found_in_a_branch_that_is_not_taken(load):
    text = SIMPLE.replace('prompt: "{{ all }}"', 'when: "false", prompt: "{{ bodyy }}"')
    with pytest.raises(WorkflowFileError, match=r"flow.yaml:11: steps.last.prompt: .*'bodyy'.*did you mean 'body'"):
        load(text)


def test_a_column_that_the_table_lacks(load):
    with pytest.raises(WorkflowFileError, match=r"no column 'body'.*did you mean 'bodies'"):
        load(SIMPLE, ["id", "bodies"])
