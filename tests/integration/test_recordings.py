"""Public collections of recorded answers, converted and played back: the published accuracies come out."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter

import pytest

from tests.paths import DATA, ROOT
from workflow_composer.answers import final_answer, same_answer
from workflow_composer.backends.recordings import ReplayBackend
from workflow_composer.config.strategy import ModelSpec
from workflow_composer.types import LLMRequest, ModelCall

SCRIPT = ROOT / "scripts" / "convert_recordings.py"
PUBLISHED = {"6b_finetuning": 0.2168, "6b_verification": 0.3904, "175b_finetuning": 0.3472, "175b_verification": 0.5625}


def source(name):
    """A collection's file; the test is skipped where it is absent."""
    places = sorted(DATA.rglob(name)) if DATA.is_dir() else []
    if not places:
        pytest.skip(f"no {name} below {DATA}; set WORKFLOW_COMPOSER_DATA to where it is")
    return places[0]


def converted(kind, output):
    """Run the script as a user would."""
    command = [sys.executable, str(SCRIPT), kind, "--data", str(DATA), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return output


async def played(path, model, questions, samples):
    """The recorded texts of every question, through the backend."""
    backend = ReplayBackend(ModelSpec(name="m", backend="replay", path=str(path), model=model), None)
    calls = [ModelCall(LLMRequest.of(question), samples=samples) for question in questions]
    completions = await asyncio.gather(*(backend.complete(call) for call in calls))
    await backend.close()
    return [[sample.text for sample in completion.samples] for completion in completions]


async def test_replayed_gsm8k_answers_have_the_published_accuracies(tmp_path):
    """Grading the played-back texts of four systems against the data set's own answers gives their known accuracies."""
    gold_file = source("example_model_solutions.jsonl.gz").parent / "test.jsonl"
    gold = [json.loads(line) for line in gold_file.read_text().splitlines()]
    path = converted("gsm8k", tmp_path / "gsm8k.jsonl.gz")
    for system, accuracy in PUBLISHED.items():
        answers = await played(path, system, [row["question"] for row in gold], 1)
        pairs = zip(gold, answers, strict=True)
        right = sum(same_answer(final_answer(text), final_answer(row["answer"])) for row, (text,) in pairs)
        assert round(right / len(gold), 4) == accuracy, system


async def test_replayed_samples_keep_their_number_and_their_grades(tmp_path):
    """Eight samples each of 100 problems, 91.0 % of them right."""
    source("math_cot_100.jsonl.gz")
    path = converted("qwen-math", tmp_path / "math.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    questions = list(dict.fromkeys(row["question"] for row in rows))
    answers = await played(path, rows[0]["model"], questions, 8)
    assert Counter(map(len, answers)) == {8: 100}
    assert sum(row["correct"] for row in rows) / len(rows) == pytest.approx(0.91)


def test_a_directory_without_the_collection_is_named(tmp_path):
    """The script ends with one line and status 2, not with a traceback."""
    command = [sys.executable, str(SCRIPT), "gsm8k", "--data", str(tmp_path), "--output", str(tmp_path / "o.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no example_model_solutions.jsonl.gz below" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
