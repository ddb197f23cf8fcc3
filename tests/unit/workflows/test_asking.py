"""`ask` as a workflow of one step: the same questions and values, and journals that were written before it was one."""

from __future__ import annotations

import asyncio
import json

import pytest

from workflow_composer.answers.output_form import output_form
from workflow_composer.batch.asking.table_output import journal_beside
from workflow_composer.batch.asking.templates import PromptTemplate
from workflow_composer.batch.datasets.table import read_table
from workflow_composer.batch.run.runner import RunBudget, going_on
from workflow_composer.errors import RateLimited
from workflow_composer.testing import orchestrator_with
from workflow_composer.types import Sample, texts
from workflow_composer.workflows.asking import AskRun, NewColumns, one_step

FIELDS = {"system": "Be brief, {{ nobody }} {% x.", "temperature": 0.5, "max_tokens": 9, "form_retries": 1, "timeout": 30.0}
HABITS = ("**Case.**", "I cannot tell", "Sure, it is a trial")


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"a": f"number {number}"}) + "\n" for number in range(6)))
    return path


def asked_run(table, form, **fields):
    run = AskRun(
        read_table(str(table), asks=False),
        PromptTemplate("Which is {{ a }}?", name="p"),
        form,
        NewColumns.of(form),
        fields=fields,
    )
    run.check()
    return run


async def answered(run, target, orchestrator):
    with run.opened(target, orchestrator.config) as file:
        await run.answer(
            orchestrator.agenerate,
            file,
            wanted=lambda number: True,
            concurrency=1,
            budget=RunBudget(0.5),
            progress=lambda tally: None,
            stop=asyncio.Event(),
            go_on=going_on,
        )
    return [json.loads(line) for line in journal_beside(target).read_text().splitlines()]


def said(call):
    """What a model with habits says: two of three rows need mending or a second try."""
    text = " ".join(texts(call.request.messages[1]))
    number = int(text.partition("number ")[2][0])
    return "case" if len(call.request.messages) > 2 else HABITS[number % 3]


def sent(orchestrator):
    return [
        (call.request.messages, call.request.temperature, call.request.max_tokens, call.request.form_retries)
        for call in orchestrator.fakes["small"].calls
    ]


def test_a_row_is_what_a_workflow_of_one_step_makes_of_it(table, tmp_path):
    """The requests are the same, tries after a refused answer included, and so are the values."""
    form = output_form(["case", "trial"])
    with orchestrator_with(answers={"small": (said,)}, routers=["provider"]) as orchestrator:
        lines = asyncio.run(answered(asked_run(table, form, **FIELDS), tmp_path / "o.csv", orchestrator))
        by_ask = sent(orchestrator)
        orchestrator.fakes["small"].calls.clear()
        rows = [{"prompt": f"Which is number {number}?", "system": FIELDS["system"]} for number in range(6)]
        result = orchestrator.run_workflow(one_step(FIELDS, form), rows, concurrency=1)
        by_workflow = sent(orchestrator)
    assert [line["value"] for line in lines] == [row["answer"] for row in result] == ["case", "case", "trial"] * 2
    assert by_ask == by_workflow
    assert len(by_ask) == 8
    assert by_ask[0][1:] == (0.5, 9, 1)


@pytest.mark.parametrize(
    ("script", "type_", "calls"),
    [
        (RateLimited("later"), "LocalModelUnavailable", 1),
        ("I cannot tell", "InvalidAnswer", 2),
        (Sample("ca", finish_reason="length"), "InvalidAnswer", 2),
        (Sample("", finish_reason="content_filter"), "InvalidAnswer", 1),
    ],
)
def test_a_failed_row_keeps_its_error(table, tmp_path, script, type_, calls):
    """That of the request, or why its answer cannot be used; the calls are counted, and the next run tries again."""
    form = output_form(["case", "trial"])
    retries = {"attempts": 1}
    with orchestrator_with(answers={"small": (script,)}, routers=["provider"], retries=retries) as orchestrator:
        lines = asyncio.run(answered(asked_run(table, form, form_retries=1), tmp_path / "o.csv", orchestrator))
        assert {(line["error"]["type"], line["calls"]) for line in lines} == {(type_, calls)}
        assert len(orchestrator.fakes["small"].calls) == 6 * calls
        asyncio.run(answered(asked_run(table, form, form_retries=1), tmp_path / "o.csv", orchestrator))
        assert len(orchestrator.fakes["small"].calls) == 12 * calls


def test_a_text_is_an_answer_as_it_is_and_not_when_it_was_cut_off(table, tmp_path):
    """It is asked for without a form: no larger limit is tried."""
    script = tuple(Sample("half", finish_reason="length") if number == 2 else "Some text." for number in range(6))
    form = output_form("text")
    with orchestrator_with(answers={"small": script}, routers=["provider"]) as orchestrator:
        lines = asyncio.run(answered(asked_run(table, form), tmp_path / "o.csv", orchestrator))
        assert len(orchestrator.fakes["small"].calls) == 6
    assert [line.get("value") for line in lines] == ["Some text.", "Some text.", None, *["Some text."] * 3]
    assert "--max-tokens" in lines[2]["error"]["message"]


WRITTEN = (
    '{"index":0,"key":"6674979422d445a1","content":"6696f3988803ddba","id":null,"question":"Which is number 0?",'
    '"label":null,"text":"case","model":"small","candidate":"small","tier":0,"fallback_depth":0,"cost":1.7e-05,'
    '"tokens":{"prompt":16,"completion":1},"latency_ms":0.815,"confidence":null,"finish_reason":"stop","value":"case",'
    '"calls":1,"asked_again":0,"mended":[],"answer":"case"}\n'
)
"""A row of a journal, as it was written before `ask` was a workflow."""


def test_a_journal_that_was_written_before_is_gone_on_with(table, tmp_path):
    """What it has is not asked again; keys of rows and fields of lines are as they were."""
    form, target = output_form(["case", "trial"]), tmp_path / "o.csv"
    journal_beside(target).write_text(WRITTEN)
    with orchestrator_with(answers={"small": ("trial",)}, routers=["provider"]) as orchestrator:
        lines = asyncio.run(answered(asked_run(table, form), target, orchestrator))
        assert len(orchestrator.fakes["small"].calls) == 5
    assert {line["index"]: line["value"] for line in lines} == {0: "case"} | dict.fromkeys(range(1, 6), "trial")
    assert {tuple(line) for line in lines} == {tuple(json.loads(WRITTEN))}
