"""What a run knows of earlier versions: of its file, of the models that servers serve, and of what was released."""

import json

import pytest

from tests.unit.workflows.test_run import FLOW, Table
from workflow_composer.batch.datasets.table import read_table
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.runtime.resources import served_models
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.keeping.earlier_run import EarlierRun
from workflow_composer.workflows.run import RunOptions, WorkflowRun


class Served(Table):
    """A table whose servers say what they serve: ``served`` by name."""

    served = {}

    def opened(self, output="out.jsonl", **options):
        async def served(config):
            return self.served

        (self.folder / "flow.yaml").write_text(self.text)
        table = read_table(self.source, asks=False)
        flow = load_workflow(self.folder / "flow.yaml", config=self.bench.as_read, columns=table.names)
        return WorkflowRun(flow, table, self.folder / output, self.bench.orchestrator, RunOptions(**options), served=served)

    def lineage(self):
        return list(EarlierRun.of(self.folder / "out.jsonl").lineage())


@pytest.fixture
def desk(tmp_path):
    return Served(tmp_path)


def model(name, engine=None):
    return {"small": {"model": name, **({"engine": engine} if engine else {})}}


async def test_answers_of_another_model_behind_a_name_are_asked_again_and_come_back_with_it(desk):
    desk.served = model("qwen-7b")
    await desk.run()
    desk.served = model("qwen-72b")
    with desk.opened() as run:
        lines = (await run.changes()).told()
    assert "small was qwen-7b and is qwen-72b" in lines[0]
    report = await desk.run(rows=frozenset({0}))
    assert desk.bench.calls == 2
    assert report.data["steps"]["a"]["asked_again"] == {"small was qwen-7b and is qwen-72b": 1}
    await desk.run()
    assert desk.bench.calls == 4, "row 1 has answers of the model of today"
    desk.served = model("qwen-7b")
    await desk.run()
    assert desk.bench.calls == 0, "the answers of the first run are of this model"


async def test_a_server_that_says_nothing_is_believed_to_serve_what_it_served(desk):
    desk.served = model("qwen-7b")
    await desk.run()
    desk.served = {}
    await desk.run()
    assert desk.bench.calls == 0
    desk.served = model("qwen-72b")
    await desk.run()
    assert desk.bench.calls == 6


async def test_answers_from_before_servers_were_asked_are_used(desk):
    await desk.run()
    desk.served = model("qwen-7b")
    await desk.run()
    assert desk.bench.calls == 0


async def test_another_engine_is_told_and_asks_nothing_again(desk):
    desk.served = model("qwen-7b", "vllm 0.11")
    await desk.run()
    desk.served = model("qwen-7b", "vllm 0.12")
    with desk.opened() as run:
        assert (await run.changes()).notes == ["small was served by vllm 0.11 and is by vllm 0.12; its answers are kept"]
    await desk.run()
    assert desk.bench.calls == 0


async def test_a_model_that_no_step_asks_does_not_matter(desk):
    desk.served = {"large": {"model": "a"}}
    await desk.run()
    desk.served = {"large": {"model": "b"}}
    await desk.run()
    assert desk.bench.calls == 0


async def test_only_servers_whose_model_the_profile_leaves_open_are_asked(monkeypatch):
    async def detected(self, *, slurm=True):
        raise AssertionError("a server was asked")

    monkeypatch.setattr("workflow_composer.runtime.resources.ResourceDetector.adetect", detected)
    named = {"backend": "vllm", "base_url": "http://127.0.0.1:9", "model": "m"}
    assert await served_models(StrategyConfig(profile_name="p", models={"small": named})) == {}
    del named["model"]
    with pytest.raises(AssertionError, match="was asked"):
        await served_models(StrategyConfig(profile_name="p", models={"small": named}))


async def test_each_value_names_the_version_of_the_file_that_made_it(desk):
    desk.text = "\n".join(line.removeprefix("    ") for line in FLOW.splitlines())
    await desk.run()
    (first,) = {step["file"] for row in desk.lineage() for step in row["steps"].values()}
    desk.text = desk.text.replace("second {{ a }}", "2nd {{ a }}")
    await desk.run()
    rows = desk.lineage()
    assert {row["steps"]["a"]["file"] for row in rows} == {first}
    (second,) = {row["steps"]["b"]["file"] for row in rows}
    assert second != first
    assert {row["steps"]["a"]["origin"] for row in rows} == {"kept"}
    assert {row["steps"]["b"]["origin"] for row in rows} == {"asked"}
    desk.text = "# a comment\n" + desk.text
    await desk.run()
    assert {row["steps"]["b"]["file"] for row in desk.lineage()} == {second}


# ------------------------------------------------------------------------------------------------------------- releases

RELEASED = """
workflow: released
inputs: {t: private}
steps:
  a:
    prompt: "first {{ t }}"
    release: {check: CHECK}
  b: {prompt: "second {{ a }}"}
output: {b: "{{ b | default('') }}"}
"""
BY_JUDGE = RELEASED.replace("CHECK", '{judge: large, ask: "Is it free of names?"}')
BY_FUNCTION = RELEASED.replace("CHECK", '{python: "checks:free"}')


def judged(desk, verdict):
    desk.bench.reply = lambda model, prompt: verdict if "free of names" in prompt else f"<{prompt[:9]}>"


@pytest.mark.parametrize("verdict", ["yes", "no"])
async def test_what_a_judge_of_a_release_has_said_is_not_asked_again(desk, verdict):
    desk.text = BY_JUDGE
    judged(desk, verdict)
    report = await desk.run()
    assert desk.bench.calls == 3 + 3 + (3 if verdict == "yes" else 0)
    written = desk.written()
    again = await desk.run()
    assert desk.bench.calls == 0
    assert desk.written() == written
    assert again.data["cost"] == report.data["cost"]


async def test_another_question_to_the_judge_of_a_release_is_asked(desk):
    desk.text = BY_JUDGE
    judged(desk, "yes")
    await desk.run()
    desk.text = BY_JUDGE.replace("free of names", "free of names and places")
    judged(desk, "no")
    await desk.run()
    assert desk.bench.calls == 3, "the release is checked anew, and its answers are kept"
    assert [row["b"] for row in desk.written()] == ["", "", ""]


async def test_what_a_program_has_refused_to_release_it_is_asked_again(desk):
    desk.text = BY_FUNCTION
    judged(desk, "")
    for good, calls in ((False, 3), (False, 0), (True, 3), (True, 0)):
        fault = desk.folder / "fault"
        fault.unlink() if good and fault.exists() else fault.touch() if not good else None
        (desk.folder / "checks.py").write_text(
            f"import os\ndef free(value):\n    return not os.path.exists({str(fault)!r})\n"
        )
        await desk.run()
        assert desk.bench.calls == calls
        assert [bool(row["b"]) for row in desk.written()] == [good] * 3


async def test_looking_for_changes_checks_no_release(desk):
    desk.text = BY_JUDGE
    judged(desk, "yes")
    await desk.run()
    desk.text = BY_JUDGE.replace("free of names", "free of names and places")
    desk.bench.again()
    with desk.opened() as run:
        found = await run.changes()
    assert desk.bench.calls == 0
    assert json.dumps(found.told()).count("asked again") >= 1
