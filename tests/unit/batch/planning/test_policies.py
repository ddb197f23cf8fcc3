"""Which routing string each batch policy gives a question, and how many votes follow from a predicted success."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from tests.unit.batch.predicting import Written
from workflow_composer.batch.planning.policies import (
    AdaptiveKSampling,
    Cascade,
    CostAwareEscalation,
    EntropyAwareEscalation,
    MajorityVote,
    Plain,
    PlanningContext,
    PlanningTier,
    Questions,
    baseline_routes,
    make_policy,
    votes_needed,
)
from workflow_composer.errors import ConfigError, InputError
from workflow_composer.markers import parse_route
from workflow_composer.plugins.builtin import BATCH_STRATEGIES, plugin_host

SMALL, MEDIUM, LARGE = (PlanningTier(name) for name in ("small", "medium", "large"))
GREEDY = PlanningTier("huge", greedy_only=True)
ADAPTIVE = [AdaptiveKSampling(), CostAwareEscalation(), EntropyAwareEscalation()]


def context(*tiers, **fields):
    fields = {"predictor": Written()} | fields
    return PlanningContext(tiers or (SMALL, MEDIUM, LARGE), **fields)


def routes(strategy, texts, planning=None):
    planning = planning or context()
    return list(strategy.routes(Questions(texts, planning.predictor), planning))


class TestVotesNeeded:
    @settings(deadline=None)
    @given(
        st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.501, 0.999), st.integers(min_value=1, max_value=41)
    )
    def test_it_is_the_smallest_odd_number_whose_majority_is_right_often_enough(self, success, target, k_max):
        """The definition, tried vote by vote with scipy's binomial distribution."""
        for p, k in zip(success, votes_needed(np.array(success), target, k_max).tolist(), strict=True):
            odd = range(1, k_max + 1, 2)
            right = {n: binom.sf(n // 2, n, p) for n in odd}
            if any(abs(value - target) < 1e-9 for value in right.values()):
                continue  # on a threshold, rounding decides
            assert k == next((n for n in odd if right[n] >= target), odd[-1])

    @settings(deadline=None)
    @given(st.floats(0, 0.5), st.floats(0.501, 0.999))
    def test_a_coin_or_worse_gets_all_the_votes_there_are(self, p, target):
        """No number of votes makes a majority of it right often enough; the vote's own confidence must decide."""
        assert votes_needed(np.array([p]), target, 15).tolist() == [15]

    @pytest.mark.parametrize(("p", "k"), [(0.9, 1), (0.85, 3), (0.76, 5), (0.73, 7), (0.7, 9), (0.69, 9)])
    def test_known_values(self, p, k):
        """For nine in ten; three votes of .85 are right with .939, of .80 with .896."""
        assert votes_needed(np.array([p]), 0.9, 9).tolist() == [k]

    def test_an_even_limit_counts_as_the_odd_number_below(self):
        """An even vote can tie."""
        assert votes_needed(np.array([0.3]), 0.9, 8).tolist() == [7]


class TestFixedStrategies:
    def test_plain_asks_the_strongest_tier_once(self):
        """Its name is the routing string."""
        assert routes(Plain(), ["a", "b"]) == ["large", "large"]

    def test_plain_asks_the_tier_that_is_named(self):
        """As every single-tier baseline does."""
        assert routes(Plain("small"), ["a"]) == ["small"]

    def test_a_majority_vote_is_one_tier_with_k_votes(self):
        """Of the strongest tier that may vote, or the one that is named."""
        assert routes(MajorityVote(), ["a"]) == ["mv_large_k8_t0.7"]
        assert routes(MajorityVote("small"), ["a"], context(k=4, temperature=1)) == ["mv_small_k4_t1.0"]
        assert routes(MajorityVote(), ["a"], context(SMALL, MEDIUM, GREEDY)) == ["mv_medium_k8_t0.7"]

    @pytest.mark.parametrize("strategy", [MajorityVote("huge"), MajorityVote()])
    def test_a_greedy_only_tier_cannot_vote(self, strategy):
        """Eight greedy answers are one answer."""
        with pytest.raises(ConfigError, match="greedy-only"):
            routes(strategy, ["a"], context(GREEDY))

    def test_a_cascade_ends_in_one_answer_of_the_strongest(self):
        """The string of the documentation."""
        assert routes(Cascade(), ["a"], context(k=4)) == ["mv_cascade_small_k4_t0.7_medium_k4_t0.7_large_k1_t0.0"]

    def test_a_cascade_of_one_tier_is_that_tier(self):
        """Nothing to escalate to."""
        assert routes(Cascade(), ["a"], context(SMALL)) == ["small"]

    def test_a_name_that_no_tier_has_is_an_error_with_the_nearest(self):
        """A misspelt tier."""
        with pytest.raises(ConfigError, match="did you mean 'small'"):
            routes(Plain("smal"), ["a"])

    def test_baselines_are_every_tier_alone_and_every_vote(self):
        """Greedy-only tiers do not vote."""
        assert baseline_routes(context(SMALL, GREEDY)) == ("small", "huge", "mv_small_k8_t0.7")


class TestAdaptiveStrategies:
    def test_adaptive_k_tries_every_tier_with_the_votes_it_needs(self):
        """Weak here, strong there; the last tier needs one and is greedy."""
        planning = context(predictor=Written(medium=0.2, large=0.3))
        assert routes(AdaptiveKSampling(), ["0.65 a question", "0.8 another"], planning) == [
            "mv_cascade_small_k9_t0.7_medium_k3_t0.7_large_k1_t0.0",
            "mv_cascade_small_k5_t0.7_medium_k1_t0.0_large_k1_t0.0",
        ]

    def test_one_answer_is_enough_where_it_is_right_often_enough(self):
        """By prediction; the tiers behind it are asked only where it cannot be read."""
        assert routes(AdaptiveKSampling(), ["0.92"]) == ["mv_cascade_small_k1_t0.0_medium_k1_t0.0_large_k1_t0.0"]

    @pytest.mark.parametrize(("p", "skipped"), [(0.81, False), (0.80, True), (0.4, True), (0.95, False)])
    def test_cost_aware_skips_the_smallest_tier_from_five_votes_on(self, p, skipped):
        """Three votes of .81 are right with .906, of .80 with .896."""
        (route,) = routes(CostAwareEscalation(), [f"{p}"])
        assert ("small" not in route) == skipped
        assert "medium" in route

    def test_cost_aware_skips_also_where_fewer_votes_are_allowed(self):
        """What a tier would need does not depend on what it may have."""
        (route,) = routes(CostAwareEscalation(), ["0.5"], context(k_max=3))
        assert "small" not in route

    def test_cost_aware_with_a_single_tier_keeps_it(self):
        """Somebody must answer."""
        assert routes(CostAwareEscalation(), ["0.5"], context(SMALL)) == ["mv_small_k9_t0.7"]

    def test_entropy_aware_gives_entropy_cascades_with_the_same_votes(self):
        """Only the word differs; where no vote could be ambiguous, not even that."""
        texts = ["0.85", "0.7", "0.3"]
        plain = routes(AdaptiveKSampling(), texts)
        assert routes(EntropyAwareEscalation(), texts) == [word.replace("mv_", "mv_entropy_") for word in plain]
        assert routes(EntropyAwareEscalation(), ["0.95"]) == routes(AdaptiveKSampling(), ["0.95"])

    @pytest.mark.parametrize(("p", "route"), [(0.4, "small_k9_t0.7_huge_k1_t0.0"), (0.9, "small_k3_t0.7_middle_k1_t0.0")])
    def test_a_greedy_only_tier_before_the_last_is_asked_only_where_one_answer_is_enough(self, p, route):
        """Its one answer would be taken, and no stronger tier be reached."""
        middle = PlanningTier("middle", greedy_only=True)
        planning = context(SMALL, middle, GREEDY, predictor=Written(small=-0.05))
        (found,) = routes(AdaptiveKSampling(), [f"{p}"], planning)
        assert found.startswith(f"mv_cascade_{route}")
        assert found.endswith("huge_k1_t0.0")

    @pytest.mark.parametrize("strategy", ADAPTIVE)
    def test_without_a_probe_there_is_no_adapting(self, strategy):
        """The error says what to give."""
        with pytest.raises(ConfigError, match="--probing-dataset"):
            routes(strategy, ["a"], context(predictor=None))

    @pytest.mark.parametrize("strategy", ADAPTIVE)
    @settings(deadline=None)
    @given(success=st.lists(st.floats(0, 1).map(lambda p: round(p, 3)), max_size=12))
    def test_questions_do_not_touch_each_other(self, strategy, success):
        """Many at once get what each gets alone, in their order."""
        texts = [f"{p}" for p in success]
        assert routes(strategy, texts) == [route for text in texts for route in routes(strategy, [text])]

    @pytest.mark.parametrize("strategy", ADAPTIVE)
    @settings(deadline=None)
    @given(p=st.floats(0, 1), tiers=st.lists(st.booleans(), min_size=1, max_size=4), k_max=st.integers(1, 30))
    def test_every_string_is_what_its_plan_prints(self, strategy, p, tiers, k_max):
        """Nothing that a policy writes is changed when it is read."""
        named = tuple(PlanningTier(f"tier-{at}", greedy_only=greedy) for at, greedy in enumerate(tiers))
        for route in routes(strategy, [f"{p:.6f}"], context(*named, k_max=k_max)):
            plan = parse_route(route)
            assert str(plan) == route
            assert plan.notes == ()
            assert [tier.name for tier in plan.tiers] == sorted(tier.name for tier in plan.tiers)
            assert plan.tiers[-1].name == named[-1].name

    def test_success_is_predicted_once_for_all_policies(self):
        """The questions remember it."""
        planning = context()
        questions = Questions(["0.8"], planning.predictor)
        for strategy in ADAPTIVE:
            strategy.routes(questions, planning)
        assert planning.predictor.asked == ["small", "medium", "large"]


class TestQuestions:
    @pytest.mark.parametrize(
        "given_as",
        [
            ["é", "bc", ""],
            pa.array(["é", "bc", None]),
            pa.chunked_array([["é"], ["bc", ""]]),
            pa.table({"question": ["é", "bc", ""], "label": ["1", "2", "3"]}),
            pa.RecordBatch.from_pydict({"question": pa.array(["é", "bc", ""]).dictionary_encode()}),
        ],
        ids=["list", "array with a null", "chunked", "table", "record batch of a dictionary"],
    )
    def test_texts_may_come_in_any_of_arrows_forms(self, given_as):
        """Lengths are in characters, not bytes; what is missing is empty."""
        questions = Questions(given_as)
        assert questions.texts.to_pylist() == ["é", "bc", ""]
        assert questions.lengths.tolist() == [1, 2, 0]

    @pytest.mark.parametrize(
        "given_as", [[], pa.chunked_array([], pa.string()), pa.table({"question": pa.array([], "str")})]
    )
    def test_there_may_be_none(self, given_as):
        """A piece without rows."""
        assert len(Questions(given_as)) == 0
        assert routes(AdaptiveKSampling(), given_as) == []

    @pytest.mark.parametrize("given_as", [[1, 2], [["a"]], pa.array([[1]])])
    def test_what_is_no_text_is_refused(self, given_as):
        """Not turned into one."""
        with pytest.raises(InputError, match="not strings"):
            Questions(given_as)


class TestContext:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"tiers": ()}, "need tiers"),
            ({"target": 0.5}, "between 0.5 and 1"),
            ({"target": 1.0}, "between 0.5 and 1"),
            ({"k": 1}, "2 to 1024"),
            ({"k_max": 0}, "1 to 1024"),
            ({"k_max": 1025}, "1 to 1024"),
            ({"temperature": 0.0}, "0.001 to 2"),
            ({"temperature": float("nan")}, "0.001 to 2"),
        ],
    )
    def test_values_that_make_no_sense_are_refused(self, fields, message):
        """Each with what would be allowed."""
        with pytest.raises(ConfigError, match=message):
            PlanningContext(**({"tiers": (SMALL,)} | fields))


class TestFinding:
    FACTORIES = {name: provided.value for name, provided in plugin_host(discover=False).registry.batch_strategies.items()}

    @pytest.mark.parametrize("name", BATCH_STRATEGIES)
    def test_every_policy_of_the_package_is_found_by_its_name(self, name):
        """As a plugin's would be."""
        assert len(routes(make_policy(name, self.FACTORIES), ["0.8", "0.3"])) == 2

    def test_a_tier_may_stand_behind_the_name(self):
        """Of policies that take one."""
        assert routes(make_policy("plain:medium", self.FACTORIES), ["a"]) == ["medium"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("adaptive_k", "did you mean 'adaptive_k_sampling'"),
            ("cascade:small", "takes no tier"),
            ("zzz", "known policies: adaptive_k_sampling, cascade"),
        ],
    )
    def test_what_cannot_be_made_is_an_error_that_helps(self, text, message):
        """It names what there is."""
        with pytest.raises(ConfigError, match=message):
            make_policy(text, self.FACTORIES)

    def test_a_missing_library_is_named_with_the_line_that_installs_it(self):
        """The batch policies' libraries are an extra."""
        code = """
import sys
sys.modules["pyarrow"] = None
from workflow_composer.plugins.builtin import plugin_host
plugin_host(discover=False).registry.batch_strategies["plain"].value()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        message = done.stderr.splitlines()[-1]
        assert "ConfigError: pyarrow is not installed" in message
        assert "[batch]'" in message

    def test_a_plugin_without_routes_is_refused(self):
        """Before any data is read."""
        with pytest.raises(ConfigError, match="no method `routes"):
            make_policy("odd", {"odd": dict})
