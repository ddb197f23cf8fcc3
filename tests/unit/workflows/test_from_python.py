"""Workflows run from Python: rows and tables in, results out, resumed by the same journal."""

import asyncio
import json
import textwrap
from datetime import date

import pytest

from tests.unit.workflows.running.kit import Bench
from workflow_composer.cli.main import run as cli
from workflow_composer.errors import InputError, WorkflowFileError
from workflow_composer.workflows.building import WorkflowBuilder

FLOW = """
    workflow: two
    inputs: {t: text}
    steps:
      a: {prompt: "first {{ t }}"}
      b: {prompt: "second {{ a }}"}
      all: {reduce: rows, prompt: "{% for r in rows %}{{ r.t }},{% endfor %}"}
    output: {t: "{{ t }}", b: "{{ b }}"}
    tables: {all: all}
"""
ROWS = [{"t": "x"}, {"t": "y", "other": object()}]


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path, lambda model, prompt: f"<{prompt}>")
    (tmp_path / "flow.yaml").write_text(textwrap.dedent(FLOW))
    with bench.orchestrator:
        yield bench


def run(bench, rows=ROWS, workflow=None, **options):
    return bench.orchestrator.run_workflow(workflow or bench.folder / "flow.yaml", rows, **options)


def test_rows_in_and_rows_out_without_any_file(bench):
    result = run(bench)
    expected = [{"t": t, "b": f"<second <first {t}>>", "_state": "done", "_errors": []} for t in "xy"]
    assert list(result) == expected
    assert (result.rows[-1], result.rows[:1], len(result)) == (expected[1], expected[:1], 2)
    assert (result.state, result.calls, result.kept, result.journal, result.output) == ("done", 5, 0, None, None)
    assert result.counts == {"done": 2, "partial": 0, "failed": 0, "waiting": 0, "stopped": 0}
    assert result.tables == {"all": [{"value": "<x,y,>"}]}
    assert result.report["steps"]["a"]["calls"] == 2
    assert [one.name for one in bench.folder.iterdir()] == ["flow.yaml"]
    with pytest.raises(AttributeError):
        result.state = "failed"


def test_the_same_journal_goes_on_and_asks_nothing_twice(bench):
    first = run(bench, journal=bench.folder / "kept.journal")
    assert first.journal == bench.folder / "kept.journal"
    again = run(bench, [*ROWS, {"t": "new"}], journal=bench.folder / "kept.journal")
    assert (again.calls, again.kept) == (3, 4)  # the new row's two steps, and the one that reads all rows
    assert list(again)[:2] == list(first)


def test_a_table_is_read_and_written_as_by_the_command(bench):
    source, target = bench.folder / "in.csv", bench.folder / "out.csv"
    source.write_text("t,more\nx,1\ny,2\n")
    result = run(bench, str(source), output=str(target))
    assert target.read_text().splitlines()[1] == "x,<second <first x>>,done,"
    assert (bench.folder / "out.all.csv").exists()
    assert (result.output, result.journal) == (target, bench.folder / "out.csv.journal")
    assert [row["_errors"] for row in result] == [[], []]
    assert run(bench, source, output=target).calls == 0


def test_a_builder_and_what_it_builds_are_workflows(bench):
    flow = WorkflowBuilder("w", inputs={"t": "text"})
    flow.prompt("a", "say {{ t }}")
    flow.output(a="{{ a }}")
    assert [row["a"] for row in run(bench, [{"t": "x"}], flow)] == ["<say x>"]
    built = flow.build(bench.config)
    assert [row["a"] for row in run(bench, [{"t": date(2026, 1, 2)}], built)] == ["<say 2026-01-02>"]
    for workflow, error in ((flow, WorkflowFileError), (built, InputError)):
        with pytest.raises(error, match="no column 't'"):
            run(bench, [{"T": "x"}], workflow)


def test_a_failed_row_is_a_row(bench):
    flow = WorkflowBuilder("w", inputs={"t": "number"})
    flow.prompt("a", "say {{ t }}")
    flow.output(a="{{ a }}")
    result = run(bench, [{"t": 1}, {"t": "two"}], flow)
    assert (result.state, result.counts["failed"]) == ("failed", 1)
    assert [row["_state"] for row in result] == ["done", "failed"]
    assert result.rows[1] == {"a": None, "_state": "failed", "_errors": ["t: a number is needed, found a text"]}


def test_progress_and_its_exceptions(bench, capsys):
    seen = []
    run(bench, progress=lambda tally: seen.append((tally.done, tally.total)))
    assert seen == [(1, 2), (2, 2)]
    run(bench, progress=True)
    assert "2/2 rows" in capsys.readouterr().err

    def end(tally):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(bench, journal=bench.folder / "k.journal", progress=end)
    assert run(bench, journal=bench.folder / "k.journal").kept > 0


def test_a_run_that_is_cancelled_has_kept_its_answers_and_let_go_of_its_journal(bench):
    async def cancelled():
        begun = asyncio.Event()
        task = asyncio.create_task(
            bench.orchestrator.arun_workflow(
                bench.folder / "flow.yaml",
                [{"t": str(number)} for number in range(50)],
                journal=bench.folder / "k.journal",
                concurrency=1,
                progress=lambda tally: begun.set(),
            )
        )
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    asked = bench.calls
    assert asked < 100
    again = run(bench, [{"t": str(number)} for number in range(50)], journal=bench.folder / "k.journal")
    assert again.state == "done"
    assert again.kept > 0


def test_no_rows_are_no_calls(bench):
    flow = WorkflowBuilder("w", inputs={"t": "text"})
    flow.prompt("a", "say {{ t }}")
    flow.output(a="{{ a }}")
    result = run(bench, [], flow)
    assert (list(result), result.state, bench.prompts) == ([], "done", [])


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        ({"t": "x"}, {}, "rows is a dict"),
        ([{"t": "x"}, "y"], {}, "row 2 is a str"),
        ([{1: "x"}], {}, "row 1 is a dict"),
        ([{"t": {"a", "b"}}], {}, "row 1: 't' is a set"),
        ([{"u": "x"}], {}, "no column 't'"),
        ("nowhere.csv", {}, "nowhere.csv"),
        (ROWS, {"budget": {"all": 1}}, "invalid budget"),
        (ROWS, {"budget": {"run": 0}}, "invalid run budget"),
        (ROWS, {"concurrency": 0}, "invalid concurrency"),
        (ROWS, {"journal": "kept.jsonl"}, "kept.jsonl has another ending"),
        (ROWS, {"output": "out.docx"}, "out.docx has no known format"),
        (ROWS, {"workflow": 7}, "int is no workflow"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_asked(bench, rows, options, told):
    with pytest.raises((InputError, WorkflowFileError), match=told):
        run(bench, rows, **options)
    assert bench.prompts == []


def test_the_command_knows_a_run_by_its_journal(bench, capsys):
    run(bench, journal=bench.folder / "kept.journal")
    assert cli(["workflow", "show", str(bench.folder / "kept.journal"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
