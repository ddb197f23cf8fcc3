"""Budgets that do not reach: how far a run goes beyond them, what it repeats, and rows that are done more cheaply."""

import json

import pytest

from tests.unit.workflows.running.kit import Bench
from tests.unit.workflows.test_run import Table
from workflow_composer.errors import InputError
from workflow_composer.execution.reservation import Reservation
from workflow_composer.workflows.keeping import money
from workflow_composer.workflows.keeping.earlier_run import EarlierRun

PRICED = {
    "routers": ["cascade", "cascading_provider"],
    "models": {
        "small": {"backend": "scripted", "model": "small", "output_price": 10_000, "input_price": 0},
        "large": {"backend": "scripted", "model": "large", "output_price": 1_000_000, "input_price": 0},
    },
}
"""A word of `small` costs a cent, one of `large` a dollar."""

FLOW = """
    workflow: votes
    inputs: {t: text}
    when_low: cheaper
    steps:
      a:
        model: mv_cascade_small_k2_t0.7_large_k1_t0.0
        prompt: "Is {{ t }} good?"
        answer: ["yes", "no"]
    output: {t: "{{ t }}", a: "{{ a }}"}
"""


class Desk(Table):
    """A table whose models have prices. `small` never agrees with itself, so that `large` is asked."""

    def __init__(self, folder, rows, flow, reply=None):
        super().__init__(folder, rows, flow)
        self.turn = 0
        self.bench = Bench(folder, reply or self.votes, PRICED)

    def votes(self, model, prompt):
        self.turn += 1
        return "yes" if model == "large" or self.turn % 2 else "no"

    def calls_of(self, model):
        """Calls, each sample counted as one, since the bench was made."""
        return sum(call.samples for call in self.bench.backends[model].calls)


async def test_rows_are_done_more_cheaply_once_the_budget_does_not_pay_for_all(tmp_path):
    desk = Desk(tmp_path, 20, FLOW)
    report = await desk.run(run_budget=10.0, concurrency=1)
    rows = desk.written()
    marked = [row for row in rows if row["_errors"]]
    assert report.state == "done"
    assert all(row["a"] in ("yes", "no") and row["_state"] == "done" for row in rows)
    assert report.cost <= 10.0
    assert 8 <= 20 - len(marked) <= 9, "what the budget pays for is done in full"
    assert all("cheaper" in row["_errors"][0] for row in marked)
    assert report.data["steps"]["a"]["cheaper"] == len(marked) == desk.calls_of("small") / 2 - desk.calls_of("large")
    lineage = [row["steps"]["a"] for row in EarlierRun.of(desk.folder / "out.jsonl").lineage()]
    assert [bool(one.get("cheaper")) for one in lineage] == [bool(row["_errors"]) for row in rows]

    again = await desk.run(run_budget=100.0)
    assert (desk.bench.calls, again.kept, desk.written()) == (0, 20, rows)
    with desk.opened(run_budget=100.0) as run:
        assert (await run.changes()).told() == []
    whole = await desk.run(run_budget=100.0, redo="cheaper")
    assert whole.data["steps"]["a"]["cheaper"] == 0
    assert whole.kept == 20 - len(marked)
    assert desk.bench.calls == 3 * len(marked)
    assert not any(row["_errors"] for row in desk.written())


async def test_a_row_that_had_its_whole_answer_keeps_it_when_the_budget_is_low(tmp_path):
    desk = Desk(tmp_path, 6, FLOW)
    await desk.run(run_budget=100.0, rows=frozenset({4, 5}))
    report = await desk.run(run_budget=4.3, concurrency=1)
    assert report.state == "done"
    assert [bool(row["_errors"]) for row in desk.written()][-2:] == [False, False]
    assert report.kept == 2


async def test_a_step_with_one_tier_has_no_cheaper_way(tmp_path):
    desk = Desk(tmp_path, 6, FLOW.replace("mv_cascade_small_k2_t0.7_large_k1_t0.0", "large"))
    report = await desk.run(run_budget=3.0, concurrency=1)
    assert report.state == "stopped: budget"
    assert report.data["steps"]["a"]["cheaper"] == 0
    assert report.by_state["done"] == 3


def test_cheaper_is_redone_only_where_it_may_have_been_done(tmp_path):
    desk = Desk(tmp_path, 1, FLOW.replace("when_low: cheaper", "when_low: stop"))
    with pytest.raises(InputError, match="no step 'cheaper'"):
        desk.opened(redo="cheaper")


async def test_a_run_exceeds_its_budget_by_the_error_of_its_estimates_only_and_repeats_nothing(tmp_path, monkeypatch):
    """64 at a time; answers cost a cent to twenty."""
    flow = """
        workflow: words
        inputs: {t: text}
        steps:
          a: {model: small, prompt: "{{ t }}"}
        output: {a: "{{ a }}"}
    """
    desk = Desk(tmp_path, 400, flow, lambda model, prompt: "word " * (1 + int(prompt[1:]) * 7919 % 20))
    ended, reached = [], []
    settle, told = Reservation.settle, money.budget_reached

    def settled(self, actual, tokens=0):
        ended.append(max(0.0, actual - self.amount) if self.holds else 0.0)
        settle(self, actual, tokens)

    def stopped(account):
        reached.append((account.root.held, account.root.room))
        return told(account)

    monkeypatch.setattr(Reservation, "settle", settled)
    monkeypatch.setattr(money, "budget_reached", stopped)
    report = await desk.run(run_budget=10.0, concurrency=64)
    assert report.state == "stopped: budget"
    assert 10.0 - 0.2 <= report.cost <= 10.0 + sum(ended[-64:]) + 1e-9
    assert all(room <= 0.2 for _, room in reached), "what is only reserved stops nothing"
    first = list(desk.bench.prompts)
    assert 0 < len(first) < 400
    report = await desk.run(run_budget=100.0, concurrency=64)
    assert report.state == "done"
    assert sorted([*first, *desk.bench.prompts]) == sorted(f"r{number}" for number in range(400)), "nothing is repeated"
    assert len(json.dumps(desk.written())) > 400
