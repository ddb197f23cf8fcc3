"""The plan of a data set as a table, and what it would cost."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from tests.paths import ROOT
from tests.unit.batch.predicting import Written
from workflow_composer.batch.planning.plan_table import COLUMNS, TokenAssumption, accepted, breakdown_text, plan, plan_all
from workflow_composer.batch.planning.policies import (
    AdaptiveKSampling,
    Cascade,
    CostAwareEscalation,
    EntropyAwareEscalation,
    Plain,
    PlanningContext,
    PlanningTier,
    votes_needed,
)
from workflow_composer.errors import InputError, MarkerError, PluginError
from workflow_composer.markers import parse_route
from workflow_composer.plugins.builtin import BATCH_STRATEGIES

TIERS = (PlanningTier("small", 1.0, 2.0), PlanningTier("large", 10.0, 20.0))
TOKENS = TokenAssumption(per_character=1.0, per_prompt=5.0, answer=100.0, answers={"small": 50.0}, source="the test")


def context(*tiers, **fields):
    return PlanningContext(tiers or TIERS, **({"predictor": Written()} | fields))


class Given:
    """Routes that are written into the test."""

    def __init__(self, *routes):
        self._routes = routes

    def routes(self, questions, context):
        return list(self._routes)


def planned(*routes, planning=None, **fields):
    return plan([["0.5"] * len(routes)], Given(*routes), planning or context(), **fields)


class TestTable:
    def test_each_question_has_a_row_with_its_way(self):
        """A cascade, a vote, and a plain answer."""
        frame = planned("mv_cascade_small_k3_t0.7_large_k1_t0.0", "mv_small_k5_t0.6", "large").frame
        assert list(frame.columns) == list(COLUMNS)
        assert frame.route_to.tolist() == ["mv_cascade_small_k3_t0.7_large_k1_t0.0", "mv_small_k5_t0.6", "large"]
        assert frame.is_cascade.tolist() == [True, False, False]
        assert frame.cascade_tiers.astype(object).fillna("").tolist() == ["small > large", "", ""]
        assert frame.sc_n.tolist() == [3, 5, 1]
        assert frame.sc_temp.round(3).tolist() == pytest.approx([0.7, 0.6, 0.0])

    def test_the_same_way_in_another_spelling_is_one_category(self):
        """Routes stand in their normal form."""
        frame = planned("mv_small_k5", "mv_small_k5_t0.70").frame
        assert frame.route_to.cat.categories.tolist() == ["mv_small_k5_t0.7"]

    def test_what_a_profile_changes_is_in_the_table(self):
        """A greedy-only tier answers once, whatever the string says."""
        frame = planned("mv_72B_k8_t0.7").frame
        assert (frame.sc_n[0], frame.sc_temp[0], frame.route_to[0]) == (1, 0.0, "72B")

    @settings(deadline=None)
    @given(st.lists(st.lists(st.sampled_from(["0.2", "0.7", "0.85", "0.95"]), max_size=5), max_size=5))
    def test_pieces_make_no_difference(self, pieces):
        """However the data set is cut, rows stay in order and the breakdown is the same."""
        whole = [text for piece in pieces for text in piece]
        cut, one = (plan(chunks, AdaptiveKSampling(), context()) for chunks in (pieces, [whole]))
        pd.testing.assert_frame_equal(cut.frame, one.frame)
        assert list(cut.routes()) == cut.frame.route_to.tolist() == list(one.routes())
        mine, other = cut.breakdown.to_dict(), one.breakdown.to_dict()
        assert mine.pop("cost") == pytest.approx(other.pop("cost"))
        assert mine == other

    def test_routes_can_be_read_from_a_row_on(self):
        """Where an interrupted run goes on."""
        table = planned(*["small", "large"] * 50_000)
        assert list(table.routes(99_998)) == ["small", "large"]
        assert sum(1 for _ in table.routes()) == 100_000

    def test_a_row_takes_about_ten_bytes(self):
        """So that a million rows take little memory."""
        frame = plan([["0.8"] * 100_000], AdaptiveKSampling(), context()).frame
        assert frame.memory_usage(index=False).sum() < 11 * 100_000

    @pytest.mark.parametrize("chunks", [[], [[]], [pa.table({"question": pa.array([], "str")})]])
    def test_no_questions_are_a_plan_without_rows(self, chunks):
        """With every column, and nothing to pay."""
        table = plan(chunks, Cascade(), context())
        assert list(table.frame.columns) == list(COLUMNS)
        assert len(table.frame) == table.breakdown.questions == len(list(table.routes())) == 0
        assert table.breakdown.cost.most == 0
        assert "0" in breakdown_text([table.breakdown])


class TestBrokenStrategies:
    @pytest.mark.parametrize("routes", [[], ["small"], ["small"] * 3])
    def test_one_route_per_question(self, routes):
        """Neither more nor fewer."""
        with pytest.raises(PluginError, match=rf"'mine' returned {len(routes)} routes for 2 questions"):
            plan([["0.5", "0.5"]], Given(*routes), context(), name="mine")

    @pytest.mark.parametrize("routes", [["small", 3], ["small", None], ["small", ["small"]], [["a"], ["b"]]])
    def test_routes_are_texts(self, routes):
        """Named, with the policy."""
        with pytest.raises(PluginError, match="mine"):
            plan([["0.5", "0.5"]], Given(*routes), context(), name="mine")

    def test_a_malformed_route_is_pointed_at(self):
        """By the reader of routing strings."""
        with pytest.raises(MarkerError, match="k0"):
            planned("mv_small_k0")

    def test_questions_that_are_no_texts_are_refused(self):
        """Of whatever policy."""
        with pytest.raises(InputError):
            plan([[1, 2]], Plain(), context())


class TestBreakdown:
    def test_it_counts_where_questions_start_and_with_how_many_votes(self):
        """Per first tier: fewest, median and most."""
        routes = ["mv_small_k3", "mv_small_k9", "mv_small_k5", "mv_cascade_small_k5_t0.7_large_k1", "large"]
        starts = planned(*routes).breakdown.starts
        assert [(s.tier, s.questions, s.k_min, s.k_median, s.k_max) for s in starts] == [
            ("small", 4, 3, 5, 9),
            ("large", 1, 1, 1, 1),
        ]

    def test_tiers_stand_in_the_order_of_the_profile(self):
        """Cheap ones first, however many questions start there."""
        starts = planned("large", "large", "small").breakdown.starts
        assert [start.tier for start in starts] == ["small", "large"]

    def test_costs_by_hand(self):
        """A question of 3 characters: 8 prompt tokens; answers of 50 and 100 tokens."""
        cost = planned("mv_cascade_small_k3_t0.7_large_k1_t0.0", tokens=TOKENS).breakdown.cost
        small = (8 * 1 + 3 * 50 * 2) / 1e6
        large = (8 * 10 + 100 * 20) / 1e6
        accept = 0.5**3  # by default three of three votes are needed for .75
        assert cost.least == pytest.approx(small)
        assert cost.most == pytest.approx((3 * 8 * 1 + 3 * 50 * 2) / 1e6 + large)
        assert cost.expected == pytest.approx(small + (1 - accept) * large)

    def test_the_most_includes_what_an_entropy_cascade_may_draw_again(self):
        """As many votes again as the plan says."""
        routes = ("mv_cascade_small_k3_t0.7_large_k1_t0.0", "mv_entropy_cascade_small_k3_t0.7_large_k1_t0.0")
        plain, entropy = (planned(route, tokens=TOKENS).breakdown.cost for route in routes)
        explored = parse_route(routes[1]).tiers[0].voting.explore
        assert explored > 0
        assert entropy.most - plain.most == pytest.approx(explored * (8 * 1 + 50 * 2) / 1e6)

    @settings(deadline=None)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.sampled_from([AdaptiveKSampling, CostAwareEscalation]))
    def test_the_expected_cost_lies_between_the_bounds(self, success, strategy):
        """Whatever is predicted."""
        cost = plan([[f"{p:.4f}" for p in success]], strategy(), context()).breakdown.cost
        assert cost.least <= cost.expected * (1 + 1e-9) <= cost.most * (1 + 2e-9)

    def test_without_a_probe_the_expected_cost_is_unknown(self):
        """Not guessed; the bounds are still there, and say what they rest on."""
        breakdown = planned("small", planning=context(predictor=None)).breakdown
        assert breakdown.cost.expected is None
        assert breakdown.cost.most > 0
        assert any("there is no probe" in line for line in breakdown.assumptions)
        assert "4 characters" in breakdown.assumptions[0]

    @pytest.mark.parametrize("route", ["free", "mv_cascade_small_k3_t0.7_free_k1", "unheard-of"])
    def test_a_tier_without_a_price_makes_the_cost_unknown(self, route):
        """Not zero."""
        breakdown = planned("small", route, planning=context(*TIERS, PlanningTier("free"))).breakdown
        assert breakdown.cost is None
        assert "unknown" in breakdown.assumptions[0]

    def test_it_can_be_written_as_json(self):
        """For programs."""
        table = plan([["0.8", "0.2"]], EntropyAwareEscalation(), context())
        data = json.loads(json.dumps(table.breakdown.to_dict(), allow_nan=False))
        assert data["questions"] == sum(data["routes"].values()) == sum(start["questions"] for start in data["starts"]) == 2

    def test_the_text_shows_each_policy_with_its_starts(self):
        """One line per tier at which questions start; assumptions once, below."""
        policies = {"adaptive_k_sampling": AdaptiveKSampling(), "cost_aware_escalation": CostAwareEscalation()}
        tables = plan_all([["0.85"] * 3 + ["0.3"]], policies, context(), tokens=TOKENS)
        text = breakdown_text(table.breakdown for table in tables.values())
        head, *lines = text.splitlines()
        assert head.split()[:4] == ["policy", "questions", "starts", "at"]
        assert lines[0].split()[:7] == ["adaptive_k_sampling", "4", "small", "100.0%", "3", "3", "9"]
        assert lines[0].split()[7:10] == ["4", "majority", "vote"]
        assert lines[1].split()[:7] == ["cost_aware_escalation", "4", "small", "75.0%", "3", "3", "3"]
        assert lines[2].split() == ["large", "25.0%", "9", "9", "9", "1", "majority", "vote"]
        assert text.count("tokens: the test") == 1


class TestAcceptance:
    @settings(deadline=None)
    @given(st.floats(0, 1), st.integers(2, 30), st.floats(0.05, 1.0))
    def test_it_is_the_binomial_probability_of_enough_right_votes(self, p, k, target):
        """Enough: the least number whose share reaches the target."""
        tier = parse_route(f"mv_small_k{k}").tiers[0]
        tier = type(tier).of(tier.candidates, "small", k, 0.7, voting=type(tier.voting)(target=target))
        enough = next(n for n in range(1, k + 1) if n / k >= target - 1e-9)
        assert accepted(np.array([p]), tier)[0] == pytest.approx(binom.sf(enough - 1, k, p), abs=1e-9)

    def test_one_answer_is_always_taken(self):
        """It has no votes that could doubt it."""
        assert accepted(np.array([0.01]), parse_route("small").tiers[0]).tolist() == [1.0]


def test_the_averages_of_a_probe_become_the_assumption():
    """And the assumption says so; a probe that saw no tokens leaves the general one."""

    class Tokens:
        per_character, per_prompt, answers = 0.2, 7.0, {"small": 33.0}

    class Training:
        dataset = "openai_gsm8k"

    class Probe:
        tokens, training = Tokens, Training

    made = TokenAssumption.of_probe(Probe())
    assert (made.per_character, made.per_prompt, made.answers) == (0.2, 7.0, {"small": 33.0})
    assert "openai_gsm8k" in made.source
    Probe.tokens = None
    assert TokenAssumption.of_probe(Probe()) == TokenAssumption()


class TestGuide:
    """docs/batch-policies.md: its examples run, and its numbers of votes are those of the code."""

    TEXT = (ROOT / "docs" / "batch-policies.md").read_text()

    @pytest.mark.parametrize("number", range(3))
    def test_its_examples_run(self, number, tmp_path, monkeypatch, capsys):
        """Each as it stands there, in an empty folder."""
        monkeypatch.chdir(tmp_path)
        space = {}
        exec(re.findall(r"```python\n(.*?)```", self.TEXT, re.DOTALL)[number], space)
        if "HardOnesToTheTop" in space:
            table = plan([["0.1", "0.8"]], space["HardOnesToTheTop"](), context())
            assert table.frame.route_to.tolist() == ["large", "mv_cascade_small_k5_t0.7_large_k1_t0.0"]

    def test_its_table_of_votes_is_right(self):
        """The smallest p of each k."""
        found = re.search(r"\| p \| (.*) \|\n\|.*\n\| k \| (.*) \|", self.TEXT)
        limits = [float(p) for p in re.findall(r"0\.\d+", found[1])]
        votes = [int(k.split()[0]) for k in found[2].split(" | ")]
        for p, k, more in zip(limits, votes, votes[1:], strict=False):
            assert votes_needed(np.array([p + 5e-4, p - 5e-4]), 0.9, 9).tolist() == [k, more]

    @pytest.mark.parametrize("name", BATCH_STRATEGIES)
    def test_it_lists_every_policy(self, name):
        """Of the package."""
        assert f"| `{name}`" in self.TEXT
