"""Figures of runs over the same questions: values by hand, intervals by what they must do."""

import math

import numpy as np
import pytest

from tests.unit.batch.finished import cascade, failed, greedy, row, tier
from workflow_composer.batch.report.comparison import CASCADE, SINGLE, VOTE, compare
from workflow_composer.batch.report.run_summary import RunSummary
from workflow_composer.batch.report.statistics import GROUPS


def compared(reference=None, **runs):
    return compare([RunSummary.of(name, rows) for name, rows in runs.items()], reference=reference)


def figures(**runs):
    return {run.name: run for run in compared(**runs).runs}


class TestAccuracyAndCost:
    def test_values_are_those_of_the_rows(self):
        """Share of right answers, dollars a row; the interval holds them."""
        run = figures(small=greedy(200, "small", lambda n: n % 4 != 0, cost=0.5))["small"]
        assert run.accuracy.value == 0.75
        assert run.cost_per_row == (0.5, 0.5, 0.5)
        assert 0.68 < run.accuracy.low < 0.75 < run.accuracy.high < 0.82

    def test_the_dearest_single_tier_is_the_reference(self):
        """Unless another is named."""
        runs = {"small": greedy(20, "small", bool), "large": greedy(20, "large", bool, cost=9.0)}
        assert compared(**runs).reference == "large"
        assert compared(reference="small", **runs).reference == "small"
        assert compared(vote=[row(0, tier("small", True), route="mv_small_k8_t0.7")]).reference is None

    def test_differences_are_paired(self):
        """Two runs that are right about the same questions differ by little, however uncertain each accuracy is."""
        runs = figures(
            small=greedy(100, "small", lambda n: n % 2 == 0),
            large=greedy(100, "large", lambda n: n < 1 or n % 2 == 0, cost=2),
        )
        same = figures(
            small=greedy(100, "small", lambda n: n % 2 == 0), large=greedy(100, "large", lambda n: n % 2 == 0, cost=2)
        )
        assert same["small"].lead.value == 0.0
        assert -0.04 < same["small"].lead.low < 0 < same["small"].lead.high < 0.04
        assert same["small"].ratio == (0.5, 0.5, 0.5)
        assert runs["small"].lead.value == 0.0
        assert runs["small"].accuracy.high - runs["small"].accuracy.low > 0.15

    def test_an_independent_difference_has_an_interval_as_wide_as_theory_says(self):
        """1.96 standard errors of the difference to each side."""
        random = np.random.default_rng(0)
        one, other = random.random((2, 2000)) < [[0.7], [0.8]]
        run = figures(
            small=greedy(2000, "small", lambda n: bool(one[n])),
            large=greedy(2000, "large", lambda n: bool(other[n]), cost=2),
        )["small"]
        error = math.sqrt((one.astype(float) - other).var() / 2000)
        assert run.lead.value == pytest.approx(one.mean() - other.mean())
        assert (run.lead.high - run.lead.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)

    def test_a_failed_row_counts_as_wrong(self):
        """Otherwise a run could be better by failing on hard questions."""
        run = figures(small=[*greedy(3, "small", lambda n: True), failed(3)])["small"]
        assert run.accuracy.value == 0.75
        assert (run.failed, run.errors[0][:3]) == (1, ("ServerFailed", 1, 3))

    def test_without_labels_nothing_is_said_about_accuracy(self):
        """Costs are still there."""
        rows = [row(n, tier("small", cost=2.0), correct=None) for n in range(5)]
        run = figures(small=rows, large=[row(n, tier("large", cost=4.0), correct=None, route="large") for n in range(5)])[
            "small"
        ]
        assert run.accuracy is None
        assert run.lead is None
        assert run.ratio.value == 0.5
        assert not run.best

    def test_runs_that_nothing_beats_are_marked(self):
        """Neither better for less, nor as good for less."""
        runs = figures(
            cheap=greedy(100, "small", lambda n: n < 50, cost=1.0),
            wasteful=greedy(100, "medium", lambda n: n < 50, cost=2.0),
            good=greedy(100, "large", lambda n: n < 90, cost=4.0),
            worse=greedy(100, "other", lambda n: n < 80, cost=5.0),
        )
        assert {name for name, run in runs.items() if run.best} == {"cheap", "good"}

    def test_more_rows_than_units_have_intervals_as_narrow_as_theirs(self):
        """Questions are dealt into groups; the width is that of single questions."""
        count = 2 * GROUPS
        random = np.random.default_rng(0)
        right = random.random(count) < 0.8
        rows = (row(n, tier("small", bool(right[n])), correct=bool(right[n])) for n in range(count))
        found = compare([RunSummary.of("small", rows)], resamples=300)
        assert found.grouped
        assert found.questions == count
        accuracy = found.runs[0].accuracy
        assert (accuracy.high - accuracy.low) / (2 * 1.96 * math.sqrt(0.16 / count)) == pytest.approx(1, abs=0.2)


class TestKinds:
    @pytest.mark.parametrize(
        ("routes", "kind"),
        [
            (["small"], SINGLE),
            (["Qwen/Qwen2.5-Math-7B-Instruct"], SINGLE),
            (["mv_small_k8_t0.7"], VOTE),
            (["mv_cascade_small_k3_t0.7_large_k1_t0.0"], CASCADE),
            (["small", "large"], CASCADE),
        ],
    )
    def test_what_a_run_was_follows_from_its_routes(self, routes, kind):
        """Several ways make it a strategy, which goes by as a cascade."""
        run = compared(run=[row(at, tier("small", True), route=route) for at, route in enumerate(routes)]).runs[0]
        assert (run.kind, run.routes) == (kind, len(routes))


class TestParts:
    def test_what_an_escalation_bought(self):
        """Twelve of forty passed on, six right before, nine after: three more for 48 dollars."""
        rows = cascade(40, passed_on=lambda n: n < 12, before=lambda n: n % 2 == 0, after=lambda n: n < 9)
        (step,) = compared(run=rows).runs[0].steps
        assert (step.before_tier, step.tier, step.rows, step.known) == ("small", "large", 12, 12)
        assert (step.share, step.before, step.after) == (0.3, 0.5, 0.75)
        assert step.gain.value == pytest.approx(0.25)
        assert step.gain.low < 0.25 < step.gain.high
        assert step.cost == 48.0
        assert step.per_right == pytest.approx(16.0)

    def test_an_escalation_that_bought_nothing_has_no_price(self):
        """Not infinity, and no division by zero."""
        (step,) = compared(run=cascade(10, lambda n: True, lambda n: True, lambda n: n < 5)).runs[0].steps
        assert step.gain.value == pytest.approx(-0.5)
        assert step.per_right is None

    def test_steps_and_tiers_stand_in_the_order_in_which_they_are_asked(self):
        """Small to medium before medium to large."""
        middle = [tier("small", False), tier("medium", False), tier("large", True)]
        run = compared(run=[row(0, *middle), row(1, middle[0], middle[2])]).runs[0]
        assert [(step.before_tier, step.tier) for step in run.steps] == [
            ("small", "medium"),
            ("small", "large"),
            ("medium", "large"),
        ]
        assert [use.name for use in run.tiers] == ["small", "medium", "large"]

    def test_calibration_compares_confidence_with_what_was_right(self):
        """Sure of .9, right in half: .4 too much; perfect ones show no more than the floor."""
        sure = [row(n, tier("small", True, confidence=0.9), correct=n % 2 == 0) for n in range(100)]
        run = compared(run=sure).runs[0]
        assert run.calibration.value == pytest.approx(0.4)
        assert (run.bins[0].count, run.bins[0].low, run.bins[0].right.value) == (100, 0.9, 0.5)
        perfect = [row(n, tier("small", True, confidence=0.75), correct=n % 4 != 0) for n in range(100)]
        run = compared(run=perfect).runs[0]
        assert run.calibration.value == pytest.approx(0.0)
        assert 0.02 < run.floor < 0.05

    def test_without_confidences_there_is_no_calibration(self):
        """Single answers have none."""
        run = compared(run=greedy(10, "small", bool)).runs[0]
        assert (run.bins, run.calibration) == ((), None)

    def test_pass_at_k_is_a_mean_over_rows_with_enough_samples(self):
        """With their number beside."""
        rows = [row(n, tier("small", True, False, False, False)) for n in range(10)] + [row(10, tier("small", True))]
        (found,) = compared(run=rows).runs[0].passes
        assert found.tier == "small"
        assert [(k, round(share.value, 3), count) for k, share, count in found.at] == [
            (1, 0.318, 11),
            (2, 0.5, 10),
            (4, 1.0, 10),
        ]
