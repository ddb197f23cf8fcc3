"""Reading and grading against recorded answers of real models, whose authors published their own verdicts."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter

import pytest

from tests.paths import DATA
from workflow_composer.answers import AnswerForm, Question, reader

GSM8K = DATA / "openai+grade-school-math" / "grade_school_math" / "data"
MATH = DATA / "QwenLM+Qwen2.5-Math" / "evaluation" / "data" / "eval_rm_maj_example" / "math_cot_100.jsonl.gz"
ROUTELLM = DATA / "lm-sys+RouteLLM" / "routellm" / "evals" / "gsm8k" / "gsm8k_responses.csv"
SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"recorded answers are not in {DATA}; set WORKFLOW_COMPOSER_DATA")
async def test_grade_school_solutions_are_graded_as_their_authors_did():
    """All 5,276 verdicts agree."""
    labels = [json.loads(line)["answer"] for line in (GSM8K / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, label in zip(lines(GSM8K / "example_model_solutions.jsonl.gz"), labels, strict=True):
        for system in SYSTEMS:
            answer = reader().read(row[system]["solution"])
            assert await Question(reader(), label).is_correct(answer) == row[system]["is_correct"], row[system]["solution"]


@pytest.mark.skipif(not MATH.is_file(), reason=f"recorded answers are not in {DATA}; set WORKFLOW_COMPOSER_DATA")
async def test_solutions_of_mathematics_are_graded_and_voted_on_as_their_authors_did():
    """All but one of 800 verdicts agree: they took 10000 for wrong where the label is ``10{,}000``. Majority@8 is .93."""
    pytest.importorskip("math_verify")
    rows, one = lines(MATH), reader(AnswerForm(limit=60.0))  # not the reader of other tests, whose counts it would have
    differ, majority = [], 0
    for row in rows:
        answers = [one.read(text) for text in row["code"]]
        assert None not in answers
        for answer, score in zip(answers, row["score"], strict=True):
            if await Question(one, row["gt"]).is_correct(answer) != bool(score):
                differ.append((answer, row["gt"]))
        votes = await Question(one).groups(answers)
        winner = Counter(votes).most_common(1)[0][0]
        majority += bool(row["score"][votes.index(winner)])
    assert differ == [("10000", "10{,}000")]
    assert majority == 93
    assert one.timed_out == 0


@pytest.mark.skipif(not ROUTELLM.is_file() or not GSM8K.is_dir(), reason=f"no recorded answers in {DATA}")
@pytest.mark.parametrize(
    ("model", "agreement"), [("gpt-4-1106-preview", 0.96), ("mistralai/Mixtral-8x7B-Instruct-v0.1", 0.99)]
)
@pytest.mark.parametrize("is_known", [True, False])
async def test_answers_that_nobody_told_how_to_end_are_graded_as_recorded(model, agreement, is_known):
    """Most of GPT-4's solutions mark no answer. Where the verdicts differ, it is mostly $29.00, recorded as wrong for 29.

    A vote reads without the label, and nearly as well.
    """
    labels = [json.loads(line)["answer"] for line in (GSM8K / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    with ROUTELLM.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    agree = unread = 0
    for row, label in zip(rows, labels, strict=True):
        answer = reader().read(row[f"{model}_response"], label if is_known else None)
        unread += answer is None
        agree += await Question(reader(), label).is_correct(answer) == (row[model] == "True")
    assert agree / len(rows) >= agreement
    assert unread == 0
