"""Measure the embedded fleet on the shipped problems, none of whose templates was trained on.

    python scripts/evaluate_embedded_fleet.py                 # every shipped model; a few minutes on two cores
    python scripts/evaluate_embedded_fleet.py --only small --limit 100
    python scripts/evaluate_embedded_fleet.py --write         # also bring the model card's table up to date

For each model: the share of problems whose greedy answer is right; whose most frequent answer among eight samples at
temperature 0.7 is; and for which any of the eight is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from workflow_composer.answers import final_answer, same_answer
from workflow_composer.backends.embedded.backend import CHECKPOINTS, EmbeddedBackend
from workflow_composer.config.strategy import ModelSpec
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.types import LLMRequest, ModelCall

MODELS = ("small", "medium", "large")
SAMPLES, TEMPERATURE = 8, 0.7
AT_ONCE = 256
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
Problems = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Result:
    """What one model achieved; shares from 0 to 1."""

    model: str
    parameters: int
    problems: int
    greedy: float
    majority: float
    any: float
    answers_per_second: float


def parameters(directory: Path) -> int:
    """Count the weights from the head of the file."""
    with (directory / "model.safetensors").open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__")


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, the earliest among equals; None where nobody answered."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None


async def draw(backend: EmbeddedBackend, problems: Problems, samples: int, temperature: float) -> list[list[str | None]]:
    """The final answers to every problem, so many each; progress goes to standard error."""
    places, done = asyncio.Semaphore(AT_ONCE), 0

    async def one(problem: dict[str, str]) -> list[str | None]:
        nonlocal done
        async with places:
            call = ModelCall(LLMRequest.of(problem["question"]), samples=samples, temperature=temperature)
            completion = await backend.complete(call)
        done += 1
        if done % 50 == 0 or done == len(problems):
            sys.stderr.write(f"\r{backend.name}: {samples} at t={temperature:g}: {done}/{len(problems)} ")
        return [final_answer(sample.text) for sample in completion.samples]

    found = await asyncio.gather(*(one(problem) for problem in problems))
    sys.stderr.write("\n")
    return found


async def evaluate(name: str, directory: Path, problems: Problems) -> Result:
    """Measure one model."""
    backend = EmbeddedBackend(ModelSpec(name=name, backend="embedded", path=str(directory)), None)  # type: ignore[arg-type]  # it needs no context
    started = time.monotonic()
    try:
        greedy = await draw(backend, problems, 1, 0.0)
        sampled = await draw(backend, problems, SAMPLES, TEMPERATURE)
    finally:
        await backend.close()
    seconds = time.monotonic() - started
    gold = [final_answer(problem["answer"]) for problem in problems]

    def share(answers: Sequence[str | None]) -> float:
        return sum(map(same_answer, answers, gold)) / len(problems)

    return Result(
        name,
        parameters(directory),
        len(problems),
        share([answers[0] for answers in greedy]),
        share([majority(answers) for answers in sampled]),
        sum(any(same_answer(a, right) for a in answers) for answers, right in zip(sampled, gold, strict=True))
        / len(problems),
        (SAMPLES + 1) * len(problems) / seconds,
    )


def table(results: Sequence[Result]) -> str:
    """The results as Markdown."""
    head = f"| model | parameters | greedy | majority of {SAMPLES} | any of {SAMPLES} |\n|---|---:|---:|---:|---:|\n"
    rows = (f"| {r.model} | {r.parameters:,} | {r.greedy:.1%} | {r.majority:.1%} | {r.any:.1%} |\n" for r in results)
    return head + "".join(rows)


def write_card(card: Path, text: str) -> None:
    """Put the table between the card's marks. Raises ValueError where they are missing."""
    before, begin, rest = card.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{card} has no section {BEGIN} ... {END}")
    card.write_text(f"{before}{begin}\n{text}{end}{after}")


def main() -> int:
    """Measure, print, and bring the card up to date where that is wanted; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS, action="append", help="measure this one (may be repeated)")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="where the models' directories lie")
    parser.add_argument("--problems", type=Path, default=CHECKPOINTS / "problems.jsonl")
    parser.add_argument("--limit", type=int, help="the first so many problems only")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--write", action="store_true", help="update the table in the model card")
    options = parser.parse_args()
    if options.write and (options.only or options.limit):
        parser.error("--write needs every model and every problem")
    problems = [json.loads(line) for line in options.problems.read_text().splitlines()][: options.limit]
    try:
        results = [asyncio.run(evaluate(name, options.checkpoints / name, problems)) for name in options.only or MODELS]
    except WorkflowComposerError as error:
        sys.stderr.write(f"evaluate_embedded_fleet: {error}\n")
        return error.exit_code
    if options.write:
        write_card(options.checkpoints / "README.md", table(results))
    sys.stdout.write(json.dumps([asdict(r) for r in results], indent=2) + "\n" if options.json else table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
