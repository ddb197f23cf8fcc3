"""Learning a score: it ranks, it is a probability, and it never fails; the figures of merit are scikit-learn's."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.calibration.worlds import signal_table
from workflow_composer.calibration.scores.fitting import (
    DISTRIBUTION_FEATURES,
    MANY_ROWS,
    SURPRISAL_FEATURES,
    aurc,
    auroc,
    expected_calibration_error,
    fit_score,
    fit_with_scores,
    isotonic,
    platt,
    probabilities,
)
from workflow_composer.calibration.scores.scores import Calibrator, ScoreModel
from workflow_composer.calibration.scores.signal_table import SignalTable
from workflow_composer.calibration.scores.signals import analyze
from workflow_composer.errors import InputError


def world(rows, seed=0):
    generator = np.random.default_rng(seed)
    sure = generator.beta(2, 1.2, rows)
    return signal_table(sure, generator), generator.random(rows) < 1 / (1 + np.exp(-(9 * sure - 4.2)))


@pytest.mark.parametrize("rows", [300, MANY_ROWS + 200])
def test_on_new_answers_the_score_ranks_and_is_a_probability(rows):
    table, correct = world(rows)
    model = fit_score(table, correct)
    assert model.calibrator.form == ("isotonic" if rows > MANY_ROWS else "platt")
    new, right = world(4000, seed=1)
    scores = probabilities(model, new)
    assert auroc(scores, right) > 0.75
    assert expected_calibration_error(scores, right) < 0.06


def test_batch_and_single_answer_get_the_same_score():
    generator = np.random.default_rng(0)
    answers = [((-generator.exponential(0.5, 6)).tolist(), None) for _ in range(1200)]
    table = SignalTable.of_answers(answers)
    correct = generator.random(1200) < np.exp(table["mean_logprob"])
    for rows in (slice(0, 200), slice(0, 1200)):
        model = fit_score({name: column[rows] for name, column in table.columns.items()}, correct[rows])
        single = [model.probability(analyze(*answer)) for answer in answers[:50]]
        np.testing.assert_allclose(probabilities(model, table)[:50], single, rtol=1e-12)


def test_a_saved_score_gives_the_same_probabilities():
    table, correct = world(200)
    model = fit_score(table, correct)
    again = ScoreModel.from_dict(json.loads(json.dumps(model.to_dict())))
    assert again == model


def test_held_out_scores_do_not_rank_noise_which_the_regression_has_learned_by_heart():
    learned, held_out = [], []
    for seed in range(15):
        table, _ = world(80, seed)
        noise = np.random.default_rng(100 + seed).random(80) < 0.5
        model, scores = fit_with_scores(table, noise)
        held_out.append(auroc(scores, noise))
        uncalibrated = replace(model, calibrator=Calibrator("platt", ((1.0, 0.0),)))
        learned.append(auroc(probabilities(uncalibrated, table), noise))
    assert np.mean(learned) > 0.58
    assert np.mean(held_out) < 0.53


@pytest.mark.parametrize("right", [True, False])
def test_where_all_answers_are_alike_the_score_is_the_base_rate(right):
    table, _ = world(50)
    model = fit_score(table, np.full(50, right))
    expected = 51 / 52 if right else 1 / 52
    np.testing.assert_allclose(probabilities(model, table), expected)


def test_constant_features_say_the_base_rate():
    table = SignalTable.of([-0.3] * 120, range(0, 121, 3))
    correct = np.arange(40) % 4 > 0
    scores = probabilities(fit_score(table, correct), table)
    assert np.ptp(scores) < 1e-9
    assert scores[0] == pytest.approx(0.75, abs=0.02)


def test_unknown_answers_are_left_out_and_stay_unknown():
    table, correct = world(200)
    answers = SignalTable.of(np.append(np.full(3, -0.2), []), [0, 3, 3])
    model = fit_score(table, correct)
    scores = probabilities(model, answers)
    assert not math.isnan(scores[0])
    assert math.isnan(scores[1])
    known = {name: np.append(column, np.nan) for name, column in table.columns.items()}
    assert fit_score(known, np.append(correct, True)) == model


def test_features_follow_what_is_known():
    chosen = SignalTable.of_answers([([-0.1, -0.4], None)] * 20)
    whole = SignalTable.of_answers([([-0.1, -0.4], [[-0.1, -3.0], [-0.4, -2.0]])] * 20 + [None])
    mixed = SignalTable.of_answers([([-0.1], None), ([-0.1], [[-0.1, -3.0]])])
    correct = np.arange(20) % 2 > 0
    assert fit_score(chosen, correct).features == SURPRISAL_FEATURES
    assert fit_score(whole, np.append(correct, False)).features == DISTRIBUTION_FEATURES
    assert fit_score(mixed, [True, False]).features == SURPRISAL_FEATURES
    assert fit_score(whole, np.append(correct, False), features=["margin"]).features == ("margin",)


def test_labels_of_another_length_are_refused():
    with pytest.raises(InputError, match=r"\(20,\), one per answer"):
        fit_score(SignalTable.of([-0.1] * 20, range(21)), [True])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_any_labels_give_a_score_between_0_and_1(rows, share, seed):
    generator = np.random.default_rng(seed)
    table = SignalTable.of(-generator.integers(0, 3, rows * 2) * 1.0, range(0, rows * 2 + 1, 2))
    model = fit_score(table, generator.random(rows) < share)
    scores = probabilities(model, table)
    assert ((scores > 0) & (scores < 1)).all()
    assert ScoreModel.from_dict(model.to_dict()) == model


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=60))
def test_calibrators_never_fall(pairs):
    logits = np.array([float(x) for x, _ in pairs])
    correct = np.array([y for _, y in pairs])
    for calibrator in (platt(logits, correct), isotonic(logits, correct)):
        found = [calibrator(x / 4) for x in range(-30, 31)]
        assert all(a <= b + 1e-12 for a, b in pairwise(found))
        assert all(0 < p < 1 for p in found)


def test_smoothing_small_steps_turns_no_two_of_them_around():
    """One wrong answer alone would be smoothed to a third, above three right ones in ten."""
    calibrator = isotonic([-1.0] + [1.0] * 100, [False] + [True] * 30 + [False] * 70)
    assert calibrator(-1.0) == calibrator(1.0) == pytest.approx(1 / 3)


def test_an_upside_down_feature_is_no_reason_to_turn_the_order_around():
    """Held-out logits that rank worse than chance say nothing: the base rate is left."""
    calibrator = platt([-1.0] * 30 + [1.0] * 30, [True] * 30 + [False] * 30)
    assert calibrator(5.0) == pytest.approx(calibrator(-5.0)) == pytest.approx(0.5)


scored = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 0.99, 1.0]), st.booleans()), min_size=2, max_size=80)


@settings(max_examples=40, deadline=None)
@given(scored)
def test_auroc_is_that_of_scikit_learn(pairs):
    from sklearn.metrics import roc_auc_score

    scores, correct = [s for s, _ in pairs], [y for _, y in pairs]
    if len(set(correct)) < 2:
        assert auroc(scores, correct) is None
    else:
        assert auroc(scores, correct) == pytest.approx(roc_auc_score(correct, scores))


@settings(max_examples=40, deadline=None)
@given(scored)
def test_the_calibration_error_is_what_the_reliability_curve_says(pairs):
    from sklearn.calibration import calibration_curve

    scores, correct = np.array([s for s, _ in pairs]), np.array([y for _, y in pairs])
    shares, means = calibration_curve(correct, scores, n_bins=5, strategy="uniform", pos_label=True)
    # scikit-learn counts a value on an edge to the bin below
    bins = np.clip(np.searchsorted(np.linspace(0, 1, 6)[1:-1], scores), 0, 4)
    ours = expected_calibration_error(np.where(scores == 0.0, 0.0, scores - 1e-12), correct, bins=5)
    weights = np.bincount(bins, minlength=5)
    expected = np.sum(np.abs(shares - means) * weights[weights > 0]) / len(scores)
    assert ours == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(scored)
def test_aurc_is_the_mean_risk_over_all_orders_of_equal_scores(pairs):
    scores, correct = np.array([s for s, _ in pairs]), np.array([y for _, y in pairs])
    generator = np.random.default_rng(0)
    curves = []
    for _ in range(100):
        order = np.lexsort((generator.random(len(scores)), -scores))
        curves.append(np.mean(np.cumsum(~correct[order]) / np.arange(1, len(scores) + 1)))
    spread = np.std(curves) / math.sqrt(100)
    assert abs(aurc(scores, correct) - np.mean(curves)) <= 5 * spread + 1e-9


def test_without_rows_there_are_no_figures():
    assert auroc([], []) is None
    assert aurc([math.nan], [True]) is None
    assert expected_calibration_error([], []) is None
