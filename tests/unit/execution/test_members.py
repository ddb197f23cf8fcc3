"""Several members in one vote: whose votes count how much, who draws for whom, and what becomes of one that is down."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.execution.test_cascades import says
from workflow_composer.backends.fake import Delay
from workflow_composer.backends.pricing import Price
from workflow_composer.errors import (
    AllCandidatesFailed,
    AuthenticationFailed,
    BudgetExceeded,
    ContextOverflow,
    EgressDenied,
    ServerUnreachable,
    Unsupported,
)
from workflow_composer.execution.member_run import RetryPolicy
from workflow_composer.execution.voting.ballot import Ballot
from workflow_composer.execution.voting.confidence import confidence
from workflow_composer.plan import Candidate, Member, Plan, PromptForm, Tier, Voting
from workflow_composer.runtime.decision_text import describe
from workflow_composer.types import LLMRequest, Sample

ASK = LLMRequest.of("What is 2 + 2?")
DOWN = ServerUnreachable("down")
ONCE = RetryPolicy(attempts=1)
HANGS = Delay(60, "never")


def committee(b, *members, tier=None, **voting):
    """Members given as (name, k) or (names, k, fields)."""
    made = []
    for given_names, k, *rest in members:
        names = (given_names,) if isinstance(given_names, str) else given_names
        made.append(Member(b.candidates(*names), k, **(rest[0] if rest else {})))
    return Plan((Tier(tuple(made), voting=Voting(**voting), **(tier or {})),), router="committee")


class TestCounting:
    async def test_samples_of_two_models_are_counted_in_one_vote(self, bench, fake):
        """The answer's own model is named, and each member asks at its own temperature."""
        b = bench(fake("a", says(4, 5)), fake("b", says(5)))
        plan = committee(b, ("a", 2, {"temperature": 0.9}), ("b", 1, {"temperature": 0.0}), stopping="fixed", target=0.5)
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert outcome.verdict.votes == (("5", 2), ("4", 1))
        assert (outcome.verdict.accepted, outcome.verdict.confidence) == (True, pytest.approx(2 / 3))
        assert {name: [call.temperature for call in b.backends[name].calls] for name in "ab"} == {"a": [0.9], "b": [0.0]}

    async def test_the_candidate_of_the_member_that_gave_the_answer_is_on_record(self, bench, fake):
        b = bench(fake("a", says(4)), fake("b", says(5)), fake("c", DOWN))
        plan = committee(b, ("a", 1), (("c", "b"), 2), stopping="fixed", target=0.5)
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert (outcome.answer.text, outcome.candidate.name, outcome.fallback_depth) == ("#### 5", "b", 1)

    async def test_one_vote_of_great_weight_outvotes_two_small_ones(self, bench, fake):
        b = bench(fake("a", says(4)), fake("b", says(5)))
        plan = committee(b, ("a", 2), ("b", 1, {"weight": 6.0}), stopping="fixed", target=0.7)
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert (outcome.answer.text, outcome.verdict.confidence) == ("#### 5", 6 / 8)
        assert (outcome.verdict.votes, outcome.verdict.accepted) == ((("5", 1), ("4", 2)), True)

    async def test_weights_and_log_probabilities_multiply(self, bench, fake):
        b = bench(fake("a", says(4), logprob=math.log(0.5)), fake("b", says(5), logprob=math.log(0.5)))
        plan = committee(b, ("a", 1), ("b", 1, {"weight": 3.0}), measure="logprob", stopping="fixed", target=0.5)
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert (outcome.answer.text, outcome.verdict.confidence) == ("#### 5", pytest.approx(0.75))

    async def test_a_member_reads_the_question_in_its_own_form(self, bench, fake):
        """Only that member; and the request itself stays as it is."""

        def stepwise(messages):
            return ({"role": "system", "content": "Think step by step."}, *messages)

        b = bench(fake("a", says(4)), fake("b", says(4)))
        plan = committee(b, ("a", 1, {"form": PromptForm("stepwise", stepwise)}), ("b", 1), stopping="fixed")
        await b.executor.run(plan, ASK, b.trace)
        asked = {name: b.backends[name].calls[0].request.messages for name in "ab"}
        assert [message["role"] for message in asked["a"]] == ["system", "user"]
        assert asked["b"] == ASK.messages

    async def test_members_that_share_a_model_draw_different_samples_of_it(self, bench, fake):
        """A seed or a recording would else give both the same."""
        b = bench(fake("a", says(1, 2, 3, 4)))
        outcome = await b.executor.run(committee(b, ("a", 2), ("a", 2), stopping="fixed"), ASK, b.trace)
        assert sorted(sample.text for sample in outcome.samples) == ["#### 1", "#### 2", "#### 3", "#### 4"]

    async def test_a_form_holds_for_a_single_answer_too(self, bench, fake):
        b = bench(fake("a", "4"))
        form = PromptForm("loud", lambda messages: tuple({**m, "content": m["content"].upper()} for m in messages))
        await b.executor.run(Plan((Tier.of(b.candidates("a"), form=form),)), ASK, b.trace)
        assert b.backends["a"].calls[0].request.messages[0]["content"] == "WHAT IS 2 + 2?"

    async def test_what_every_member_costs_adds_up(self, bench, fake):
        b = bench(fake("a", says(4)), fake("b", says(4)), prices={"a": Price(1.0, 1.0), "b": Price(10.0, 10.0)})
        await b.executor.run(committee(b, ("a", 2), ("b", 2), stopping="fixed"), ASK, b.trace)
        (tier,) = b.trace.tiers
        by_name = {attempt.name: attempt.cost for attempt in b.trace.attempts}
        assert tier.cost == pytest.approx(b.trace.cost) == pytest.approx(by_name["a"] + by_name["b"])
        assert by_name["b"] == pytest.approx(10 * by_name["a"])


class TestFailing:
    async def test_a_member_that_is_down_leaves_the_others_votes_standing(self, bench, fake):
        """What it owes counts as votes for nothing, and the reason names it."""
        b = bench(fake("a", says(4)), fake("b", DOWN))
        outcome = await b.executor.run(committee(b, ("a", 3), ("b", 1), stopping="fixed"), ASK, b.trace)
        assert outcome.verdict.votes == (("4", 3),)
        assert (outcome.verdict.accepted, outcome.verdict.confidence) == (True, 0.75)
        b = bench(fake("a", says(4)), fake("b", DOWN))
        outcome = await b.executor.run(committee(b, ("a", 1), ("b", 1), target=0.75), ASK, b.trace)
        assert (outcome.verdict.accepted, outcome.verdict.confidence) == (False, 0.5)
        assert "drawing further samples failed for b" in outcome.verdict.reason

    async def test_a_member_that_is_down_weighs_as_much_as_it_would_have(self, bench, fake):
        b = bench(fake("a", says(4)), fake("b", DOWN))
        plan = committee(b, ("a", 2), ("b", 1, {"weight": 6.0}), target=0.5)
        assert (await b.executor.run(plan, ASK, b.trace)).verdict.confidence == 2 / 8

    async def test_a_member_falls_back_on_its_own_and_takes_only_its_own_votes_with_it(self, bench, fake):
        """Votes of two models are not mixed within a member; the other member's calls are left alone."""
        b = bench(fake("a", says(1), DOWN), fake("spare", says(2)), fake("other", Delay(0.05, says(3, 6, 7))))
        plan = committee(b, (("a", "spare"), 2), ("other", 3), target=0.5)
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert dict(outcome.verdict.votes) == {"2": 2, "3": 1, "6": 1, "7": 1}
        assert b.observer.fallbacks == [("a", "ServerUnreachable", "spare")]
        assert (len(b.backends["other"].calls), b.backends["other"].cancelled) == (3, 0)

    async def test_a_prompt_too_long_for_one_member_goes_to_its_longer_candidate(self, bench, fake):
        names = ("short", "shorter", "long")
        b = bench(
            fake("short", ContextOverflow("too long")),
            *(fake(name, says(4)) for name in (*names[1:], "other")),
            lengths={"short": 100, "shorter": 50, "long": 1000},
        )
        outcome = await b.executor.run(committee(b, (names, 1), ("other", 1)), ASK, b.trace)
        assert outcome.verdict.votes == (("4", 2),)
        assert b.backends["shorter"].calls == []

    async def test_where_every_member_is_down_the_request_fails_with_every_attempt(self, bench, fake):
        b = bench(fake("a", DOWN), fake("b", DOWN))
        with pytest.raises(AllCandidatesFailed) as caught:
            await b.executor.run(committee(b, ("a", 1), ("b", 1)), ASK, b.trace)
        assert {attempt.name for attempt in caught.value.attempts} == {"a", "b"}

    async def test_a_wrong_key_of_one_member_does_not_end_the_others(self, bench, fake):
        """Where it is all that is left, it is what is raised."""
        b = bench(fake("a", says(4)), fake("b", AuthenticationFailed("wrong key")))
        outcome = await b.executor.run(committee(b, ("a", 2), ("b", 1), target=0.6, stopping="fixed"), ASK, b.trace)
        assert (outcome.answer.text, outcome.verdict.accepted) == ("#### 4", True)
        assert "for b (AuthenticationFailed)" in outcome.verdict.reason
        b = bench(fake("a", DOWN), fake("b", AuthenticationFailed("wrong key")))
        with pytest.raises(AuthenticationFailed):
            await b.executor.run(committee(b, ("a", 2), ("b", 1)), ASK, b.trace)

    async def test_bytes_that_may_not_leave_end_the_request(self, bench, fake):
        b = bench(fake("a", HANGS), fake("b", EgressDenied("the profile forbids it")))
        with pytest.raises(EgressDenied):
            await b.executor.run(committee(b, ("a", 2), ("b", 1)), ASK, b.trace)
        assert b.backends["a"].in_flight == 0


class TestStopping:
    async def test_a_vote_that_is_decided_cancels_what_is_in_flight_at_every_member(self, bench, fake):
        b = bench(fake("a", says(4)), fake("b", says(4), HANGS), fake("c", HANGS))
        plan = committee(b, ("a", 3), ("b", 2), ("c", 1), target=0.5)
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert outcome.verdict.votes == (("4", 4),)
        assert [(b.backends[name].cancelled, b.backends[name].in_flight) for name in "abc"] == [(0, 0), (1, 0), (1, 0)]
        assert [attempt.error_type for attempt in b.trace.attempts].count("CancelledError") == 2

    async def test_a_heavy_vote_to_come_keeps_the_vote_open(self, bench, fake):
        """Five of six have agreed, and the sixth weighs more than they do."""
        b = bench(fake("a", says(4)), fake("b", Delay(0.02, says(5))))
        plan = committee(b, ("a", 5), ("b", 1, {"weight": 9.0}), target=0.6)
        assert (await b.executor.run(plan, ASK, b.trace)).answer.text == "#### 5"

    async def test_as_needed_each_member_is_asked_in_its_turns(self, bench, fake):
        """The first round is the fewest that could decide, shared among the members; no call is cancelled."""
        b = bench(fake("a", says(4)), fake("b", says(4)))
        plan = committee(b, ("a", 4), ("b", 2), target=0.5, draw="as_needed")
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert len(outcome.samples) == 3
        assert [call.samples for call in b.backends["a"].calls] == [2]
        assert [call.samples for call in b.backends["b"].calls] == [1]

    async def test_a_slow_tier_is_given_up_with_the_votes_of_all_members(self, bench, fake):
        b = bench(fake("a", says(4)), fake("b", HANGS), fake("large", says(9)))
        first = committee(b, ("a", 1), ("b", 1), tier={"deadline": 0.05}, target=0.9).tiers
        outcome = await b.executor.run(Plan((*first, Tier.of(b.candidates("large")))), ASK, b.trace)
        assert (outcome.answer.text, outcome.tier) == ("#### 9", 1)
        assert b.trace.tiers[0].verdict.votes == (("4", 1),)
        assert "deadline of 0.05 s passed" in b.trace.tiers[0].verdict.reason
        assert b.backends["b"].in_flight == 0

    async def test_a_tiers_deadline_holds_for_all_of_a_members_candidates_together(self, bench, fake):
        """A fallback does not begin it anew."""
        b = bench(fake("a", Delay(0.06, DOWN)), fake("b", Delay(0.06, says(4))), fake("large", says(9)), retry=ONCE)
        first = Tier.of(b.candidates("a", "b"), samples=2, deadline=0.1, voting=Voting())
        outcome = await b.executor.run(Plan((first, Tier.of(b.candidates("large")))), ASK, b.trace)
        assert outcome.answer.text == "#### 9"

    async def test_the_budget_must_pay_for_every_member(self, bench, fake):
        prices = {"a": Price(0.0, 1.0), "b": Price(0.0, 1000.0)}
        b = bench(fake("a", says(4)), fake("b", says(4)), prices=prices)
        request = LLMRequest.of("What is 2 + 2?", max_tokens=1000, budget=0.5)
        with pytest.raises(BudgetExceeded, match=r"b\+a would probably cost \$1"):
            await b.executor.run(committee(b, ("b", 1), ("a", 1)), request, b.trace)
        outcome = await b.executor.run(committee(b, ("a", 1), ("a", 1)), request, b.trace)
        assert outcome.answer.text == "#### 4"


ONE = (Candidate("one", local=True),)


class TestTypes:
    @pytest.mark.parametrize("fields", [{"samples": 0}, {"weight": 0.0}, {"weight": math.inf}, {"candidates": ()}])
    def test_a_member_that_cannot_vote_is_refused(self, fields):
        with pytest.raises(ValueError, match=r"member|weight|samples"):
            Member(**{"candidates": ONE, **fields})

    @pytest.mark.parametrize("members", [(), (Member(ONE), Member(ONE))], ids=["none", "two"])
    def test_a_tier_without_a_vote_has_exactly_one_member(self, members):
        with pytest.raises(ValueError, match=f"exactly one member, not {len(members)}"):
            Tier(members)

    @pytest.mark.parametrize("rule", ["beta", "window", "sprt", "martingale"])
    def test_a_rule_that_takes_votes_for_draws_of_one_model_is_refused_for_two(self, rule):
        with pytest.raises(ValueError, match="supports one member only"):
            Tier((Member(ONE), Member(ONE)), voting=Voting(stopping=rule))

    @pytest.mark.parametrize("measure", ["posterior", "score"])
    def test_a_measure_without_weights_is_refused_where_they_differ(self, measure):
        Tier((Member(ONE), Member(ONE)), voting=Voting(measure=measure))
        with pytest.raises(ValueError, match="does not support weights"):
            Tier((Member(ONE), Member(ONE, weight=2.0)), voting=Voting(measure=measure))

    async def test_no_routing_string_stands_for_several_members(self, bench, fake):
        """The plan goes by its router's name; a person is told who is asked; and ``n`` is refused."""
        b = bench(fake("a", says(4)), fake("b", says(4)), fake("c", says(4)))
        plan = committee(b, (("a", "c"), 2), ("b", 1))
        assert str(plan) == "committee"
        assert describe(plan) == "a -> c x2 + b"
        with pytest.raises(Unsupported, match="n is 2, but committee votes"):
            await b.executor.run(plan, LLMRequest.of("What?", n=2), b.trace)

    def test_a_prompt_form_is_no_part_of_a_routing_string_either(self):
        form = PromptForm("stepwise", tuple)
        assert str(Plan((Tier.of(ONE, samples=2, voting=Voting(), form=form),), router="r")) == "r"


def full_vote(answers, weights, **voting):
    """Members of one sample each, asked one after the other until the vote is over."""
    ballot = Ballot(Voting(**voting), [Member(ONE, weight=weight) for weight in weights], last=True)

    async def fill():
        for member, answer in enumerate(answers):
            if not ballot.wanted():
                break
            await ballot.add(Sample(f"#### {answer}", "stop"), member)

    asyncio.run(fill())
    return ballot


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([0.5, 1.0, 2.0, 7.5])), min_size=2, max_size=9),
    st.sampled_from([0.2, 0.5, 0.8]),
)
def test_stopping_early_never_changes_the_winner_whatever_the_votes_weigh(votes, target):
    """Against the same vote with every sample drawn; and what is decided early is accepted in full."""
    answers, weights = zip(*votes, strict=True)
    verdict = full_vote(answers, weights, target=target).verdict()
    whole = full_vote(answers, weights, target=target, stopping="fixed").verdict()
    assert verdict.votes[0][0] == whole.votes[0][0]
    assert verdict.accepted == whole.accepted


@given(st.lists(st.integers(-1, 3), min_size=2, max_size=9), st.sampled_from(["share", "entropy"]))
def test_equal_weights_change_no_confidence(votes, measure):
    weighed = confidence(measure, votes, [2.5] * len(votes))
    assert weighed == pytest.approx(confidence(measure, votes))


def test_entropy_counts_the_weight_of_an_answer_not_its_votes():
    """Two votes of weight 1 and one of weight 2 that differ are as divided as two votes of equal weight among three."""
    even, uneven = (confidence("entropy", [0, 0, 1], weights) for weights in ([1, 1, 2], [1, 1, 8]))
    assert even == pytest.approx(1 - math.log(2) / math.log(3))
    assert even < uneven < 1
