"""Cascades with votes through the executor: drawing, cancelling, escalating, falling back, and what is on record."""

from __future__ import annotations

import asyncio

import pytest

from workflow_composer.answers import mathematics
from workflow_composer.answers.mathematics import Compared
from workflow_composer.backends.fake import Delay
from workflow_composer.backends.pricing import Price
from workflow_composer.errors import (
    AllCandidatesFailed,
    BadRequest,
    BudgetExceeded,
    RateLimited,
    ServerFailed,
    ServerUnreachable,
)
from workflow_composer.execution.call import Trace
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.plan import Plan, Tier, Voting
from workflow_composer.types import LLMRequest

ASK = LLMRequest.of("What is 2 + 2?")


def says(*answers):
    """A script that answers sample by sample, whatever call draws it."""
    return lambda call: [f"#### {answers[(call.first_sample + i) % len(answers)]}" for i in range(call.samples)]


def cascade(b, *tiers, **voting):
    """Tiers given as (name, k) or (names, k, fields)."""
    made = []
    for given, k, *rest in tiers:
        names = (given,) if isinstance(given, str) else given
        fields = rest[0] if rest else {}
        made.append(Tier.of(b.candidates(*names), names[0], k, voting=Voting(**voting), **fields))
    return Plan(tuple(made))


class TestEscalation:
    async def test_a_confident_vote_is_the_answer_and_no_further_tier_is_asked(self, bench, fake):
        b = bench(fake("small", says(4, 4, 4, 5)), fake("large", says(9)))
        outcome = await b.executor.run(cascade(b, ("small", 4), ("large", 1)), ASK, b.trace)
        assert (outcome.answer.text, outcome.tier, outcome.verdict.confidence) == ("#### 4", 0, 0.75)
        assert b.backends["large"].calls == []
        assert b.observer.escalations == []

    async def test_a_doubtful_vote_escalates_and_its_samples_are_kept(self, bench, fake):
        b = bench(fake("small", says(4, 5, 4, 5)), fake("large", says(9)))
        outcome = await b.executor.run(cascade(b, ("small", 4), ("large", 1)), ASK, b.trace)
        assert (outcome.answer.text, outcome.tier) == ("#### 9", 1)
        first, second = b.trace.tiers
        assert first.verdict.votes == (("4", 2), ("5", 2))
        assert len(first.samples) == 4
        assert (first.name, second.name, second.verdict.confidence) == ("small", "large", None)
        assert b.observer.escalations == [(0, "share of 4 votes 0.5 < 0.75")]

    async def test_the_last_tiers_answer_is_taken_and_marked_as_not_confident(self, bench, fake):
        b = bench(fake("small", says(1, 2)), fake("large", says(3, 4, 3)))
        outcome = await b.executor.run(cascade(b, ("small", 2), ("large", 3), target=0.9), ASK, b.trace)
        assert (outcome.answer.text, outcome.verdict.accepted) == ("#### 3", False)
        assert outcome.verdict.confidence == pytest.approx(2 / 3)

    async def test_an_unreadable_last_answer_does_not_displace_a_readable_one(self, bench, fake):
        b = bench(fake("small", says(1, 2)), fake("large", "I do not know."))
        outcome = await b.executor.run(cascade(b, ("small", 2), ("large", 1)), ASK, b.trace)
        assert (outcome.answer.text, outcome.tier, outcome.verdict.accepted) == ("#### 1", 0, False)
        assert [tier.name for tier in b.trace.tiers] == ["small", "large"]

    async def test_a_tier_that_is_down_hands_over_to_the_next(self, bench, fake):
        b = bench(fake("small", ServerUnreachable("down")), fake("large", says(9)))
        outcome = await b.executor.run(cascade(b, ("small", 4), ("large", 1)), ASK, b.trace)
        assert outcome.answer.text == "#### 9"
        assert b.trace.tiers[0].samples == ()
        assert "failed" in b.trace.tiers[0].verdict.reason

    async def test_costs_and_tokens_are_on_record_by_tier_and_add_up(self, bench, fake):
        prices = {"small": Price(1.0, 1.0), "large": Price(10.0, 10.0)}
        b = bench(fake("small", says(4, 5)), fake("large", says(9)), prices=prices)
        await b.executor.run(cascade(b, ("small", 2), ("large", 1)), ASK, b.trace)
        assert sum(tier.cost for tier in b.trace.tiers) == pytest.approx(b.trace.cost)
        assert sum((tier.usage for tier in b.trace.tiers[1:]), b.trace.tiers[0].usage) == b.trace.usage
        assert b.trace.tiers[1].cost > b.trace.tiers[0].cost > 0


class TestDrawing:
    async def test_samples_are_drawn_side_by_side(self, bench, fake):
        b = bench(fake("m", Delay(0.01, says(4))))
        await b.executor.run(cascade(b, ("m", 6), stopping="beta"), ASK, b.trace)
        assert b.backends["m"].most_in_flight == 6

    async def test_what_is_no_longer_needed_is_cancelled_at_the_backend(self, bench, fake):
        answered = iter(range(100))

        async def slow_from_the_fifth_on(call):
            await asyncio.sleep(0 if next(answered) < 4 else 60)
            return "#### 4"

        b = bench(fake("m", slow_from_the_fifth_on))
        outcome = await b.executor.run(cascade(b, ("m", 8), stopping="beta"), ASK, b.trace)
        m = b.backends["m"]
        assert (len(outcome.samples), m.cancelled, m.in_flight) == (4, 4, 0)
        assert [attempt.error_type for attempt in b.trace.attempts].count("CancelledError") == 4

    async def test_as_needed_asks_for_several_samples_in_one_call_and_cancels_none(self, bench, fake):
        b = bench(fake("m", says(4, 4, 4, 5, 4, 4)))
        await b.executor.run(cascade(b, ("m", 8), stopping="beta", draw="as_needed"), ASK, b.trace)
        m = b.backends["m"]
        assert [(call.first_sample, call.samples) for call in m.calls] == [(0, 4), (4, 2), (6, 1)]
        assert m.cancelled == 0

    async def test_the_fixed_rule_is_one_call_of_k_samples(self, bench, fake):
        b = bench(fake("m", says(4)))
        await b.executor.run(cascade(b, ("m", 8), stopping="fixed"), ASK, b.trace)
        assert [call.samples for call in b.backends["m"].calls] == [8]

    async def test_cancelling_the_request_cancels_every_draw(self, bench, fake):
        b = bench(fake("m", Delay(60, says(4))))
        run = asyncio.ensure_future(b.executor.run(cascade(b, ("m", 5)), ASK, b.trace))
        while b.backends["m"].in_flight < 5:
            await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert (b.backends["m"].in_flight, b.backends["m"].cancelled) == (0, 5)

    async def test_time_with_several_calls_in_flight_is_waited_once(self, bench, fake):
        b = bench(fake("m", Delay(0.05, says(4))))
        loop = asyncio.get_running_loop()
        started = loop.time()
        await b.executor.run(cascade(b, ("m", 4), stopping="fixed"), ASK, b.trace)
        await b.executor.run(cascade(b, ("m", 4)), ASK, b.trace)
        assert 0.08 < b.trace.waited <= loop.time() - started

    async def test_log_probabilities_are_asked_for_where_votes_are_weighted_by_them(self, bench, fake):
        b = bench(fake("m", says(4)))
        outcome = await b.executor.run(cascade(b, ("m", 4), measure="logprob"), ASK, b.trace)
        assert all(call.request.logprobs for call in b.backends["m"].calls)
        assert outcome.verdict.confidence == 1.0


class TestFailingDraws:
    async def test_one_failing_sample_is_drawn_again_without_the_others(self, bench, fake):
        b = bench(fake("m", says(4), RateLimited("slow down"), says(4)))
        outcome = await b.executor.run(cascade(b, ("m", 4), stopping="fixed", draw="at_once"), ASK, b.trace)
        assert len(outcome.samples) == 4
        b = bench(fake("m", says(4), RateLimited("slow down"), says(4)))
        outcome = await b.executor.run(cascade(b, ("m", 4), target=1.0), ASK, b.trace)
        assert (len(outcome.samples), len(b.trace.attempts)) == (4, 5)

    async def test_a_candidate_that_goes_down_takes_its_votes_with_it(self, bench, fake):
        """The votes of two models are never mixed."""
        b = bench(fake("a", says(1), says(1), ServerFailed("500")), fake("b", says(2)))
        plan = cascade(b, (("a", "b"), 4), target=1.0)
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert outcome.verdict.votes == (("2", 4),)
        assert (outcome.candidate.name, outcome.fallback_depth) == ("b", 1)
        assert b.observer.fallbacks == [("a", "ServerFailed", "b")]

    async def test_where_no_other_candidate_is_left_the_votes_that_came_are_used_and_not_trusted(self, bench, fake):
        b = bench(fake("a", says(1), says(1), ServerFailed("500")))
        outcome = await b.executor.run(cascade(b, ("a", 4), target=0.75), ASK, b.trace)
        assert (outcome.answer.text, outcome.verdict.accepted) == ("#### 1", False)
        assert outcome.verdict.confidence == 2 / 4

    async def test_where_no_sample_came_the_request_fails_with_every_attempt(self, bench, fake):
        b = bench(fake("a", ServerFailed("500")))
        with pytest.raises(AllCandidatesFailed) as caught:
            await b.executor.run(cascade(b, ("a", 2)), ASK, b.trace)
        assert len(caught.value.attempts) == len(b.trace.attempts) >= 3

    async def test_what_no_other_can_mend_ends_the_request_and_its_draws(self, bench, fake):
        b = bench(fake("a", BadRequest("no"), Delay(60, says(1))), fake("b", says(1)))
        with pytest.raises(BadRequest):
            await b.executor.run(cascade(b, (("a", "b"), 4)), ASK, b.trace)
        assert b.backends["a"].in_flight == 0
        assert b.backends["b"].calls == []

    async def test_an_open_breaker_is_probed_by_one_draw_and_then_closed(self, bench, fake):
        b = bench(fake("a", *[ServerUnreachable("down")] * 3, Delay(0.01, says(4))), failures=1, cooldown=0.0)
        with pytest.raises(AllCandidatesFailed):
            await b.executor.run(cascade(b, ("a", 1)), ASK, b.trace)
        assert b.endpoints["a"].breaker.state == "half-open"
        outcome = await b.executor.run(cascade(b, ("a", 4)), ASK, Trace(None))
        assert outcome.verdict.votes == (("4", 4),)
        assert b.endpoints["a"].breaker.state == "closed"


class TestLimits:
    async def test_a_slow_tier_is_given_up_at_its_deadline_and_its_votes_are_kept(self, bench, fake):
        b = bench(fake("small", says(4), Delay(60, says(4))), fake("large", says(9)))
        plan = cascade(b, ("small", 4, {"deadline": 0.05}), ("large", 1))
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert outcome.answer.text == "#### 9"
        assert len(b.trace.tiers[0].samples) == 1
        assert "deadline of 0.05 s passed" in b.trace.tiers[0].verdict.reason
        assert b.backends["small"].in_flight == 0

    async def test_a_tier_without_votes_has_a_deadline_too(self, bench, fake):
        b = bench(fake("small", Delay(60, "4")), fake("large", "9"))
        plan = Plan((Tier.of(b.candidates("small"), "small", deadline=0.05), Tier.of(b.candidates("large"), "large")))
        assert (await b.executor.run(plan, ASK, b.trace)).answer.text == "9"

    async def test_the_last_tier_is_waited_for(self, bench, fake):
        b = bench(fake("small", says(1, 2)), fake("large", Delay(0.1, says(9))))
        plan = cascade(b, ("small", 2), ("large", 1, {"deadline": 0.01}))
        assert (await b.executor.run(plan, ASK, b.trace)).answer.text == "#### 9"

    @pytest.mark.parametrize("give", ["request", "plan", "tier"])
    async def test_a_tier_that_the_budget_cannot_pay_is_not_started(self, bench, fake, give):
        prices = {"small": Price(1.0, 1.0), "large": Price(1000.0, 1000.0)}
        b = bench(fake("small", says(1, 2)), fake("large", says(9)), prices=prices)
        request = LLMRequest.of("What is 2 + 2?", max_tokens=4, budget=0.001 if give == "request" else None)
        tier = {"budget": 0.001} if give == "tier" else {}
        plan = cascade(b, ("small", 2), ("large", 1, tier))
        plan = Plan(plan.tiers, budget=0.001 if give == "plan" else None)
        outcome = await b.executor.run(plan, request, b.trace)
        assert (outcome.answer.text, outcome.verdict.accepted) == ("#### 1", False)
        assert b.backends["large"].calls == []
        assert b.observer.escalations == []

    async def test_a_budget_that_pays_for_no_tier_is_an_error_that_says_what_it_takes(self, bench, fake):
        b = bench(fake("large", says(9)), prices={"large": Price(1000.0, 1000.0)})
        with pytest.raises(BudgetExceeded, match=r"large would probably cost \$"):
            await b.executor.run(cascade(b, ("large", 1)), LLMRequest.of("What?", budget=1e-6), b.trace)
        assert b.trace.attempts == []

    async def test_what_answers_cost_is_learned_for_later_budgets(self, bench, fake):
        b = bench(fake("m", says(9)), prices={"m": Price(0.0, 1000.0)})
        plan = cascade(b, ("m", 1))
        tight = LLMRequest.of("What is 2 + 2?", budget=0.01)
        with pytest.raises(BudgetExceeded):  # nothing is known yet, so a long answer is feared
            await b.executor.run(plan, tight, b.trace)
        await b.executor.run(plan, ASK, b.trace)
        assert (await b.executor.run(plan, tight, Trace(None))).answer.text == "#### 9"


class TestStreams:
    async def collect(self, b, plan):
        run = StreamRun(b.executor, plan, ASK, b.trace)
        return run, [chunk async for chunk in run.chunks()]

    async def test_a_vote_arrives_in_one_piece_when_it_is_decided(self, bench, fake):
        b = bench(fake("small", says(4, 5, 4, 4)))
        run, chunks = await self.collect(b, cascade(b, ("small", 4)))
        assert [chunk.text for chunk in chunks] == ["#### 4"]
        assert run.outcome.verdict.votes == (("4", 3), ("5", 1))

    async def test_the_last_tiers_single_answer_is_streamed_and_read(self, bench, fake):
        b = bench(fake("small", says(1, 2)), fake("large", says(9)))
        run, chunks = await self.collect(b, cascade(b, ("small", 2), ("large", 1)))
        assert len(chunks) > 1
        assert "".join(chunk.text for chunk in chunks) == "#### 9"
        assert (run.outcome.tier, run.outcome.verdict.votes) == (1, (("9", 1),))
        assert [tier.name for tier in b.trace.tiers] == ["small", "large"]


async def test_a_vote_whose_comparisons_last_too_long_ends_with_the_request(bench, fake, monkeypatch):
    """Formulas that nobody can compare count as different once the request's own time is up."""
    pytest.importorskip("math_verify")
    asked = []

    class Never:
        keeps_spare = False

        def submit(self, *_):
            asked.append(Compared())
            return asked[-1]

        value = submit

    monkeypatch.setattr(mathematics, "shared", lambda lane="usual": Never())
    b = bench(fake("small", says("$2u_7$", "$u_7+u_7$", "$3u_7$")))  # which no other test has compared
    b.trace = Trace(0.5)
    outcome = await asyncio.wait_for(b.executor.run(cascade(b, ("small", 3)), ASK, b.trace), 60)
    assert outcome.verdict.votes == (("2u_7", 1), ("u_7+u_7", 1), ("3u_7", 1))
    assert len(asked) == 1
