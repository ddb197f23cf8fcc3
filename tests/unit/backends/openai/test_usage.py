"""What servers say of the tokens that a call has used, in the many ways in which they say it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.backends.openai import wire
from workflow_composer.types import Usage
from workflow_composer.usage import MOST_TOKENS

CASES = {
    "OpenAI": (
        {
            "prompt_tokens": 1000,
            "completion_tokens": 300,
            "total_tokens": 1300,
            "prompt_tokens_details": {"cached_tokens": 640, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 256},
        },
        Usage(1000, 300, 640, 256),
    ),
    "vLLM": (
        {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "prompt_tokens_details": None},
        Usage(9, 3),
    ),
    "DeepSeek": (
        {"prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59, "prompt_cache_hit_tokens": 40},
        Usage(50, 9, 40),
    ),
    "Moonshot": ({"prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59, "cached_tokens": 8}, Usage(50, 9, 8)),
    "xAI counts reasoning beside": (
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 135,
            "completion_tokens_details": {"reasoning_tokens": 94},
        },
        Usage(32, 103, 0, 94),
    ),
    "Google tells reasoning by the total": (
        {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 300},
        Usage(5, 295, 0, 285),
    ),
    "Perplexity counts reasoning beside, and not in the total": (
        {"prompt_tokens": 33, "completion_tokens": 7163, "total_tokens": 7196, "reasoning_tokens": 193947},
        Usage(33, 7163 + 193947, 0, 193947),
    ),
    "SGLang counts reasoning among the others": (
        {"prompt_tokens": 5, "completion_tokens": 90, "total_tokens": 95, "reasoning_tokens": 60},
        Usage(5, 90, 0, 60),
    ),
    "cached tokens beside": (
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 915, "cache_read_input_tokens": 900},
        Usage(910, 5, 900),
    ),
    "more cached tokens than there are": (
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "cached_tokens": 900},
        Usage(10, 5, 10),
    ),
    "a total that says nothing": ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 0}, Usage(10, 5)),
    "an embedding": ({"prompt_tokens": 4, "total_tokens": 9}, Usage(4, 0)),
}


@pytest.mark.parametrize(("said", "meant"), CASES.values(), ids=CASES)
def test_every_provider_s_count_means_what_is_paid_for(said, meant):
    """The same in a whole answer, read the quick or the careful way, and in a stream."""
    whole = {"choices": [{"message": {"content": "x"}}], "model": "m", "usage": said}
    quick = wire.quick_completion(json.dumps(whole).encode(), model="m")
    assert quick is not None
    assert quick.usage == wire.completion_of(whole, model="m").usage == meant
    event = wire.chunk_of({"choices": [], "usage": said})
    assert event is not None
    assert event.usage == meant


def test_a_count_within_the_choice_is_one():
    """Moonshot's streams end so."""
    event = wire.chunk_of({"choices": [{"delta": {}, "finish_reason": "stop", "usage": {"prompt_tokens": 3}}]})
    assert event is not None
    assert event.usage == Usage(3, 0)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(0, 2**41),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "cached_tokens", "reasoning_tokens"]
)


@given(anything | st.dictionaries(names, anything, max_size=6))
def test_whatever_a_server_says_the_count_is_possible_or_unknown(said):
    usage = wire.usage_in(said)
    if usage is not None:
        assert usage.can_be
        assert usage.cached_tokens <= usage.prompt_tokens <= MOST_TOKENS
        assert usage.reasoning_tokens <= usage.completion_tokens <= MOST_TOKENS
