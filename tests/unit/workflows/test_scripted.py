"""Scripted answers instead of models."""

from __future__ import annotations

import pytest

from workflow_composer.answers.output_form import output_form
from workflow_composer.cli.workflow.scripted_models import FlowTest, ScriptedModels
from workflow_composer.errors import AllCandidatesFailed, InputError
from workflow_composer.orchestrator import ModelOrchestrator
from workflow_composer.types import LLMRequest
from workflow_composer.workflows.definition.loading import load_workflow

PROFILE = """
profile_name: two
allow_cloud: false
models:
  small: {backend: vllm, base_url: "http://localhost:1/v1", model: s}
  large: {backend: vllm, base_url: "http://localhost:2/v1", model: l}
tiers: {small: {model: small, cost: 1.0}, large: {model: large, cost: 2.0}}
routers: [cascade, cascading_provider]
task_routing: {"*": small}
"""
FLOW = """
workflow: f
inputs: {text: text}
steps:
  kind: {prompt: "{{ text }}", answer: [a, b], accept: {judge: small, ask: "Right?"}}
output: {kind: "{{ kind }}"}
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "profile.yaml").write_text(PROFILE)
    (tmp_path / "flow.yaml").write_text(FLOW)
    return tmp_path


@pytest.fixture
def models(place):
    with ModelOrchestrator(place / "profile.yaml", environ={}) as orchestrator:
        yield lambda **answers: ScriptedModels(orchestrator.config, orchestrator.plan, answers)


def ask(text="x", step="kind", **fields):
    return LLMRequest.of(text, form=output_form(["a", "b"]), metadata={"step": step}, **fields)


async def test_one_answer_is_for_every_call_and_what_is_no_text_is_json(models):
    scripted = models(kind="a", other={"n": [1]}, data=[{"n": [1]}])
    assert [(await scripted.agenerate(ask())).value for _ in range(2)] == ["a", "a"]
    response = await scripted.agenerate(LLMRequest.of("x", form=output_form({"n": ["number"]}), metadata={"step": "data"}))
    assert response.value == {"n": [1]}


async def test_a_list_is_for_the_calls_in_turn_refused_ones_too(models):
    scripted = models(kind=["hm", "a", "b"])
    first, second = await scripted.agenerate(ask()), await scripted.agenerate(ask())
    assert (first.value, first.asked_again, second.value) == ("a", 1, "b")
    with pytest.raises(AllCandidatesFailed, match="3 answers of kind are used up"):
        await scripted.agenerate(ask())


async def test_a_text_in_the_prompt_chooses_the_answer(models):
    scripted = models(kind={"first": "a", "second": "b"})
    assert [(await scripted.agenerate(ask(text))).value for text in ("the second", "the first")] == ["b", "a"]
    with pytest.raises(AllCandidatesFailed, match="no answer of kind for this prompt"):
        await scripted.agenerate(ask("neither"))


async def test_a_text_in_the_prompt_may_choose_a_list_of_answers_in_turn(models):
    scripted = models(kind={"first": ["a", "b"], "second": "b"})
    assert [(await scripted.agenerate(ask(text))).value for text in ("first", "second", "first")] == ["a", "b", "b"]
    with pytest.raises(AllCandidatesFailed, match="2 answers of kind: first are used up"):
        await scripted.agenerate(ask("first"))


async def test_the_next_tier_is_asked_as_the_profile_says(models):
    scripted = models(kind=["hm", "b"])
    response = await scripted.agenerate(ask(model="mv_cascade_small_k1_t0.0_large_k1_t0.0", form_retries=0))
    assert (response.value, response.model, response.cost) == ("b", "large", 0.0)


async def test_a_step_without_an_answer_is_named(models):
    with pytest.raises(AllCandidatesFailed, match="no answer of other"):
        await models(kind="a").agenerate(ask(step="other"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("answer: {}", "unknown key 'answer'.*did you mean 'answers'"),
        ("answers: [a]", "answers is no mapping"),
        ("rows: {a: 1}", "rows is no list"),
        ("expect: [1]", "expect is no list"),
        ("answers: {knd: a}", "no step 'knd'.*did you mean 'kind'"),
        ("expect: [{knd: a}]", "expect, row 1: there is no column 'knd'.*did you mean 'kind'"),
    ],
)
def test_faults_of_a_test_are_named(place, text, told):
    (place / "test.yaml").write_text(text)
    with ModelOrchestrator(place / "profile.yaml", environ={}) as orchestrator:
        workflow = load_workflow(place / "flow.yaml", config=orchestrator.config)
    with pytest.raises(InputError, match=told):
        FlowTest.read(place / "test.yaml").check(workflow)


def test_words_stay_words_and_types_count(place):
    (place / "test.yaml").write_text('answers: {kind.judge: yes}\nexpect: [{kind: no}, {kind: 1}, {kind: "1"}]')
    test = FlowTest.read(place / "test.yaml")
    assert test.answers == {"kind.judge": "yes"}
    rows = [{"kind": "no"}, {"kind": True}, {"kind": 1}]
    assert test.differences(rows) == ["row 2: kind is true, expected 1", 'row 3: kind is 1, expected "1"']
    assert test.differences(rows[:2])[-1] == "2 rows, expected 3"
