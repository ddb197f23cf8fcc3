"""When the next candidate is asked at once, and where a prompt may not go: rate limits, refused keys, what a model lacks."""

from __future__ import annotations

import pytest

from workflow_composer.errors import AllCandidatesFailed, AuthenticationFailed, RateLimited, ServerFailed, Unsupported
from workflow_composer.execution.executor import PlanExecutor
from workflow_composer.execution.member_run import RetryPolicy
from workflow_composer.plan import Plan, Tier
from workflow_composer.types import LLMRequest, Verdict

ASK = LLMRequest.of("What is 2 + 2?")
PATIENT = RetryPolicy(3, 0.0, 5.0)


def one_tier(bench, *names, **options):
    return Plan((Tier.of(bench.candidates(*names), **options),))


async def test_a_rate_limit_is_waited_for_only_if_no_other_answers(bench, fake):
    b = bench(fake("a", RateLimited("slow", retry_after=4.0), "late"), fake("b", "4"), retry=PATIENT)
    assert (await b.executor.run(one_tier(b), ASK, b.trace)).candidate.name == "b"
    assert b.names_tried() == ["a", "b"]
    limited = RateLimited("slow", retry_after=0.05)
    b = bench(
        fake("a", limited, "late"), fake("b", ServerFailed("500"), ServerFailed("500"), ServerFailed("500")), retry=PATIENT
    )
    outcome = await b.executor.run(one_tier(b), ASK, b.trace)
    assert (outcome.candidate.name, b.names_tried()) == ("a", ["a", "b", "b", "b", "a"])


async def test_the_shortest_pause_that_a_server_asked_for_is_in_the_error(bench, fake):
    once = RetryPolicy(1, 0.0, 5.0)
    b = bench(fake("a", RateLimited("slow", retry_after=30.0)), fake("b", RateLimited("slow", retry_after=9.0)), retry=once)
    with pytest.raises(AllCandidatesFailed) as caught:
        await b.executor.run(one_tier(b), ASK, b.trace)
    assert 8.0 < caught.value.retry_after <= 9.0


def keys(bench, fake, *, allowed=True, **local):
    b = bench(*(fake(name, AuthenticationFailed("no") if name in "ax" else "4", local=here) for name, here in local.items()))
    b.executor = PlanExecutor(b.endpoints, retry=PATIENT, observer=b.observer, fallback_on_auth=allowed)
    return b


@pytest.mark.parametrize(
    ("models", "tried"),
    [
        ({"a": False, "b": False}, ["a", "b"]),
        ({"a": False, "b": True}, ["a", "b"]),
        ({"a": True, "b": True}, ["a", "b"]),
        ({"a": True, "b": False, "c": True}, ["a", "c"]),
    ],
)
async def test_a_refused_key_goes_to_the_next_that_sees_no_more(bench, fake, models, tried):
    b = keys(bench, fake, **models)
    await b.executor.run(one_tier(b), ASK, b.trace)
    assert b.names_tried() == tried


@pytest.mark.parametrize(
    ("models", "allowed"), [({"a": True, "b": False}, True), ({"a": False, "b": False}, False), ({"a": True}, True)]
)
async def test_a_refused_key_ends_the_request_where_no_other_may_answer(bench, fake, models, allowed):
    b = keys(bench, fake, allowed=allowed, **models)
    with pytest.raises(AuthenticationFailed):
        await b.executor.run(one_tier(b), ASK, b.trace)
    assert b.names_tried() == ["a"]


async def test_after_the_refused_key_of_a_local_model_no_failure_leads_to_the_cloud(bench, fake):
    b = bench(
        fake("a", AuthenticationFailed("no"), local=True),
        fake("b", *[ServerFailed("500")] * 3, local=True),
        fake("c", "4", local=False),
    )
    with pytest.raises(AllCandidatesFailed):
        await b.executor.run(one_tier(b), ASK, b.trace)
    assert "c" not in b.names_tried()


async def test_what_only_a_judge_asks_for_is_left_out_at_the_same_model(bench, fake):
    refusal = Unsupported("no logprobs")
    refusal.field = "logprobs"
    b = bench(fake("a", refusal, "4"), fake("b", "5"))
    outcome = await b.executor.run(one_tier(b, logprobs=2, accept=lambda samples: Verdict(True, 0.9)), ASK, b.trace)
    assert (outcome.candidate.name, [call.request.logprobs for call in b.backends["a"].calls]) == ("a", [True, False])


async def test_what_the_request_asks_for_goes_to_the_next_and_is_named_if_none_can(bench, fake):
    refusal = Unsupported("no tools")
    refusal.field = "tools"
    b = bench(fake("a", refusal), fake("b", "5"))
    assert (await b.executor.run(one_tier(b, logprobs=2), ASK, b.trace)).candidate.name == "b"
    b = bench(fake("a", refusal), fake("b", refusal))
    with pytest.raises(AllCandidatesFailed) as caught:
        await b.executor.run(one_tier(b), ASK, b.trace)
    assert caught.value.refusal.field == "tools"
