"""The synchronous spellings of reader and grader: by cases, and against a data set with published verdicts."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.paths import DATA
from workflow_composer.answers import final_answer, is_correct, same_answer

GSM8K = DATA / "openai+grade-school-math" / "grade_school_math" / "data"
PUBLISHED = {"6b_finetuning": 0.2168, "6b_verification": 0.3904, "175b_finetuning": 0.3472, "175b_verification": 0.5625}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 18", "18"),
        ("a\n#### 3\nsecond thoughts\n#### 4 \n", "4"),
        ("12 + 7 = 19. #### 19", "19"),
        ("####18", "18"),
        ("so it is\nA: 18", "18"),
        ("so it is\nA: 18\n\n", "18"),
        ("25", "25"),
        ("", None),
        ("####", None),
        ("####\n18", "18"),
        ("A:", None),
        ("A: 3\n#### 4", "4"),
    ],
)
def test_the_final_answer_is_what_is_marked(text, answer):
    """The last ``####`` wins; ``A:`` counts on the last line; else the text's last number."""
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("18", "18.0"),
        ("1,450,000", "1450000"),
        ("$70,000", "70000"),
        ("5%", "5"),
        ("18.", "18"),
        ("-5", "-5.00"),
        ("0.5", ".5"),
        ("Monday.", "monday"),
        ("two  dogs", "two dogs"),
    ],
)
def test_the_same_answer_written_otherwise(a, b):
    """How a number is written is not what was asked."""
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(
    ("a", "b"), [("18", "81"), ("5", "-5"), ("9/9", "1"), ("", ""), ("$", "%"), ("nan", "inf"), (None, None), ("1", "one")]
)
def test_different_answers(a, b):
    """No answer is never right, not even against another one."""
    assert not same_answer(a, b)
    assert not same_answer(b, a)


def test_large_numbers_are_compared_exactly():
    """Floating point would call these the same."""
    assert not same_answer("9007199254740993", "9007199254740992")


@given(st.integers(), st.integers())
def test_whole_numbers_are_the_same_exactly_when_equal(a, b):
    """With and without separators of thousands."""
    assert same_answer(f"{a:,}", str(b)) == (a == b)


@given(st.text(), st.text())
def test_any_text_can_be_graded(text, label):
    """Nothing that a model writes makes grading fail."""
    is_correct(text, label)


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"recorded answers are not in {DATA}; set WORKFLOW_COMPOSER_DATA")
@pytest.mark.parametrize("system", PUBLISHED)
def test_recorded_solutions_are_graded_as_their_authors_did(system):
    """1,319 recorded solutions of each of four systems: the published accuracy, and the same verdict in every row."""
    with gzip.open(GSM8K / "example_model_solutions.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    labels = [json.loads(line)["answer"] for line in (GSM8K / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    verdicts = [is_correct(row[system]["solution"], label) for row, label in zip(rows, labels, strict=True)]

    assert verdicts == [row[system]["is_correct"] for row in rows]
    assert round(sum(verdicts) / len(verdicts), 4) == PUBLISHED[system]
