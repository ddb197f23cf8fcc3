"""Share of voting, parsing, stopping rules and planning in the wall time of a live run, on the embedded fleet.

    python benchmarks/voting_overhead.py [--rows 100] [--rounds 3] [--json]

The shipped problems go through a cascade with votes, live, several rows at a time. The functions that read routing strings,
plan, count votes and decide when they are over are timed where the run calls them; the table gives their share of the wall
time. Waiting is not counted: none of them waits, but for mathematics that word problems do not need.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow_composer import ModelOrchestrator
from workflow_composer.batch.planning.plan_table import plan
from workflow_composer.batch.planning.policies import Cascade, PlanningContext, PlanningTier
from workflow_composer.execution.voting import ballot as voting
from workflow_composer.metrics.sink import NullSink
from workflow_composer.routers import cascade

PROBLEMS = Path(__file__).resolve().parent.parent / "workflow_composer" / "checkpoints" / "problems.jsonl"
AT_ONCE = 32
TIERS = ("small", "medium", "large")


class Clock:
    """Adds up the time that functions take, by part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to a part."""

        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started
                self.calls[part] = self.calls.get(part, 0) + 1

        return call

    def timed_async(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same for a coroutine function that does not wait."""

        async def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return await function(*args, **kwargs)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started
                self.calls[part] = self.calls.get(part, 0) + 1

        return call


def instrument(clock: Clock) -> None:
    """Time what the run calls."""
    ballot = voting.Ballot
    ballot.add = clock.timed_async("reading and counting votes", ballot.add)  # type: ignore[method-assign]
    ballot.wanted = clock.timed("deciding when to stop", ballot.wanted)  # type: ignore[method-assign]
    ballot.verdict = clock.timed("the verdict", ballot.verdict)  # type: ignore[method-assign]
    cascade.parse_route = clock.timed("parsing routing strings", cascade.parse_route)


async def run(questions: list[str], routes: list[str]) -> float:
    """Wall time of all questions, in seconds."""
    places = asyncio.Semaphore(AT_ONCE)
    async with ModelOrchestrator("development", metrics=NullSink(), environ={}, log=io.StringIO()) as orchestrator:
        await orchestrator.agenerate(questions[0], model="mv_cascade_small_k2_medium_k2_large_k1")

        async def ask(question: str, route: str) -> None:
            async with places:
                await orchestrator.agenerate(question, model=route)

        started = time.perf_counter()
        await asyncio.gather(*(ask(*pair) for pair in zip(questions, routes, strict=True)))
        return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    questions = [json.loads(line)["question"] for line in PROBLEMS.read_text().splitlines()[: options.rows]]
    context = PlanningContext(tuple(PlanningTier(name) for name in TIERS))
    plan([questions], Cascade(), context)  # loads pandas, which is the start of a program and no part of a run
    clock = Clock()
    instrument(clock)
    walls: list[float] = []
    shares: list[float] = []
    for _ in range(options.rounds):
        before = sum(clock.seconds.values())
        started = time.perf_counter()
        table = clock.timed("planning", plan)([questions], Cascade(), context)
        planned = time.perf_counter() - started
        wall = planned + asyncio.run(run(questions, list(table.routes())))
        walls.append(wall)
        shares.append((sum(clock.seconds.values()) - before) / wall)
    if options.json:
        print(json.dumps({"wall": walls, "share": shares, "seconds": clock.seconds, "calls": clock.calls}))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    print(f"{machine}; {options.rows} rows, {table.frame.route_to[0]}")
    print(f"{'':30}{'us per call':>12}{'calls/row':>11}{'share of wall time':>20}")
    for part, seconds in clock.seconds.items():
        calls = clock.calls[part]
        per_row = calls / options.rows / options.rounds
        print(f"{part:30}{seconds / calls * 1e6:12.1f}{per_row:11.2f}{seconds / sum(walls):20.3%}")
    spread = f"{min(shares):.3%} to {max(shares):.3%}"
    print(f"{'together, median of rounds':30}{'':23}{statistics.median(shares):20.3%}  ({spread})")
    print(f"wall time {statistics.median(walls):.1f} s ({min(walls):.1f} to {max(walls):.1f})")


if __name__ == "__main__":
    main()
