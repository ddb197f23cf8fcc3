"""`generate_many`: many prompts, their answers in order; gone on with from a journal, and no file without one."""

from __future__ import annotations

import asyncio
import io
import json

import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.unit.test_run_batch import Models, said
from workflow_composer import LLMRequest
from workflow_composer.batch.run.run_batch import Shown
from workflow_composer.batch.run.tally import Tally
from workflow_composer.errors import InputError, ServerUnreachable

PROMPTS = [f"What is {n} + 0?" for n in range(7)]


class Gene(BaseModel):
    """Read by an alias, as a person may have it."""

    model_config = ConfigDict(extra="forbid")
    symbol: str = Field(alias="gene")


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Models, in an empty working directory; what was opened is closed."""
    monkeypatch.chdir(tmp_path)
    made = Models()
    yield made
    for orchestrator in made.opened:
        orchestrator.close()


def test_answers_come_in_the_order_of_the_prompts_and_nothing_is_written(models, tmp_path):
    """However the calls end; each with its text, model and cost."""

    async def later(call):
        for _ in range(20 - 2 * int(said(call).split()[2])):  # the first one ends last
            await asyncio.sleep(0)
        return said(call).split()[2]

    models.script = later
    found = models.open().generate_many(PROMPTS, concurrency=7)
    assert [(row.index, row.text, row.model, row.cost, row.error) for row in found] == [
        (n, str(n), "small", 0.25, None) for n in range(7)
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_are_asked_at_once_than_wanted(models, concurrency):
    """And as many as that."""
    now, most = 0, 0

    async def answer(call):
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(5):
            await asyncio.sleep(0)
        now -= 1
        return "1"

    models.script = answer
    models.open().generate_many(PROMPTS, concurrency=concurrency)
    assert most == concurrency


def test_prompts_come_in_many_forms(models):
    """Texts, lists of messages, requests, mappings with fields of their own; from a generator, too."""
    message = {"role": "user", "content": "What is 3 + 0?"}
    prompts = ["What is 1 + 0?", [message], LLMRequest.of("What is 5 + 0?"), {"prompt": "What is 7 + 0?", "id": "x"}]
    found = models.open().generate_many(prompt for prompt in prompts)
    assert [(row.id, row.text) for row in found] == [(0, "1"), (1, "3"), (2, "5"), ("x", "7")]
    assert models.open().generate_many([]) == []


@pytest.mark.parametrize("prompts", ["a text", {"prompt": "a row"}, LLMRequest.of("one")])
def test_one_prompt_is_no_list_of_prompts(models, prompts):
    """Its letters would be asked one by one."""
    with pytest.raises(InputError, match="not a list of prompts"):
        models.open().generate_many(prompts)


def test_a_prompt_that_fails_has_an_error_and_the_others_their_answers(models):
    """In its place."""

    def script(call):
        if "3" in said(call):
            raise ServerUnreachable("down")
        return said(call).split()[2]

    models.script = script
    found = models.open().generate_many(PROMPTS, retries=0)
    assert [row.text for row in found] == ["0", "1", "2", "", "4", "5", "6"]
    assert found[3].error.type == "AllCandidatesFailed"
    assert "AllCandidatesFailed" in repr(found[3])


def test_a_later_call_with_the_same_journal_asks_only_for_what_is_missing(models, tmp_path):
    """And has all answers, the earlier ones too, read as the schema wants them."""

    def script(call):
        if "3" in said(call) and len(models.calls) < 20:
            raise ServerUnreachable("down")
        return json.dumps({"gene": said(call).split()[2]})

    models.script = script
    first = models.open().generate_many(PROMPTS, journal="kept.jsonl", schema=Gene, retries=0)
    assert first[3].error is not None
    models.calls = models.calls * 10  # the server is up again
    before = len(models.calls)
    again = models.open().generate_many(PROMPTS, journal="kept.jsonl", schema=Gene, retries=0)
    assert len(models.calls) == before + 1
    assert [row.value for row in again] == [Gene(gene=str(n)) for n in range(7)]
    with pytest.raises(InputError, match="row 0"):
        models.open().generate_many(["another"], journal="kept.jsonl", schema=Gene)


def test_a_schema_gives_instances(models):
    """Of a pydantic model; an answer of another form has none."""
    models.script = lambda call: "no idea" if "3" in said(call) else '{"gene": "TP53"}'
    found = models.open().generate_many(PROMPTS[2:5], schema=Gene, form_retries=0)
    assert [row.value for row in found] == [Gene(gene="TP53"), None, Gene(gene="TP53")]


def test_a_budget_ends_the_run_and_every_prompt_still_has_its_result(models):
    """So that results and prompts can be zipped."""
    found = models.open().generate_many(PROMPTS, budget={"run": 0.5}, concurrency=1)
    assert [row.text for row in found] == ["0", "1", "", "", "", "", ""]
    assert {row.error.type for row in found[2:]} == {"BudgetExceeded"}


def test_progress_is_told(models, capsys):
    """To a function after each answer, or on standard error."""
    heard = []
    models.open().generate_many(PROMPTS, progress=lambda tally: heard.append(tally.done))
    assert sorted(heard) == list(range(1, 8))
    models.open().generate_many(PROMPTS, progress=True)
    assert "7/7 answers, $1.75" in capsys.readouterr().err


def test_progress_is_redrawn_on_a_terminal_and_lines_elsewhere():
    """Not for each answer: a line in five seconds, or ten redrawings in one."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def shown(stream):
        now = [0.0]
        show, tally = Shown(stream, clock=lambda: now[0]), Tally(400)
        for _ in range(400):
            now[0] += 0.05
            tally.answered += 1
            show(tally)
        show.end()
        return stream.getvalue()

    terminal, file = shown(Terminal()), shown(io.StringIO())
    assert 100 <= terminal.count("\r") <= 220
    assert terminal.count("\n") == 1
    assert 4 <= file.count("\n") <= 6
    assert "\r" not in file


def test_a_misspelt_field_is_refused_before_anything_is_asked(models):
    """With the way it is written."""
    with pytest.raises(TypeError, match="temperatur"):
        models.open().generate_many(PROMPTS, temperatur=0.2)
    assert models.calls == []


async def test_it_can_be_awaited(models):
    """In a program with a loop of its own."""
    orchestrator = models.open()
    found = await orchestrator.agenerate_many(PROMPTS, max_tokens=5)
    assert [row.text for row in found] == [str(n) for n in range(7)]
    await orchestrator.aclose()
