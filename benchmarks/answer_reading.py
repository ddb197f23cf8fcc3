r"""Reading and grading of answers beside math-verify alone and the last number; and the CPU time of reading mutated texts.

    python benchmarks/answer_reading.py [--data DIR] [--pairs FILE] [--texts 100000] [--longest 20000] [--json]
        [--only accuracy|speed]

``--data`` is where recorded answers with published verdicts lie (openai/grade-school-math, QwenLM/Qwen2.5-Math,
lm-sys/RouteLLM; see tests/paths.py), ``--pairs`` a file of texts and labels with the verdict of a person (JSON lines:
``text``, ``gold``, ``equal``, ``contestable``). What is missing is left out.

Agreement is the share of verdicts equal to the recorded ones; a false positive is a verdict "right" where the recorded one
is "wrong". The speed is of `Reader.extract` alone, in CPU time on one core, over texts that are mutated from recorded
solutions and from the marks that readers look for: pieces repeated, doubled, cut out and put together.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.paths import DATA
from tests.unit.answers.hostile import MARKS, PIECES
from workflow_composer.answers import Question, reader

MODELS = ("gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1")
SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
PAIRS = DATA.parent / "trial" / "answers" / "pairs.jsonl"
LABELS = (None, "18", "B", "Paris")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class Case(NamedTuple):
    """A text, the label and the recorded verdict."""

    text: str
    label: str
    right: bool


# ----------------------------------------------------------------------------------------------------------------- corpora


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, plain or gzip."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def corpora(data: Path, pairs: Path) -> Iterator[tuple[str, list[Case]]]:
    """Each corpus that is there, with its cases."""
    if pairs.is_file():
        rows = [row for row in lines(pairs) if not row["contestable"]]
        yield "pairs of public reports", [Case(row["text"], row["gold"], row["equal"]) for row in rows]
    school = data / "openai+grade-school-math" / "grade_school_math" / "data"
    if school.is_dir():
        labels = [row["answer"] for row in lines(school / "test.jsonl")]
        solutions = lines(school / "example_model_solutions.jsonl.gz")
        each = zip(solutions, labels, strict=True)
        yield (
            "GSM8K, OpenAI's four systems",
            [Case(row[s]["solution"], label, row[s]["is_correct"]) for row, label in each for s in SYSTEMS],
        )
        responses = data / "lm-sys+RouteLLM" / "routellm" / "evals" / "gsm8k" / "gsm8k_responses.csv"
        if responses.is_file():
            with responses.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            for model in MODELS:
                yield (
                    f"GSM8K, {model.rpartition('/')[2]} (RouteLLM)",
                    [Case(r[f"{model}_response"], label, r[model] == "True") for r, label in zip(rows, labels, strict=True)],
                )
    found = next(data.rglob("math_cot_100.jsonl.gz"), None)
    if found is not None:
        yield (
            "MATH, Qwen2.5-Math",
            [
                Case(text, row["gt"], bool(score))
                for row in lines(found)
                for text, score in zip(row["code"], row["score"], strict=True)
            ],
        )


# ----------------------------------------------------------------------------------------------------------------- readers


async def ours(case: Case) -> bool | None:
    """The project's reader and grader; None for a text that it cannot read."""
    answer = reader().read(case.text, case.label)
    return None if answer is None else await Question(reader(), case.label).is_correct(answer)


async def math_verify_alone(case: Case) -> bool | None:
    """Math-verify's own extraction from text and label, as its documentation shows it."""
    from math_verify import parse, verify

    label = case.label.rpartition("####")[2].strip()
    with suppress(Exception):
        gold, found = parse(f"${label}$") or parse(label), parse(case.text)
        return bool(verify(gold, found)) if found else None
    return None


async def last_number(case: Case) -> bool | None:
    """The last number of the text against that of the label."""
    found, gold = _NUMBER.findall(case.text), _NUMBER.findall(case.label)
    if not found:
        return None
    return bool(gold) and float(found[-1].replace(",", "")) == float(gold[-1].replace(",", ""))


READERS: dict[str, Callable[[Case], Awaitable[bool | None]]] = {
    "ours": ours,
    "math-verify": math_verify_alone,
    "last number": last_number,
}


async def accuracy(data: Path, pairs: Path) -> list[dict[str, Any]]:
    """One row for each corpus and reader."""
    rows = []
    for name, cases in corpora(data, pairs):
        for who, read in READERS.items():
            before = time.process_time()
            verdicts = [await read(case) for case in cases]
            agree = sum(bool(said) == case.right for said, case in zip(verdicts, cases, strict=True))
            wrong = sum(bool(said) and not case.right for said, case in zip(verdicts, cases, strict=True))
            rows.append(
                {
                    "corpus": name,
                    "cases": len(cases),
                    "reader": who,
                    "agreement": agree / len(cases),
                    "false_positives": wrong,
                    "unread": verdicts.count(None),
                    "seconds": time.process_time() - before,
                }
            )
    return rows


# ------------------------------------------------------------------------------------------------------------------- speed


def mutated(seeds: list[str], longest: int, draw: random.Random) -> str:
    """A text of up to ``longest`` characters: recorded solutions and marks, repeated, doubled, cut and put together."""
    size = longest if draw.random() < 0.5 else int(longest * draw.random())
    pool = [draw.choice(MARKS + PIECES) for _ in range(draw.choice((1, 2, 3, 8)))]
    if seeds and draw.random() < 0.5:
        whole = draw.choice(seeds)
        start = draw.randrange(len(whole) or 1)
        pool += [whole, whole[start : start + draw.randrange(1, 200)]]
    parts: list[str] = []
    length = 0
    while length < size:
        part = draw.choice(pool) * draw.choice((1, 1, 1, 2, 50))
        parts.append(part)
        length += len(part) or 1
    return "".join(parts)[:size]


def speed(data: Path, pairs: Path, texts: int, longest: int) -> dict[str, Any]:
    """CPU time of reading so many mutated texts, by size, with the slowest."""
    draw = random.Random(16)
    seeds = [case.text for _, cases in corpora(data, pairs) for case in cases[:200] if case.text]
    by_size: dict[int, list[float]] = {}
    slowest, over = (0.0, ""), 0
    for number in range(texts):
        text = mutated(seeds, longest, draw)
        before = time.thread_time()
        reader().extract(text, LABELS[number % len(LABELS)])
        spent = time.thread_time() - before
        by_size.setdefault(min(4, len(text) * 5 // (longest + 1)), []).append(spent)
        slowest = max(slowest, (spent, text[:60]))
        over += spent > 0.05
    return {
        "texts": texts,
        "longest": longest,
        "mean_ms_by_fifth_of_the_length": [round(1000 * statistics.fmean(by_size.get(at, [0.0])), 3) for at in range(5)],
        "slowest_ms": round(1000 * slowest[0], 1),
        "slowest_begins": slowest[1],
        "over_50_ms": over,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--pairs", type=Path, default=PAIRS)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--longest", type=int, default=20_000)
    parser.add_argument("--only", choices=("accuracy", "speed"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    if options.only != "speed":
        found["accuracy"] = asyncio.run(accuracy(options.data, options.pairs))
    if options.only != "accuracy":
        found["speed"] = speed(options.data, options.pairs, options.texts, options.longest)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    if "accuracy" in found:
        print("| corpus | cases | reader | agreement | false positives | unread | CPU |\n|---|---|---|---|---|---|---|")
        for row in found["accuracy"]:
            share, seconds = f"{100 * row['agreement']:.1f} %", f"{row['seconds']:.1f} s"
            cells = (row["corpus"], row["cases"], row["reader"], share, row["false_positives"], row["unread"], seconds)
            print(f"| {' | '.join(map(str, cells))} |")
    if "speed" in found:
        print(json.dumps(found["speed"], indent=1))


if __name__ == "__main__":
    main()
