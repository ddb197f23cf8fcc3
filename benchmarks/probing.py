"""Accuracy of probes, which predict from a question alone whether a model answers it correctly, on recorded answers.

    python benchmarks/probing.py [--data DIR] [--recording FILE ...] [--json]

``--data`` is a folder with public collections, as in ``docs/recordings.md``: the four systems of OpenAI's
grade-school-math on GSM8K's test set, and RouteLLM's two models on GSM8K (1,319 questions) and MMLU (14,042), one answer
per question and model.
``--recording`` adds any recording in the documented form. For each, AUROC, Brier score and expected calibration error of
questions that were held out (five folds), beside the same method on nothing but the question's length, and beside a
constant; intervals by bootstrap over questions. Where two collections hold the same models, each probe is also tried on the
other collection: that is what to expect where questions are of another kind than those a probe was trained on.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import platform
import sys
from pathlib import Path

ROUTELLM = {"mistralai/Mixtral-8x7B-Instruct-v0.1": "Mixtral-8x7B", "gpt-4-1106-preview": "GPT-4"}
SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def _systems(data: Path) -> list[dict]:
    path = data / "openai+grade-school-math/grade_school_math/data/example_model_solutions.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [
        {"question": row["question"], "model": system, "correct": row[system]["is_correct"]}
        for row in rows
        for system in SYSTEMS
    ]


def _routellm(data: Path, pattern: str) -> list[dict]:
    csv.field_size_limit(1 << 30)
    found = []
    for path in sorted((data / "lm-sys+RouteLLM/routellm/evals").glob(pattern)):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found += [
                    {"question": row["prompt"], "model": name, "correct": row[key] == "True"}
                    for key, name in ROUTELLM.items()
                ]
    return found


def _recording(path: Path) -> list[dict]:
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()
    rows = [json.loads(line) for line in lines]
    return [{key: row[key] for key in ("question", "model", "correct")} for row in rows if row["correct"] is not None]


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--recording", type=Path, action="append", default=[])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    collections = {}
    if options.data:
        collections["GSM8K, four systems"] = _systems(options.data)
        collections["GSM8K, RouteLLM"] = _routellm(options.data, "gsm8k/gsm8k_responses.csv")
        collections["MMLU, RouteLLM"] = _routellm(options.data, "mmlu/responses/*.csv")
    collections |= {path.name: _recording(path) for path in options.recording}
    if not collections:
        parser.error("name --data or --recording")
    scored = measure(collections)
    if options.json:
        json.dump(
            {name: {tier: score.model_dump() for tier, score in scores.items()} for name, scores in scored.items()},
            sys.stdout,
        )
        return
    _print(scored)


def measure(collections: dict[str, list[dict]]) -> dict:
    """Scores by collection and model; ``A on B``: a probe trained on A, tried on B."""
    import pandas as pd

    from workflow_composer.batch.planning.probe_training import evaluate, train

    tables = {name: pd.DataFrame(rows) for name, rows in collections.items()}
    probes = {name: train(table, list(table["model"].unique()), dataset=name) for name, table in tables.items()}
    scored = {
        name: {tier: found.scores for tier, found in probe.tiers.items() if found.scores} for name, probe in probes.items()
    }
    for name, probe in probes.items():
        for other, table in tables.items():
            if other != name and set(table["model"]) <= set(probe.tiers):
                scored[f"{name}: tried on {other}"] = evaluate(probe, table)
    return scored


def _print(scored: dict) -> None:
    from importlib.metadata import version

    print(f"Python {platform.python_version()}, scikit-learn {version('scikit-learn')}, numpy {version('numpy')}")
    for name, scores in scored.items():
        print(f"\n{name}")
        print(f"{'model':20} {'questions':>9} {'right':>6}  {'':9} {'AUROC':24} {'Brier score':24} {'ECE (perfect: floor)'}")
        for tier, score in scores.items():
            first = f"{tier:20} {score.questions:9,} {score.right:6.3f}"
            for way in score.brier:
                ece = f"{_interval(score.calibration[way])} ({score.floor[way]:.3f})"
                print(f"{first:37}  {way:9} {_interval(score.auroc[way]):24} {_interval(score.brier[way]):24} {ece}")
                first = ""
            if score.gain:
                auroc, brier = (_interval(score.gain[what]) for what in ("auroc", "brier"))
                print(f"{'':37}  {'gain':9} {auroc:24} {brier:24} over length")


def _interval(found) -> str:
    bounds = "" if found.low is None else f" ({found.low:.3f} to {found.high:.3f})"
    return f"{found.value:.3f}{bounds}"


if __name__ == "__main__":
    main()
