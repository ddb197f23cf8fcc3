"""What a report says first: the ranking, what cannot be ranked, what would surprise a reader."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from tests.unit.batch.finished import cascade, failed, greedy, row, tier
from workflow_composer.batch.report.comparison import COST, SECONDS, TOKENS, compare
from workflow_composer.batch.report.report import build_report
from workflow_composer.batch.report.run_summary import RunSummary


def compared(**runs):
    return compare([RunSummary.of(name, rows) for name, rows in runs.items()])


def headline(**runs):
    """The lines before the first section."""
    markdown, html = build_report({name: partial(iter, rows) for name, rows in runs.items()}, title="t")
    first = markdown.partition("\n## ")[0]
    return first.replace("\\", ""), html


def unread(rows, which, **changes):
    """The same rows, of which some have no readable answer."""
    return [replace(one, answer=None, correct=False, **changes) if which(one.row) else one for one in rows]


class TestRanking:
    def test_runs_are_ranked_by_right_answers(self):
        """A paired test tells neighbours apart, or does not."""
        runs = {
            "small": greedy(400, "small", lambda n: n % 2 == 0),
            "large": greedy(400, "large", lambda n: n % 10 != 0, cost=3.0),
            "middle": greedy(400, "middle", lambda n: n % 10 != 0 and n != 1, cost=2.0),
        }
        ranking = compared(**runs).ranking
        assert [run.name for run, _ in ranking] == ["large", "middle", "small"]
        assert [None if p is None else p < 0.05 for _, p in ranking] == [None, False, True]
        first, _ = headline(**runs)
        assert "1. large 90.0%; 2. middle 89.8%, not told apart" in first

    def test_more_than_five_of_a_hundred_unreadable_answers_are_not_ranked(self):
        """Neither on the front nor as the reference, and the report says why; exactly five are ranked."""
        good = greedy(100, "large", lambda n: n < 90, cost=9.0)
        for count, ranked in ((5, True), (6, False)):
            runs = {"small": greedy(100, "small", lambda n: n < 80), "large": unread(good, lambda n, k=count: n < k)}
            comparison = compared(**runs)
            large = comparison.runs[1]
            assert (large.is_ranked, large.best) == (ranked, ranked)
            assert comparison.reference == ("large" if ranked else "small")
            first, _ = headline(**runs)
            assert f"large: {count} of 100 answers ({count}.0%) could not be read and count as wrong" in first
            assert ("large is not ranked: more than 5%" in first) is not ranked

    def test_many_unreadable_answers_of_a_few_that_did_not_fail(self):
        """Failed rows are no answers."""
        rows = [*unread(greedy(10, "small", lambda n: True), lambda n: n == 0), *(failed(n) for n in range(10, 100))]
        assert not compared(small=rows).runs[0].is_ranked


class TestUnreadable:
    def test_the_likely_remedy_is_named(self):
        """Cut-off and empty answers apart from those that were read in the wrong way."""
        rows = greedy(100, "small", lambda n: n > 5)
        long = replace(rows[0].tiers[0], cut_off=1)
        empty = replace(rows[0].tiers[0], texts=(" ",))
        cut_off = unread(rows, lambda n: n < 2, tiers=(long,))
        first, _ = headline(small=unread(cut_off, lambda n: n == 2, tiers=(empty,)))
        assert "3 of 100 answers (3.0%)" in first
        assert "2 of them reached their token limit" in first
        assert "--max-tokens" in first
        assert "1 of them are empty" in first
        assert "--extract" not in first
        first, _ = headline(small=unread(rows, lambda n: n < 2))
        assert "--extract" in first
        assert "token limit" not in first

    def test_an_accuracy_of_zero_explains_itself(self):
        """With the first answer and its label."""
        rows = [replace(one, answer="17 pens", label="17") for one in greedy(10, "small", lambda n: False)]
        first, _ = headline(small=rows)
        assert 'no answer is right. The first one read is "17 pens" (row 0) where the label is "17"' in first

    def test_rows_that_all_failed_explain_themselves(self):
        first, _ = headline(small=[failed(n, "ServerUnreachable", "no connection") for n in range(3)])
        assert "every row failed" in first
        assert "no answer is right" not in first

    def test_answers_that_are_all_the_same_are_noticed(self):
        one = [replace(each, answer="A") for each in greedy(10, "small", bool)]
        assert 'small: every answer that could be read is "A"' in headline(small=one)[0]
        mixed = [*one[:9], replace(one[9], answer="B")]
        assert "every answer" not in headline(small=mixed)[0]


class TestCosts:
    def runs(self, **changes):
        small, large = greedy(40, "small", lambda n: n % 2 == 0), greedy(40, "large", lambda n: n % 4 != 0, cost=3.0)
        return {"small": [replace(each, **changes) for each in small], "large": large}

    def test_a_missing_price_is_unknown_and_tokens_are_compared(self):
        runs = self.runs(cost=0.0, priced=False)
        comparison = compared(**runs)
        assert (comparison.basis, comparison.reference) == (TOKENS, "large")
        assert set(comparison.runs[0].ratios) >= {TOKENS, SECONDS}
        first, html = headline(**runs)
        assert "The cost of 40 rows is unknown" in first
        assert "$0" not in first + html

    def test_a_sum_with_unknown_parts_is_a_lower_bound(self):
        rows = greedy(40, "small", lambda n: n % 2 == 0)
        rows[3] = replace(rows[3], cost=0.0, priced=False)
        markdown, _ = build_report({"small": partial(iter, rows)}, title="t")
        assert "at least $975 (1 row unknown)" in markdown

    def test_without_counted_tokens_seconds_are_compared(self):
        runs = self.runs(cost=0.0, priced=False, prompt_tokens=0, completion_tokens=0)
        assert compared(**runs).basis == SECONDS
        assert "compared by seconds" in headline(**runs)[0]

    def test_replayed_answers_without_counted_tokens_have_only_their_accuracy(self):
        """The seconds of a replay say nothing about models."""
        runs = self.runs(cost=0.0, priced=False, prompt_tokens=0, completion_tokens=0)
        sources = {name: partial(iter, rows) for name, rows in runs.items()}
        markdown, html = build_report(sources, title="t", timed=False)
        assert "1. large 75.0%; 2. small 50.0%" in markdown
        assert "compared by right answers only" in markdown
        assert "seconds ratio" not in markdown
        assert "<svg" not in html.partition('id="errors')[0]
        markdown, _ = build_report(sources, title="t")
        assert "seconds ratio" in markdown

    def test_models_that_are_free_of_charge_say_so(self):
        runs = {name: [replace(each, cost=0.0) for each in rows] for name, rows in self.runs().items()}
        assert compared(**runs).basis == TOKENS
        assert "free of charge" in headline(**runs)[0]

    def test_known_costs_are_compared(self):
        assert compared(**self.runs()).basis == COST


class TestTiers:
    def test_what_the_cheap_tier_accepted_and_how_often_it_was_wrong(self):
        """Of 28 that it accepted, 7 are wrong; the last tier answers the other 12."""
        rows = cascade(40, passed_on=lambda n: n < 12, before=lambda n: n % 4 != 0, after=lambda n: True)
        small, large = compared(run=rows).runs[0].tiers
        assert (small.rows, small.accepted.value, small.checked, small.wrong.value) == (40, 0.7, 28, 0.25)
        assert (large.rows, large.accepted.value, large.wrong.value) == (12, 1.0, 0.0)
        assert small.wrong.low < 0.25 < small.wrong.high
        assert large.wrong.high == pytest.approx(0.2425, abs=1e-4)  # none of twelve does not mean never

    def test_an_answer_that_was_only_returned_is_not_accepted(self):
        rows = [replace(one, accepted=False) for one in cascade(10, lambda n: True, lambda n: False, lambda n: n < 5)]
        assert compared(run=rows).runs[0].tiers[1].accepted.value == 0.0


class TestPassAtK:
    def test_samples_whose_number_depends_on_the_answers_do_not_count(self):
        """A vote that ends early draws more for harder questions; the report says what was left out, and why."""
        early = [row(n, tier("small", *[n % 2 == 0] * 4, fixed=False), correct=n % 2 == 0) for n in range(20)]
        run = compared(run=early).runs[0]
        assert (run.passes, run.early) == ((), ("small",))
        markdown, _ = build_report({"run": partial(iter, early)}, title="t")
        assert "--stopping fixed" in markdown

    def test_estimates_from_early_stopped_votes_would_be_biased(self):
        """Votes of a sample that is right in 60 of 100: fixed ones estimate that, early ones do not."""
        import numpy as np

        random = np.random.default_rng(3)
        fixed, early = [], []
        for n in range(4000):
            drawn = random.random(5) < 0.6
            fixed.append(row(n, tier("small", *map(bool, drawn)), correct=True))
            ended = next((k for k in (1, 2, 3, 4) if drawn[:k].any()), 5)  # goes on until one is right
            early.append(row(n, tier("small", *map(bool, drawn[:ended])), correct=True))
        at = {name: compared(run=rows).runs[0].passes[0].at[0][1].value for name, rows in (("f", fixed), ("e", early))}
        assert at["f"] == pytest.approx(0.6, abs=0.02)
        assert at["e"] > 0.7


def test_a_run_that_is_not_ranked_takes_no_other_from_the_front():
    """However cheap and right it seems: what it could not read may have been the hard ones."""
    cheap = unread(greedy(100, "cheap", lambda n: True, cost=0.1), lambda n: n < 8)
    runs = {"cheap": cheap, "large": greedy(100, "large", lambda n: n < 85, cost=2.0)}
    assert [(run.name, run.best) for run in compared(**runs).runs] == [("cheap", False), ("large", True)]
