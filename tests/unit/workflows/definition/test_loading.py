"""Workflows read from files: what is made of them."""

import pytest

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowFileError
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.running.results import Scope, StepResult

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


def test_the_digest_is_that_of_what_is_said(load):
    made = load(SIMPLE)
    assert load(SIMPLE.replace("steps:", "# a comment\nsteps:  ")).digest == made.digest
    assert load(SIMPLE.replace("{{ all }}", "{{ all }}!")).digest != made.digest


TEAMS = """\
workflow: teams
inputs: {teams: json}
steps:
  each:
    for_each: team in teams
    steps:
      member: {for_each: one in team.m, prompt: "{{ team.n }}-{{ one }}"}
  groups: {reduce: rows, group_by: len(teams), prompt: "{{ group }}: {{ rows | length }}"}
output: {said: "{{ each.member }}", first: "{{ each[0].member | first }}"}
tables: {groups: groups}
"""


def test_a_field_of_a_list_of_inner_steps_is_that_of_each_item(load):
    made = load(TEAMS)
    value = [{"member": ["A-x", "A-y"]}, {"member": []}, None]
    scope = Scope({"teams": []}, {"each": StepResult(state="done", value=value)})
    assert made.output["said"].evaluate(scope) == [["A-x", "A-y"], [], None]
    assert made.output["first"].evaluate(scope) == "A-x"
    assert made.steps["groups"].reduce.rows == ()
    assert made.steps["each"].for_each.order == ("member",)


def test_a_field_that_groups_do_not_have(load):
    with pytest.raises(WorkflowFileError, match="has no field 'vale'"):
        load(TEAMS.replace("{groups: groups}", "{groups: 'groups[0].vale'}"))


def test_a_column_that_the_table_lacks(load):
    with pytest.raises(WorkflowFileError, match=r"no column 'body'.*did you mean 'bodies'"):
        load(SIMPLE, ["id", "bodies"])


def test_a_type_beside_the_file_is_a_form(load, tmp_path):
    (tmp_path / "kinds_of_this_test.py").write_text(
        "from pydantic import BaseModel\n\nclass Case(BaseModel):\n    gene: str\n"
    )
    text = 'workflow: w\ninputs: {id: text}\nsteps: {a: {prompt: hi, answer: {python: "kinds_of_this_test:Case"}}}\n'
    assert load(text + 'output: {g: "{{ a.gene }}"}\n').steps["a"].form.read('{"gene": "TP53"}').value.gene == "TP53"
    with pytest.raises(WorkflowFileError, match="did you mean 'gene'"):
        load(text + 'output: {g: "{{ a.gen }}"}\n')


def test_single_braces_are_noted(load):
    text = 'workflow: w\ninputs: {id: text}\nsteps: {a: {prompt: "{id} {\\"id\\": 1} {x} {{ id }}"}}\noutput: {a: a}\n'
    assert [note for note in load(text).notes if "as it is written" in note] == [
        "line 3: {id} stands as it is written; {{ id }} is its value"
    ]


def test_without_a_cloud_every_model_is_ones_own(tmp_path):
    config = StrategyConfig(profile_name="mine", models={"small": {"backend": "scripted"}}, allow_cloud=False)
    path = tmp_path / "flow.yaml"
    path.write_text("workflow: w\ninputs: {n: private}\nsteps: {a: {model: small, prompt: '{{ n }}'}}\noutput: {a: a}\n")
    assert load_workflow(path, config=config).steps["a"].labels.private


def test_after_a_fault_in_a_form_nothing_is_said_of_its_fields(load):
    with pytest.raises(WorkflowFileError) as caught:
        load("workflow: w\nsteps: {a: {prompt: hi, answer: {x: txt}}}\noutput: {g: a.x}\n")
    assert len(caught.value.problems) == 1
