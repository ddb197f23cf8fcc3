"""Convert public collections of recorded answers to the format of the replay backend (docs/recordings.md).

    python scripts/convert_recordings.py gsm8k --data DIR --output gsm8k.jsonl.gz
    python scripts/convert_recordings.py qwen-math --data DIR --output math.jsonl.gz
    python scripts/convert_recordings.py firstpass-opus --data DIR --output mbpp.jsonl.gz

``gsm8k``: one answer each by four systems to the 1,319 test questions of GSM8K (openai/grade-school-math, MIT).
``qwen-math``: eight sampled answers each to 100 problems of MATH, scored by a reward model (QwenLM/Qwen2.5-Math, MIT).
``firstpass-opus``, ``firstpass-sonnet``: 974 coding tasks (MBPP) tried by a cheap and a strong model: what the gate's tests
gave, and the dollars (dshakes/firstpass, Apache-2.0). The programs themselves are not in the collection.
DIR is searched for the file; the collections do not count tokens, so words, numbers and signs are counted.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
QWEN_MODEL = "Qwen2.5-Math-Instruct"
_TOKEN = re.compile(r"\w+|[^\w\s]")

Row = dict[str, Any]


def count_tokens(text: str) -> int:
    """Words, numbers and signs: a stand-in where nobody recorded the tokens."""
    return len(_TOKEN.findall(text))


def _row(question: str, model: str, sample: int, answer: str, *, correct: bool, **more: float) -> Row:
    return {
        "question": question,
        "model": model,
        "sample": sample,
        "answer": answer,
        "correct": correct,
        "tokens": count_tokens(answer),
        "prompt_tokens": count_tokens(question),
        **more,
    }


def gsm8k(source: Row) -> Iterator[Row]:
    """One question's four solutions."""
    for system in SYSTEMS:
        found = source[system]
        yield _row(source["question"], system, 0, found["solution"], correct=bool(found["is_correct"]))


def qwen_math(source: Row) -> Iterator[Row]:
    """One problem's eight samples; the score is the reward model's."""
    samples = zip(source["code"], source["score"], source["pred_score"], strict=True)
    for sample, (text, right, (score,)) in enumerate(samples):
        yield _row(source["question"], QWEN_MODEL, sample, text, correct=bool(right), score=score)


def firstpass(source: Row) -> Iterator[Row]:
    """One task's attempt by each model; the score is the share of the gate's unit tests that pass."""
    for model, rung in zip(source["ladder"], source["rungs"], strict=True):
        gate, dollars = rung["gate_score"], rung["cost_usd"]
        row = _row(source["task_id"], model, 0, "", correct=bool(rung["oracle_correct"]), score=gate, cost=dollars)
        yield row | {"tokens": 0, "prompt_tokens": 0}


FORMATS: dict[str, tuple[str, Callable[[Row], Iterator[Row]]]] = {
    "gsm8k": ("example_model_solutions.jsonl.gz", gsm8k),
    "qwen-math": ("math_cot_100.jsonl.gz", qwen_math),
    "firstpass-opus": ("mbpp-974-opus.checkpoint.jsonl", firstpass),
    "firstpass-sonnet": ("mbpp-974-sonnet-k5.checkpoint.jsonl", firstpass),
}


def convert(kind: str, data: Path) -> Iterator[Row]:
    """Every answer of a collection. Raises FileNotFoundError, at once, where its file is not below ``data``."""
    name, rows_of = FORMATS[kind]
    places = sorted(data.rglob(name))
    if not places:
        raise FileNotFoundError(f"no {name} below {data}")
    return _rows(places[0], rows_of)


def _rows(place: Path, rows_of: Callable[[Row], Iterator[Row]]) -> Iterator[Row]:
    opener = gzip.open if place.suffix == ".gz" else open
    with opener(place, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield from rows_of(json.loads(line))


def main(arguments: list[str] | None = None) -> int:
    """Convert one collection; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=list(FORMATS))
    parser.add_argument("--data", type=Path, required=True, help="a directory that holds the collection")
    parser.add_argument("--output", type=Path, required=True, help="the recording: .jsonl or .jsonl.gz")
    options = parser.parse_args(arguments)
    count = 0
    try:
        rows = convert(options.format, options.data)
        opener = gzip.open if options.output.suffix == ".gz" else open
        with opener(options.output, "wt", encoding="utf-8") as output:
            for row in rows:
                output.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        sys.stderr.write(f"convert_recordings: {error}\n")
        return 2
    sys.stdout.write(f"{count} answers in {options.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
