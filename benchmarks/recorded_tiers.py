"""Recorded answers of real models as tiers: the features that a router would have of each answer, and its correctness.

For `benchmarks/recorded_risk.py`. The features exclude everything that is known only afterwards: the correct answer, and all
answers of later tiers.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Columns = dict[str, Floats]


@dataclass(frozen=True)
class Recorded:
    """Requests that every tier has answered: for each tier its features (columns [n]), and ``correct`` [n, tiers].

    Several of one name are the same requests, asked in other words. ``costs``: of one call of each tier, in whatever
    unit; only their ratios are used.
    """

    name: str
    tiers: tuple[str, ...]
    costs: tuple[float, ...]
    features: tuple[Columns, ...]
    correct: NDArray[np.bool_]


# ------------------------------------------------------------------------------------------------------------ RouteLLM

WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
ROUTELLM = ("Mixtral-8x7B", "GPT-4"), (0.24, 24.7)
"""Dollars per million tokens, as RouteLLM's paper (Ong et al. 2024) reckons."""


def gsm8k(data: Path) -> Iterator[Recorded]:
    """1,307 problems: length and form of each answer, and whether GPT-4's last number is Mixtral's."""
    folder = data / "lm-sys+RouteLLM/routellm/evals/gsm8k"
    left_out = _contaminated(folder)
    rows = [row for row in _csv(folder / "gsm8k_responses.csv") if row["prompt"] not in left_out]
    weak, strong = ([row[f"{model}_response"] for row in rows] for model in (WEAK, STRONG))
    question = _text_columns("question", [row["prompt"] for row in rows])
    first = question | _text_columns("answer", weak) | {"has result": _column(weak, lambda text: "####" in text)}
    same = np.array([_last_number(a) == _last_number(b) for a, b in zip(weak, strong, strict=True)], float)
    second = question | _text_columns("answer", strong) | {"same": same}
    yield Recorded("GSM8K", *ROUTELLM, (first, second), _right(rows))


def mmlu(data: Path) -> Iterator[Recorded]:
    """14,037 questions: subject and length. Their answers were not recorded, so no tier knows anything of its own."""
    folder = data / "lm-sys+RouteLLM/routellm/evals/mmlu"
    left_out, rows, subjects = _contaminated(folder), [], []
    for path in sorted((folder / "responses").glob("*.csv")):
        kept = [row for row in _csv(path) if row["prompt"] not in left_out]
        rows += kept
        subjects += [path.stem] * len(kept)
    columns = _text_columns("question", [row["prompt"] for row in rows]) | _one_hot(subjects)
    yield Recorded("MMLU", *ROUTELLM, (columns, columns), _right(rows))


def _contaminated(folder: Path) -> set[str]:
    with (folder / "contaminated_prompts.jsonl").open(encoding="utf-8") as lines:
        return {json.loads(line)["eval_prompt"] for line in lines}


def _right(rows: Sequence[dict[str, str]]) -> NDArray[np.bool_]:
    return np.array([[row[model] == "True" for model in (WEAK, STRONG)] for row in rows])


# -------------------------------------------------------------------------------------------------------- ConformalLLM


def conformal_llm(data: Path) -> Iterator[Recorded]:
    """2,886 questions by ten prompts: LLaMA-13B's highest option probability, its margin and the options' entropy."""
    with zipfile.ZipFile(data / "bhaweshiitk+ConformalLLM/llm_probs_gpt.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith("_targets.npy") and "__MACOSX" not in name)
        targets = np.concatenate([np.load(io.BytesIO(archive.read(name))) for name in names])
        scores = [np.load(io.BytesIO(archive.read(name.replace("_targets", "_scores")))) for name in names]
    for options in np.concatenate(scores, axis=1):
        top = np.sort(options, axis=1)[:, ::-1]
        entropy = -(options * np.log(np.maximum(options, 1e-12))).sum(axis=1)
        columns = {"highest": top[:, 0], "margin": top[:, 0] - top[:, 1], "entropy": entropy}
        correct = (options.argmax(axis=1) == targets)[:, None]
        yield Recorded("LLaMA-13B, ten prompts", ("LLaMA-13B",), (1.0,), (columns,), correct)


# ------------------------------------------------------------------------------------------------------------ MMLU-Pro

FAMILIES = {
    "Llama-2": (("Llama-2-7b-hf", 7), ("Llama-2-13b-hf", 13), ("Llama-2-70b-hf", 70)),
    "Llama-3": (("Meta-Llama-3-8B", 8), ("Meta-Llama-3-70B", 70)),
    "Qwen1.5": (("Qwen1.5-7B-Chat", 7), ("Qwen1.5-72B-Chat", 72)),
}
"""Tiers and their costs: billions of parameters."""


def mmlu_pro(data: Path) -> Iterator[Recorded]:
    """12,032 questions: category and lengths, whether an answer could be read, and whether the tiers so far agree."""
    folder = data / "TIGER-AI-Lab+MMLU-Pro"
    with gzip.open(folder / "preds.csv.gz", "rt", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    with gzip.open(folder / "questions.jsonl.gz", "rt", encoding="utf-8") as lines:
        questions = {str(row["question_id"]): row["question"] for row in map(json.loads, lines)}
    answers = [row["answer"] for row in rows]
    asked = _text_columns("question", [questions[row["question_id"]] for row in rows])
    asked |= _one_hot([row["category"] for row in rows]) | {"options": _column(rows, lambda row: float(row["n_options"]))}
    for family, tiers in FAMILIES.items():
        letters: list[list[str]] = []
        features = []
        for model, _ in tiers:
            key = f"{model}_5shots|"
            mine = [row[f"{key}pred"] for row in rows]
            columns = asked | {
                "readable": _column(mine, bool),
                "read alike": _column(rows, lambda row, key=key: row[f"{key}pred"] == row[f"{key}pred_l2"]),  # type: ignore[misc]  # mypy: no types for defaults
                "length": _column(rows, lambda row, key=key: math.log1p(float(row[f"{key}chars"] or 0))),  # type: ignore[misc]  # as above
            }
            for at, earlier in enumerate(letters):
                columns[f"as tier {at}"] = np.array([a == b != "" for a, b in zip(mine, earlier, strict=True)], float)
            letters.append(mine)
            features.append(columns)
        correct = np.array([[a == answer for a in given] for *given, answer in zip(*letters, answers, strict=True)])
        names, costs = zip(*tiers, strict=True)
        yield Recorded(f"MMLU-Pro, {family}", names, tuple(map(float, costs)), tuple(features), correct)


COLLECTIONS: dict[str, Callable[[Path], Iterator[Recorded]]] = {
    "gsm8k": gsm8k,
    "mmlu": mmlu,
    "conformal-llm": conformal_llm,
    "mmlu-pro": mmlu_pro,
}

# ------------------------------------------------------------------------------------------------------------- features


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _column(values: Sequence[object], measure: Callable[..., float]) -> Floats:
    return np.array([measure(value) for value in values], float)


def _text_columns(name: str, texts: Sequence[str]) -> Columns:
    """Length, lines, and how many numbers and how large the largest."""
    numbers = [[abs(float(n.replace(",", ""))) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", text)] for text in texts]
    return {
        f"{name}: length": _column(texts, lambda text: math.log1p(len(text))),
        f"{name}: lines": _column(texts, lambda text: math.log1p(text.count("\n"))),
        f"{name}: numbers": _column(numbers, lambda found: math.log1p(len(found))),
        f"{name}: largest": _column(numbers, lambda found: math.log1p(min(max(found, default=0.0), 1e12))),
    }


def _one_hot(values: Sequence[str]) -> Columns:
    return {f"is {kind}": _column(values, lambda value, kind=kind: value == kind) for kind in sorted(set(values))}  # type: ignore[misc]  # mypy: no types for defaults


def _last_number(text: str) -> float | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None
