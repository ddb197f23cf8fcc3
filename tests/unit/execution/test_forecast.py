"""What a call will probably cost: from what the last ones have cost."""

from __future__ import annotations

import pytest

from workflow_composer.backends.pricing import UNSEEN_ANSWER, Forecast
from workflow_composer.types import LLMRequest, Usage

ASK = LLMRequest.of("x" * 40)


def test_before_the_first_answer_a_long_one_is_feared_or_what_the_request_allows():
    assert Forecast().expect(ASK, 2).usage == Usage(10, 2 * UNSEEN_ANSWER)
    assert Forecast().expect(LLMRequest.of("x" * 40, max_tokens=7), 2).usage == Usage(10, 14)


def test_answers_that_were_seen_say_how_long_the_next_will_be():
    forecast = Forecast()
    forecast.learn(ASK, Usage(20, 30), 3, 0.6)
    forecast.learn(ASK, Usage(20, 50), 1, 1.0)
    expected = forecast.expect(LLMRequest.of("x" * 80), 2)
    assert expected.usage == Usage(40, 40)
    assert expected.gpu_seconds == pytest.approx(40 * 1.6 / 80)


def test_a_request_that_allows_less_is_expected_to_take_less():
    forecast = Forecast()
    forecast.learn(ASK, Usage(20, 50), 1, 0.0)
    assert forecast.expect(LLMRequest.of("x", max_tokens=5), 1).usage.completion_tokens == 5
    assert forecast.expect(LLMRequest.of("x", max_tokens=500), 1).usage.completion_tokens == 50


def test_only_the_last_calls_count():
    forecast = Forecast()
    for _ in range(100):
        forecast.learn(ASK, Usage(20, 1000), 1, 0.0)
    for _ in range(20):
        forecast.learn(ASK, Usage(20, 10), 1, 0.0)
    assert forecast.expect(ASK, 1).usage.completion_tokens == 10


def test_servers_that_count_no_tokens_teach_nothing():
    forecast = Forecast()
    forecast.learn(ASK, Usage(), 1, 0.0)
    assert forecast.expect(ASK, 1).usage == Usage(10, UNSEEN_ANSWER)
