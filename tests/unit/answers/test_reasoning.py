"""What a model thinks before it answers is not its answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given

from tests.unit.answers.hostile import anything
from workflow_composer.answers import AnswerForm, reader
from workflow_composer.answers.reasoning import says_nothing, without_reasoning


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<think>A first try: \boxed{5}. No.</think>It is \boxed{7}.", "7"),
        (r"<think>\boxed{5}</think>Seven it is, so 7.", "7"),
        (r"<think>A first try gives \boxed{5}. That cannot be, because", None),
        (r"It could be \boxed{5}, but</think>The answer is 7.", "7"),
        (r"The answer is 7.<think>Was it \boxed{5}?</think>", "7"),
        ("<think>12 + 30</think><answer>42</answer>", "42"),
        ("<think>The capital?</think><answer>Paris</answer>", "Paris"),
        ("<think>a<think>b</think>c #### 5</think>#### 7", "7"),
        ("<thinking>#### 5</thinking>\n#### 7", "7"),
        ("<THINK>#### 5</THINK>\n#### 7", "7"),
        ("[THINK]#### 5[/THINK]\n#### 7", "7"),
        ("<think>#### 5</think>", None),
        ("<think></think>#### 7", "7"),
    ],
)
def test_reasoning_is_left_out_before_the_answer_is_read(text, answer):
    """Closed, never closed, or begun before the text."""
    assert reader().read(text) == answer


@pytest.mark.parametrize("way", ["hashes", "boxed", "phrase", "line", "whole", "json:answer"])
def test_reasoning_is_left_out_whatever_way_the_answer_is_found(way):
    """A function of one's own gets the text without it, too."""
    found = reader(AnswerForm(extract=(way,)))
    assert found.read(r'<think>#### 5 \boxed{5} The answer is 5. {"answer": 5}') is None


@given(text=anything)
def test_a_text_without_marks_is_left_as_it_is(text):
    """Nothing is raised whatever the text holds."""
    left = without_reasoning(text)
    assert len(left) <= len(text)
    if "think" not in text.lower():
        assert left == text or "<" in text


@pytest.mark.parametrize("text", ["", " \n", "<think>so</think>", "<think>so", "so</think>\n", " <think>so</think> "])
def test_reasoning_alone_says_nothing(text):
    """As a blank text does."""
    assert says_nothing(text)


@pytest.mark.parametrize("text", ["18", "<p>18</p>", "<think>so</think>18", "so</think>18", "[1, 2]"])
def test_an_answer_says_something(text):
    """With markup of its own, too."""
    assert not says_nothing(text)


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", "<", "[THINK]", "<think>a"])
def test_a_megabyte_of_marks_takes_no_time(piece):
    """It is gone through once."""
    before = time.process_time()
    reader().read(piece * (1_000_000 // len(piece)))
    assert time.process_time() - before < 5


def test_the_final_channel_is_the_answer_where_a_server_shows_all_of_them():
    """As gpt-oss writes them, and as some servers hand them on."""
    text = "<|channel|>analysis<|message|>It is 5.<|end|><|start|>assistant<|channel|>final<|message|>7<|return|>"
    assert without_reasoning(text) == "7"
    assert not says_nothing(text)
    assert says_nothing("<|channel|>final<|message|> <|return|>")
