"""All tiers at once: who climbs where, what each test's level is, and that the whole keeps its target."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_composer.calibration.certify.cascade_risk import (
    NOTHING,
    SHARE_ACCEPTED,
    SHARE_RETURNED,
    SHARE_TIERS,
    GroupDesign,
    TierDesign,
    certify,
    climb,
    design,
)
from workflow_composer.calibration.certify.risk import Grid, fixed_grid, select, upper_bound
from workflow_composer.errors import InputError

GRID = Grid((0.8, 0.5, 0.2), (0, 1))
scores_of_a_request = st.lists(
    st.one_of(st.sampled_from([0.2, 0.5, 0.8, math.nan]), st.floats(0, 1)), min_size=3, max_size=3
)
limits = st.lists(st.one_of(st.none(), st.sampled_from([0.2, 0.5, 0.8])), min_size=3, max_size=3)


def requests(seed: int, n: int, tiers: int = 3):
    """Scores near P(right), which rises from tier to tier with a request's ease."""
    rng = np.random.default_rng(seed)
    right = 1 / (1 + np.exp(-(2.5 * rng.normal(size=(n, 1)) + np.array([0.5, 2.0, 4.0])[:tiers])))
    return np.clip(right + 0.05 * rng.normal(size=right.shape), 0, 1), rng.random(right.shape) < right


def walk(scores, thresholds, straight_up, first):
    """One request, as the guide tells it."""
    tier, last = first, first + len(thresholds) - 1
    while True:
        score, threshold, limit = scores[tier], thresholds[tier - first], straight_up[tier - first]
        if threshold is not None and score >= threshold:
            return tier, True
        if tier == last:
            return tier, False
        tier = last if limit is not None and score < limit else tier + 1


# --------------------------------------------------------------------------------------------------------------- climbing


@settings(deadline=None)
@given(st.lists(scores_of_a_request, min_size=1, max_size=20), limits, limits, st.integers(0, 2))
def test_a_batch_climbs_as_each_request_does(scores, thresholds, straight_up, first):
    """One tier up, or straight to the last one; unknown scores are neither accepted nor sent straight up."""
    tier, accepted = climb(scores, thresholds[first:], straight_up[first:], first)
    expected = [walk(row, thresholds[first:], straight_up[first:], first) for row in scores]
    assert list(zip(tier.tolist(), accepted.tolist(), strict=True)) == expected


# ----------------------------------------------------------------------------------------------------------------- levels


@settings(deadline=None)
@given(st.integers(1, 20), st.one_of(st.none(), st.integers(-1, 19)))
def test_the_weights_of_all_outcomes_add_up_to_one(size, likely):
    """Nothing certified is an outcome too, and the likely one weighs most."""
    grid = Grid(tuple(range(size, 0, -1)), (0,))
    tier = TierDesign(grid, None if likely is None else min(likely, size - 1))
    weights = [tier.weight(None), *(tier.weight(threshold) for threshold in grid.thresholds)]
    assert math.fsum(weights) == pytest.approx(1)
    if tier.likely is not None:
        assert weights.index(max(weights)) == tier.likely + 1
    else:
        assert max(weights) == min(weights)


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-1, 2)), min_size=3, max_size=3), st.integers(1, 3))
def test_the_levels_of_all_paths_add_up_to_delta(likely, tiers):
    """So whatever the earlier tiers did, and for the answers returned as well."""
    plan = [TierDesign(GRID, outcome) for outcome in likely[:tiers]]
    outcomes = [None, *GRID.thresholds]
    returned, accepted, shared = (0.1 * share for share in (SHARE_RETURNED, SHARE_ACCEPTED, SHARE_TIERS))

    def weighed(length: int) -> float:
        """The weights of all paths of so many tiers."""
        paths = itertools.product(outcomes, repeat=length)
        return math.fsum(math.prod(tier.weight(i) for tier, i in zip(plan, path, strict=False)) for path in paths)

    total = returned * weighed(tiers - 1) + accepted * weighed(tiers)
    total += math.fsum(shared / tiers * weighed(position) for position in range(tiers))
    assert total == pytest.approx(0.1)


def test_each_tier_is_tested_on_what_reaches_it_at_the_level_of_its_path():
    """Tier 1 at .9 delta / 3; later ones at that times the weights of what happened below."""
    scores, correct = requests(0, 3000)
    plan = GroupDesign((TierDesign(GRID, 1), TierDesign(GRID, NOTHING, 0.1), TierDesign(fixed_grid())))
    found = certify(scores, correct, plan, alpha=0.2, delta=0.1)
    rest, level = np.ones(3000, bool), 0.1 * SHARE_TIERS / 3
    sent = np.zeros(3000, bool)
    for index, (tier, selection) in enumerate(zip(plan.tiers, found.tiers, strict=True)):
        reached = rest if index == 2 else rest & ~sent
        alone = select(scores[reached, index], correct[reached, index], tier.grid, alpha=0.2, delta=level)
        assert selection.level == pytest.approx(level)
        assert (selection.threshold, selection.reached) == (alone.threshold, alone.reached)
        assert (selection.accepted, selection.wrong) == (alone.accepted, alone.wrong)
        rest = rest & ~(reached & (scores[:, index] >= (math.inf if selection.threshold is None else selection.threshold)))
        if tier.straight_up is not None:
            sent |= reached & rest & (scores[:, index] < tier.straight_up)
        level *= tier.weight(selection.threshold)
    assert sum(selection.threshold is not None for selection in found.tiers) >= 2
    assert sent.any()
    tier, accepted = climb(scores, found.thresholds, plan.straight_up)
    right = correct[np.arange(3000), tier]
    assert (found.accepted, found.wrong) == (accepted.sum(), (accepted & ~right).sum())
    assert found.coverage == pytest.approx(accepted.mean())
    assert found.returned_wrong == (~right).sum()
    weights = [tier.weight(selection.threshold) for tier, selection in zip(plan.tiers, found.tiers, strict=True)]
    assert found.returned_level == pytest.approx(0.1 * SHARE_RETURNED * weights[0] * weights[1])
    assert found.accepted_level == pytest.approx(0.1 * SHARE_ACCEPTED * math.prod(weights))
    assert found.returned_bound == pytest.approx(upper_bound(found.returned_wrong, 3000, found.returned_level))


def test_tiers_below_the_floor_do_not_exist():
    """The same guarantee as for a table without them."""
    scores, correct = requests(1, 1000)
    fit_scores, fit_correct = requests(2, 500)
    plan = design(fit_scores, fit_correct, n=1000, alpha=0.1, delta=0.1, first=1)
    without = design(fit_scores[:, 1:], fit_correct[:, 1:], n=1000, alpha=0.1, delta=0.1)
    assert plan.tiers == without.tiers
    found = certify(scores, correct, plan, alpha=0.1, delta=0.1)
    assert found.tiers == certify(scores[:, 1:], correct[:, 1:], without, alpha=0.1, delta=0.1).tiers
    assert (found.first, len(found.tiers)) == (1, 2)


# -------------------------------------------------------------------------------------------------------------- designing


def test_a_design_expects_what_then_mostly_happens():
    """With a large fitting part: the outcome is within three positions of the likely one."""
    plan = design(*requests(3, 5000), n=5000, alpha=0.1, delta=0.1)
    found = certify(*requests(4, 5000), plan, alpha=0.1, delta=0.1)
    for tier, selection in zip(plan.tiers, found.tiers, strict=True):
        outcome = NOTHING if selection.threshold is None else tier.grid.thresholds.index(selection.threshold)
        assert abs(outcome - tier.likely) <= 3


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_nothing_is_too_small_to_be_designed_and_certified(fitting, rows, first, seed):
    """Nothing is accepted then, and the bound on what is returned says how little is known."""
    fit_scores, fit_correct = requests(seed, fitting)
    plan = design(fit_scores, fit_correct, n=rows, alpha=0.05, delta=0.1, first=first, straight_up=(0.2,) * (3 - first))
    found = certify(*requests(seed + 1, rows), plan, alpha=0.05, delta=0.1)
    assert [selection.threshold for selection in found.tiers] == [None] * (3 - first)
    assert (found.accepted, found.coverage, found.rows) == (0, 0.0, rows)
    assert found.returned_bound > 0.4


@pytest.mark.parametrize("right", [False, True])
def test_answers_that_are_all_alike_are_decided_by_the_first_tier_or_none(right):
    """All right: the first tier takes everything. All wrong: nothing is accepted."""
    scores, _ = requests(5, 1000)
    correct = np.full((1000, 3), right)
    found = certify(scores, correct, design(scores[:300], correct[:300], n=1000, alpha=0.1, delta=0.1), alpha=0.1, delta=0.1)
    assert found.coverage == float(right)
    assert found.returned_wrong == (0 if right else 1000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: design([[0.5]], [[1]], n=9, alpha=0.1, delta=0.1, first=1), "must be a tier from 0 to 0, not 1"),
        (lambda: design([[0.5]], [[1]], n=9, alpha=0.1, delta=0.1, straight_up=(0.1, 0.1)), "straight_up"),
        (lambda: design([0.5], [1], n=9, alpha=0.1, delta=0.1), "one label per score"),
        (lambda: design([[0.5]], [[1]], n=9, alpha=0.1, delta=2), "delta"),
        (lambda: certify([[0.5]], [[math.nan]], GroupDesign((TierDesign(GRID),)), alpha=0.1, delta=0.1), "true or false"),
        (lambda: certify([[0.5]], [[1]], GroupDesign((TierDesign(GRID),) * 2), alpha=0.1, delta=0.1), "tiers up to index 1"),
        (lambda: certify([[0.5]], [[1]], GroupDesign((TierDesign(GRID),)), alpha=0, delta=0.1), "alpha"),
        (lambda: TierDesign(GRID, 3), "likely"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    """Nothing is guessed."""
    with pytest.raises(InputError, match=message):
        call()


# -------------------------------------------------------------------------------------------------------------- keeping it


def just_too_bad(rng, n, alpha):
    """Every tier is wrong a little more often than alpha, whatever its score; no two are wrong together."""
    place = rng.random(n)
    correct = np.stack([(place < t * alpha) | (place >= (t + 1) * alpha) for t in range(3)], axis=1)
    return rng.random((n, 3)), correct


def test_tiers_that_are_all_just_too_bad_are_accepted_in_a_share_delta_of_draws_at_most():
    """Where tier 1 was lucky, what it passes on makes tier 2 look better than it is: the levels pay for that."""
    rng = np.random.default_rng(0)
    plan = GroupDesign(tuple(TierDesign(fixed_grid(), NOTHING) for _ in range(3)))
    wrongly = over = 0
    for _ in range(400):
        found = certify(*just_too_bad(rng, 300, 0.2001), plan, alpha=0.2, delta=0.2)
        wrongly += found.accepted > 0
        over += found.returned_bound < 0.2001
    assert 0 < wrongly <= 400 * 0.2 + 3 * math.sqrt(400 * 0.16)
    assert over <= 400 * 0.01 + 3 * math.sqrt(400 * 0.01)


def test_a_tier_right_exactly_where_the_one_before_is_wrong_is_not_trusted():
    """Alone it is right on every fourth request; on what is passed on, it is seldom right enough."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        score = rng.beta(2, 1.2, size=(500, 1))
        first = rng.random((500, 1)) < 1 / (1 + np.exp(-(9 * score - 4.2)))
        scores, correct = np.hstack([score, score]), np.hstack([first, ~first])
        plan = design(scores[:200], correct[:200], n=300, alpha=0.1, delta=0.1)
        found = certify(scores[200:], correct[200:], plan, alpha=0.1, delta=0.1)
        assert found.tiers[1].threshold is None


def test_shuffled_answers_certify_nothing():
    """The labels decide: without their order the scores know nothing."""
    scores, correct = requests(6, 2000, tiers=2)
    plan = design(*requests(7, 1000, tiers=2), n=2000, alpha=0.1, delta=0.1)
    assert certify(scores, correct, plan, alpha=0.1, delta=0.1).accepted > 0
    shuffled = np.random.default_rng(0).permutation(correct)
    assert certify(scores, shuffled, plan, alpha=0.1, delta=0.1).accepted == 0
