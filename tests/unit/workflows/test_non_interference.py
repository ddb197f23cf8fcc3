"""R11 over generated workflows: what a cloud model receives is the same whatever the private input says."""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter
from dataclasses import fields

import pytest

from tests.unit.workflows.running.kit import Bench
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowFileError
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.orchestrator import ModelOrchestrator
from workflow_composer.plugins.host import plugin_host
from workflow_composer.workflows.definition import labels
from workflow_composer.workflows.definition.loading import load_workflow

NOTES = ("HIV positive, Ann Lee, 60", "nothing at all")
GRAPHS = 40


class CloudBench(Bench):
    """A bench with a third model, ``remote``, that is not on one's own machines; ``received`` is what reaches it."""

    def __post_init__(self):
        super().__post_init__()
        self.received = Counter()
        self.backends["remote"] = FakeBackend(self._far, name="remote", local=False)
        host = plugin_host(discover=False)
        host.add(self, name="bench")
        models = {name: {"backend": "scripted", "model": name} for name in self.backends}
        routes = {"*": "small", "far": "remote"}
        self.config = StrategyConfig(profile_name="b", models=models, task_routing=routes, fallback=["remote"])
        self.orchestrator = ModelOrchestrator(self.config, plugins=host, metrics=MemorySink(), environ={})

        far = {"backend": "openai", "base_url": "https://api.example.com/v1", "api_key_env": "KEY"}
        known = {"small": {"backend": "fake"}, "large": {"backend": "fake"}, "remote": far}
        self.known = StrategyConfig(profile_name="b", models=known, task_routing=routes, fallback=["remote"])
        """The same, as a profile tells of it: which models are one's own is known of the package's backends only."""

    def _far(self, call):
        request = call.request
        own = {one.name: repr(getattr(request, one.name)) for one in fields(request) if one.name not in UNSENT}
        self.received[json.dumps([own, call.temperature, call.samples], sort_keys=True)] += 1
        return reply("remote", json.dumps([dict(one) for one in request.messages]))


UNSENT = {"request_id", "timeout", "purse", "check", "form", "relay", "metadata"}


def reply(model, said):
    """Answer in the form that is asked for, by what is said."""
    number = zlib.crc32(said.encode())
    if "exactly one of" in said:
        return ("yes", "no")[number % 2]
    return json.dumps(["x"] * (number % 4)) if "JSON" in said else f"answer {number}"


class Generated:
    """A workflow of up to eight steps, which differ in what they read, when they run, and how often."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.names, self.lists, self.choices = ["note", "id"], [], []
        self.steps = {}
        for at in range(self.dice.randint(2, 8)):
            self.steps[f"s{at}"] = self.step()
            self.names.append(f"s{at}")
            answer = self.steps[f"s{at}"].get("answer")
            if "for_each" in self.steps[f"s{at}"] or answer == ["text"]:
                self.lists.append(f"s{at}")
            elif answer:
                self.choices.append(f"s{at}")
        reads = "".join(f"{{{{ r.{name} | default('-') }}}}" for name in self.some(self.names))
        self.steps["over"] = {"model": "remote", "reduce": "rows", "prompt": "{% for r in rows %}" + reads + "{% endfor %}"}
        if self.dice.random() < 0.5:
            self.steps["over"]["group_by"] = self.dice.choice(self.names)

    def some(self, names):
        return [name for name in names if self.dice.random() < 0.4]

    def step(self):
        said = " ".join(f"{{{{ {name} | default('-') | tojson }}}}" for name in self.some(self.names))
        made = {"model": self.dice.choice(["remote", "remote", "small"]), "prompt": f"say {said}"}
        if self.dice.random() < 0.5:
            made["answer"] = self.dice.choice([["yes", "no"], ["text"]])
        if self.dice.random() < 0.4:
            made["when"] = self.condition()
        if self.lists and self.dice.random() < 0.4:
            made["for_each"] = f"x in {self.dice.choice(self.lists)} | default([]) | done"
            made["prompt"] += self.dice.choice(["", " {{ x | tojson }}"])
        if self.dice.random() < 0.2:
            made["on_error"] = self.dice.choice(["skip", {"default": None}])
        return made

    def condition(self):
        kinds = ["'HIV' in note", "len(note) > 20", "id == 'r1'"]
        steps = [name for name in self.names if name.startswith("s")]
        kinds += [f"{name} is {self.dice.choice(['done', 'skipped', 'given'])}" for name in steps]
        kinds += [f"default({name}, 'no') == 'yes'" for name in self.choices]
        kinds += [f"{name}._attempts > 1" for name in steps]
        kinds += [f"len(default({name}, [])) > 1" for name in self.lists]
        one, other = self.dice.choice(kinds), self.dice.choice(kinds)
        return self.dice.choice([one, one, f"not ({one})", f"{one} and {other}", f"{one} or {other}"])

    def load(self, bench):
        """Load it; a step that is refused gets a model of one's own, and it is loaded again."""
        path = bench.folder / "flow.yaml"
        for _ in range(20):
            flow = {
                "workflow": "w",
                "inputs": {"note": "private", "id": "text"},
                "steps": self.steps,
                "output": {name: f"{{{{ {name} | default(null) }}}}" for name in self.names},
            }
            path.write_text(json.dumps(flow))
            try:
                return load_workflow(path, config=bench.known)
            except WorkflowFileError as error:
                last = error.problems
                for problem in last:
                    assert "not on your own machines" in problem, problem
                    self.steps[problem.split(": ")[1].split(".")[1]]["model"] = "small"
        raise AssertionError(f"refused with a model of its own: {last}")


async def received(bench, flow, note):
    """Return what the cloud model receives over two rows, and what was called at all."""
    bench.received.clear()
    bench.keeper.answers.clear()
    bench.keeper.again()
    await bench.over(flow, *({"note": f"{note} {row}", "id": row} for row in ("r1", "r2")))
    return Counter(bench.received)


@pytest.fixture
def bench(tmp_path):
    made = CloudBench(tmp_path, reply)
    yield made
    made.orchestrator.close()


async def test_a_cloud_model_receives_the_same_whatever_the_note_says(bench):
    sent = 0
    for seed in range(GRAPHS):
        flow = Generated(seed).load(bench)
        one, other = [await received(bench, flow, note) for note in NOTES]
        assert one == other, (seed, flow.path.read_text())
        assert "Ann" not in str(one)
        sent += one.total()
    assert sent > GRAPHS  # it is no promise if nothing is sent


async def test_without_labels_of_control_it_is_not_so(bench, monkeypatch):
    """The test above sees what it is for."""
    step = labels.Labelling._with_labels
    monkeypatch.setattr(labels.Labelling, "_with_labels", lambda self, one, data, control: step(self, one, data, {}))
    different = 0
    for seed in range(GRAPHS):
        flow = Generated(seed).load(bench)
        one, other = [await received(bench, flow, note) for note in NOTES]
        different += one != other
    assert different
