"""What the beginning of an answer says of the whole."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.calibration.tokens import answers, cuts, spread, sure
from workflow_composer.calibration.scores.acceptance import Prefix
from workflow_composer.calibration.scores.scores import FEATURES
from workflow_composer.calibration.scores.signals import signal_of
from workflow_composer.types import Sample, TokenLogprob


@settings(deadline=None)
@given(st.data(), answers(), st.integers(0, 30))
def test_the_wholes_features_lie_in_the_ranges_that_every_prefix_gave(data, tokens, more):
    """However the tokens are cut into pieces, and however much longer the answer might have become."""
    whole = signal_of(Sample("x", logprobs=tuple(tokens)))
    prefix = Prefix(len(tokens) + more)
    for piece in cuts(data.draw, tokens):
        prefix.hear(piece)
        for name in FEATURES:
            ranges, value = prefix.ranges([name]), getattr(whole, name)
            if value is None:
                assert ranges is None
            else:
                assert ranges is not None, name
                ((low, high),) = ranges
                assert low <= value <= high, name


@settings(deadline=None)
@given(st.data(), answers())
def test_the_best_case_is_never_more_doubtful_than_the_whole(data, tokens):
    whole = signal_of(Sample("x", logprobs=tuple(tokens)))
    prefix = Prefix(len(tokens))
    for piece in cuts(data.draw, tokens):
        prefix.hear(piece)
        best = prefix.best_case()
        assert best.kind == whole.kind
        assert best.confidence >= whole.confidence
        assert best.min_logprob >= whole.min_logprob
        assert best.binary_entropy <= whole.binary_entropy
        assert best.low_confidence_ratio <= whole.low_confidence_ratio
        assert (best.entropy is None) == (whole.entropy is None)
        assert best.entropy is None or best.entropy <= whole.entropy


@pytest.mark.parametrize("name", [name for name in FEATURES if not name.startswith("logprob_q")])
def test_at_the_greatest_length_nothing_is_left_open_but_the_least_values(name):
    """Ranges close in on the truth; quantiles and least values are only ever bounded on one side."""
    sample = spread([0.6, 0.3], [0.5, 0.2], [0.9, 0.05])
    prefix = Prefix(3)
    prefix.hear(sample.logprobs)
    ((low, high),) = prefix.ranges([name])
    value = getattr(signal_of(sample), name)
    assert high == pytest.approx(value, abs=1e-7)
    if name not in ("min_logprob", "min_margin", "sequence_logprob"):
        assert low == pytest.approx(value, abs=1e-7)


def test_without_a_token_nothing_can_be_said():
    assert Prefix(5).best_case() is None
    assert Prefix(5).ranges(["mean_logprob"]) is None


@pytest.mark.parametrize("value", [math.nan, 0.5])
def test_what_is_no_log_probability_ends_all_knowledge(value):
    """The whole answer's signal will be unknown, and unknown is for the policy to judge, not for a watch."""
    prefix = Prefix(5)
    prefix.hear(sure(-0.1).logprobs)
    prefix.hear([TokenLogprob("x", value)])
    prefix.hear(sure(-9.0).logprobs)
    assert prefix.best_case() is None
    assert prefix.ranges(["mean_logprob"]) is None


def test_with_one_alternative_the_entropy_is_known_and_the_margin_is_not():
    prefix = Prefix(2)
    prefix.hear(spread([0.5], [0.5]).logprobs)
    assert prefix.best_case().entropy > 0
    assert prefix.ranges(["entropy"]) is not None
    assert prefix.ranges(["margin"]) is None
    assert prefix.ranges(["min_margin"]) is None


def test_a_feature_that_nobody_knows_has_no_range():
    prefix = Prefix(2)
    prefix.hear(sure(-0.5).logprobs)
    assert prefix.ranges(["mean_logprob", "wit"]) is None
