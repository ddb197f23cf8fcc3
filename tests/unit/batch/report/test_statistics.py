"""Bootstrap intervals and scores: against scikit-learn, against plain loops, and by simulation of what they promise."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from workflow_composer.batch.report import statistics
from workflow_composer.batch.report.statistics import (
    Bootstrap,
    auroc,
    auroc_draws,
    brier,
    calibration_columns,
    calibration_error,
    calibration_floor,
    centred,
    equal_bins,
    estimate,
    pass_at,
)

LABELLED = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]), st.integers(0, 4)), min_size=2, max_size=30)


def rate(sums):
    return sums[..., 0] / sums[..., 1]


def columns(values):
    return np.column_stack([values, np.ones(len(values))])


class TestBootstrap:
    def test_a_resample_has_as_many_questions_as_there_are(self):
        """Drawn with replacement: weights are whole numbers that add up."""
        bootstrap = Bootstrap(37, resamples=500)
        weights = np.concatenate(list(bootstrap.weights()))
        assert weights.shape == (500, 37)
        assert (weights.sum(axis=1) == 37).all()
        assert weights.max() > 1
        assert weights.min() == 0

    def test_everything_is_computed_on_the_same_resamples(self):
        """So that the difference of two runs has the interval of the differences, not of two independent ones."""
        random = np.random.default_rng(0)
        values = random.normal(size=(200, 1))
        bootstrap = Bootstrap(200)
        np.testing.assert_allclose(bootstrap.sums(values + 1), bootstrap.sums(values) + 200)
        np.testing.assert_array_equal(Bootstrap(200).sums(values), bootstrap.sums(values))
        assert (Bootstrap(200, seed=1).sums(values) != bootstrap.sums(values)).all()

    def test_memory_is_bounded_by_making_weights_in_parts(self, monkeypatch):
        """In parts or at once, the interval is that of the same distribution."""
        values = columns(np.arange(50.0))
        monkeypatch.setattr(statistics, "_AT_ONCE", 500)
        parts = [len(weights) for weights in Bootstrap(50, resamples=95).weights()]
        assert parts == [10] * 9 + [5]
        assert Bootstrap(50).estimate(values, rate).low == pytest.approx(20.4, abs=1.0)

    def test_the_interval_of_a_mean_has_the_width_that_theory_gives(self):
        """1.96 standard errors to each side, within a few percent."""
        values = np.random.default_rng(1).normal(3, 2, size=5000)
        found = Bootstrap(5000, resamples=4000).estimate(columns(values), rate)
        error = values.std() / np.sqrt(5000)
        assert found.value == pytest.approx(values.mean())
        assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.06)

    def test_many_questions_are_drawn_in_groups_with_the_same_width(self):
        """The promise for data sets of more than `GROUPS` questions."""
        values = np.random.default_rng(2).random(3 * statistics.GROUPS + 7)
        bootstrap = Bootstrap(len(values))
        assert bootstrap.units == statistics.GROUPS
        assert set(np.bincount(bootstrap.unit)) == {3, 4}
        found = bootstrap.estimate(columns(values), rate)
        assert found.low < found.value < found.high
        assert (found.high - found.low) / (2 * 1.96 * values.std() / np.sqrt(len(values))) == pytest.approx(1, abs=0.1)

    def test_the_interval_covers_the_truth_about_as_often_as_it_says(self):
        """300 data sets of 200 questions, 80 % right: 95 % of the intervals hold .8, within what chance allows."""
        random = np.random.default_rng(3)
        covered = 0
        for trial in range(300):
            found = Bootstrap(200, resamples=400, seed=trial).estimate(columns(random.random(200) < 0.8), rate)
            covered += found.low <= 0.8 <= found.high
        assert 0.90 <= covered / 300 <= 0.985

    def test_without_questions_there_is_nothing_to_say(self):
        """NaN, not an exception."""
        found = Bootstrap(0).estimate(np.empty((0, 2)), rate)
        assert np.isnan(found).all()

    def test_resamples_in_which_a_statistic_is_undefined_are_left_out(self):
        """A rate among questions none of which was drawn."""
        rare = np.zeros((40, 2))
        rare[0] = 1.0
        found = Bootstrap(40).estimate(rare, rate)
        assert found == (1.0, 1.0, 1.0)
        assert np.isnan(estimate(float("nan"), np.array([1.0, 2.0])).low)


class TestScores:
    @settings(deadline=None)
    @given(LABELLED)
    def test_auroc_is_scikit_learns(self, labelled):
        """With weights: a question of four samples, one of them right, is a quarter right and three quarters wrong."""
        predicted = np.array([p for p, _ in labelled])
        right = np.array([n / 4 for _, n in labelled])
        assume(0 < right.sum() < len(right))
        kinds = np.repeat([1, 0], len(right))
        weights = np.concatenate([right, 1 - right])
        expected = roc_auc_score(kinds, np.concatenate([predicted, predicted]), sample_weight=weights)
        assert auroc(predicted, right) == pytest.approx(expected)

    def test_auroc_of_a_resample_is_that_of_the_questions_drawn(self):
        """Also where questions are drawn in groups."""
        random = np.random.default_rng(4)
        predicted, right = random.random(300).round(1), (random.random(300) < 0.5).astype(float)
        bootstrap = Bootstrap(300, resamples=20)
        drawn = auroc_draws(predicted, right, bootstrap)
        for weights, area in zip(np.concatenate(list(bootstrap.weights())), drawn, strict=True):
            rows = np.repeat(np.arange(300), weights.astype(int))
            assert area == pytest.approx(auroc(predicted[rows], right[rows]))

    @pytest.mark.parametrize("right", [[1.0, 1.0], [0.0, 0.0], []])
    def test_auroc_needs_right_and_wrong_ones(self, right):
        """NaN, and no warning."""
        assert np.isnan(auroc(np.full(len(right), 0.5), np.array(right)))

    @settings(deadline=None)
    @given(LABELLED)
    def test_brier_is_the_mean_over_the_samples(self, labelled):
        """Of each question, weighing alike."""
        predicted = np.array([p for p, _ in labelled])
        right = np.array([n / 4 for _, n in labelled])
        expected = [np.mean([(1 - p) ** 2] * n + [p**2] * (4 - n)) for p, n in labelled]
        np.testing.assert_allclose(brier(predicted, right), expected)

    @settings(deadline=None)
    @given(LABELLED)
    def test_calibration_error_is_the_weighted_gap_of_the_bins(self, labelled):
        """The definition, in a loop."""
        predicted = np.array([p for p, _ in labelled])
        right = np.array([n / 4 for _, n in labelled])
        bins = equal_bins(predicted, 4)
        gaps = [abs(right[bins == b].mean() - predicted[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist())]
        sums = calibration_columns(predicted, right, bins).sum(axis=0)
        assert float(calibration_error(sums)) == pytest.approx(sum(gaps))

    def test_unknown_predictions_are_left_out_of_the_calibration_error(self):
        """As if they were not there."""
        predicted, right = np.array([0.2, 0.9, np.nan]), np.array([0.0, 1.0, 1.0])
        known = np.array([1.0, 1.0, 0.0])
        sums = calibration_columns(predicted, right, np.array([0, 1, 1]), known).sum(axis=0)
        assert float(calibration_error(sums)) == pytest.approx((0.2 + 0.1) / 2)

    @settings(deadline=None)
    @given(st.lists(st.floats(0, 1), max_size=100), st.integers(1, 12))
    @example([0.0, 5e-324, 0.5, 0.625, 0.75, 0.875, 1.0], 7)
    def test_bins_hold_equally_many_but_for_ties(self, predicted, bins):
        """Equal predictions are in one bin, greater ones in the same or a later one."""
        predicted = np.array(sorted(predicted))
        bin_of = equal_bins(predicted, bins)
        assert (np.diff(bin_of) >= 0).all()
        assert len(set(bin_of.tolist())) <= bins
        assert (bin_of[1:][np.diff(predicted) == 0] == bin_of[:-1][np.diff(predicted) == 0]).all()
        if len(set(predicted.tolist())) == len(predicted) >= bins:
            sizes = np.bincount(bin_of)
            assert sizes.max() - sizes.min() <= 1

    def test_perfect_predictions_show_the_floor_on_average(self):
        """200 simulations; what exceeds it is a real error."""
        random = np.random.default_rng(5)
        shown = []
        for _ in range(200):
            predicted = random.random(400)
            right = (random.random(400) < predicted).astype(float)
            sums = calibration_columns(predicted, right, equal_bins(predicted))
            shown.append((float(calibration_error(sums.sum(axis=0))), calibration_floor(sums)))
        error, floor = np.mean(shown, axis=0)
        assert error == pytest.approx(floor, rel=0.07)

    def test_the_interval_of_the_calibration_error_holds_it(self):
        """Although each resample's is larger, by noise that comes twice."""
        random = np.random.default_rng(6)
        predicted = random.random(400)
        right = (random.random(400) < np.clip(predicted + 0.1, 0, 1)).astype(float)
        sums = calibration_columns(predicted, right, equal_bins(predicted))
        plain, moved = (Bootstrap(400).estimate(sums, calibration_error, way) for way in (estimate, centred))
        assert 0 <= moved.low < moved.value < moved.high
        assert moved.value == plain.value
        assert moved.high - moved.low == pytest.approx(plain.high - plain.low)


class TestPassAt:
    @given(st.integers(1, 7), st.data())
    def test_it_is_the_share_of_draws_with_a_right_one(self, samples, data):
        """Every way of drawing k of n is counted."""
        right, drawn = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
        ways = list(combinations([True] * right + [False] * (samples - right), drawn))
        assert pass_at(right, samples, drawn) == pytest.approx(sum(map(any, ways)) / comb(samples, drawn))

    def test_more_than_there_are_cannot_be_drawn(self):
        """Unknown, not zero."""
        assert np.isnan(pass_at(1, 2, 3))
