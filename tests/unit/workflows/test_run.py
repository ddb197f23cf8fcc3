"""A whole run over a table: what is asked, kept and written, and what is said before something is asked again."""

import asyncio
import json
import textwrap
import tracemalloc

import pytest

from tests.unit.workflows.running.kit import Bench
from workflow_composer.batch.asking.table_output import journal_beside
from workflow_composer.batch.datasets.table import read_table
from workflow_composer.cli.main import run as cli
from workflow_composer.errors import InputError
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.keeping.earlier_run import EarlierRun, differing
from workflow_composer.workflows.keeping.people import write_answer
from workflow_composer.workflows.run import RunOptions, WorkflowRun

FLOW = """
    workflow: two
    inputs: {t: text}
    steps:
      a: {prompt: "first {{ t }}"}
      b: {prompt: "second {{ a }}"}
    output: {t: "{{ t }}", b: "{{ b }}"}
"""


class Table:
    """A folder with a table of ``rows`` rows, a flow and scripted models."""

    def __init__(self, folder, rows=3, flow=FLOW, reply=None):
        self.folder, self.text, self.rows = folder, flow, rows
        self.bench = Bench(folder, reply or (lambda model, prompt: f"<{prompt}>"))
        self.source = folder / "in.jsonl"
        self.write([f"r{number}" for number in range(rows)])

    def write(self, texts):
        self.source.write_text("".join(json.dumps({"t": text}) + "\n" for text in texts))

    def opened(self, output="out.jsonl", **options):
        (self.folder / "flow.yaml").write_text(textwrap.dedent(self.text))
        table = read_table(self.source, asks=False)
        flow = load_workflow(self.folder / "flow.yaml", config=self.bench.config, columns=table.names)
        return WorkflowRun(flow, table, self.folder / output, self.bench.orchestrator, RunOptions(**options))

    async def run(self, output="out.jsonl", cancel=None, **options):
        """Run; the report, with the calls that were made since."""
        self.bench.again()
        with self.opened(output, **options) as run:
            return await run.run(cancel=cancel)

    def written(self, output="out.jsonl"):
        return [json.loads(line) for line in (self.folder / output).read_text().splitlines()]


@pytest.fixture
def desk(tmp_path):
    return Table(tmp_path)


async def test_a_table_is_written_in_order_with_states_and_errors(desk):
    report = await desk.run()
    assert report.state == "done"
    assert desk.bench.calls == report.calls == 6
    expected = {"t": "r1", "b": "<second <first r1>>", "_state": "done", "_errors": []}
    assert desk.written()[1] == expected
    assert [row["t"] for row in desk.written()] == ["r0", "r1", "r2"]


async def test_a_second_run_asks_nothing_and_writes_the_same(desk):
    await desk.run()
    before = (desk.folder / "out.jsonl").read_bytes()
    report = await desk.run()
    assert (desk.bench.calls, report.kept, report.data["steps"]["a"]["kept"]) == (0, 6, 3)
    assert (desk.folder / "out.jsonl").read_bytes() == before


async def test_only_a_new_row_is_asked_wherever_it_stands(desk):
    await desk.run()
    desk.write(["new", "r2", "r0"])
    await desk.run()
    assert sorted(desk.bench.prompts) == ["first new", "second <first new>"]
    assert [row["b"] for row in desk.written()] == [f"<second <first {t}>>" for t in ("new", "r2", "r0")]


async def test_what_changed_is_said_with_its_price_before_it_is_asked(desk):
    await desk.run()
    desk.text = FLOW.replace("first {{ t }}", "1st {{ t }}")
    desk.bench.again()
    with desk.opened() as run:
        changes = await run.changes()
        assert desk.bench.calls == 0
        first, second = changes.told()
    assert first.startswith("a: 3 asked again (its prompt changed)")
    assert second.startswith("up to 3 more answers follow")
    desk.text = FLOW
    with desk.opened() as run:
        assert (await run.changes()).told() == []


async def test_what_stands_before_the_messages_is_part_of_a_question(tmp_path):
    """A context template whose text changes, as of a task's in the profile."""
    desk, calls = Table(tmp_path), []
    template = tmp_path / "lab.md"
    for text in ("Be brief.", "Be brief.", "Be exact."):
        template.write_text(f"---\nname: lab\nversion: 1\ndescription: How.\n---\n{text}\n")
        desk.bench = Bench(tmp_path, lambda model, prompt: "same", {"task_contexts": {"*": [str(template)]}})
        await desk.run()
        calls.append(desk.bench.calls)
    assert calls == [6, 0, 6]


async def test_rows_steps_and_redoing_may_be_named(desk):
    await desk.run(rows=frozenset({1}))
    assert desk.bench.prompts == ["first r1", "second <first r1>"]
    assert [row["_state"] for row in desk.written()] == ["stopped", "done", "stopped"]
    await desk.run(only="a")
    assert sorted(desk.bench.prompts) == ["first r0", "first r2"]
    await desk.run()
    assert len(desk.bench.prompts) == 2
    await desk.run(redo="b")
    assert [prompt.split()[0] for prompt in desk.bench.prompts] == ["second"] * 3
    await desk.run(start="a")
    assert desk.bench.calls == 6
    with pytest.raises(InputError, match="no step 'c'"):
        desk.opened(redo="c")


async def test_a_cancelled_run_keeps_what_was_answered_and_goes_on(desk):
    desk.write([f"r{number}" for number in range(40)])
    cancel = asyncio.Event()

    def reply(model, prompt):
        if desk.bench.calls >= 10:
            cancel.set()
        return f"<{prompt}>"

    desk.bench.reply = reply
    report = await desk.run(cancel=cancel, concurrency=2)
    assert report.state == "cancelled"
    made = desk.bench.calls
    assert 10 <= made < 20
    report = await desk.run()
    assert report.state == "done"
    assert desk.bench.calls == 80 - made


async def test_a_person_is_asked_once_and_the_first_answer_counts(desk):
    desk.text = """
        workflow: person
        inputs: {t: text}
        steps:
          p: {human: "Is {{ t }} good?", answer: [good, bad]}
          b: {prompt: "second {{ p }} {{ t }}"}
        output: {b: "{{ b }}"}
    """
    report = await desk.run()
    assert (report.state, report.by_state["waiting"], desk.bench.calls) == ("waiting", 3, 0)
    kept = EarlierRun.of(desk.folder / "out.jsonl")
    assert [(one.number, one.place) for one in kept.waiting()] == [(1, "p"), (2, "p"), (3, "p")]
    question = kept.waiting()[1]
    with pytest.raises(InputError, match="row 2"):
        question.value("perhaps")
    for word in ("good", "bad"):
        write_answer(kept.answers, question, question.value(word), by="me", at=0.0)
    assert [one.number for one in kept.waiting()] == [1, 3]
    report = await desk.run()
    assert desk.bench.prompts == ["second good r1"]
    assert report.state == "waiting"
    steps = list(kept.lineage())[1]["steps"]
    assert (steps["p"]["origin"], steps["b"]["origin"]) == ("person", "asked")


async def test_every_value_has_a_lineage_and_runs_can_be_compared_and_forgotten(desk):
    await desk.run()
    first = EarlierRun.of(desk.folder / "out.jsonl")
    row = next(iter(first.lineage()))
    assert {"origin", "model", "attempts", "cost", "seconds", "digest", "state"} <= row["steps"]["a"].keys()
    assert "<first" not in json.dumps(row)
    assert first.summary()["models"] == {"small": {"small": 6}}
    desk.text = FLOW.replace("second {{ a }}", "2nd {{ a }}")
    await desk.run("other.jsonl")
    found = differing(first, EarlierRun.of(desk.folder / "other.jsonl"))
    assert found["differs"]
    assert found["table"] == [["a", 3, 0, 0, 0], ["b", 0, 3, 0, 0]]
    removed = first.forget()
    assert journal_beside(desk.folder / "out.jsonl") in removed
    assert not list(desk.folder.glob("*out.jsonl.*"))
    with pytest.raises(InputError, match="no run"):
        EarlierRun.of(desk.folder / "out.jsonl")


async def test_a_table_that_no_run_has_written_is_left_alone(desk):
    (desk.folder / "out.jsonl").write_text("mine\n")
    with pytest.raises(InputError, match="no journal"):
        desk.opened()
    with pytest.raises(InputError, match="the table itself"):
        desk.opened("in.jsonl")


async def test_memory_grows_by_bytes_a_row_and_not_by_its_answers(tmp_path):
    """What a thousand rows more cost is far less than what their answers hold."""
    desk = Table(tmp_path, reply=lambda model, prompt: "x" * 2000)
    peaks = []
    for rows in (500, 2000):
        desk.write([f"r{number}" for number in range(rows)])
        desk.bench.messages.clear()
        await desk.run(f"out{rows}.jsonl", concurrency=8)
        tracemalloc.start()
        await desk.run(f"out{rows}.jsonl", concurrency=8)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1500 * 4000 / 8, peaks


# ------------------------------------------------------------------------------------------ commands that look at a run


def command(*arguments):
    return cli(["workflow", *map(str, arguments)])


async def test_commands_show_compare_answer_and_forget_a_run(desk, capsys):
    desk.text = """
        workflow: person
        inputs: {t: text}
        steps:
          p: {human: "Is {{ t }} good?", answer: [good, bad]}
          b: {prompt: "second {{ t }}"}
        output: {b: "{{ b }}", p: "{{ p }}"}
    """
    await desk.run()
    output = desk.folder / "out.jsonl"

    def does(*arguments):
        code = command(*arguments)
        told = capsys.readouterr()
        return code, told.out, told.err

    code, out, _ = does("answer", output, "--json")
    assert (code, [one["row"] for one in json.loads(out)["waiting"]]) == (0, [1, 2, 3])
    assert "good?" not in out, "questions may hold private text"
    assert does("answer", output, "--row", "2", "--value", "god")[0] == 2
    assert "did you mean 'good'" in does("answer", output, "--row", "2", "--value", "god")[2]
    assert does("answer", output, "--row", "2", "--value", "good")[0] == 0
    assert does("answer", output, "--row", "2", "--value", "good")[0] == 2, "it does not wait any more"
    await desk.run()
    code, out, _ = does("show", output, "--json")
    shown = json.loads(out)
    assert (code, shown["rows"][1]["steps"]["p"]["origin"], shown["answers"]) == (0, "person", 3)
    code, out, _ = does("show", output)
    assert (code, "b" in out, "1 done, person" in out) == (0, True, True)
    code, out, _ = does("show", output, "--row", "2")
    assert (code, "small" in out, "r1" in out) == (0, True, False)
    await desk.run("other.jsonl")
    code, out, _ = does("diff", output, desk.folder / "other.jsonl")
    assert code == 1, "one of them has a person's answer"
    assert does("diff", output, output)[0] == 0
    assert does("forget", output)[0] == 2, "without --yes nobody is asked here"
    assert does("forget", output, "--yes")[0] == 0
    assert does("show", output)[0] == 2
