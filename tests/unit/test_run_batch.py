"""`run_batch`: rows from Python into a journal, gone on with, paid for once; as a notebook calls it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import threading

import pytest
from pydantic import BaseModel

from workflow_composer import LLMRequest, ModelOrchestrator, StrategyConfig, hookimpl
from workflow_composer.answers.output_form import output_form
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.errors import CallTimeout, InputError, ServerUnreachable
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plugins.host import plugin_host
from workflow_composer.types import texts


class Gene(BaseModel):
    """A type of a user's."""

    gene: str


ROWS = [{"id": f"r{n}", "prompt": f"What is {n} + 0?", "answer": str(n)} for n in range(6)]


def said(call):
    """What the model was asked."""
    return " ".join(texts(call.request.messages[-1]))


class Models:
    """Opens orchestrators over a model that answers by ``script``; ``asked`` are the prompts that it was sent."""

    def __init__(self):
        self.script = lambda call: said(call).split()[2]
        self.calls = []
        self.opened = []

    @hookimpl
    def register_backends(self, register):
        register("scripted", lambda spec, context: FakeBackend(self._answer, name=spec.name))

    def _answer(self, call):
        self.calls.append(call)
        return self.script(call)

    @property
    def asked(self):
        return [said(call) for call in self.calls]

    def open(self, name="mine"):
        host = plugin_host(discover=False)
        host.add(self, name="scripted")
        models = {m: {"backend": "scripted", "input_price": 0.0, "output_price": 250_000.0} for m in ("small", "large")}
        config = StrategyConfig(
            profile_name=name, models=models, task_routing={"*": "small"}, routers=["provider"], retries={"attempts": 1}
        )
        self.opened.append(ModelOrchestrator(config, plugins=host, metrics=MemorySink(), environ={}))
        return self.opened[-1]


@pytest.fixture
def models():
    """Models; what was opened is closed."""
    made = Models()
    yield made
    for orchestrator in made.opened:
        orchestrator.close()


@pytest.fixture
def journal(tmp_path):
    """In a folder that is made."""
    return tmp_path / "runs" / "first.jsonl"


def test_every_row_has_its_result_in_the_order_of_the_rows(models, journal):
    """With its text, cost and grade; one token costs a quarter of a dollar here."""
    run = models.open().run_batch(ROWS, journal=journal)
    assert [(row.index, row.id, row.text, row.error, row.cost) for row in run] == [
        (n, f"r{n}", str(n), None, 0.25) for n in range(6)
    ]
    assert all(row.correct and row.model == "small" and row.confidence is None for row in run)
    assert (run.done, run.failed, run.earlier, run.cost, run.cost_now, run.stopped_by) == (6, 0, 0, 1.5, 1.5, None)
    assert list(run) == list(run)
    assert json.loads(journal.read_text().splitlines()[0])["text"]


@pytest.mark.parametrize(
    "rows",
    [
        ["What is 1 + 0?", "What is 2 + 0?"],
        [LLMRequest.of("What is 1 + 0?"), LLMRequest.of("What is 2 + 0?")],
        ({"question": f"What is {n} + 0?"} for n in (1, 2)),
        iter([{"messages": [{"role": "user", "content": f"What is {n} + 0?"}]} for n in (1, 2)]),
        ({"messages": ({"role": "user", "content": "What is 1 + 0?"},)}, "What is 2 + 0?"),
    ],
    ids=["texts", "requests", "generator", "iterator of messages", "mixed"],
)
def test_rows_come_in_many_forms(models, journal, rows):
    """Without an id, the row's number is it."""
    run = models.open().run_batch(rows, journal=journal)
    assert [(row.id, row.text) for row in run] == [(0, "1"), (1, "2")]


def test_fields_hold_for_all_rows_and_a_rows_own_go_before_them(models, journal):
    """Of a request that is given as it is, the fields take the place, as in `generate`; so `system` is put in front."""
    rows = [{"prompt": "a b c", "model": "large"}, "a b c", LLMRequest.of("a b c", max_tokens=9, seed=3)]
    run = models.open().run_batch(rows, journal=journal, model="small", system="Be brief.", max_tokens=7)
    assert [row.model for row in run] == ["large", "small", "small"]
    assert {call.request.max_tokens for call in models.calls} == {7}
    assert sorted(call.request.seed or 0 for call in models.calls) == [0, 0, 3]
    assert {call.request.messages[0]["content"] for call in models.calls} == {"Be brief."}


def test_a_second_run_goes_on_and_asks_only_for_what_is_missing(models, journal):
    """Rows that failed are tried again; what is answered is not, in a new process either."""

    def fails(call):
        if "3" in said(call):
            raise CallTimeout("late")
        return "x"

    models.script = fails
    first = models.open().run_batch(ROWS[:5], journal=journal, retries=0)
    assert (first.done, first.failed) == (4, 1)
    (failed,) = [row for row in first if row.error]
    assert (failed.id, failed.text, failed.error.type) == ("r3", "", "AllCandidatesFailed")
    assert "late" in failed.error.message

    models.script = lambda call: "y"
    models.calls.clear()
    second = models.open().run_batch(ROWS, journal=journal)
    assert sorted(models.asked) == ["What is 3 + 0?", "What is 5 + 0?"]
    assert (second.done, second.earlier, second.failed) == (6, 4, 0)
    assert [row.text for row in second] == ["x", "x", "x", "y", "x", "y"]
    assert (second.cost, second.cost_now) == (1.5, 0.5)
    assert len(journal.read_bytes().splitlines()) == 6


def test_a_row_that_finds_no_server_is_tried_again_in_the_same_run(models, journal):
    """Once, unless it is said otherwise."""
    tries = []

    def fails(call):
        tries.append(said(call))
        if tries.count(said(call)) == 1:
            raise ServerUnreachable("down")
        return "x"

    models.script = fails
    run = models.open().run_batch(ROWS[:3], journal=journal)
    assert (run.done, run.failed, len(tries)) == (3, 0, 6)


@pytest.mark.parametrize(
    ("rows", "fields", "strategy"),
    [
        ([{**ROWS[0], "prompt": "other"}, *ROWS[1:]], {}, "mine"),
        ([*ROWS[:5], {**ROWS[5], "id": "other"}], {}, "mine"),
        (ROWS[:5], {}, "mine"),
        (iter(ROWS[:5]), {}, "mine"),
        (ROWS[::-1], {}, "mine"),
        (iter(ROWS[::-1]), {}, "mine"),
        (ROWS, {"temperature": 1.0}, "mine"),
        (ROWS, {}, "another"),
    ],
    ids=["prompt", "id", "fewer", "fewer, iterator", "order", "order, iterator", "fields", "strategy"],
)
def test_the_journal_of_another_run_is_refused_and_stays_as_it_is(models, journal, rows, fields, strategy):
    """Before anything is paid for."""
    models.open().run_batch(ROWS, journal=journal)
    before = journal.read_bytes()
    models.calls.clear()
    with pytest.raises(InputError) as caught:
        models.open(strategy).run_batch(rows, journal=journal, **fields)
    assert str(journal) in caught.value.message
    assert "another journal" in caught.value.hint
    assert models.calls == []
    assert journal.read_bytes() == before


def test_limits_may_change_from_run_to_run(models, journal):
    """Time and money are no part of what a run is."""
    models.open().run_batch(ROWS[:3], journal=journal, timeout=5, budget={"row": 900})
    run = models.open().run_batch(ROWS, journal=journal, timeout=60, budget={"row": 5000, "run": 10**6}, concurrency=2)
    assert (run.done, run.earlier) == (6, 3)


@pytest.mark.parametrize("many", [list, iter])
def test_at_the_runs_budget_it_stops_and_goes_on_with_a_higher_one(models, journal, many):
    """To the cent, counting what earlier runs have spent; rows that were not reached are not in the results."""
    o = models.open()
    run = o.run_batch(many(ROWS), journal=journal, budget={"run": 0.75})
    assert (run.done, run.cost, run.stopped_by) == (3, 0.75, "budget")
    assert [row.id for row in run] == ["r0", "r1", "r2"]
    run = o.run_batch(many(ROWS), journal=journal, budget={"run": 0.75})
    assert (run.done, run.cost_now, run.stopped_by) == (3, 0.0, "budget")
    run = o.run_batch(many(ROWS), journal=journal, budget={"run": 1.5})
    assert (run.done, run.cost, run.cost_now, run.stopped_by) == (6, 1.5, 0.75, None)


def test_a_row_that_its_budget_does_not_pay_for_fails_by_its_own_error_and_can_be_tried_again(models, journal):
    """With more money; the others are answered."""
    rows = [{"prompt": "a b c"}, LLMRequest.of("a b c", max_tokens=10)]
    o = models.open()
    run = o.run_batch(rows, journal=journal, budget={"row": 3.0})
    kinds = [row.error and row.error.type for row in run]
    assert kinds == ["BudgetExceeded", None]
    run = o.run_batch(rows, journal=journal, budget={"row": 10_000.0})
    assert [row.error for row in run] == [None, None]
    assert run.earlier == 1


def test_a_requests_own_budget_is_not_raised_by_that_of_rows(models, journal):
    """The lower of the two holds."""
    rows = [LLMRequest.of("a b c", budget=1.0), LLMRequest.of("a b c d", budget=100.0), LLMRequest.of("a b c e")]
    models.open().run_batch(rows, journal=journal, budget={"row": 10.0}, max_tokens=3)
    assert {said(call): call.request.budget for call in models.calls} == {
        "a b c": 1.0,
        "a b c d": 10.0,
        "a b c e": 10.0,
    }


def test_progress_is_told_after_each_row_and_its_fault_ends_the_run_with_everything_written(models, journal):
    """A callback may stop a run, too."""
    seen = []

    def progress(tally):
        seen.append((tally.done, tally.total, len(journal.read_bytes().splitlines())))
        if tally.done == 4:
            raise RuntimeError("enough")

    o = models.open()
    with pytest.raises(RuntimeError, match="enough"):
        o.run_batch(ROWS, journal=journal, concurrency=1, progress=progress)
    assert seen == [(n, 6, n) for n in range(1, 5)]
    assert o.run_batch(iter(ROWS), journal=journal, progress=lambda tally: seen.append(tally.total)).earlier == 4
    assert seen[-1] is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        (iter([]), "no rows"),
        ("What is 1 + 1?", "rows is str, not a list of rows"),
        ({"prompt": "a"}, "rows is dict, not a list of rows"),
        (LLMRequest.of("a"), "rows is LLMRequest, not a list of rows"),
        (7, "rows is int, not a list of rows"),
        (["a", ""], "row 1: 'prompt' is empty; it must be a non-empty string"),
        (["a", 7], "row 1: the row is int, not a string, a mapping or an LLMRequest"),
        (["a", None], "row 1: the row is NoneType"),
        ([{"prompt": "a"}, {"text": "b"}], "row 1: no 'question', 'prompt' or 'messages'; the row has 'text'"),
        ([{"prompt": ["a"]}], "row 0: 'prompt' is a list"),
        ([{"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}], "row 1: duplicate id 1"),
        ([{"prompt": "a", "id": 1}, {"prompt": "b"}], "row 1: duplicate id 1"),
        ([{"prompt": "a", "id": [1]}], "row 0: 'id' is a list, not a string or an integer"),
        ([{"prompt": "a", "model": 7}], "row 0: 'model' is a number, not a string"),
        ([{"prompt": "a", "context": "none-such"}], "row 0: "),
        ([LLMRequest.of("a", extra={"x": object()})], "row 0: not JSON-serializable"),
    ],
)
def test_faulty_rows_are_errors_that_name_the_row(models, journal, rows, message):
    """Before anything is asked or written."""
    with pytest.raises(InputError) as caught:
        models.open().run_batch(rows, journal=journal)
    assert message in caught.value.message
    assert caught.value.hint
    assert models.calls == []


def test_a_table_is_refused_with_the_way_to_its_rows(models, journal):
    """Going through a data frame gives the names of its columns, which nobody wants to ask."""
    pd = pytest.importorskip("pandas")
    with pytest.raises(InputError, match="rows is a table") as caught:
        models.open().run_batch(pd.DataFrame(ROWS), journal=journal)
    assert 'to_dict("records")' in caught.value.hint
    run = models.open().run_batch(pd.DataFrame(ROWS).to_dict("records"), journal=journal)
    assert run.done == 6


def test_a_fault_behind_rows_of_an_iterator_is_raised_with_these_rows_answered(models, journal):
    """It cannot be read before; what was paid for is kept."""
    with pytest.raises(InputError, match="row 2"):
        models.open().run_batch(iter(["a b c", "a b d", 7]), journal=journal)
    assert len(journal.read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"concurrency": 2.5}, {"retries": -1}, {"budget": {"row": 0}}, {"budget": 5}]
)
def test_wrong_options_are_errors_that_name_them(models, journal, options):
    with pytest.raises(InputError, match=next(iter(options))):
        models.open().run_batch(ROWS, journal=journal, **options)
    with pytest.raises(TypeError, match="temprature"):
        models.open().run_batch(ROWS, journal=journal, temprature=1.0)
    assert models.calls == []
    assert not journal.exists()


def test_no_more_rows_are_read_than_are_under_way_and_one_block(models, journal):
    """An endless generator may be stopped by its budget."""
    read = itertools.count()
    rows = (f"What is {next(read)} + 0?" for _ in itertools.count())
    run = models.open().run_batch(rows, journal=journal, budget={"run": 25.0})
    assert (run.done, run.stopped_by) == (100, "budget")
    assert next(read) < 100 + 2 * 256


def test_two_runs_cannot_have_one_journal(models, journal):
    """The second is refused, and the first goes on."""
    started, done = threading.Event(), threading.Event()

    async def wait(call):
        started.set()
        await asyncio.to_thread(done.wait, 20)
        return "x"

    models.script = wait
    results = []
    thread = threading.Thread(target=lambda: results.append(models.open().run_batch(ROWS, journal=journal)))
    thread.start()
    started.wait(20)
    with pytest.raises(InputError, match="another run is writing to"):
        models.open().run_batch(ROWS, journal=journal)
    done.set()
    thread.join(20)
    assert results[0].done == 6


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, as on a terminal; a shell's background processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_it_with_the_journal_closed_and_the_same_call_goes_on(models, journal):
    """In a cell: the next call finds the journal free, and every finished row in it."""

    async def some(call):
        if said(call) in {"What is 0 + 0?", "What is 1 + 0?"}:
            return "x"
        while len(journal.read_bytes().splitlines()) < 2:
            await asyncio.sleep(0.001)
        if said(call) == "What is 2 + 0?":
            os.kill(os.getpid(), signal.SIGINT)
        return await asyncio.sleep(3600)

    models.script = some
    o = models.open()
    with pytest.raises(KeyboardInterrupt):
        o.run_batch(ROWS, journal=journal, concurrency=3)
    models.script = lambda call: "y"
    run = o.run_batch(ROWS, journal=journal)
    assert (run.earlier, run.done) == (2, 6)
    assert [row.text for row in run] == ["x", "x", "y", "y", "y", "y"]


async def test_both_doors_work_inside_a_running_loop(models, journal):
    """One awaits, the other lets the loop stand still; the journal of the one is the journal of the other."""
    o = models.open()
    first = await o.arun_batch(ROWS[:3], journal=journal)
    second = o.run_batch(ROWS, journal=journal)
    third = await o.arun_batch(ROWS, journal=journal)
    assert [(run.earlier, run.done) for run in (first, second, third)] == [(0, 3), (3, 6), (6, 6)]


async def test_an_awaited_run_that_is_cancelled_leaves_its_journal_to_the_next(models, journal):
    """With what was finished."""

    async def some(call):
        if said(call) == "What is 0 + 0?":
            return "x"
        return await asyncio.sleep(3600)

    models.script = some
    o = models.open()
    told = asyncio.Event()
    task = asyncio.create_task(o.arun_batch(ROWS, journal=journal, progress=lambda tally: told.set()))
    await told.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    models.script = lambda call: "y"
    assert (await o.arun_batch(ROWS, journal=journal)).earlier == 1


def test_rows_may_have_a_form(models, journal):
    """The journal keeps the value, the calls after refused replies and the warning; a later run reads them."""
    replies = {"good": ["- a\n- b"], "mended later": ["none", '["c"]'], "never": ["none", "nothing", "nil"]}

    def reply(call):
        asked = texts(call.request.messages[0])[0].partition("\n")[0]
        return replies[asked][sum(message["role"] == "assistant" for message in call.request.messages)]

    models.script = reply
    rows = [*list(replies)[:2], LLMRequest.of("never", form=output_form(["text"]), form_retries=1)]
    for run in (models.open().run_batch(rows, journal=journal, form=["text"]) for _ in range(2)):
        assert [row.value for row in run] == [["a", "b"], ["c"], None]
        assert [row.data.get("asked_again") for row in run] == [None, 1, 1]
        assert ["wanted form" in row.data.get("warning", "") for row in run] == [False, False, True]
    assert len(models.calls) == 1 + 2 + 2


def test_a_row_with_a_pydantic_type_keeps_plain_data(models, journal):
    models.script = lambda call: '[{"gene": "TP53"}]'
    (row,) = models.open().run_batch(["?"], journal=journal, schema=list[Gene])
    assert row.value == [{"gene": "TP53"}]


def test_rows_of_unknown_cost_are_counted(models, tmp_path):
    """A price that the profile lacks is not a price of nothing."""
    with models.open() as orchestrator:
        assert orchestrator.run_batch(ROWS, journal=tmp_path / "priced").unpriced == 0
        unknown = StrategyConfig(
            profile_name="free", models={"small": {"backend": "scripted"}}, task_routing={"*": "small"}, routers=["provider"]
        )
    host = plugin_host(discover=False)
    host.add(models, name="scripted")
    with ModelOrchestrator(unknown, plugins=host, metrics=MemorySink(), environ={}) as orchestrator:
        run = orchestrator.run_batch(ROWS, journal=tmp_path / "unpriced")
    assert (run.unpriced, run.cost) == (6, 0.0)
    assert all(row.data["cost_known"] is False for row in run)
