"""A run's records added up: what each column counts, and that a million rows take no more room than some thousands."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.batch.finished import cascade, failed, greedy, row, tier
from workflow_composer.batch.report.run_summary import RunSummary, leader_right, unit_of
from workflow_composer.batch.report.statistics import GROUPS


def totals(summary, *keys):
    return tuple(round(summary.total(key), 6) for key in keys)


class TestColumns:
    def test_answers_costs_and_tokens_are_added_up(self):
        """Graded ones, right ones, unread ones, those that were taken with doubts."""
        rows = [
            row(0, tier("small", True), correct=True),
            row(1, tier("small", False), correct=False, accepted=False),
            row(2, tier("small", False), correct=False, answer=None),
            row(3, tier("small", True), correct=None),
        ]
        summary = RunSummary.of("run", rows)
        assert totals(summary, "rows", "graded", "right", "unread", "doubted") == (4, 3, 1, 1, 1)
        assert totals(summary, "cost", "prompt", "completion", "seconds") == (4.0, 40, 20, 0.4)
        assert totals(summary, "graded accepted", "right accepted") == (2, 1)

    def test_failed_rows_are_counted_with_their_first_message(self):
        """By the kind of error; they decide nothing and are no answers."""
        summary = RunSummary.of("run", [failed(5, "CallTimeout", "slow"), failed(2, "CallTimeout", "too"), failed(3)])
        assert totals(summary, "rows", "failed", "graded", "right", "unread") == (3, 3, 3, 0, 0)
        assert summary.errors == {"CallTimeout": 2, "ServerFailed": 1}
        assert summary.first_error["CallTimeout"] == (5, "slow")

    def test_escalations_are_counted_between_the_tiers_they_join(self):
        """What was right before and after, where both are known, and what the second tier took."""
        rows = cascade(10, passed_on=lambda n: n >= 4, before=lambda n: n % 2 == 0, after=lambda n: n != 9)
        summary = RunSummary.of("run", rows)
        found = totals(summary, *(("step", "small", "large", what) for what in ("rows", "known", "before", "after", "cost")))
        assert found == (6, 6, 3, 5, 24.0)
        assert totals(summary, ("decided", "small"), ("decided", "large")) == (4, 6)
        assert totals(summary, ("tier", "small", "rows"), ("tier", "small", "samples"), ("tier", "large", "samples")) == (
            10,
            30,
            6,
        )

    def test_an_escalation_that_ended_in_an_error_is_counted_without_a_judgement(self):
        """What the second tier would have said is unknown; what it cost is not."""
        summary = RunSummary.of(
            "run", [row(0, tier("small", False), tier("large", votes=()), correct=None, error=("E", ""))]
        )
        found = totals(summary, *(("step", "small", "large", what) for what in ("rows", "known", "cost")))
        assert found == (1, 0, 1.0)

    def test_confidences_are_put_in_bins(self):
        """The highest into the last one; unknown ones into none."""
        rows = [
            row(at, tier("small", True, confidence=sure), correct=at > 1) for at, sure in enumerate([0.0, 0.05, 0.95, 1.0])
        ]
        summary = RunSummary.of("run", [*rows, row(4, tier("small", True, confidence=None))])
        assert totals(summary, ("bin", 0, "count"), ("bin", 0, "confidence"), ("bin", 0, "right")) == (2, 0.05, 0)
        assert totals(summary, ("bin", 9, "count"), ("bin", 9, "confidence"), ("bin", 9, "right")) == (2, 1.95, 2)
        assert sum(summary.total(("bin", at, "count")) for at in range(10)) == 4

    def test_pass_at_k_counts_rows_with_enough_samples(self):
        """One of four right: half of the pairs have it."""
        rows = [row(0, tier("small", True, False, False, False)), row(1, tier("small", True))]
        summary = RunSummary.of("run", rows)
        assert totals(summary, ("pass", "small", 1, "rows"), ("pass", "small", 1, "passed")) == (2, 1.25)
        assert totals(summary, ("pass", "small", 2, "rows"), ("pass", "small", 2, "passed")) == (1, 0.5)
        assert totals(summary, ("pass", "small", 8, "rows")) == (0,)

    def test_a_row_that_is_there_twice_is_an_error(self):
        """It would count twice."""
        with pytest.raises(ValueError, match="duplicate row 0"):
            RunSummary.of("run", greedy(1, "small", bool) * 2)

    def test_some_rows_only(self):
        """Those that other runs have as well."""
        summary = RunSummary.of("run", greedy(10, "small", lambda n: n < 5), only=np.arange(8) % 2 == 0)
        assert totals(summary, "rows", "right") == (4, 3)
        assert np.flatnonzero(summary.seen).tolist() == [0, 2, 4, 6]

    def test_an_empty_run_has_no_rows(self):
        """And zeros everywhere."""
        summary = RunSummary.of("run", [])
        assert len(summary.seen) == 0
        assert not summary.column("rows").any()

    @settings(deadline=None)
    @given(st.permutations(range(12)))
    def test_the_order_of_the_records_makes_no_difference(self, order):
        """A journal holds rows as they finished."""
        rows = cascade(12, passed_on=lambda n: n % 3 == 0, before=lambda n: n % 2 == 0, after=lambda n: n > 5)
        one, other = RunSummary.of("run", rows), RunSummary.of("run", [rows[at] for at in order])
        assert set(one.keys) == set(other.keys)
        assert all((one.column(key) == other.column(key)).all() for key in one.keys)
        assert set(one.tiers) == set(other.tiers)


class TestUnits:
    def test_each_of_the_first_questions_is_a_unit(self):
        """So that small data sets are resampled question by question."""
        assert [unit_of(n) for n in (0, 7, GROUPS - 1)] == [0, 7, GROUPS - 1]

    def test_more_questions_are_dealt_evenly(self):
        """As good as at random: each unit gets about as many as chance would give it, neighbours go anywhere."""
        units = np.array([unit_of(n) for n in range(GROUPS, 11 * GROUPS)])
        sizes = np.bincount(units, minlength=GROUPS)
        assert sizes.std() == pytest.approx(np.sqrt(10), rel=0.05)
        assert abs(np.corrcoef(units[:-1], units[1:])[0, 1]) < 0.02

    def test_columns_do_not_grow_with_the_rows(self):
        """Totals are exact all the same."""
        rows = (row(n, tier("small", n % 4 == 0, cost=0.5), correct=n % 4 == 0) for n in range(GROUPS, 3 * GROUPS, 2))
        summary = RunSummary.of("run", rows)
        assert totals(summary, "rows", "right", "cost") == (GROUPS, GROUPS // 2, GROUPS / 2)
        assert len(summary.column("rows")) == GROUPS


class TestLeader:
    @pytest.mark.parametrize(
        ("votes", "right", "expected"),
        [
            ((("4", 3),), (True, True, True), True),
            ((("4", 2), ("5", 1)), (True, False, True), True),
            ((("4", 2), ("5", 1)), (False, True, False), False),
            ((("4", 2), ("5", 1)), (False, False, False), False),
            ((("4", 2), ("5", 2)), (True, False, False, True), True),
            ((("4", 2), ("5", 2)), (False, True, False, True), False),
            ((("4", 2), ("5", 2), ("6", 1)), (False, True, False, True, False), None),
            ((("4", 2), ("5", 2)), (False, True, True, False, False), None),
            ((), (False,), False),
            ((("4", 1),), (), None),
            ((("4", 2),), (True, False), None),
        ],
    )
    def test_votes_and_grades_tell_whether_the_leader_was_right(self, votes, right, expected):
        """Where they do; a tie that the first sample cannot settle, or grades that fit no vote, are unknown."""
        assert leader_right(tier("small", *right, votes=votes)) is expected
