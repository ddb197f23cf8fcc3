"""What an answer's tokens tell: bounds that hold, unknown that stays unknown, and rules that act."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.calibration.scores.signals import (
    FLOOR,
    UNKNOWN,
    FeedbackRules,
    FeedbackSignal,
    analyze,
    binary_entropy,
    entropy_bounds,
    judged,
    signal_of,
)
from workflow_composer.types import Sample, TokenLogprob

weights = st.lists(st.floats(1e-3, 1), min_size=2, max_size=12)
logprobs = st.lists(st.floats(-15, 0), min_size=1, max_size=20)


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p)


# --------------------------------------------------------------------------------------------------------------- entropy


@given(weights, st.data())
def test_the_entropy_lies_within_its_bounds_whatever_part_of_the_distribution_is_seen(found, data):
    whole = sorted((w / sum(found) for w in found), reverse=True)
    seen = data.draw(st.integers(1, len(whole)))
    rest = max(0.0, 1 - math.fsum(whole[:seen]))
    low, high = entropy_bounds(whole[:seen], rest, whole[seen - 1], vocabulary=len(whole))
    assert low - 1e-9 <= entropy(whole) <= high + 1e-9


def test_the_bounds_are_reached():
    """The upper one where the rest is spread evenly, the lower one where it is as concentrated as it can be."""
    low, high = entropy_bounds([0.5, 0.2], 0.3, 0.2, vocabulary=5)
    assert high == pytest.approx(entropy([0.5, 0.2, 0.1, 0.1, 0.1]))
    assert low == pytest.approx(entropy([0.5, 0.2, 0.2, 0.1]))


@given(weights)
def test_a_distribution_that_is_wholly_seen_has_one_entropy(found):
    whole = [w / sum(found) for w in found]
    low, high = entropy_bounds(whole, 0.0, min(whole))
    assert low == high == pytest.approx(entropy(whole))


@given(st.floats(0, 1))
def test_binary_entropy_is_symmetric_and_at_most_one_bit(p):
    assert 0.0 <= binary_entropy(p) <= 1.0
    assert binary_entropy(p) == pytest.approx(binary_entropy(1 - p), abs=1e-9)


# -------------------------------------------------------------------------------------------------------------- analysis


@given(logprobs)
def test_from_chosen_tokens_alone_only_surprisal_is_known(values):
    signal = analyze(values)
    assert signal.kind == "surprisal"
    assert signal.surprisal == pytest.approx(-sum(values) / len(values))
    assert signal.sequence_logprob == pytest.approx(sum(values))
    assert signal.min_logprob == min(values)
    assert signal.token_count == len(values)
    assert signal.log_length == math.log(len(values))
    assert signal.confidence == pytest.approx(math.exp(sum(values) / len(values)))
    unknown = ("entropy", "entropy_low", "entropy_high", "margin", "min_margin", "tail_mass")
    assert [getattr(signal, name) for name in unknown] == [None] * 6
    assert signal.entropy_bound == ""
    assert signal.heavy_tails == 0


def test_quantiles_lie_between_the_tokens():
    assert analyze([-4.0, -1.0, -3.0, -2.0, -5.0]).quantiles == pytest.approx((-4.8, -4.0, -3.0))
    assert analyze([-2.0]).quantiles == (-2.0, -2.0, -2.0)


def test_tokens_less_likely_than_all_others_together_are_of_low_confidence():
    signal = analyze([math.log(0.49), math.log(0.5), math.log(0.51), -0.01])
    assert (signal.low_confidence_tokens, signal.low_confidence_ratio) == (1, 0.25)


def test_alternatives_give_entropy_margin_and_what_was_not_seen():
    signal = analyze([math.log(0.6), math.log(0.9)], [[math.log(0.6), math.log(0.3)], [math.log(0.9), math.log(0.095)]])
    assert signal.kind == "distribution"
    assert signal.entropy_bound == "upper"
    assert signal.entropy == signal.entropy_high > signal.entropy_low
    assert signal.margin == pytest.approx((0.3 + 0.805) / 2)
    assert signal.min_margin == pytest.approx(0.3)
    assert signal.tail_mass == pytest.approx((0.1 + 0.005) / 2)
    assert signal.heavy_tails == 1


def test_a_chosen_token_beyond_the_likeliest_is_counted_with_them():
    inside = analyze([math.log(0.1)], [[math.log(0.6), math.log(0.3), math.log(0.1)]])
    beyond = analyze([math.log(0.1)], [[math.log(0.6), math.log(0.3)]])
    assert beyond.tail_mass == pytest.approx(inside.tail_mass, abs=1e-12)
    assert beyond.entropy_low == pytest.approx(inside.entropy_low)
    assert beyond.margin == inside.margin


@given(st.lists(st.lists(st.floats(-15, -0.7), min_size=1, max_size=5), min_size=1, max_size=6), st.randoms())
def test_the_order_of_alternatives_does_not_matter(top, random):
    chosen = [max(values) for values in top]
    shuffled = [random.sample(values, len(values)) for values in top]
    assert analyze(chosen, shuffled) == analyze(chosen, top)


def test_one_token_without_alternatives_leaves_surprisals():
    assert analyze([-0.1, -0.2], [[-0.1, -3.0], []]).kind == "surprisal"
    assert analyze([-0.1, -0.2], [[-0.1, -3.0]]).kind == "surprisal"
    assert analyze([-0.1], [[math.nan]]).kind == "surprisal"
    assert analyze([-0.1], [[0.5]]).kind == "surprisal"


@pytest.mark.parametrize("values", [[], [math.nan], [-0.1, 0.3], [math.inf, -1.0]])
def test_what_is_no_log_probability_makes_the_answer_unknown_which_is_not_confidence(values):
    signal = analyze(values)
    assert signal == UNKNOWN
    assert signal.kind == "unknown"
    assert signal.should_escalate
    assert signal.confidence is None
    assert "unknown" in signal.escalation_reason
    assert FeedbackRules(safety_threshold=0.0).reasons(signal) == [signal.escalation_reason]


def test_impossible_tokens_are_limited():
    """Servers write -9999 or minus infinity for what cannot happen."""
    for value in (-math.inf, -9999.0):
        assert analyze([value, -0.1]).min_logprob == FLOOR
        assert math.isfinite(analyze([-0.1], [[-0.1, value]]).entropy)


def test_rounding_above_zero_is_certainty():
    assert analyze([1e-8]).confidence == 1.0


def test_a_sample_is_read_with_or_without_alternatives():
    plain = Sample("4", logprobs=(TokenLogprob("4", -0.2),))
    whole = Sample("4", logprobs=(TokenLogprob("4", -0.2, (("4", -0.2), ("5", -2.0))),))
    assert signal_of(plain) == analyze([-0.2], [[]])
    assert signal_of(whole) == analyze([-0.2], [[-0.2, -2.0]])
    assert signal_of(Sample("4")) is UNKNOWN
    assert signal_of(Sample("4", logprobs=())) is UNKNOWN


# ----------------------------------------------------------------------------------------------------------------- rules

CALM = FeedbackSignal(
    "distribution", 4, mean_logprob=-0.1, min_logprob=-0.5, binary_entropy=0.1, low_confidence_ratio=0.0, entropy=0.2,
    should_escalate=False, escalation_reason="",
)  # fmt: skip


def test_a_calm_answer_is_not_doubtful():
    assert FeedbackRules().reasons(CALM) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean_logprob": math.log(0.29)}, "confidence per token 0.29 < 0.3"),
        ({"entropy": 2.6}, "mean entropy 2.6 nats > 2.5"),
        ({"binary_entropy": 0.86}, "mean binary entropy 0.86 bits > 0.85"),
        ({"min_logprob": -5.1}, "lowest log-probability -5.1 < -5"),
        ({"low_confidence_ratio": 0.16}, "share of low-confidence tokens 0.16 > 0.15"),
        ({"entropy": None, "kind": "surprisal", "mean_logprob": -2.6}, "mean surprisal 2.6 nats > 2.5"),
    ],
)
def test_each_rule_acts_and_spells_out_value_and_limit(change, words):
    reasons = FeedbackRules().reasons(replace(CALM, **change))
    assert words in reasons


@pytest.mark.parametrize(
    ("rule", "field", "limit"),
    [
        ("safety_threshold", "mean_logprob", math.log(0.5)),
        ("entropy", "entropy", 0.5),
        ("binary_entropy", "binary_entropy", 0.5),
        ("min_logprob", "min_logprob", -1.0),
        ("low_confidence_ratio", "low_confidence_ratio", 0.5),
    ],
)
def test_a_value_at_its_limit_is_not_doubtful_yet(rule, field, limit):
    lenient = FeedbackRules(0.0, math.inf, math.inf, -math.inf, math.inf)
    bound = math.exp(limit) if rule == "safety_threshold" else limit
    assert replace(lenient, **{rule: bound}).reasons(replace(CALM, **{field: limit})) == []


def test_all_reasons_stand_in_the_signal():
    signal = analyze([-6.0, -6.0])
    assert signal.should_escalate
    assert signal.escalation_reason.count(";") == len(FeedbackRules().reasons(signal)) - 1 == 3
    assert not judged(signal, []).should_escalate
