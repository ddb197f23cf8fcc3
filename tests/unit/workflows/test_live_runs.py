"""What others see of a run: states and numbers, each step of a row once, and never a value."""

from __future__ import annotations

import asyncio
import json
import textwrap
import time

import pytest

from workflow_composer import StrategyConfig
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.keeping.row_keeper import RunCounts, StepCounts
from workflow_composer.workflows.live_runs import KEPT, SILENT, LiveRun, RunBoard
from workflow_composer.workflows.running.results import StepResult

FLOW = """
    workflow: seen
    inputs: {t: private}
    steps:
      a: {prompt: "{{ t }}"}
      b: {for_each: "x in [1, 2]", prompt: "{{ a }} {{ x }}"}
    output: {b: "{{ b }}"}
"""


@pytest.fixture
def made(tmp_path):
    path = tmp_path.parent / "seen.yaml"
    path.write_text(textwrap.dedent(FLOW))
    own = {"models": {"m": {"backend": "vllm", "base_url": "http://127.0.0.1:9"}}, "task_routing": {"*": "m"}}
    config = StrategyConfig(profile_name="p", **own)
    return lambda identity="req-1", **fields: LiveRun(identity, load_workflow(path, config=config), config, **fields)


def steps(data):
    return {step["name"]: step for step in data["steps"]}


def test_an_answer_is_told_by_its_length_and_a_digest_that_holds_within_its_run_only(made):
    one, other = made(), made()
    for run in (one, other):
        for name in ("a", "b"):
            run.begun(name)
            run.ended(name, StepResult(state="done", value="yes"))
    a, b, foreign = steps(one.data)["a"]["answer"], steps(one.data)["b"]["answer"], steps(other.data)["a"]["answer"]
    assert a["length"] == 3
    assert a["digest"] == b["digest"] != foreign["digest"]
    assert "yes" not in json.dumps(one.data)


def test_another_pass_over_the_rows_counts_no_step_again(made):
    run = made(rows=2)
    asked = RunCounts(a=StepCounts(calls=2, cost=0.5), **{"b.x": StepCounts(calls=1, kept=3)})
    for _ in range(2):
        run.pass_begins(asked)
        for _ in range(2):
            run.begun("a")
            run.ended("a", StepResult(state="failed", kind="server", value="x"))
            run.row("failed")
    found = run.data
    assert (steps(found)["a"]["states"], steps(found)["a"]["failures"]) == ({"failed": 2}, {"server": 2})
    assert found["rows"] == {"total": 2, "failed": 2}
    assert [steps(found)[name][key] for name, key in (("a", "calls"), ("a", "cost"), ("b", "kept"))] == [2, 0.5, 3]
    assert steps(found)["a"]["answer"] is None
    assert found["calls"] == 3


async def test_a_run_is_seen_in_another_process_and_ends_as_it_did(made, tmp_path):
    board, other = RunBoard(tmp_path / "runs"), RunBoard(tmp_path / "none", tmp_path / "runs")
    async with board.showing(made(rows=5)) as run:
        while other.find("req-1") is None:
            await asyncio.sleep(0.01)
        assert other.find("req-1")["state"] == "running"
        assert "graph" not in other.runs(9, lambda _: True)[0]
        run.end("done")
    assert [one["state"] for one in other.runs(9, lambda _: True)] == ["done"]
    with pytest.raises(ZeroDivisionError):
        async with board.showing(made("req-2")):
            _ = 1 / 0
    with pytest.raises(asyncio.CancelledError):
        async with board.showing(made("req-3")):
            raise asyncio.CancelledError
    assert [other.find(f"req-{n}")["state"] for n in (2, 3)] == ["failed", "cancelled"]
    assert [one["id"] for one in other.runs(9, lambda identity: identity == "req-3")] == ["req-3"]
    assert len(other.runs(2, lambda _: True)) == 2


async def test_a_folder_that_cannot_be_written_hinders_no_run(made, tmp_path):
    (tmp_path / "file").write_text("")
    board = RunBoard(tmp_path / "file")
    async with board.showing(made()) as run:
        run.end("done")
    assert board.find("req-1")["state"] == "done"


def test_who_is_silent_for_long_is_lost_and_what_is_no_run_is_none(made, tmp_path):
    board = RunBoard(tmp_path)
    data = made().data
    for name, text in (
        ("req-1", json.dumps(data)),
        ("old", json.dumps(data | {"id": "old", "updated": time.time() - SILENT - 60})),
        ("torn", "{"),
        ("other", json.dumps(data | {"steps": None})),
        ("list", "[]"),
    ):
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path.parent / "above.json").write_text(json.dumps(data))
    assert {one["id"]: one["state"] for one in board.runs(9, lambda _: True)} == {"req-1": "running", "old": "lost"}
    assert [board.find(name) for name in ("torn", "other", "list", "none", "../above")] == [None] * 5


async def test_only_the_latest_runs_are_kept(made, tmp_path):
    board = RunBoard(tmp_path)
    for number in range(KEPT + 20):
        (tmp_path / f"old-{number}.json").write_text("{}")
    async with board.showing(made()):
        pass
    assert len(list(tmp_path.glob("*.json"))) == KEPT
    assert (tmp_path / "req-1.json").exists()
