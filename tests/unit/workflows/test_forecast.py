"""What a run will probably ask and cost: before it, and by a few rows."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from workflow_composer.batch.datasets.table import read_table
from workflow_composer.cli.workflow.try_out import private_columns
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.orchestrator import ModelOrchestrator
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.forecast import PriceList, RowsExpected, SampleTable, expected
from workflow_composer.workflows.keeping.journal import JournalEntry

PROFILE = """
profile_name: priced
allow_cloud: false
models:
  small: {backend: vllm, base_url: "http://localhost:1/v1", model: s, input_price: 1.0, output_price: 0.0}
  free: {backend: vllm, base_url: "http://localhost:2/v1", model: f}
task_routing: {"*": small}
"""

FLOW = """
workflow: f
inputs: {text: text}
steps:
  kind:
    prompt: "{{ text }}"
    answer: [a, b]
  pieces:
    when: kind == "a"
    model: free
    prompt: "List: {{ text }}"
    answer: [text]
  each:
    for_each: part in pieces
    prompt: "{{ part }}"
    answer: text
  count:
    python: lib:count
    with: {pieces: pieces}
    answer: number
  all:
    reduce: rows
    prompt: "{% for r in rows %}{{ r.kind }}{% endfor %}"
    fold: "{% for p in parts %}{{ p }}{% endfor %}"
    answer: text
output: {kind: "{{ kind }}"}
"""


@pytest.fixture
def prices(tmp_path):
    (tmp_path / "profile.yaml").write_text(PROFILE)
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "table.csv").write_text("text\n" + "".join(f"{'x' * 400}\n" for _ in range(1000)))
    table = read_table(tmp_path / "table.csv", asks=False)
    with ModelOrchestrator(tmp_path / "profile.yaml", environ={}) as orchestrator:
        workflow = load_workflow(tmp_path / "flow.yaml", config=orchestrator.config, columns=table.names)
        return PriceList(workflow, table, orchestrator.config, orchestrator.plan)


def test_model_steps_are_priced_before_they_are_asked(prices):
    """By the prompts' real lengths where they read the row alone; what only the answers decide is said."""
    found = {step.path: step for step in prices.steps}
    assert list(found) == ["kind", "pieces", "each", "all"]
    assert [(step.calls, step.items, step.conditional) for step in prices.steps] == [
        (1000, False, False),
        (1000, False, True),
        (1000, True, False),
        (1, False, False),
    ]
    assert found["kind"].prompt_tokens == 1000 * 400 / 4
    assert found["kind"].least == found["kind"].most == pytest.approx(0.1)
    assert (found["pieces"].unpriced, found["kind"].unpriced) == (("free",), ())
    assert prices.least == pytest.approx(math.fsum(step.least for step in prices.steps))


def test_what_few_rows_leave_open():
    """Two standard errors of the mean, times the rows; never below nothing."""
    assert RowsExpected.of([1, 1, 1, 1], 100) == RowsExpected(100, 100, 100)
    assert RowsExpected.of([3], 100) == RowsExpected(300, None, None)
    assert RowsExpected.of([], 100) == RowsExpected(0, None, None)
    found = RowsExpected.of([0, 2], 100)
    assert (found.mean, found.least, found.most) == (100, 0, pytest.approx(300))


def entry(place, calls, cost):
    facts = {"calls": calls, "cost": cost, "tokens": [3, 4], "seconds": 0.5}
    return JournalEntry(0, {"place": place, "digest": "", "facts": facts})


def test_items_votes_rounds_and_nested_steps_count_for_their_step():
    rows = [
        [entry("a", 1, 0.1), entry("teams[0].m[1]", 2, 0.2), entry("teams[1].m[0]", 1, 0.1), entry("inner/b#2", 1, 0.0)],
        [entry("a~3", 3, 0.3)],
    ]
    found = expected(rows, 10)
    assert {path: parts["calls"].mean for path, parts in found.items()} == {
        "a": 20,
        "teams.m": 15,
        "inner.b": 5,
        "(all)": 40,
    }
    assert found["a"]["dollars"].mean == pytest.approx(2.0)
    assert found["a"]["tokens"] == RowsExpected(70, 70, 70)
    assert expected([], 10) == {}


@pytest.mark.parametrize(("total", "wanted", "numbers"), [(10, 3, [0, 3, 6]), (2, 5, [0, 1]), (0, 5, [])])
def test_the_rows_that_are_tried_are_spread_over_the_table(total, wanted, numbers):
    class Whole:
        name = "whole"

        def count(self):
            return total

        def rows(self, *, wanted):
            row = SimpleNamespace
            return (row(number=at, _replace=lambda number, at=at: (number, at)) for at in range(total) if wanted(at))

    sample = SampleTable(Whole(), wanted)
    assert (sample.numbers, sample.count(), sample.name) == (numbers, len(numbers), "whole")
    assert list(sample.rows()) == list(enumerate(numbers))


def test_columns_that_are_made_of_private_inputs(tmp_path):
    (tmp_path / "profile.yaml").write_text(PROFILE)
    (tmp_path / "flow.yaml").write_text(
        "workflow: f\ninputs: {note: private, id: text}\nsteps:\n"
        '  kind: {prompt: "{{ note }}", answer: text}\n  open: {prompt: "{{ id }}", answer: text}\n'
        'output: {id: "{{ id }}", kind: "{{ kind }}", open: "{{ open }}", note: "{{ note }}"}\n'
    )
    config = StrategyConfig.load(tmp_path / "profile.yaml", environ={})
    workflow = load_workflow(tmp_path / "flow.yaml", config=config)
    assert private_columns(workflow) == {"kind", "note", "_errors"}
