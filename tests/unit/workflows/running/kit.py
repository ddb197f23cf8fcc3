"""Workflows run on scripted models, with answers that are kept in memory."""

import asyncio
import textwrap
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from workflow_composer import ModelOrchestrator, StrategyConfig, hookimpl
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plugins.host import plugin_host
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.keeping.answers import KeptAnswer
from workflow_composer.workflows.keeping.keys import question_of
from workflow_composer.workflows.running.over_rows import run_over_rows
from workflow_composer.workflows.running.row import run_row
from workflow_composer.workflows.running.world import World


@dataclass
class Row:
    id: str
    inputs: dict[str, Any]
    fault: str = ""


class MemoryKeeper:
    """Keeps answers in memory; `again` begins a later run with them."""

    def __init__(self):
        self.answers: list[tuple[Any, KeptAnswer]] = []
        self.failures: list[tuple[Any, str, dict[str, Any]]] = []
        self.left_out = Counter()
        self.again()

    def again(self):
        self.free = list(self.answers)

    def find(self, question):
        same = [one for one in self.free if (one[0].row, one[0].digest) == (question.row, question.digest)]
        same.sort(key=lambda one: one[0].place != question.place)
        if not same:
            return None
        self.free.remove(same[0])
        return same[0][1]

    def refused(self, question):
        return None

    def progress(self, question):
        return None

    def keep(self, question, answer):
        self.answers.append((question, answer))

    def failed(self, question, kind, facts):
        self.failures.append((question, kind, dict(facts)))


class OpenNotes:
    """Questions that wait for people, by place."""

    def __init__(self):
        self.open: dict[str, Any] = {}

    def wait(self, question, step, text):
        self.open.setdefault(question.place, (question, text))
        return 1000.0


class FreePurse:
    def part(self, limit):
        return self

    def begin(self):
        return None


@dataclass
class Bench:
    """Models `small`, `large` and a workflow. ``reply`` gives the answer of a model to a prompt."""

    folder: Any
    reply: Any
    profile: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.prompts: list[str] = []
        self.messages: list[list[dict[str, str]]] = []
        self.asked: list[Any] = []
        self.keeper, self.people = MemoryKeeper(), OpenNotes()
        self.backends = {name: FakeBackend(self._script(name), name=name) for name in ("small", "large")}
        host = plugin_host(discover=False)
        host.add(self, name="bench")
        models = {name: {"backend": "scripted", "model": name} for name in self.backends}
        settings = {"models": models, "task_routing": {"*": "small"}, "retries": {"attempts": 1}, **self.profile}
        self.config = StrategyConfig(profile_name="bench", **settings)
        own = {name: {"backend": "vllm", "base_url": "http://127.0.0.1:9"} for name in self.backends}
        self.as_read = StrategyConfig(profile_name="bench", **{**settings, "models": own})  # a file's models are one's own
        self.orchestrator = ModelOrchestrator(self.config, plugins=host, metrics=MemorySink(), environ={})
        self.limit = asyncio.Semaphore(1000)
        self.room = None

    @hookimpl
    def register_backends(self, register):
        register("scripted", lambda spec, context: self.backends[spec.name])

    def _script(self, name):
        def answer(call):
            messages = [dict(one) for one in call.request.messages]
            self.messages.append(messages)
            self.prompts.append(messages[-1]["content"])
            return self.reply(name, messages[0]["content"] if len(messages) == 1 else messages[-1]["content"])

        return answer

    @property
    def calls(self):
        return len(self.prompts)

    def again(self):
        """Begin a later run: what is kept is found again, and calls are counted from zero."""
        self.keeper.again()
        self.prompts.clear()
        self.messages.clear()

    def flow(self, text):
        path = self.folder / "flow.yaml"
        path.write_text(textwrap.dedent(text), "utf-8")
        return load_workflow(path, config=self.as_read)

    def world(self, **fields):
        @asynccontextmanager
        async def gate():
            async with self.limit:
                yield

        def question(step, *, row, place, asked, release=False):
            meaning = {"step": str(step.temperature), "model": str(step.model), "form": repr(step.form)}
            meaning |= {"release": repr(step.release)} if release else {}
            return question_of(step, row=row, place=place, asked=asked, meaning=meaning)

        usual = {"people": self.people, "purse": FreePurse(), "gate": gate, "room": lambda step: self.room}
        return World(
            ask=self.orchestrator.agenerate,
            question=question,
            keeper=self.keeper,
            **{**usual, "folder": self.folder, **fields},
        )

    async def run(self, flow, *rows, world=None, **inputs):
        """Run one row (or several), and return what became of it."""
        world = world or self.world()
        found = [Row(f"row{at}", row) for at, row in enumerate(rows or [inputs])]
        outcomes = await asyncio.gather(*(run_row(flow, row, world) for row in found))
        return outcomes if rows else outcomes[0]

    async def over(self, flow, *rows):
        """Run all rows, then the steps of the run, then the rows again; return the rows' outcomes and the run's results."""
        results: dict[str, Any] = {}
        outcomes = await self.run(flow, *rows)
        for name in flow.order:
            if flow.steps[name].level == "run":
                world = self.world(run_results=dict(results))
                results[name] = await run_over_rows(flow.steps[name], one_by_one(outcomes), world)
                self.keeper.again()
                outcomes = await self.run(flow, *rows, world=self.world(run_results=dict(results)))
        return outcomes, results


async def one_by_one(outcomes):
    """Yield outcomes as a run does."""
    for outcome in outcomes:
        yield outcome


def values(outcome):
    """Return the value of every step."""
    return {name: result.value for name, result in outcome.steps.items()}


def states(outcome):
    """Return the state of every step."""
    return {name: result.state for name, result in outcome.steps.items()}
