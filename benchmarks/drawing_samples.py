"""One call with n = k compared with k calls that share a prefix, on a real vLLM server and on the embedded engine.

    WORKFLOW_COMPOSER_VLLM_PYTHON=... python benchmarks/drawing_samples.py [--k 8] [--questions 24] [--rounds 5] [--json]

Three ways to draw the k samples of a vote, over the same questions with so many of them in flight: one call for k samples;
k calls of one sample side by side; and the fewest that could decide at a time (`draw: as_needed`), which stops early. The
rounds of all ways alternate. Without a Python that has vLLM only the embedded engine is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.integration.vllm_server import VLLMServer, vllm_python
from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.metrics.sink import NullSink

CHECKPOINTS = Path(__file__).resolve().parent.parent / "workflow_composer" / "checkpoints"
WAYS = {
    "one call, n = k": {"stopping": "fixed"},
    "k calls, all counted": {"stopping": "martingale", "level": 1e-9, "target": 1e9, "measure": "score"},
    "k calls, rest cancelled": {"stopping": "decided"},
    "as needed": {"stopping": "decided", "draw": "as_needed"},
}
AT_ONCE = 4


def profile(model: dict[str, object], settings: dict[str, object]) -> StrategyConfig:
    """One model, and how its votes are drawn."""
    return StrategyConfig(profile_name="bench", models={"m": model}, routers=[{"cascade": settings}])


async def one_round(orchestrator: ModelOrchestrator, questions: list[str], k: int) -> dict[str, float]:
    """Seconds of wall time, samples and tokens per question."""
    places = asyncio.Semaphore(AT_ONCE)
    samples = prompt = completion = 0

    async def ask(question: str) -> None:
        nonlocal samples, prompt, completion
        async with places:
            response = await orchestrator.agenerate(question, model=f"mv_m_k{k}_t0.7", max_tokens=96)
        samples += len(response.samples)
        prompt += response.usage.prompt_tokens
        completion += response.usage.completion_tokens

    started = time.perf_counter()
    await asyncio.gather(*(ask(question) for question in questions))
    seconds = (time.perf_counter() - started) / len(questions)
    count = len(questions)
    return {"seconds": seconds, "samples": samples / count, "prompt": prompt / count, "completion": completion / count}


async def measure(model: dict[str, object], questions: list[str], k: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Alternate the ways for some rounds."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, settings in WAYS.items():
            async with ModelOrchestrator(profile(model, settings), metrics=NullSink(), environ={}) as orchestrator:
                await orchestrator.agenerate(questions[0], model="mv_m_k2_t0.7", max_tokens=4)
                result = await one_round(orchestrator, questions, k)
            if number:  # the first round warms up
                found[way].append(result)
    return found


def show(title: str, found: dict[str, list[dict[str, float]]]) -> None:
    """Print one table; prompt and answer are tokens charged per question."""
    base = statistics.median(r["seconds"] for r in found["one call, n = k"])
    print(f"\n{title}")
    print(f"{'':26}{'ms/question':>12}{'min':>8}{'max':>8}{'ratio':>7}{'samples':>9}{'prompt':>8}{'answer':>8}")
    for way, rounds in found.items():
        times = sorted(r["seconds"] * 1000 for r in rounds)
        middle = statistics.median(times)
        last = {key: statistics.mean(r[key] for r in rounds) for key in ("samples", "prompt", "completion")}
        print(
            f"{way:26}{middle:12.1f}{times[0]:8.1f}{times[-1]:8.1f}{middle / base / 1000:7.2f}"
            f"{last['samples']:9.2f}{last['prompt']:8.1f}{last['completion']:8.1f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lines = (CHECKPOINTS / "problems.jsonl").read_text().splitlines()[: options.questions]
    questions = [json.loads(line)["question"] for line in lines]
    results = {}
    embedded = {"backend": "embedded", "path": "small"}
    results["embedded engine, small"] = asyncio.run(measure(embedded, questions, options.k, options.rounds))
    if vllm_python():
        with tempfile.TemporaryDirectory() as folder:
            server = VLLMServer(CHECKPOINTS / "small", 8077, Path(folder) / "server.log")
            server.start()
            try:
                model = {"backend": "vllm", "base_url": f"{server.url}/v1", "model": "small"}
                results["vLLM on the CPU, small"] = asyncio.run(measure(model, questions, options.k, options.rounds))
            finally:
                server.kill()
    if options.json:
        print(json.dumps(results))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    print(f"{machine}; {len(questions)} questions, {AT_ONCE} at a time, k = {options.k}; prompt and answer: tokens charged")
    for title, found in results.items():
        show(title, found)


if __name__ == "__main__":
    main()
