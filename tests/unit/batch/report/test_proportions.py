"""Intervals and tests for shares: known values, and by simulation that they hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workflow_composer.batch.report.proportions import holm, mcnemar, paired_difference, share_of
from workflow_composer.batch.report.statistics import Bootstrap

TIMES = 2000


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_wilsons_interval_has_the_published_values(count, of, low, high):
    """Newcombe 1998 (Statistics in Medicine 17:857), table I, and the rule of four for none of ten."""
    found = share_of(count, of)
    assert found.value == count / of
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_without_questions_a_share_is_undefined():
    assert all(map(math.isnan, share_of(0, 0)))
    assert all(map(math.isnan, paired_difference(0, 0, 0)))


@pytest.mark.parametrize("questions", [20, 100, 1000])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.98])
def test_wilsons_interval_covers_the_truth_in_about_95_of_100_samples(share, questions):
    """At few questions and extreme shares, too, where a bootstrap has no width."""
    drawn = np.random.default_rng([questions, int(1000 * share)]).binomial(questions, share, TIMES)
    bounds = {count: share_of(int(count), questions) for count in set(drawn.tolist())}
    covered = np.mean([bounds[count].low <= share <= bounds[count].high for count in drawn.tolist()])
    assert covered > 0.92
    assert covered < 0.995


def pairs(random, questions, both, first_only, second_only):
    """Numbers of questions that only the first and only the second of two runs has right, ``TIMES`` times."""
    shares = [both, first_only, second_only, 1 - both - first_only - second_only]
    return random.multinomial(questions, shares, TIMES)[:, 1:3]


@pytest.mark.parametrize("questions", [30, 200, 1000])
@pytest.mark.parametrize(("first_only", "second_only"), [(0.1, 0.1), (0.2, 0.05), (0.02, 0.0), (0.3, 0.1)])
def test_the_interval_of_a_paired_difference_covers_the_truth(first_only, second_only, questions):
    """In at least about 95 of 100 samples."""
    random = np.random.default_rng([questions, int(100 * first_only), int(100 * second_only)])
    truth = first_only - second_only
    found = [
        paired_difference(*map(float, drawn), questions) for drawn in pairs(random, questions, 0.5, first_only, second_only)
    ]
    assert np.mean([each.low <= truth <= each.high for each in found]) > 0.93


@pytest.mark.parametrize(("questions", "differing"), [(30, 0.1), (200, 0.1), (200, 0.4), (20000, 0.2)])
def test_mcnemars_test_seldom_tells_equal_runs_apart(questions, differing):
    """In at most 5 of 100 samples, and often where they do differ."""
    random = np.random.default_rng([questions, int(100 * differing)])
    same = [mcnemar(*map(int, drawn)) < 0.05 for drawn in pairs(random, questions, 0.5, differing / 2, differing / 2)]
    assert np.mean(same) < 0.06
    if questions >= 200:
        drawn = pairs(random, questions, 0.5, 0.8 * differing, 0.2 * differing)
        assert np.mean([mcnemar(*map(int, each)) < 0.05 for each in drawn]) > 0.7


def test_mcnemars_test_is_that_of_the_binomial_and_continuous_where_its_limit_begins():
    from scipy.stats import binomtest

    for first, second in [(0, 5), (3, 9), (40, 60), (1000, 1000), (950, 1050)]:
        expected = binomtest(first, first + second).pvalue if first != second else 1.0
        assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(1450, 1550) == pytest.approx(binomtest(1450, 3000).pvalue, rel=0.02)


def test_holms_method_bounds_the_chance_of_any_false_finding():
    """Of ten comparisons without a difference, in 5 of 100 reports; without it, in 40."""
    found = np.random.default_rng(0).random((TIMES, 10))
    assert np.mean(found.min(axis=1) < 0.05) > 0.3
    assert np.mean([min(holm(list(each))) < 0.05 for each in found]) < 0.065


def test_the_bootstrap_covers_a_mean_of_costs():
    """Skewed as costs are, for a hundred questions."""
    random = np.random.default_rng(5)
    covered = 0
    for seed in range(300):
        costs = random.lognormal(0.0, 0.7, (100, 1))
        found = Bootstrap(100, resamples=400, seed=seed).estimate(costs, lambda sums: sums[..., 0] / 100)
        covered += found.low <= math.exp(0.7**2 / 2) <= found.high
    assert covered / 300 > 0.9
