"""Log-probabilities as servers send them: malformed ones are unknown, and never an error or a certainty."""

from __future__ import annotations

import json

import pytest

from workflow_composer.backends.openai import wire
from workflow_composer.calibration.scores.signals import signal_of

GOOD = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.5}, {"token": "a", "logprob": -0.5}]}
MALFORMED = [
    "text",
    [],
    {"content": "text"},
    {"content": {"token": "a"}},
    {"content": ["a"]},
    {"content": [GOOD, None]},
    {"content": [GOOD | {"logprob": None}]},
    {"content": [GOOD | {"logprob": "-0.5"}]},
    {"content": [GOOD | {"logprob": True}]},
    {"content": [GOOD | {"logprob": 3.5}]},
    {"content": [GOOD | {"token": None}]},
    {"content": [{"logprob": -0.5}]},
    {"content": [{"token": "a"}]},
]
MALFORMED_TOPS = [
    "text",
    3,
    [None],
    [{"token": "b", "logprob": None}],
    [{"token": "b", "logprob": "-1"}],
    [{"logprob": -1}],
    {},
]


def whole(logprobs):
    """A response's bytes and data."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop", "logprobs": logprobs}
    data = {"model": "m", "choices": [choice]}
    return json.dumps(data).encode(), data


@pytest.mark.parametrize("logprobs", MALFORMED, ids=str)
def test_malformed_log_probabilities_are_unknown(logprobs):
    body, data = whole(logprobs)
    for completion in (wire.quick_completion(body, model="m"), wire.completion_of(data, model="m")):
        if completion is None:
            continue  # the fast path leaves it to the other
        (sample,) = completion.samples
        assert (sample.text, sample.logprobs or None) == ("a", None)
        assert signal_of(sample).kind == "unknown"
    delta = {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": logprobs}]}
    assert wire.chunk_of(delta).logprobs == ()


@pytest.mark.parametrize("top", MALFORMED_TOPS, ids=str)
def test_malformed_alternatives_leave_the_tokens_own(top):
    (sample,) = wire.completion_of(whole({"content": [GOOD | {"top_logprobs": top}]})[1], model="m").samples
    (token,) = sample.logprobs
    assert (token.token, token.logprob, token.top) == ("a", -0.5, ())
    assert signal_of(sample).kind == "surprisal"


def test_good_ones_are_known_best_first():
    (sample,) = wire.completion_of(whole({"content": [GOOD]})[1], model="m").samples
    assert sample.logprobs[0].top == (("a", -0.5), ("b", -1.5))


@pytest.mark.parametrize(
    "logprobs",
    [
        {"tokens": ["a", "b"], "token_logprobs": [-0.1, None]},
        {"tokens": ["a"], "token_logprobs": None},
        {"tokens": ["a"], "token_logprobs": [-0.1, -0.2]},
        {"tokens": "a", "token_logprobs": "b"},
        {"tokens": ["a"], "token_logprobs": ["-0.1"]},
    ],
    ids=str,
)
def test_malformed_lists_of_a_text_completion_are_unknown(logprobs):
    data = {"choices": [{"index": 0, "text": "ab", "finish_reason": "stop", "logprobs": logprobs}]}
    (sample,) = wire.completion_of(data, model="m").samples
    assert sample.logprobs is None


def test_the_first_token_of_an_echoed_prompt_has_none():
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [None, -0.5], "top_logprobs": [None, {"b": -0.5, "c": None}]}
    data = {"choices": [{"index": 0, "text": "ab", "finish_reason": "stop", "logprobs": logprobs}]}
    (sample,) = wire.completion_of(data, model="m").samples
    assert [(token.token, token.top) for token in sample.logprobs] == [("b", ())]
