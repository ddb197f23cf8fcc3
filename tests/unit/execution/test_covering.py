"""What was not foreseen when a request began is paid for before it is called: retries, fallbacks, samples, later tiers."""

from __future__ import annotations

import asyncio
import math

import pytest

from workflow_composer.answers.output_form import output_form
from workflow_composer.backends.fake import Delay
from workflow_composer.backends.pricing import Price
from workflow_composer.errors import BudgetExceeded, RateLimited, ServerFailed
from workflow_composer.execution.call import Trace
from workflow_composer.execution.reservation import Budget, Reservation
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.plan import Plan, Tier, Voting
from workflow_composer.types import Completion, LLMRequest, Sample, Usage, Verdict

DOLLAR = Price(0.0, 1e6)
"""A dollar for each token of an answer."""
CENT = Price(0.0, 1e4)


def billed(tokens, text="4", wait=0.0):
    """An answer for which a server counts so many tokens."""
    done = Completion(samples=(Sample(text, "stop"),), usage=Usage(1, tokens), model="m")
    return Delay(wait, done) if wait else done


def bills(b, budget, limit, seen, tokens, wait=0.0, text="4"):
    """A script that remembers what the budget has left and reserved when it is called."""

    def answer(call):
        seen.append(limit - budget.room)
        return billed(tokens, text, wait)

    return answer


async def answered(b, plan, request, form):
    """Run a plan in one of the two ways, settle what it cost, and return its text."""
    trace = b.trace = Trace(request.timeout, request.most_calls)
    try:
        if form == "whole":
            return (await b.executor.run(plan, request, trace)).answer.text
        return "".join([piece.text async for piece in StreamRun(b.executor, plan, request, trace).chunks()])
    finally:
        usage, cost = trace.total
        request.purse.settle(cost, usage.total_tokens)


async def held_back(budget, request):
    """Wait until a request waits for money; it must not end before."""
    while not budget.waiting:
        assert not request.done(), request
        await asyncio.sleep(0.001)


def asked(budget, **fields):
    """A request that pays from a budget."""
    fields = {"max_tokens": 1, **fields}
    return LLMRequest.of("What is 2 + 2?", purse=Reservation(budget), **fields)


def refusing(samples):
    """Accepts no answer."""
    return Verdict(accepted=False, reason="doubtful")


@pytest.fixture(params=["whole", "stream"])
def form(request):
    return request.param


ONE = {"a": Price(0.0, 0.0), "b": DOLLAR, "c": CENT}


class TestFallbacks:
    async def test_a_dearer_candidate_is_reserved_before_it_is_called(self, bench, fake, form):
        budget, seen = Budget(10.0), []
        b = bench(
            fake("a", ServerFailed("down")), fake("b", lambda call: seen.append(10.0 - budget.room) or "4"), prices=ONE
        )
        await answered(b, Plan((Tier.of(b.candidates()),)), asked(budget), form)
        assert seen == [1.0]
        assert (budget.spent, budget.room, budget.held) == (1.0, 9.0, 0)

    async def test_a_dearer_candidate_waits_for_requests_under_way(self, bench, fake, form):
        budget = Budget(1.0)
        other = await budget.reserve(0.5)
        b = bench(fake("a", ServerFailed("down")), fake("b", "4"), prices=ONE)
        waiting = asyncio.create_task(answered(b, Plan((Tier.of(b.candidates()),)), asked(budget), form))
        await held_back(budget, waiting)
        assert b.backends["b"].calls == []
        other.settle(0.0)
        assert await asyncio.wait_for(waiting, 60) == "4"
        assert budget.spent == 1.0

    async def test_a_dearer_candidate_that_the_rest_does_not_pay_is_passed_over(self, bench, fake, form):
        budget = Budget(0.5)
        b = bench(fake("a", ServerFailed("down")), fake("b", "4"), fake("c", "5"), prices=ONE)
        assert await answered(b, Plan((Tier.of(b.candidates()),)), asked(budget), form) == "5"
        assert b.backends["b"].calls == []
        assert budget.spent == pytest.approx(0.01)

    async def test_without_another_candidate_the_error_is_about_money(self, bench, fake, form):
        budget = Budget(0.5)
        b = bench(fake("a", ServerFailed("down")), fake("b", "4"), prices=ONE)
        with pytest.raises(BudgetExceeded, match=r"b is not called.*\$1; \$0.5 ") as caught:
            await answered(b, Plan((Tier.of(b.candidates()),)), asked(budget), form)
        assert [attempt.name for attempt in caught.value.attempts] == ["a", "a", "a"]
        assert b.backends["b"].calls == []
        assert budget.room == 0.5

    async def test_it_waits_no_longer_than_the_request_may_take(self, bench, fake, form):
        budget = Budget(1.0)
        other = await budget.reserve(0.5)
        b = bench(fake("a", ServerFailed("down")), fake("b", "4"), prices=ONE)
        with pytest.raises(BudgetExceeded):
            await answered(b, Plan((Tier.of(b.candidates()),)), asked(budget, timeout=0.2), form)
        assert b.backends["b"].calls == []
        other.settle(0.0)
        assert (budget.room, budget.waiting) == (1.0, 0)

    async def test_requests_that_fall_back_at_the_same_time_do_not_wait_for_each_other(self, bench, fake, form):
        """Each has reserved and waits for more: what it no longer needs is free for the others meanwhile."""
        budget = Budget(2.0)
        prices = {"a": Price(0.0, 0.5e6), "b": DOLLAR}
        b = bench(fake("a", Delay(0.01, ServerFailed("down"))), fake("b", "4"), prices=prices)
        plan = Plan((Tier.of(b.candidates()),))
        runs = [answered(b, plan, asked(budget), form) for _ in range(4)]
        done = await asyncio.wait_for(asyncio.gather(*runs, return_exceptions=True), 60)
        assert done.count("4") == 2
        assert sum(isinstance(end, BudgetExceeded) for end in done) == 2
        assert (budget.spent, budget.held, budget.waiting) == (2.0, 0, 0)

    async def test_an_answer_is_asked_for_again_only_if_the_rest_pays_for_it(self, bench, fake, form):
        """The first call has used what was reserved."""
        budget = Budget(1.5)
        b = bench(fake("b", "none", "4"), prices=ONE)
        request = asked(budget, form=output_form("number"))
        assert await answered(b, Plan((Tier.of(b.candidates()),)), request, form) == "none"
        assert (len(b.backends["b"].calls), budget.spent) == (1, 1.0)
        budget = Budget(2.5)
        b = bench(fake("b", "none", "4"), prices=ONE)
        request = asked(budget, form=output_form("number"))
        assert await answered(b, Plan((Tier.of(b.candidates()),)), request, form) == "4"
        assert (len(b.backends["b"].calls), budget.spent) == (2, 2.0)

    async def test_a_retry_of_a_call_that_was_billed_is_reserved_anew(self, bench, fake):
        """A server may count tokens and send no answer."""
        budget = Budget(1.5)
        b = bench(fake("b", Completion(samples=(), usage=Usage(1, 1), model="b"), "4"), prices=ONE)
        with pytest.raises(BudgetExceeded):
            await answered(b, Plan((Tier.of(b.candidates()),)), asked(budget), "whole")
        assert (len(b.backends["b"].calls), budget.spent) == (1, 1.0)


class TestTiers:
    def tiers(self, b, **more):
        first = Tier.of(b.candidates("c"), voting=Voting(target=0.9), samples=2, **more)
        return Plan((first, Tier.of(b.candidates("b"))))

    async def test_a_later_tier_is_covered_although_the_first_has_cost_more_than_expected(self, bench, fake, form):
        budget, seen = Budget(10.0), []
        b = bench(
            fake("c", billed(100, "#### 1"), billed(100, "#### 2")),
            fake("b", bills(None, budget, 10.0, seen, 1)),
            prices=ONE,
        )
        await answered(b, self.tiers(b), asked(budget), form)
        assert seen == [pytest.approx(2.0 + 1.0)]
        assert budget.spent == pytest.approx(3.0)

    async def test_a_later_tier_that_the_rest_does_not_pay_leaves_the_answer_of_the_first(self, bench, fake, form):
        budget = Budget(1.05)
        b = bench(fake("c", billed(50, "#### 1"), billed(50, "#### 2")), fake("b", "4"), prices=ONE)
        assert await answered(b, self.tiers(b), asked(budget), form) == "#### 1"
        assert b.backends["b"].calls == []
        assert b.trace.tiers[0].verdict.accepted is False
        assert budget.room == pytest.approx(0.05)

    async def test_a_tier_that_is_free_is_asked_with_nothing_left(self, bench, fake, form):
        budget = Budget(1.05)
        b = bench(fake("c", billed(99, "#### 1"), billed(99, "#### 2")), fake("a", "4"), prices=ONE)
        plan = Plan((self.tiers_of(b), Tier.of(b.candidates("a"))))
        assert await answered(b, plan, asked(budget), form) == "4"

    def tiers_of(self, b):
        return Tier.of(b.candidates("c"), voting=Voting(target=0.9), samples=2)


class TestVotes:
    async def test_samples_that_the_rest_does_not_pay_are_not_drawn_and_those_drawn_count(self, bench, fake, form):
        """Each is billed twenty times what it may have."""
        budget = Budget(1.0)
        b = bench(fake("c", billed(20, "#### 4"), billed(20, "#### 5")), prices=ONE)
        b.backends["c"]._script = [billed(20, f"#### {number}") for number in range(20)]
        tier = Tier.of(b.candidates(), voting=Voting(draw="as_needed", target=0.2), samples=20)
        assert await answered(b, Plan((tier,)), asked(budget), form) == "#### 0"
        assert len(b.trace.attempts) < 20
        assert budget.spent <= 1.0 + 0.2 * b.backends["c"].most_in_flight
        assert "BudgetExceeded" in b.trace.tiers[0].verdict.reason

    async def test_what_nobody_can_foresee_is_asked_alone_first(self, bench, fake):
        """Without a bound and a forecast the first call has the rest for itself; then the others are known."""
        budget, together = Budget(100.0), []

        def answer(call):
            together.append(b.backends["c"].in_flight)
            return billed(10, "#### 4", 0.01)

        b = bench(fake("c", answer), prices=ONE)
        tier = Tier.of(b.candidates(), voting=Voting(draw="at_once", target=1.0), samples=5)
        assert await answered(b, Plan((tier,)), asked(budget, max_tokens=None), "whole") == "#### 4"
        assert together[:3] == [1, 1, 2]
        assert budget.spent == pytest.approx(0.1 * len(together))

    async def test_a_vote_whose_candidate_fails_reserves_the_next_ones_samples(self, bench, fake):
        budget = Budget(2.5)
        b = bench(fake("a", ServerFailed("down")), fake("b", "4"), prices=ONE)
        tier = Tier.of(b.candidates("a", "b"), voting=Voting(draw="at_once", target=1.0), samples=4)
        assert await answered(b, Plan((tier,)), asked(budget), "whole") == "4"
        assert (len(b.backends["b"].calls), budget.spent) == (2, 2.0)


class TestWrongForecasts:
    async def test_a_forecast_that_was_too_low_costs_no_more_than_the_calls_under_way(self, bench, fake, form):
        """Short answers are expected and long ones come: whoever has begun is answered, and nobody begins after that."""
        budget = Budget(1.0)
        b = bench(fake("c", billed(1), billed(1), billed(1), billed(50, wait=0.02)), prices=ONE)
        plan = Plan((Tier.of(b.candidates()),))
        for _ in range(3):
            await answered(b, plan, asked(budget), form)
        runs = [answered(b, plan, asked(budget, max_tokens=None), form) for _ in range(8)]
        await asyncio.gather(*runs)
        spent = budget.spent
        assert spent == pytest.approx(0.03 + 8 * 0.5)
        with pytest.raises(BudgetExceeded):
            await answered(b, plan, asked(budget, max_tokens=None), form)
        assert (budget.spent, budget.held) == (spent, 0)

    async def test_a_server_that_bills_beyond_max_tokens_is_not_believed_a_second_time(self, bench, fake, form):
        budget = Budget(1.0)
        b = bench(fake("c", billed(40, wait=0.005)), prices=ONE)
        plan = Plan((Tier.of(b.candidates()),))
        await answered(b, plan, asked(budget), form)
        runs = [answered(b, plan, asked(budget), form) for _ in range(20)]
        done = await asyncio.gather(*runs, return_exceptions=True)
        assert done.count("4") == 1  # two times 0.4 fit into a dollar
        assert budget.spent == pytest.approx(0.8)
        assert b.backends["c"].most_in_flight == 1

    async def test_a_server_that_keeps_to_its_limits_again_is_believed_again(self, bench, fake):
        b = bench(fake("c", billed(40), billed(1)), prices=ONE)
        plan, budget = Plan((Tier.of(b.candidates()),)), Budget(math.inf)
        request = LLMRequest.of("x", max_tokens=1)
        mosts = []
        for _ in range(30):
            await answered(b, plan, asked(budget), "whole")
            mosts.append(b.endpoints["c"].forecast.most(request, CENT)[0])
        assert mosts[0] == pytest.approx(0.4)
        assert mosts[-1] == pytest.approx(0.01)


async def test_tokens_are_covered_as_dollars_are(bench, fake):
    budget = Budget(math.inf, tokens=30)
    b = bench(fake("a", ServerFailed("down")), fake("b", billed(1)), prices=ONE)
    b.endpoints["a"].forecast.learn(LLMRequest.of("x" * 14), Usage(1, 1), 1, 0.0)
    b.endpoints["b"].forecast.learn(LLMRequest.of("x" * 14), Usage(14, 40), 1, 0.0)
    other = Reservation(budget)
    assert other.take(0.0, 20)
    request = asked(budget, max_tokens=None)
    waiting = asyncio.create_task(answered(b, Plan((Tier.of(b.candidates()),)), request, "whole"))
    await held_back(budget, waiting)
    assert b.backends["b"].calls == []
    other.settle(0.0, 0)
    assert await asyncio.wait_for(waiting, 60) == "4"


async def test_a_request_that_pays_between_its_calls_is_charged_once(bench, fake):
    """What it has used is charged before it waits, and only the rest at its end."""
    budget = Budget(1.0)
    held = await budget.reserve(0.1)
    b = bench(fake("c", billed(50, "#### 1"), billed(30, "#### 2")), fake("b", "4"), prices=ONE)
    plan = Plan((Tier.of(b.candidates("c"), voting=Voting(target=0.9), samples=2), Tier.of(b.candidates("c"))))
    waiting = asyncio.create_task(answered(b, plan, asked(budget), "whole"))
    held.settle(0.1)
    await waiting
    assert budget.spent == pytest.approx(0.1 + b.trace.cost)
    assert budget.room == pytest.approx(0.9 - b.trace.cost)


async def test_a_cancelled_wait_leaves_nothing_reserved(bench, fake):
    budget = Budget(1.0)
    other = await budget.reserve(0.5)
    b = bench(fake("a", RateLimited("busy")), fake("b", "4"), prices=ONE)
    waiting = asyncio.create_task(answered(b, Plan((Tier.of(b.candidates()),)), asked(budget), "whole"))
    await held_back(budget, waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    other.settle(0.0)
    assert (budget.room, budget.held, budget.waiting) == (1.0, 0, 0)


async def test_requests_that_have_begun_come_before_those_that_have_not(bench, fake):
    """Or what they have spent would be spent in vain: all could pay for the first tier, and nobody for the last."""
    budget = Budget(2.0)
    b = bench(fake("c", billed(50, "#### 1", 0.01), billed(50, "#### 2", 0.01)), fake("b", "4"), prices=ONE)
    plan = Plan((Tier.of(b.candidates("c"), samples=1, accept=refusing), Tier.of(b.candidates("b"))))
    runs = [answered(b, plan, asked(budget), "whole") for _ in range(4)]
    await asyncio.wait_for(asyncio.gather(*runs, return_exceptions=True), 60)
    assert len(b.backends["b"].calls) == 1
    assert budget.spent <= 2.0 + 1e-9
