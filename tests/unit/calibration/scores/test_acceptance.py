"""When an answer is accepted, and when it is given up before its end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.calibration.tokens import answers, cuts, rules, scores, spread, sure
from workflow_composer.calibration.scores.acceptance import RuleAcceptance, ScoreAcceptance, Suspended
from workflow_composer.calibration.scores.scores import Calibrator, ScoreModel
from workflow_composer.calibration.scores.signals import FeedbackRules
from workflow_composer.types import Sample, TokenLogprob

LAX = {
    "safety_threshold": 0.0,
    "entropy": 1e9,
    "binary_entropy": 1.0,
    "min_logprob": -1e9,
    "low_confidence_ratio": 1.0,
}
CONFIDENT = ScoreModel(("mean_logprob",), (0.0,), (1.0,), (1.0,), 0.0, Calibrator("platt", ((1.0, 0.0),)))
"""Half for a mean log-probability of 0, less below."""


def heard(watch, pieces):
    """The first verdict of a watch, if it comes to one."""
    return next((verdict for piece in pieces if (verdict := watch.hear(piece)) is not None), None)


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "sample", "said"),
        [
            ({"safety_threshold": 0.3}, sure(-1.3, -1.3), "confidence per token 0.273 < 0.3"),
            ({"entropy": 2.5}, spread([0.5, 0.1], [0.5, 0.1]), "mean entropy 5.93 nats > 2.5"),
            ({"entropy": 2.5}, sure(-2.6, -2.6), "mean surprisal 2.6 nats > 2.5"),
            ({"binary_entropy": 0.85}, sure(-0.6, -0.6), "mean binary entropy 0.993 bits > 0.85"),
            ({"min_logprob": -5.0}, sure(*[-0.01] * 30, -5.5), "lowest log-probability -5.5 < -5"),
            ({"low_confidence_ratio": 0.15}, sure(*[-0.1] * 4, -0.8), "share of low-confidence tokens 0.2 > 0.15"),
        ],
    )
    def test_each_rule_acts_alone_and_names_value_and_limit(self, rule, sample, said):
        verdict = RuleAcceptance(FeedbackRules(**(LAX | rule)))((sample,))
        assert (verdict.accepted, verdict.reason) == (False, said)
        assert RuleAcceptance(FeedbackRules(**LAX))((sample,)).accepted

    @pytest.mark.parametrize(
        "sample",
        [sure(*[-0.01] * 30, -5.0), sure(*[-0.1] * 17, *[-0.8] * 3), spread(*[[0.95, 0.04]] * 9)],
    )
    def test_an_answer_at_a_limit_is_not_beyond_it(self, sample):
        limits = FeedbackRules(**(LAX | {"min_logprob": -5.0, "low_confidence_ratio": 0.15, "entropy": 2.5}))
        assert RuleAcceptance(limits)((sample,)).accepted

    def test_the_confidence_is_the_probability_per_token(self):
        assert RuleAcceptance(FeedbackRules())((sure(-0.1, -0.3),)).confidence == pytest.approx(math.exp(-0.2))

    @pytest.mark.parametrize("sample", [Sample("x"), Sample("x", logprobs=()), sure(-0.1, math.nan)])
    def test_unknown_is_never_confident(self, sample):
        """It is accepted only where the policy says so, and its confidence stays unknown even then."""
        doubtful = RuleAcceptance(FeedbackRules())((sample,))
        assert (doubtful.accepted, doubtful.confidence) == (False, None)
        assert "unknown" in doubtful.reason
        accepted = RuleAcceptance(FeedbackRules(), accept_unknown=True)((sample,))
        assert (accepted.accepted, accepted.confidence) == (True, None)

    def test_the_last_tier_is_accepted_however_doubtful_and_says_so(self):
        verdict = RuleAcceptance(FeedbackRules(), final=True)((sure(-9.0),))
        assert verdict.accepted
        assert "lowest log-probability -9 < -5" in verdict.reason
        assert verdict.reason.endswith("accepted by the last tier")

    @settings(deadline=None)
    @given(st.data(), answers(), rules(), st.booleans())
    def test_whatever_is_given_up_early_would_have_been_rejected(self, data, tokens, limits, unknown):
        accept = RuleAcceptance(limits, accept_unknown=unknown)
        longest = len(tokens) + data.draw(st.integers(0, 5))
        early = heard(accept.watch(longest), cuts(data.draw, tokens))
        whole = accept((Sample("x", logprobs=tuple(tokens)),))
        if early is not None:
            assert not early.accepted
            assert not whole.accepted, (early.reason, whole.reason)

    @settings(deadline=None)
    @given(answers(), rules())
    def test_by_its_greatest_length_whatever_will_be_rejected_is_given_up(self, tokens, limits):
        """But for what rounding leaves open."""
        sample = Sample("x", logprobs=tuple(tokens))
        if heard(RuleAcceptance(limits).watch(len(tokens)), [tokens]) is None:
            laxer = FeedbackRules(
                limits.safety_threshold * (1 - 1e-6),
                limits.entropy * (1 + 1e-6),
                limits.binary_entropy * (1 + 1e-6),
                limits.min_logprob,
                limits.low_confidence_ratio,
            )
            assert RuleAcceptance(laxer)((sample,)).accepted

    def test_a_hopeless_token_is_enough_to_give_up(self):
        watch = RuleAcceptance(FeedbackRules()).watch(1000)
        assert watch.hear(sure(-0.1).logprobs) is None
        verdict = watch.hear(sure(-7.0).logprobs)
        assert verdict.reason == "lowest log-probability -7 < -5"


class TestScores:
    def test_an_answer_is_accepted_from_the_threshold_on(self):
        accept = ScoreAcceptance(CONFIDENT, 0.4)
        at = CONFIDENT.calibrator(-0.1)
        assert ScoreAcceptance(CONFIDENT, at)((sure(-0.1),)).accepted
        found = accept((sure(-2.0),))
        assert (found.accepted, found.reason) == (False, "score 0.119 < 0.4")
        assert accept((sure(-0.1),)).reason == "score 0.475 >= 0.4"
        assert found.confidence == pytest.approx(0.119, abs=1e-3)

    @pytest.mark.parametrize("threshold", [-math.inf, 0.0, 0.5, None])
    @pytest.mark.parametrize("sample", [Sample("x"), sure(math.nan), sure(0.5)])
    def test_an_unknown_score_is_never_accepted_whatever_the_threshold(self, threshold, sample):
        verdict = ScoreAcceptance(CONFIDENT, threshold)((sample,))
        assert (verdict.accepted, verdict.confidence, verdict.straight_up) == (False, None, False)

    def test_a_threshold_of_minus_infinity_accepts_whatever_has_a_score(self):
        assert ScoreAcceptance(CONFIDENT, -math.inf)((sure(-99.0),)).accepted

    def test_without_a_threshold_nothing_is_accepted(self):
        assert not ScoreAcceptance(CONFIDENT, None)((sure(0.0),)).accepted

    @pytest.mark.parametrize(("value", "accepted"), [(0.9, True), (0.2, False), (math.nan, False), (None, False)])
    def test_without_a_model_the_answers_own_score_counts(self, value, accepted):
        assert ScoreAcceptance(None, 0.5)((Sample("x", score=value),)).accepted == accepted

    @pytest.mark.parametrize("threshold", [0.4, None])
    def test_a_very_low_score_goes_straight_to_the_last_tier(self, threshold):
        """Also at a tier that accepts nothing: its score still says who is asked next."""
        accept = ScoreAcceptance(CONFIDENT, threshold, straight_up=0.2)
        assert accept((sure(-3.0),)).straight_up
        assert not accept((sure(-1.0),)).straight_up

    def test_what_is_accepted_goes_nowhere(self):
        assert not ScoreAcceptance(CONFIDENT, 0.3, straight_up=0.9)((sure(-0.1),)).straight_up

    @settings(deadline=None)
    @given(st.data(), answers(), scores(), st.none() | st.just(-math.inf) | st.floats(0, 1), st.none() | st.floats(0, 1))
    def test_whatever_is_given_up_early_would_have_been_rejected_and_gone_the_same_way(
        self, data, tokens, score, threshold, straight_up
    ):
        accept = ScoreAcceptance(score, threshold, straight_up)
        longest = len(tokens) + data.draw(st.integers(0, 5))
        early = heard(accept.watch(longest), cuts(data.draw, tokens))
        whole = accept((Sample("x", logprobs=tuple(tokens)),))
        if early is not None:
            assert (early.accepted, early.straight_up) == (whole.accepted, whole.straight_up) == (False, whole.straight_up)

    def test_where_low_scores_skip_tiers_giving_up_waits_until_it_is_certain_that_this_one_will(self):
        """A score between the two limits sends the request to the next tier, whose certificate counts on getting it."""
        accept = ScoreAcceptance(CONFIDENT, 0.4, straight_up=0.2)
        rejected, hopeless = accept.watch(2), accept.watch(2)
        assert rejected.hear(sure(-2.0).logprobs) is None
        verdict = hopeless.hear(sure(-4.0).logprobs)
        assert verdict.straight_up
        assert verdict.reason == "score at most 0.119 < 0.2"

    def test_the_answers_own_score_comes_at_its_end_so_nothing_is_given_up(self):
        assert ScoreAcceptance(None, 0.9).watch(5).hear([TokenLogprob("x", -50.0)]) is None


def test_what_no_certificate_covers_is_returned_and_not_accepted():
    verdict = Suspended("temperature: 0 in the certificate, 1 asked for")((Sample("x"),))
    assert (verdict.accepted, verdict.confidence) == (False, None)
    assert verdict.reason.startswith("temperature")


@pytest.mark.parametrize(
    ("accept", "words"),
    [
        (RuleAcceptance(FeedbackRules()), "no rule flags the answer as doubtful"),
        (RuleAcceptance(FeedbackRules(), final=True), "always (last tier)"),
        (ScoreAcceptance(None, 0.5), "score >= 0.5"),
        (ScoreAcceptance(None, None), "accepts nothing"),
        (Suspended("alarm"), "accepts nothing: alarm"),
    ],
)
def test_plans_can_be_read(accept, words):
    assert repr(accept) == words
