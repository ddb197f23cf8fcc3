"""Tables of recorded answers: what people publish is a recording, and what cannot be one says why."""

from __future__ import annotations

import gzip
import json

import pytest

from workflow_composer.backends.recordings import open_recording
from workflow_composer.errors import ModelNotFound

ROUTELLM = 'prompt,small/7B,big,small/7B_response,big_response\n"2 + 2?",False,True,"It is\n5","#### 4"\n3 + 3?,,True,,6\n'
"""The form of RouteLLM's gsm8k_responses.csv: a column of verdicts and one of texts for each model."""


def answers(path):
    """What the recording holds."""
    return [(r.question, r.model, r.sample, r.answer, r.correct) for r in open_recording(path).records()]


def test_a_column_of_answers_for_each_model_beside_its_verdicts(tmp_path):
    """A field may span lines; an empty one without a verdict is no answer."""
    (tmp_path / "t.csv").write_text(ROUTELLM)
    assert answers(tmp_path / "t.csv") == [
        ("2 + 2?", "small/7B", 0, "It is\n5", False),
        ("2 + 2?", "big", 0, "#### 4", True),
        ("3 + 3?", "big", 0, "6", True),
    ]


def test_it_may_be_compressed_and_separated_by_tabs(tmp_path):
    text = "question\tm_output\tm_correct\tm_tokens\tm_cost\n2 + 2?\t4\t1\t7\t0.25\n"
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(text.encode()))
    (record,) = open_recording(tmp_path / "t.tsv.gz").records()
    assert (record.answer, record.correct, record.tokens, record.cost) == ("4", True, 7, 0.25)


def test_an_object_for_each_model(tmp_path):
    """The form of example_model_solutions.jsonl of openai/grade-school-math."""
    row = {"question": "2 + 2?", "ground_truth": "#### 4", "6b": {"solution": "#### 5", "is_correct": False}}
    row["175b"] = {"solution": "#### 4", "is_correct": True}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    assert answers(tmp_path / "t.jsonl") == [("2 + 2?", "6b", 0, "#### 5", False), ("2 + 2?", "175b", 0, "#### 4", True)]


def test_one_answer_in_each_row(tmp_path):
    """Several of one model to a question are its samples; without a column for the model, the file names it."""
    (tmp_path / "long.csv").write_text("model,prompt,response\na,q,1\na,q,2\nb,q,3\n")
    assert answers(tmp_path / "long.csv") == [("q", "a", 0, "1", None), ("q", "a", 1, "2", None), ("q", "b", 0, "3", None)]
    (tmp_path / "gpt.csv").write_text("prompt,response,expected_answer\nq,1,4\n")
    assert answers(tmp_path / "gpt.csv") == [("q", "gpt", 0, "1", None)]


def test_parquet(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"prompt": ["q"], "a": [True], "a_response": ["1"], "expected_answer": ["4"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert answers(tmp_path / "t.parquet") == [("q", "a", 0, "1", True)]


def test_a_recording_is_no_table(tmp_path):
    line = {"question": "q", "model": "m", "sample": 0, "answer": "1", "correct": None, "tokens": 1}
    (tmp_path / "r.jsonl").write_text(json.dumps(line) + "\n")
    assert answers(tmp_path / "r.jsonl") == [("q", "m", 0, "1", None)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text,a_response\nq,1\n", "no column holds the question; found text, a_response"),
        ("prompt,expected_answer\nq,1\n", "no column holds a model's answers; found prompt, expected_answer"),
        ("prompt,a,a_response\nq,perhaps,1\n", "a is 'perhaps'"),
        ("prompt,a,a_response\n ,True,1\n", "prompt is empty"),
        ("prompt,a_response,a_tokens\nq,1,many\n", "a_tokens is 'many'"),
        ("prompt,a_response\nq\n", "more or fewer fields"),
        ('prompt,a_response\nq,"1\n', "not valid CSV"),
    ],
)
def test_what_is_wrong_with_a_table_is_told_with_its_place(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ModelNotFound, match=r"t\.csv") as caught:
        open_recording(tmp_path / "t.csv")
    assert said in str(caught.value)
