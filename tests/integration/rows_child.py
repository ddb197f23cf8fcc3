"""Rows to be killed with: a data set answered by a scripted model, through one of the doors of the runner.

    python -m tests.integration.rows_child DOOR DATA OUTPUT

DOOR is generate, execute, record or run_batch; ``generate:2/3`` and ``execute:2/3`` answer the second of three shards. The
answer to a row depends on the row alone; it takes a moment, and every 17th row fails the first time that its models are
asked. Every call is logged as a line with the row's number before it is made. Exit codes: those of the command line; for
run_batch 0 where all rows have answers, 1 where some failed, 2 where it cannot begin.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from workflow_composer import ModelOrchestrator, StrategyConfig, hookimpl
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.cli.main import run
from workflow_composer.cli.state import State
from workflow_composer.errors import CallTimeout, InputError
from workflow_composer.metrics.sink import NullSink
from workflow_composer.plugins.host import plugin_host

CALLS = "calls.log"
ROUTE = "mv_cascade_small_k3_t0.7_large_k1_t0.0"
TIERS = {"small": {"model": "small", "cost": 1.0}, "large": {"model": "large", "cost": 9.0}}
JOURNALS = {
    "generate": "out.jsonl",
    "execute": f"numbers/{ROUTE}/journal.jsonl",
    "record": "answers.jsonl",
    "run_batch": "runs/first.jsonl",
}


class Script:
    """A plugin with a model that answers by rule, and a log of who asked for which row."""

    def __init__(self, log: Path, models: int) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._asked = Counter(map(int, log.read_text().split()))
        self._models = models

    @hookimpl
    def register_backends(self, register: Any) -> None:
        """Offer it."""
        register("scripted", lambda spec, context: FakeBackend(self.answer, name=spec.name))

    async def answer(self, call: Any) -> list[str]:
        """Small models are of two minds about every third row."""
        row = int(call.request.messages[-1]["content"].split()[2])
        os.write(self._log, b"%d\n" % row)
        await asyncio.sleep(random.random() * 0.002)
        self._asked[row] += 1
        if row % 17 == 0 and self._asked[row] <= self._models:
            raise CallTimeout("no answer in time")
        return [f"#### {row + (n if row % 3 == 0 else 0)}" for n in range(call.samples)]


def opened(script: Script) -> ModelOrchestrator:
    """An orchestrator over the script."""
    host = plugin_host(discover=False)
    host.add(script, name="scripted")
    models = {name: {"backend": "scripted", "input_price": 1.0, "output_price": 1.0} for name in TIERS}
    config = StrategyConfig(
        profile_name="scripted",
        models=models,
        tiers=TIERS,
        task_routing={"*": "small"},
        routers=["provider"],
        retries={"attempts": 1},
    )
    return ModelOrchestrator(config, plugins=host, metrics=NullSink(), environ={})


def journal_of(door: str) -> str:
    """The file of a door to which rows are appended, below its output."""
    door, _, shard = door.partition(":")
    if not shard:
        return JOURNALS[door]
    part = f"shard-{shard.replace('/', '-of-')}"
    return f"out.{part}.jsonl" if door == "generate" else f"numbers/{ROUTE}/{part}/journal.jsonl"


def arguments(door: str, data: Path, output: Path) -> list[str]:
    """The command of a door."""
    door, _, shard = door.partition(":")
    journal, sets = str(output / JOURNALS[door]), ["--datasets", "numbers", "--data-dir", str(data)]
    found = {
        "generate": ["generate", "--input", str(data / "numbers.jsonl"), "--output", journal],
        "execute": ["execute", *sets, "--routes", ROUTE, "--output", str(output)],
        "record": ["record", *sets, "--output", journal, "--tiers", "small", "--no-logprobs"],
    }[door]
    return [*found, "--shard", shard] if shard else found


def main(door: str, data: Path, output: Path) -> int:
    """Run, or go on."""
    script = Script(output / CALLS, models=2 if door.startswith("execute") else 1)
    if door != "run_batch":
        return run(arguments(door, data, output), State(environ={}, open=lambda state, metrics: opened(script)))
    rows = [
        {"prompt": f"What is {n} + 0?", "answer": str(n)} for n in range(sum(1 for _ in (data / "numbers.jsonl").open()))
    ]
    try:
        with opened(script) as orchestrator:
            done = orchestrator.run_batch(rows, journal=output / JOURNALS[door])
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 1 if done.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
