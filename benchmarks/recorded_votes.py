"""Cost per vote of extraction, comparison, counting, stopping rules and confidence, on recorded answers.

    python benchmarks/recorded_votes.py [--data DIR] [--replay FILE] [--rounds 5] [--json]

``--data`` is where the recorded solutions of QwenLM/Qwen2.5-Math lie (100 problems of MATH, eight samples each),
``--replay`` a recording in the form of docs/recordings.md. Without either, texts are made up. CPU time on one core.
`benchmarks/stopping_rules.py` takes its recorded votes from here.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from workflow_composer.answers import Question, Reader, reader
from workflow_composer.execution.voting.confidence import confidence, most_likely
from workflow_composer.execution.voting.stopping import stopping_rule

QWEN = "math_cot_100.jsonl.gz"
RULES = ("fixed", "decided", "beta", "window", "sprt", "martingale")


@dataclass(frozen=True)
class Recording:
    """One question's samples by one model, in the order in which they were recorded; ``correct`` is None where unknown."""

    texts: list[str]
    correct: list[bool | None]


def qwen_math(data: Path) -> dict[str, list[Recording]]:
    """The 100 problems with eight samples each, wherever the file lies below ``data``."""
    path = next(data.rglob(QWEN), None)
    if path is None:
        raise SystemExit(f"{QWEN} is not below {data}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return {"Qwen2.5-Math on MATH": [Recording(row["code"], [bool(score) for score in row["score"]]) for row in rows]}


def replay(path: Path) -> dict[str, list[Recording]]:
    """A recording's models, each with its questions; models with one sample of each are left out."""
    found: dict[str, dict[str, list[tuple[int, str, bool | None]]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            samples = found.setdefault(row["model"], {}).setdefault(row["question"].strip(), [])
            samples.append((row["sample"], row["answer"], row["correct"]))
    recordings = {}
    for model, questions in found.items():
        ordered = [sorted(samples, key=lambda sample: sample[0]) for samples in questions.values()]
        if max(map(len, ordered)) > 1:
            recordings[f"{model} in {path.name}"] = [Recording([t for _, t, _ in o], [c for _, _, c in o]) for o in ordered]
    return recordings


async def group(texts: list[str], read: Reader) -> list[int]:
    """Votes: the number of each text's group of equal answers, -1 where none can be read."""
    answers = [read.read(text) for text in texts]
    groups = iter(await Question(read).groups([answer for answer in answers if answer is not None]))
    return [-1 if answer is None else next(groups) for answer in answers]


def _made_up() -> dict[str, list[Recording]]:
    def text(question: int, sample: int) -> str:
        steps = "".join(f"Step {n}: {n + question} + {n} = {2 * n + question}. " for n in range(12))
        return f"{steps}So the answer is $\\boxed{{{question + sample // 6}}}$."

    return {"made up": [Recording([text(q, s) for s in range(8)], [s < 6 for s in range(8)]) for q in range(100)]}


def _cpu(work: Callable[[], object], times: int) -> float:
    before = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - before) / times * 1e6


def measure(recordings: list[Recording], rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Microseconds of CPU per vote, for each kind of work."""
    read = Reader(reader().form)
    texts = [text for recording in recordings for text in recording.texts]
    answers = [answer for answer in map(read.read, texts) if answer is not None]
    pairs = [list(pair) for pair in pairwise(answers)]

    def reading() -> None:
        for text in texts:
            read.read(text)

    async def comparing() -> None:
        for pair in pairs:
            await Question(read).groups(pair)

    async def grouping() -> None:
        for recording in recordings:
            await group(recording.texts, read)

    yield "read one answer", [_cpu(reading, 3) / len(texts) for _ in range(rounds)]
    asyncio.run(grouping())
    asyncio.run(comparing())
    yield "compare two, comparisons known", [_cpu(lambda: asyncio.run(comparing()), 1) / len(pairs) for _ in range(rounds)]
    yield "read and group, comparisons known", [_cpu(lambda: asyncio.run(grouping()), 1) / len(texts) for _ in range(rounds)]
    for name in RULES:
        rule = stopping_rule(name)
        for length in (8, 40):
            votes = ([0, 0, 1, 0, 2, 0, -1, 0] * 5)[: length - 1]
            work = lambda rule=rule, votes=votes, length=length: rule.stop(votes, length)  # noqa: E731
            yield f"ask rule {name} after {length - 1} votes", [_cpu(work, 2000) for _ in range(rounds)]
    for name in ("share", "entropy", "posterior", "logprob"):
        votes = [0, 0, 1, 0, 2, 0, -1, 0]
        work = lambda name=name, votes=votes: confidence(name, votes, [0.9] * 8)  # noqa: E731
        yield f"confidence {name} of 8 votes", [_cpu(work, 2000) for _ in range(rounds)]

    def anew() -> None:
        most_likely.cache_clear()
        confidence("posterior", [0, 0, 1, 0, 2, 0, -1, 0])

    yield "confidence posterior, for the first time", [_cpu(anew, 100) for _ in range(rounds)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = qwen_math(options.data) if options.data else replay(options.replay) if options.replay else _made_up()
    name, recordings = next(iter(found.items()))
    figures = dict(measure(recordings[:500], options.rounds))
    if options.json:
        json.dump({"texts": name, "cpu_us": figures}, sys.stdout)
        return
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; texts: {name}")
    print(f"{'CPU per vote, one core':44} {'median':>9} {'min':>9} {'max':>9}")
    for label, values in figures.items():
        print(f"{label:44} {statistics.median(values):6.1f} us {min(values):6.1f} us {max(values):6.1f} us")


if __name__ == "__main__":
    main()
