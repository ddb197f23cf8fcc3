"""The signals of a batch are those of its answers, one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_composer.calibration.scores.signal_table import COLUMNS, SignalTable
from workflow_composer.calibration.scores.signals import FeedbackRules, analyze
from workflow_composer.errors import InputError

logprobs = st.one_of(st.floats(-20, 0), st.sampled_from([0.0, -1e-7, 1e-7, -0.6931471805599453, -120.0, -math.inf]))
faulty = st.one_of(logprobs, st.sampled_from([math.nan, 0.5, math.inf]))


@st.composite
def alternatives(draw):
    """The likeliest tokens at one place: at most five, whose probabilities add up to at most 1, in any order."""
    count = draw(st.integers(0, 5))
    weights = [draw(st.floats(1e-6, 1)) for _ in range(count)]
    unseen = draw(st.sampled_from([0.0, 1e-3, 0.2, 3.0]))
    total = sum(weights) + unseen
    return [math.log(weight / total) for weight in weights]


@st.composite
def answers(draw, values=logprobs):
    """One answer: its tokens' log-probabilities, and perhaps alternatives, of which some may be missing."""
    chosen = draw(st.lists(values, max_size=8))
    if draw(st.booleans()):
        return chosen, None
    top = [draw(alternatives()) for _ in chosen]
    for values_at, value in zip(top, chosen, strict=True):
        if values_at and draw(st.booleans()):
            values_at[draw(st.integers(0, len(values_at) - 1))] = value
    return chosen, top


def assert_same(table, place, signal):
    """Row ``place`` says what the signal says."""
    for name in COLUMNS:
        expected = getattr(signal, name)
        found = table[name][place]
        if expected is None:
            assert math.isnan(found), name
        else:
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-9), name


@settings(max_examples=120, deadline=None)
@given(st.lists(st.one_of(st.none(), answers(), answers(faulty)), max_size=6), st.sampled_from([2**18, 1000]))
def test_a_batch_says_what_each_answer_says(batch, vocabulary):
    table = SignalTable.of_answers(batch, vocabulary=vocabulary)
    assert len(table) == len(batch)
    for place, answer in enumerate(batch):
        signal = analyze([], None) if answer is None else analyze(*answer, vocabulary=vocabulary)
        assert_same(table, place, signal)
        assert table.should_escalate[place] == signal.should_escalate
        assert table.known[place] == (signal.kind != "unknown")
        assert table.distribution[place] == (signal.kind == "distribution")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(answers(), min_size=1, max_size=4),
    st.builds(
        FeedbackRules,
        safety_threshold=st.floats(0, 1),
        entropy=st.floats(0, 4),
        binary_entropy=st.floats(0, 1),
        min_logprob=st.floats(-20, 0),
        low_confidence_ratio=st.floats(0, 1),
    ),
)
def test_each_rule_acts_on_a_batch_as_on_an_answer(batch, rules):
    table = SignalTable.of_answers(batch, rules)
    expected = [analyze(*answer, rules).should_escalate for answer in batch]
    margins = [_distance(analyze(*answer), rules) for answer in batch]
    for place, (wanted, margin) in enumerate(zip(expected, margins, strict=True)):
        if margin > 1e-9:  # at the limit itself rounding decides
            assert table.should_escalate[place] == wanted


def _distance(signal, rules):
    """How far the nearest value is from its limit."""
    pairs = (
        (signal.confidence, rules.safety_threshold),
        (signal.entropy if signal.entropy is not None else signal.surprisal, rules.entropy),
        (signal.binary_entropy, rules.binary_entropy),
        (signal.min_logprob, rules.min_logprob),
        (signal.low_confidence_ratio, rules.low_confidence_ratio),
    )
    return min((abs(value - limit) for value, limit in pairs if value is not None), default=math.inf)


def test_pieces_do_not_show():
    """Many answers of all lengths, some longer than what is worked off at a time."""
    generator = np.random.default_rng(0)
    lengths = [*generator.integers(0, 600, 60), 20_000, 0, 3]
    chosen = [(-generator.exponential(0.4, length)).tolist() for length in lengths]
    top = [[sorted((-generator.exponential(2.0, 4) - 1.4).tolist(), reverse=True) for _ in answer] for answer in chosen]
    table = SignalTable.of_answers(list(zip(chosen, top, strict=True)))
    for place, answer in enumerate(chosen):
        assert_same(table, place, analyze(answer, top[place]))


def test_alternatives_may_be_missing_at_the_end_of_a_row():
    top = [[-0.1, -2.5, np.nan], [-0.7, -0.7, -9.0]]
    table = SignalTable.of([-0.1, -0.7], [0, 2], top)
    assert_same(table, 0, analyze([-0.1, -0.7], [[-0.1, -2.5], [-0.7, -0.7, -9.0]]))


def test_the_given_arrays_stay_as_they_are():
    chosen, top = np.array([-0.1, -200.0]), np.array([[-3.0, -0.2], [-1.0, np.nan]])
    before = chosen.copy(), top.copy()
    SignalTable.of(chosen, [0, 2], top)
    np.testing.assert_array_equal(chosen, before[0])
    np.testing.assert_array_equal(top, before[1])


@pytest.mark.parametrize(
    ("offsets", "top"),
    [([0, 1], None), ([1, 2], None), ([0, 3, 2], None), ([], None), ([0, 2], [[-1.0]]), ([0, 2], [-1.0, -1.0])],
)
def test_shapes_that_do_not_fit_are_refused(offsets, top):
    with pytest.raises(InputError, match=r"offsets|top"):
        SignalTable.of([-0.1, -0.2], offsets, top)


def test_no_answers_are_an_empty_table():
    table = SignalTable.of_answers([])
    assert len(table) == 0
    assert table.matrix(["mean_logprob", "entropy"]).shape == (0, 2)
