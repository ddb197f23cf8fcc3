"""Execution feedback as a library: what people have as log-probabilities, and cascades over kept answers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from openai.types.chat import ChatCompletion

from tests.paths import ROOT
from workflow_composer.calibration import FeedbackRules, cascade_of
from workflow_composer.calibration.scores.signals import VOCABULARY, binary_entropy, token_entropy
from workflow_composer.calibration.scores.token_forms import read_logprobs
from workflow_composer.errors import InputError, InvalidProbability
from workflow_composer.routers.execution_feedback import ExecutionFeedbackRouter
from workflow_composer.types import Sample, TokenLogprob

VALUES, TOPS = [-0.1, -2.0], [[-0.1, -2.5], [-0.4, -2.0]]
CONTENT = [
    {"token": "4", "logprob": -0.1, "top_logprobs": [{"token": "4", "logprob": -0.1}, {"token": "5", "logprob": -2.5}]},
    {"token": "2", "logprob": -2.0, "top_logprobs": [{"token": "3", "logprob": -0.4}, {"token": "2", "logprob": -2.0}]},
]


@dataclass
class Logprob:
    """As in vLLM's ``vllm/logprobs.py``: the chosen token comes first, whatever its rank."""

    logprob: float
    rank: int = 1
    decoded_token: str | None = None


COMPLETION = {
    "tokens": ["4", "2"],
    "token_logprobs": VALUES,
    "top_logprobs": [{"4": -0.1, "5": -2.5}, {"3": -0.4, "2": -2.0}],
}
VLLM = [{4: Logprob(-0.1), 5: Logprob(-2.5)}, {2: Logprob(-2.0, 2), 3: Logprob(-0.4)}]
RECORDED = [{"token": "4", "logprob": -0.1, "top": [["4", -0.1], ["5", -2.5]]},
            {"token": "2", "logprob": -2.0, "top": [["3", -0.4], ["2", -2.0]]}]  # fmt: skip
SAMPLE = Sample(
    "42", logprobs=(TokenLogprob("4", -0.1, (("4", -0.1), ("5", -2.5))), TokenLogprob("2", -2.0, (("3", -0.4), ("2", -2.0))))
)

WITH_ALTERNATIVES = {
    "chat content": CONTENT,
    "chat logprobs": {"content": CONTENT},
    "chat choice": {"logprobs": {"content": CONTENT}, "finish_reason": "stop"},
    "chat response": {"choices": [{"logprobs": {"content": CONTENT}}]},
    "client's response": ChatCompletion.model_validate(
        {
            **{"id": "c", "created": 1, "model": "m", "object": "chat.completion"},
            "choices": [
                {
                    **{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "42"}},
                    "logprobs": {"content": CONTENT, "refusal": None},
                }
            ],
        }
    ),
    "response of Responses": {
        "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": "42", "logprobs": CONTENT}]},
        ]
    },
    "llama.cpp's own": {"content": "42", "completion_probabilities": [{"id": 7, **one} for one in CONTENT]},
    "ollama's own": {"response": "42", "logprobs": CONTENT},
    "completion": {"choices": [{"text": "42", "logprobs": COMPLETION}]},
    "client's completion": {"choices": [SimpleNamespace(text="42", logprobs=SimpleNamespace(**COMPLETION))]},
    "vllm": VLLM,
    "vllm's output": SimpleNamespace(outputs=[SimpleNamespace(text="42", logprobs=VLLM)]),
    "sample": SAMPLE,
    "tokens": SAMPLE.logprobs,
    "response": SimpleNamespace(samples=(SAMPLE,)),
    "recording": {"answer": "42", "logprobs": RECORDED},
}


@pytest.mark.parametrize("answer", WITH_ALTERNATIVES.values(), ids=WITH_ALTERNATIVES)
def test_every_form_is_read_to_the_same_numbers(answer):
    values, tops = read_logprobs(answer)
    assert values == VALUES
    assert [sorted(one) for one in tops] == [sorted(one) for one in TOPS]
    assert FeedbackRules().analyze(answer) == FeedbackRules().analyze(VALUES, TOPS)
    assert FeedbackRules().analyze(answer).kind == "distribution"


@pytest.mark.parametrize(
    "answer", [VALUES, tuple(VALUES), np.array(VALUES), np.array(VALUES, "float32"), {"logprobs": VALUES}]
)
def test_numbers_alone_are_surprisals(answer):
    signal = FeedbackRules().analyze(answer)
    assert (signal.kind, signal.token_count) == ("surprisal", 2)
    assert signal.mean_logprob == pytest.approx(-1.05)


def test_the_first_token_of_an_echoed_prompt_has_no_value():
    echoed = {"token_logprobs": [None, *VALUES], "top_logprobs": [None, *COMPLETION["top_logprobs"]]}
    assert read_logprobs(echoed)[0] == VALUES


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"text": "42"},
        {"logprobs": None},
        {"content": None},
        {"role": "assistant", "content": "42"},
        {"choices": []},
        Sample("42"),
        np.array([]),
    ],
)
def test_without_log_probabilities_nothing_is_known_which_is_doubtful(answer):
    signal = FeedbackRules().analyze(answer)
    assert (signal.kind, signal.should_escalate) == ("unknown", True)


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ([-0.1, 0.9], "token 2"),
        ([-0.1, math.nan], "token 2"),
        ([None, -0.1], "token 1"),
        (["-0.1"], "token 1"),
        ([{"token": "4", "logprob": None}], "token 1"),
        ([{}], "token 1"),
        ([{"logprob": -0.1, "top": [["4", 0.9]]}], "token 1"),
        ("-0.1", "str"),
        (7, "int"),
    ],
)
def test_what_is_no_log_probability_is_refused_with_its_place(answer, place):
    with pytest.raises(ValueError, match=place):
        FeedbackRules().analyze(answer)


def test_a_probability_is_refused_with_the_remedy():
    with pytest.raises(InvalidProbability, match=r"math\.log"):
        FeedbackRules().analyze([0.9, 0.8])


def test_alternatives_belong_to_every_token():
    with pytest.raises(InvalidProbability, match="1 tokens, but 2"):
        FeedbackRules().analyze(VALUES, TOPS[:1])


def test_the_rules_of_the_object_decide():
    assert not FeedbackRules(min_logprob=-3.0).analyze([-0.1] * 9 + [-2.0]).should_escalate
    doubtful = FeedbackRules(min_logprob=-1.0).analyze([-0.1] * 9 + [-2.0])
    assert doubtful.should_escalate
    assert doubtful.escalation_reason.count(";") == 0


# ------------------------------------------------------------------------------------------------------------ the cascade

SURE, UNSURE = [-0.01, -0.02], [-0.01, -6.0]


def test_a_cascade_over_kept_answers_asks_the_strong_model_where_the_cheap_one_is_doubtful():
    cheap = [
        {"answer": "a", "logprobs": SURE, "cost": 1.0, "correct": True},
        {"answer": "b", "logprobs": UNSURE, "cost": 1.0, "correct": False},
        {"answer": "c", "cost": 1.0, "correct": True},
    ]
    strong = [{"answer": name, "cost": 10.0, "correct": name != "C"} for name in "ABC"]
    kept = cascade_of(cheap, strong, FeedbackRules())
    assert [step.answer["answer"] for step in kept] == ["a", "B", "C"]
    assert [step.escalated for step in kept] == [False, True, True]
    assert [step.cost for step in kept] == [1.0, 11.0, 11.0]
    assert (kept.escalated, kept.cost, kept.always_strong, kept.saved) == (2, 23.0, 30.0, 7.0)
    assert kept.accuracy == pytest.approx(2 / 3)
    assert kept.escalation_rate == pytest.approx(2 / 3)
    assert (kept[0].reason, bool(kept[1].reason)) == ("", True)
    assert "2 of 3" in repr(kept)


def test_laxer_rules_escalate_less():
    cheap, strong = [{"logprobs": SURE}, {"logprobs": UNSURE}], [{}, {}]
    lax = FeedbackRules(0.0, math.inf, 1.0, -math.inf, 1.0)
    assert [cascade_of(cheap, strong, rules).escalated for rules in (lax, FeedbackRules())] == [0, 1]


@pytest.mark.parametrize("cheap", [Sample("a", logprobs=(TokenLogprob("a", -9.0),)), {"logprobs": [-9.0]}, [-9.0]])
def test_one_answer_each_is_a_cascade_of_one(cheap):
    kept = cascade_of(cheap, "the strong answer")
    assert (len(kept), kept[0].answer, kept[0].escalated) == (1, "the strong answer", True)


def test_what_is_not_known_is_none_and_not_nothing():
    kept = cascade_of([{"logprobs": SURE, "cost": 1.0}, {"logprobs": SURE}], [{"cost": 5.0}, {"cost": 5.0}])
    assert (kept.cost, kept.always_strong, kept.saved, kept.accuracy) == (None, 10.0, None, None)


def test_answers_to_other_questions_are_refused():
    with pytest.raises(InputError, match="2 cheap answers, 1 strong"):
        cascade_of([{"logprobs": SURE}] * 2, [{}])
    with pytest.raises(InputError, match="0 cheap"):
        cascade_of([], [])
    with pytest.raises(InputError, match="cheap answer 2: token 1"):
        cascade_of([{"logprobs": SURE}, {"logprobs": [0.9]}], [{}, {}])


def test_the_page_shows_what_happens(capsys):
    """Both blocks, one after the other."""
    page = (
        (ROOT / "docs" / "execution-feedback.md").read_text(encoding="utf-8").split("## As a library")[1].split("\n## ")[0]
    )
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M):
        exec(block, names)
    assert names["signal"].should_escalate
    assert (names["kept"].escalated, names["kept"].accuracy) == (1, 1.0)
    assert len(capsys.readouterr().out.splitlines()) == 3


# ------------------------------------------------------------------------------------------------------------ the entropy


def test_an_empty_list_has_the_largest_entropy():
    """Of nothing, nothing is known: that must not look certain."""
    assert token_entropy([]) == pytest.approx(math.log(VOCABULARY))
    assert ExecutionFeedbackRouter.compute_entropy([], vocabulary=4) == pytest.approx(math.log(4))
    assert ExecutionFeedbackRouter.compute_entropy(np.array([])) == token_entropy([])


def test_probabilities_may_be_rounded_and_of_any_library():
    third = np.full(3, 1 / 3, "float32")
    assert ExecutionFeedbackRouter.compute_entropy(third) == pytest.approx(math.log(3), abs=1e-3)
    assert token_entropy([0.334, 0.333, 0.3335]) == pytest.approx(math.log(3), abs=1e-2)
    assert token_entropy([0.0, 1.0]) == 0.0


@pytest.mark.parametrize("wrong", [[1.2], [-0.1], [math.nan], [math.inf], [0.9, 0.9], ["0.5"], [None]])
def test_what_is_no_probability_has_no_entropy(wrong):
    with pytest.raises(ValueError, match=r"no probability|add up to"):
        ExecutionFeedbackRouter.compute_entropy(wrong)


@pytest.mark.parametrize("wrong", [1.2, -0.1, math.nan, "0.5", None])
def test_nor_has_it_a_binary_one(wrong):
    with pytest.raises(InvalidProbability):
        ExecutionFeedbackRouter.compute_binary_entropy(wrong)
    assert ExecutionFeedbackRouter.compute_binary_entropy(0.25) == binary_entropy(0.25)
