"""What a cloud model receives is the same, byte for byte, whatever the private inputs say: over generated workflows."""

from __future__ import annotations

import importlib.util
import json
import os
import zlib
from collections import Counter
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings, strategies

from tests.integration.workflows.generated_flows import FUNCTIONS, NOTES, PROGRAM, WITHIN, Flow, flows
from tests.integration.workflows.scripted import Model, Said
from workflow_composer import ModelOrchestrator
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowFileError
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.workflows.definition import labels
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.programs import accepting
from workflow_composer.workflows.programs.outcome import ProgramOutcome
from workflow_composer.workflows.run import WorkflowRun
from workflow_composer.workflows.running import one_question

EXAMPLES = int(os.environ.get("WORKFLOW_COMPOSER_EXAMPLES", "20"))
QUIETLY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 20,
    database=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
ROWS = ("r1", "r2")


def said(call):
    """Answer in the form that is asked for, by what is said: malformed at first for some; with a fault for what breaks."""
    first = call.messages[-1][1] if len(call.messages) == 1 else call.prompt
    if call.prompt.startswith("breaks") and "HIV" in call.text:
        return Said(status=500)
    if call.prompt.startswith("good?"):
        return "yes" if "again" in call.prompt or zlib.crc32(call.prompt.encode()) % 4 else "no"
    again = any(role == "assistant" for role, _ in call.messages)
    head = call.prompt.partition("|")[0] if call.prompt.startswith("released") else call.text
    number = zlib.crc32(head.encode())
    malformed = not again and zlib.crc32(call.text.encode()) % 3 == 0 and call.body["model"] != "large-70b"
    if "exactly one of" in call.text:
        return "???" if malformed else ("yes", "no")[number % 2]
    if "JSON" in call.text:
        return "???" if malformed else ["x" * (number % 5 + 1)] * (number % 4)
    return f"answer {number % 7}{' again' * again}" if first else "?"


class Lab:
    """Models on servers of their own, of which ``remote`` is not on one's own machines, and what it receives."""

    def __init__(self, folder):
        self.folder = folder
        self.small, self.large, self.remote = Model("small-1b"), Model("large-70b"), Model("remote-x")
        for model in (self.small, self.large, self.remote):
            model.says("", said)
        (folder / "own.py").write_text(FUNCTIONS)
        (folder / "program.py").write_text(PROGRAM)
        spec = importlib.util.spec_from_file_location("functions_of_the_lab", folder / "own.py")
        self.functions = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.functions)
        own = {"backend": "vllm", "input_price": 0.1, "output_price": 1.0}
        models = {
            "small": {**own, "base_url": self.small.url, "model": "small-1b"},
            "large": {**own, "base_url": self.large.url, "model": "large-70b"},
            "remote": {"backend": "openai", "base_url": self.remote.url, "model": "remote-x", "api_key_env": "REMOTE_KEY"},
        }
        self.config = StrategyConfig(
            profile_name="lab",
            models=models,
            tiers={"small": {"model": "small", "cost": 1.0}, "large": {"model": "large", "cost": 9.0}},
            task_routing={"*": "small", "far": "remote"},
            fallback=["remote"],
            routers=[{"cascade": {"stopping": "fixed"}}, "cascading_provider"],
            retries={"attempts": 1},
            circuit_breaker={"failures": 10**6, "cooldown": 1},
        )
        self.orchestrator = ModelOrchestrator(self.config, metrics=MemorySink(), environ={"REMOTE_KEY": "k"})

    def close(self):
        self.orchestrator.close()
        for model in (self.small, self.large, self.remote):
            model.close()

    def load(self, flow):
        """Write the file and load it, with models of one's own wherever it is refused."""
        path = self.folder / "flow.yaml"
        for _ in range(30):
            path.write_text(json.dumps(flow.data()))
            inner = {"workflow": "within", "inputs": {"x": "text", "y": "text"}, "steps": flow.inner}
            output = {"u": "{{ u | default('-') }}", "v": "{{ v | default('-') }}"}
            (self.folder / WITHIN).write_text(json.dumps({**inner, "output": output}))
            try:
                return load_workflow(path, config=self.config)
            except WorkflowFileError as error:
                problems = error.problems
                flow.mend(problems)
        raise AssertionError(f"refused with models of its own: {problems}")

    def received(self, flow, notes, concurrency):
        """Run the workflow and return what the cloud has received, in order."""
        for model in (self.small, self.large, self.remote):
            model.reset()
            model.server.requests.clear()
        rows = [{"id": name, "note": note} for name, note in zip(ROWS, notes, strict=True)]
        self.orchestrator.run_workflow(flow, rows, concurrency=concurrency)
        return [
            (one.method, one.path, tuple(sorted(one.headers.items())), bytes(one.body))
            for one in self.remote.server.requests
        ]

    @contextmanager
    def at_once(self, monkeypatch):
        """Run programs and functions within this process: a hundred times as fast as in the sandbox."""

        async def call_function(body, *, given, args=(), **_):
            try:
                return getattr(self.functions, body.target.partition(":")[2])(*args, **given)
            except ValueError as error:
                from workflow_composer.errors import ProgramFault

                raise ProgramFault("it raised", said=str(error)) from None

        async def run_command(body, *, given, **_):
            output = f"{len(given['a']) % 3}\n"
            return ProgramOutcome(exit_code=0, output=output, errors="", seconds=0.0)

        with monkeypatch.context() as patch:
            for module in (one_question, accepting):
                patch.setattr(module, "call_function", call_function)
                patch.setattr(module, "run_command", run_command)
            yield


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    made = Lab(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


PAIRS = strategies.tuples(strategies.tuples(NOTES, NOTES), strategies.tuples(NOTES, NOTES))


def compare(lab, flow, one, other):
    """Return what the cloud receives for both, one call after another; with eight at a time it must be the same."""
    made = lab.load(flow)
    found = [lab.received(made, notes, 1) for notes in (one, other)]
    for notes, before in zip((one, other), found, strict=True):
        assert Counter(lab.received(made, notes, 8)) == Counter(before), (made.path.read_text(), notes)
    return found


def test_the_cloud_receives_the_same_whatever_the_private_inputs_say(lab, monkeypatch):
    sent = []

    @QUIETLY
    @given(flow=flows(), pair=PAIRS)
    def holds(flow, pair):
        one, other = compare(lab, flow, *pair)
        assert one == other, (lab.folder / "flow.yaml").read_text()
        sent.append(len(one))

    with lab.at_once(monkeypatch):
        holds()
    print(f"{len(sent)} workflows, {sum(sent)} requests to the cloud, {sum(map(bool, sent))} workflows with some")
    assert sum(sent) > len(sent)


def without_control(monkeypatch):
    """Take the labels of control off every step."""
    step = labels.Labelling._with_labels
    monkeypatch.setattr(labels.Labelling, "_with_labels", lambda self, one, data, control: step(self, one, data, {}))


def without_facts(monkeypatch):
    """Let a release cover what it took to answer, too."""
    step = labels.Labelling._with_labels

    def with_labels(self, one, data, control):
        made, carried = step(self, one, data, control)
        return made, replace(carried, facts=carried.value)

    monkeypatch.setattr(labels.Labelling, "_with_labels", with_labels)


def without_turns(monkeypatch):
    """Let the steps of a row go on as soon as they can, also where one call is made at a time."""
    options = WorkflowRun.__init__

    def init(self, *arguments, **more):
        options(self, *arguments, **more)
        self.world = replace(self.world, at_once=64)

    monkeypatch.setattr(WorkflowRun, "__init__", init)


SMALL = {"model": "small"}
TOLD = {
    without_control: Flow(steps={"far": {"model": "remote", "prompt": "hello {{ id }}", "when": "len(note) > 20"}}),
    without_facts: Flow(
        steps={
            "s": {**SMALL, "prompt": "released | {{ note }}", "answer": ["yes", "no"], "release": "choices"},
            "far": {"model": "remote", "prompt": "{{ id }}, {{ s._attempts }}"},
        }
    ),
    without_turns: Flow(
        steps={
            "s": {"workflow": WITHIN, "with": {"x": "note", "y": "id"}},
            "q": {**SMALL, "prompt": "q {{ id }}"},
            "late": {"model": "remote", "prompt": "late {{ id }}", "when": "s is done"},
            "early": {"model": "remote", "prompt": "early {{ id }}", "when": "q is done"},
        },
        inner={"u": {**SMALL, "prompt": "u {{ x }}"}, "v": {**SMALL, "prompt": "v {{ u }}", "when": "len(x) > 20"}},
    ),
}


@pytest.mark.parametrize("broken", TOLD)
def test_it_is_seen_where_it_is_not_so(lab, monkeypatch, broken):
    """With a part of the rules taken out, the cloud receives something else."""

    def found(flow):
        made = lab.load(flow)
        return [tuple(lab.received(made, (note, note), 1)) for note in ("x", "y y", "z", "HIV positive, Ann Lee, 60")]

    assert len(set(found(deepcopy(TOLD[broken])))) == 1
    broken(monkeypatch)
    seen = found(deepcopy(TOLD[broken]))
    assert len(set(seen)) > 1
    if broken is without_turns:
        assert len({tuple(sorted(one)) for one in seen}) == 1  # the same requests, in another order


def test_the_generated_workflows_find_it_too(lab, monkeypatch):
    def differs(flow):
        made = lab.load(flow)
        one, other = (lab.received(made, (note, note), 1) for note in ("HIV positive, Ann Lee, 60", "nothing"))
        return one != other

    without_control(monkeypatch)
    rules = settings(QUIETLY, max_examples=500, phases=[Phase.generate], derandomize=True)
    with lab.at_once(monkeypatch):
        find(flows(4), differs, settings=rules)  # raises if there is none


def test_with_programs_in_their_sandbox(lab):
    """The programs themselves, in the sandbox, of which the generated runs use a stand-in."""
    values = {"a": "note", "b": "id"}
    flow = Flow(
        steps={
            "words": {"python": "own:parts", "with": values, "answer": ["text"]},
            "length": {"command": ["python", "program.py"], "with": values, "answer": "text"},
            "bad": {"python": "own:breaks", "with": values},
            "yes": {"python": "own:constant", "with": values, "answer": ["yes", "no"], "release": "choices"},
            "far": {"model": "remote", "prompt": "hello {{ id }}", "when": "yes == 'yes' and length is done"},
            "each": {"model": "remote", "for_each": "x in words", "prompt": "{{ x }}"},
        },
        shaky=["bad"],
    )
    made = lab.load(flow)
    one, other = (lab.received(made, notes, 1) for notes in (("HIV Ann Lee", "x"), ("nothing at all", "y")))
    assert one == other
    assert [b"hello" in body for *_, body in one] == [True, True]
    assert flow.steps["each"]["model"] == "small"
