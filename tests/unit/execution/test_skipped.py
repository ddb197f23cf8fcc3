"""A tier that was not run is called skipped, with the reason; failed is only a tier whose calls failed."""

from __future__ import annotations

import pytest

from tests.unit.execution.test_cascades import cascade, says
from workflow_composer.backends.pricing import Price
from workflow_composer.errors import AllCandidatesFailed, BudgetExceeded, ServerUnreachable
from workflow_composer.execution.call import Trace
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.plan import Plan
from workflow_composer.runtime.decision_text import told
from workflow_composer.types import LLMRequest

DEAR = Price(1000.0, 1000.0)
POOR = LLMRequest.of("What is 2 + 2?", max_tokens=4, budget=0.001)


async def run(b, plan, request, form):
    """The answer's verdict, of a whole answer or of a stream."""
    if form == "whole":
        return (await b.executor.run(plan, request, b.trace)).verdict
    stream = StreamRun(b.executor, plan, request, b.trace)
    async for _ in stream.chunks():
        pass
    return stream.outcome.verdict


def texts(b, plan):
    """What the debug line says of the tiers."""
    return told(plan, b.trace)["tiers"]


@pytest.mark.parametrize("form", ["whole", "stream"])
async def test_a_tier_between_two_others_that_costs_too_much(bench, fake, form):
    """The first answer is doubtful, the second tier too dear, and the third one answers."""
    b = bench(fake("a", says(1, 2)), fake("b", says(9)), fake("c", says(7)), prices={"b": DEAR})
    plan = cascade(b, ("a", 2), ("b", 1), ("c", 1))
    await run(b, plan, POOR, form)
    assert list(b.trace.skipped) == [1]
    assert [tier.tier for tier in b.trace.tiers] == [0, 2]
    _, second, _ = texts(b, plan)
    assert second.startswith("b: skipped: b would probably cost $")


@pytest.mark.parametrize("form", ["whole", "stream"])
async def test_the_last_tier_that_costs_too_much_is_named_in_the_answers_reason(bench, fake, form):
    """So that who reads why the answer is not accepted learns that a better one was possible."""
    b = bench(fake("a", says(1, 2)), fake("b", says(9)), prices={"b": DEAR})
    plan = cascade(b, ("a", 2), ("b", 1))
    verdict = await run(b, plan, POOR, form)
    assert not verdict.accepted
    assert "; a tier was skipped: b would probably cost $" in verdict.reason
    assert texts(b, plan)[1].startswith("b: skipped: ")


async def test_an_accepted_answer_says_nothing_of_tiers_that_were_not_reached(bench, fake):
    """They were not skipped: nobody needed them."""
    b = bench(fake("a", says(1)), fake("b", says(9)), prices={"b": DEAR})
    plan = cascade(b, ("a", 2), ("b", 1))
    assert (await run(b, plan, POOR, "whole")).accepted
    assert b.trace.skipped == {}
    assert len(texts(b, plan)) == 1


async def test_where_no_tier_runs_every_one_is_skipped(bench, fake):
    """And the error says so."""
    b = bench(fake("a", says(1)), fake("b", says(9)), prices={"a": DEAR, "b": DEAR})
    plan = cascade(b, ("a", 2), ("b", 1))
    with pytest.raises(BudgetExceeded, match=r"every tier was skipped: b would probably cost \$"):
        await run(b, plan, POOR, "whole")
    assert [text.partition(": ")[2][:8] for text in texts(b, plan)] == ["skipped:", "skipped:"]


async def test_after_a_tier_that_failed_only_the_rest_is_skipped(bench, fake):
    """Both words in one error, each for its own tier."""
    b = bench(fake("a", ServerUnreachable("down")), fake("b", says(9)), prices={"b": DEAR})
    plan = cascade(b, ("a", 2), ("b", 1))
    with pytest.raises(BudgetExceeded, match="the rest was skipped: b would"):
        await run(b, plan, POOR, "whole")
    first, second = texts(b, plan)
    assert "every candidate failed" in first
    assert "skipped" in second


async def test_a_tier_whose_models_are_suspended_is_skipped_not_failed(bench, fake):
    """No call to it was made."""
    b = bench(fake("a", ServerUnreachable("down")), fake("b", says(9)), failures=1)
    plan = cascade(b, ("a", 2), ("b", 1))
    await b.executor.run(plan, LLMRequest.of("x"), b.trace)
    assert b.trace.tiers[0].verdict.reason == "every candidate failed"
    calls, b.trace = len(b.backends["a"].calls), Trace()
    await b.executor.run(plan, LLMRequest.of("x"), b.trace)
    assert len(b.backends["a"].calls) == calls
    assert b.trace.tiers[0].verdict.reason == "skipped: calls to all of its models are suspended"
    assert [reason for _, reason in b.observer.escalations][-1].startswith("skipped: ")


async def test_a_gap_before_an_accepted_answer_is_called_by_its_name(bench, fake):
    """A guarantee over all tiers does not hold if one was skipped, and none failed."""
    b = bench(fake("a", says(1)), fake("b", says(9)), prices={"a": DEAR})
    plan = Plan(cascade(b, ("a", 1), ("b", 1)).tiers, gapless=True)
    verdict = await run(b, plan, POOR, "whole")
    assert not verdict.accepted
    assert "an earlier tier has not answered: tier a was skipped: a would probably cost $" in verdict.reason


async def test_a_last_tier_that_is_suspended_still_fails_the_request(bench, fake):
    """Its error lists why."""
    b = bench(fake("a", ServerUnreachable("down")), failures=1)
    for _ in range(2):
        b.trace = Trace()
        with pytest.raises(AllCandidatesFailed):
            await b.executor.run(cascade(b, ("a", 2)), LLMRequest.of("x"), b.trace)
    assert b.trace.attempts[-1].error_type == "CircuitOpen"
