"""One tier's threshold: the numbers it is built from, the procedure against references, and that it keeps its target."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from workflow_composer.calibration.certify import risk
from workflow_composer.calibration.certify.risk import Grid, calibrate_conformal, fixed_grid, grid_from, select
from workflow_composer.errors import ConfigError, InfeasibleTarget, InputError

shares = st.floats(0.01, 0.5)
counts = st.integers(0, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
p_values = st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.03, 0.04, 0.05, 0.2, 1.0]), min_size=1, max_size=8)


def requests(seed: int, n: int, right=lambda score: 1 / (1 + np.exp(-(9 * score - 4.2)))):
    """Scores from Beta(2, 1.2), and answers right with a probability that depends on the score."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(2, 1.2, size=n)
    return scores, rng.random(n) < right(scores)


@functools.cache
def population():
    """Scores of that world, equally likely."""
    return beta.ppf((np.arange(20_000) + 0.5) / 20_000, 2, 1.2)


def true_risk(threshold: float, right=lambda score: 1 / (1 + np.exp(-(9 * score - 4.2)))) -> float:
    """P(wrong | score >= threshold) in that world."""
    scores = population()
    return float(np.mean(1 - right(scores[scores >= threshold])))


# ------------------------------------------------------------------------------------------------- one threshold's numbers


@settings(deadline=None)
@given(counts, shares)
def test_the_p_value_is_the_binomial_tail(count, alpha):
    """As scipy's own distribution function has it; 1 where nothing was accepted."""
    wrong, accepted = count
    expected = binom.cdf(wrong, accepted, alpha) if accepted else 1.0
    assert float(risk.p_value(wrong, accepted, alpha)) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@settings(deadline=None)
@given(st.integers(1, 60), shares, st.floats(0.01, 0.3))
def test_a_p_value_is_small_no_more_often_than_it_says(accepted, alpha, level):
    """Exactly, where the true risk is alpha: the sum over all counts whose p-value is at most the level."""
    wrong = np.arange(accepted + 1)
    small = risk.p_value(wrong, np.full(accepted + 1, accepted), alpha) <= level
    assert binom.pmf(wrong, accepted, alpha)[small].sum() <= level + 1e-12


@settings(deadline=None)
@given(counts, st.floats(0.001, 0.5))
def test_the_upper_bound_is_clopper_and_pearsons(count, delta):
    """The risk at which so few have probability delta."""
    wrong, accepted = count
    found = risk.upper_bound(wrong, accepted, delta)
    if wrong == accepted:
        assert found == 1.0
    else:
        assert found == pytest.approx(beta.ppf(1 - delta, wrong + 1, accepted - wrong), rel=1e-9)
        assert binom.cdf(wrong, accepted, found) == pytest.approx(delta, rel=1e-6)
        assert risk.lower_bound(accepted - wrong, accepted, delta) == pytest.approx(1 - found)


@settings(deadline=None)
@given(shares, st.floats(0.0005, 0.5))
@example(0.49999999999999994, 0.5)
def test_fewest_accepted_is_the_first_number_that_can_pass(alpha, level):
    """With none wrong, that many pass and one fewer do not."""
    fewest = risk.fewest_accepted(alpha, level)
    assert float(risk.p_value(0, fewest, alpha)) <= level
    assert fewest == 1 or float(risk.p_value(0, fewest - 1, alpha)) > level


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 400))
def test_nothing_accepts_more_than_the_highest_coverage(right, wrong, taken):
    """Even a score that puts every right answer before every wrong one."""
    total = right + wrong
    accepted = min(taken, total)
    assume(accepted)
    seen = max(0, accepted - right) / accepted
    assume(seen < 1)
    assert accepted / total <= risk.highest_coverage(wrong / total, seen) + 1e-12


# ---------------------------------------------------------------------------------------------------------------- testing


def fallback(p, starts, delta):
    """Wiens's procedure as a loop over positions, exact in multiples of delta / J."""
    carried, found = 0, []
    for position, value in enumerate(p):
        carried += position in starts
        found.append(carried > 0 and value <= delta * carried / len(starts))
        carried = carried if found[-1] else 0
    return found


@settings(deadline=None)
@given(p_values, st.data())
def test_testing_from_several_starts_is_the_fallback_procedure(p, data):
    """What one start has left flows on to the next."""
    starts = sorted(data.draw(st.sets(st.integers(0, len(p) - 1), min_size=1)))
    assert risk.rejected(p, starts, 0.06).tolist() == fallback(p, starts, 0.06)


@settings(deadline=None)
@given(p_values)
def test_one_start_is_fixed_sequence_testing(p):
    """Learn-then-Test's: go on at the full level until the first that fails."""
    first_failure = next((i for i, value in enumerate(p) if value > 0.05), len(p))
    assert risk.rejected(p, [0], 0.05).tolist() == [i < first_failure for i in range(len(p))]


@settings(deadline=None)
@given(p_values)
def test_holm_rejects_what_the_step_down_definition_does(p):
    """A hypothesis is rejected where every one with a smaller p-value is, at delta / those not yet rejected."""
    found, left = [False] * len(p), len(p)
    for position in sorted(range(len(p)), key=p.__getitem__):
        if p[position] > 0.05 / left:
            break
        found[position] = True
        left -= 1
    assert risk.rejected(p, [0], 0.05, "holm").tolist() == found


@settings(deadline=None)
@given(rows=st.integers(1, 6).flatmap(lambda size: st.lists(st.lists(st.floats(0, 0.06), min_size=size, max_size=size))))
@pytest.mark.parametrize("method", risk.METHODS)
def test_many_draws_at_once_are_each_tested_alone(rows, method):
    """The last axis is the thresholds; all others are draws."""
    assume(rows)
    starts = sorted({0, len(rows[0]) // 2})
    together = risk.rejected(rows, starts, 0.05, method)
    assert together.tolist() == [risk.rejected(row, starts, 0.05, method).tolist() for row in rows]
    assert risk.most_liberal(together).tolist() == [
        max((i for i, hit in enumerate(row) if hit), default=-1) for row in together
    ]


@given(st.integers(1, 7), st.data())
@settings(deadline=None, max_examples=30)
def test_hypotheses_that_all_hold_are_rejected_with_probability_delta_at_most(size, data):
    """With independent p-values, worst for the union bound: exact up to simulation."""
    starts = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
    p = np.random.default_rng(size).random((20_000, size))
    assert risk.rejected(p, starts, 0.2).any(axis=1).mean() <= 0.2 + 4 * math.sqrt(0.16 / 20_000)


def test_an_unknown_method_is_refused():
    """With the known ones."""
    with pytest.raises(ConfigError, match=r"'bonferroni'.*fixed_sequence, holm"):
        risk.rejected([0.1], [0], 0.1, "bonferroni")


# ------------------------------------------------------------------------------------------------------------------ grids


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0, 1), st.just(math.nan)), max_size=80),
    st.integers(0, 3000),
    st.sampled_from([0.02, 0.1, 0.3]),
    st.sampled_from([0.001, 0.05, 0.1]),
)
def test_a_placed_grid_ends_where_every_known_score_is_accepted(reference, n, alpha, level):
    """Whatever the reference: ties, unknown scores, none at all."""
    grid = grid_from(reference, n=n, alpha=alpha, level=level)
    assert grid.thresholds[-1] == -math.inf
    assert len(grid.thresholds) <= 20
    assert set(grid.thresholds[:-1]) <= set(reference)
    assert len(grid.starts) <= len(risk.MULTIPLES)


def test_starts_lie_where_enough_acceptances_are_expected():
    """2, 4 and 8 times the 33 that can just pass at a third of .10, of 500: shares .132, .264 and .528."""
    reference = np.linspace(0, 1, 1001)
    grid = grid_from(reference, n=500, alpha=0.1, level=0.1)
    expected = [float(np.mean(reference >= grid.thresholds[start])) for start in grid.starts]
    assert grid.starts[0] == 0
    assert expected == pytest.approx([0.132, 0.264, 0.528], abs=0.046)
    assert all(share >= wanted - 1e-9 for share, wanted in zip(expected, [0.132, 0.264, 0.528], strict=True))


def test_with_many_labels_starts_reach_far_into_the_scores():
    """66 of 20,000 lie at the very top, where a confident liar would be; the last start is at two fifths."""
    reference = np.linspace(0, 1, 10_001)
    grid = grid_from(reference, n=20_000, alpha=0.1, level=0.1)
    expected = [float(np.mean(reference >= grid.thresholds[start])) for start in grid.starts]
    assert expected == pytest.approx([66 / 20_000, math.sqrt(0.4 * 66 / 20_000), 0.4], abs=0.053)
    assert expected[0] < 0.004


def test_fewer_labels_have_fewer_starts():
    """A start that could not pass would only cost the others their share."""
    reference = np.linspace(0, 1, 101)
    numbers = [len(grid_from(reference, n=n, alpha=0.1, level=0.1).starts) for n in (10, 40, 200, 500)]
    assert numbers == [1, 1, 2, 3]


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.5), (0.2, 0.5), (0.5, math.nan)])
def test_thresholds_that_do_not_fall_are_refused(thresholds):
    """They are tested in their order, and each only once."""
    with pytest.raises(InputError, match="decreasing"):
        Grid(thresholds, (0,))


@pytest.mark.parametrize("starts", [(), (2,), (-1,), (1, 0), (0, 0)])
def test_starts_outside_the_grid_are_refused(starts):
    """A start that is counted and never used would waste its share; one used twice would spend it twice."""
    with pytest.raises(InputError, match="starts"):
        Grid((0.5, 0.2), starts)


# -------------------------------------------------------------------------------------------------------------- selecting

score_lists = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan]), st.floats(0, 1)), st.booleans()),
    max_size=150,
)


@settings(deadline=None)
@given(score_lists, st.sampled_from([0.05, 0.2, 0.5]), st.sampled_from([0.05, 0.3]), st.sampled_from(risk.METHODS))
def test_what_is_certified_is_bounded_by_alpha_and_counts_are_the_datas(rows, alpha, delta, method):
    """Ties with a threshold are accepted, unknown scores are not."""
    scores, labels = [row[0] for row in rows], [row[1] for row in rows]
    found = select(scores, labels, fixed_grid(), alpha=alpha, delta=delta, method=method)
    assert found.reached == len(rows)
    if found.threshold is None:
        assert (found.accepted, found.wrong, found.bound, found.p_value, found.coverage) == (0, 0, 1.0, None, 0.0)
    else:
        accepted = [right for score, right in rows if score >= found.threshold]
        assert (found.accepted, found.wrong) == (len(accepted), accepted.count(False))
        assert found.wrong / found.accepted < found.bound <= alpha
        assert found.p_value <= delta
        assert found.labels_needed is None


def test_a_useless_score_is_accepted_nowhere():
    """Three answers in ten are wrong, whatever the score says."""
    rng = np.random.default_rng(0)
    found = select(rng.random(2_000), rng.random(2_000) < 0.7, fixed_grid(), alpha=0.1, delta=0.1)
    assert found.threshold is None
    assert found.labels_needed is None
    assert "no threshold's answers were wrong rarely enough" in found.reason


def test_answers_that_are_all_right_are_all_accepted():
    """500 of them show an error of at most 2 %."""
    scores, _ = requests(0, 500)
    found = select(scores, np.ones(500), fixed_grid(), alpha=0.02, delta=0.1)
    assert found.threshold == 0.0
    assert found.coverage == 1.0


def test_answers_that_are_all_wrong_are_never_accepted():
    """And no number of labels would change that."""
    scores, _ = requests(0, 500)
    found = select(scores, np.zeros(500), fixed_grid(), alpha=0.2, delta=0.1)
    assert (found.threshold, found.labels_needed) == (None, None)


@pytest.mark.parametrize(("n", "reason"), [(0, "no labelled requests"), (5, "too few labels: 29 must be accepted")])
def test_too_few_labels_are_named_with_how_many_more_would_do(n, reason):
    """And that many, all right, do."""
    found = select(np.ones(n), np.ones(n), fixed_grid(), alpha=0.1, delta=0.1)
    assert found.threshold is None
    assert reason in found.reason
    enough = n + found.labels_needed
    assert select(np.ones(enough), np.ones(enough), fixed_grid(), alpha=0.1, delta=0.1).threshold is not None
    assert enough < 100


def test_the_labels_said_to_be_needed_are_mostly_enough():
    """60 labels seldom suffice; with as many more as were asked for, half of all draws or more certify something.

    Not the .8 it aims at: of several starts it takes the one that looks nearest, and some only look so.
    """
    asked = [select(*requests(seed, 60), fixed_grid(), alpha=0.1, delta=0.1).labels_needed for seed in range(40)]
    needed = [more for more in asked if more is not None]
    assert len(needed) > 20
    more = int(np.median(needed))
    done = [select(*requests(seed, 60 + more), fixed_grid(), alpha=0.1, delta=0.1).threshold for seed in range(100, 140)]
    assert np.mean([threshold is not None for threshold in done]) > 0.4


def test_a_score_that_equals_the_threshold_is_accepted():
    """Where testing was, serving must be."""
    found = select([0.8] * 100, [1] * 100, Grid((0.8, 0.5), (0,)), alpha=0.1, delta=0.1)
    assert (found.threshold, found.accepted) == (0.5, 100)
    alone = select([0.8] * 100, [1] * 100, Grid((0.8,), (0,)), alpha=0.1, delta=0.1)
    assert (alone.threshold, alone.accepted) == (0.8, 100)


def test_unknown_scores_are_never_accepted():
    """Not even by the threshold that accepts every score."""
    found = select([math.nan] * 100, [1] * 100, Grid((-math.inf,), (0,)), alpha=0.1, delta=0.1)
    assert (found.threshold, found.reason) == (None, "no score is known")


# ------------------------------------------------------------------------------------------------------- the entry point


def test_the_shortcut_violates_the_target_where_this_keeps_it():
    """The quantile of uncertainty without labels accepts nine tenths, a fifth of them wrong; shuffling changes nothing."""
    kept, broken = 0, 0
    for seed in range(200):
        scores, labels = requests(seed, 500)
        uncertainty = np.sort(1 - scores)
        shortcut = 1 - uncertainty[math.ceil(0.9 * 501) - 1]
        found = calibrate_conformal(scores, labels, alpha=0.1, delta=0.1)
        broken += true_risk(shortcut) > 0.1
        kept += found.threshold is None or true_risk(found.threshold) <= 0.1
    assert broken == 200
    assert kept >= 180


def test_shuffled_labels_change_the_threshold():
    """What the score knew is gone, and with it the threshold."""
    scores, labels = requests(1, 1000)
    assert calibrate_conformal(scores, labels).threshold is not None
    assert calibrate_conformal(scores, np.random.default_rng(0).permutation(labels)).threshold is None


@pytest.mark.parametrize("liar", [False, True])
@pytest.mark.parametrize("way", ["fixed", "reference", "holm"])
def test_the_true_risk_exceeds_alpha_in_at_most_a_share_delta_of_draws(way, liar):
    """For a plain world and a confident liar; 300 draws."""

    def right(score):
        honest = 1 / (1 + np.exp(-(9 * score - 4.2)))
        return np.where(score > 0.93, 0.75, honest) if liar else honest

    grid_of = {"reference": requests(10_000, 200)[0]}
    truth: dict[float | None, float] = {None: 0.0}
    violations = 0
    for seed in range(300):
        scores, labels = requests(seed, 300, right)
        method = "holm" if way == "holm" else "fixed_sequence"
        found = calibrate_conformal(scores, labels, alpha=0.15, delta=0.1, reference=grid_of.get(way), method=method)
        if found.threshold not in truth:
            truth[found.threshold] = true_risk(found.threshold, right)
        violations += truth[found.threshold] > 0.15
    assert violations / 300 <= 0.1 + 3 * math.sqrt(0.09 / 300)


def test_in_the_usual_world_500_labels_certify_most_of_what_an_oracle_accepts():
    """The oracle covers .66; .53 on average, here within the error of 200 draws."""
    share = [calibrate_conformal(*requests(seed, 500)).coverage for seed in range(200)]
    other = [
        calibrate_conformal(*requests(seed, 500), reference=requests(seed + 999, 200)[0]).coverage for seed in range(200)
    ]
    assert np.mean(share) > 0.51
    assert np.mean(other) > 0.51


def test_a_coverage_that_no_score_can_reach_is_refused_with_the_reason():
    """Half the answers are wrong: at most .5 / .9 can be accepted at an error of .1."""
    scores, labels = np.linspace(0, 1, 1000), np.arange(1000) >= 500
    with pytest.raises(InfeasibleTarget, match=r"at least 0\.479.*\(1 - mu\) / \(1 - alpha\) = 0\.579"):
        calibrate_conformal(scores, labels, coverage=0.6)
    assert calibrate_conformal(scores, labels, coverage=0.5).coverage >= 0.5


def test_a_coverage_that_was_not_reached_is_named():
    """It is feasible, but the score is not good enough."""
    scores, labels = requests(3, 500)
    assert "fewer than the 0.8 asked for" in calibrate_conformal(scores, labels, coverage=0.8).reason


def test_thresholds_of_ones_own_are_used_in_any_order():
    """Scores need not lie between 0 and 1 then."""
    scores, labels = requests(4, 1000)
    found = calibrate_conformal(10 * scores, labels, thresholds=[2, 8, 5.5, 9, 4], reference=10 * requests(5, 300)[0])
    assert found.threshold in {5.5, 8.0, 9.0}
    assert calibrate_conformal(10 * scores, labels, thresholds=[2, 8, 5.5, 9, 4]).threshold in {5.5, 8.0, 9.0}


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        ([0.1, 0.2], [1], {}, "one label per score"),
        ([[0.1]], [[1]], {}, "one label per score"),
        ([0.1], [math.nan], {}, "true or false"),
        ([0.1], [2], {}, "true or false"),
        ([0.1], ["yes"], {}, "numbers"),
        ([1.5], [1], {}, "require scores"),
        ([0.1], [1], {"alpha": 0}, "alpha must be between 0 and 1"),
        ([0.1], [1], {"delta": 1.0}, "delta must be between 0 and 1"),
        ([0.1], [1], {"alpha": math.nan}, "alpha"),
        ([0.1], [1], {"coverage": 1.5}, "coverage"),
        ([0.1], [1], {"thresholds": []}, "at least one"),
    ],
)
def test_input_that_cannot_be_used_is_refused_by_name(scores, labels, options, message):
    """Nothing is guessed."""
    with pytest.raises(InputError, match=message):
        calibrate_conformal(scores, labels, **options)


def test_the_calibration_scores_are_no_reference():
    """Placing the thresholds by them would break the guarantee."""
    scores, labels = requests(6, 100)
    for same in (scores, scores[:50]):
        with pytest.raises(InputError, match="reference"):
            calibrate_conformal(scores, labels, reference=same)
