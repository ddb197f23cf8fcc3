"""Following an answer while it comes: what is abandoned, what it saves, and what never changes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.calibration.tokens import answers, rules, sure
from tests.unit.execution.conftest import Bench
from workflow_composer.backends.fake import FakeBackend, Interrupted
from workflow_composer.backends.pricing import Price
from workflow_composer.calibration.scores.acceptance import RuleAcceptance
from workflow_composer.calibration.scores.signals import FeedbackRules
from workflow_composer.errors import ServerFailed, ServerUnreachable, StreamInterrupted, Unsupported
from workflow_composer.execution.executor import LONGEST_ANSWER
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.plan import Plan, Tier
from workflow_composer.types import Chunk, LLMRequest, Sample, Verdict

ASK = LLMRequest.of("What is 2 + 2?")
CONFIDENT = sure(*[-0.01] * 10, text="good ")
DOUBTFUL = sure(-0.1, -0.1, -8.0, *[-0.1] * 7, text="bad ")
"""Hopeless from its third token on."""
ACCEPT = RuleAcceptance(FeedbackRules())


def watching(b, *names, accept=ACCEPT, everywhere=True, **options):
    return Tier.of(
        b.candidates(*names), names[0], accept=accept, logprobs=5, watch=accept.watch, watch_all=everywhere, **options
    )


def two_tiers(b, **options):
    return Plan((watching(b, "small", **options), Tier.of(b.candidates("large"), "large")))


async def stream(b, plan, request=ASK):
    """What a client gets, piece by piece, and the run."""
    run = StreamRun(b.executor, plan, request, b.trace)
    return [chunk async for chunk in run.chunks()], run


async def test_a_hopeless_answer_is_abandoned_and_the_next_tier_asked(bench, fake):
    """The call is closed at the server; the attempt says why, and what was heard is paid for."""
    b = bench(fake("small", DOUBTFUL), fake("large", "right"))
    outcome = await b.executor.run(two_tiers(b), ASK, b.trace)
    assert (outcome.samples[0].text, outcome.tier) == ("right", 1)
    assert b.backends["small"].cancelled == 1
    attempt = b.trace.attempts[0]
    assert (attempt.error_type, attempt.usage.completion_tokens) == ("Abandoned", 3)
    assert attempt.error == "abandoned after 3 tokens: lowest log-probability -8 < -5"
    assert b.observer.escalations == [(0, attempt.error)]
    assert b.trace.tiers[0].samples[0].text == "bad bad bad "


async def test_the_prompt_of_an_abandoned_call_is_paid_for_as_far_as_it_is_known(bench, fake):
    """Servers count it at the end of a stream only, so earlier answers of the model say how long prompts are."""
    b = bench(fake("small", CONFIDENT, DOUBTFUL), fake("large", "right"), prices={"small": Price(1.0, 1.0)})
    await b.executor.run(two_tiers(b), ASK, b.trace)
    await b.executor.run(two_tiers(b), ASK, b.trace)
    whole, abandoned = b.trace.attempts[0], b.trace.attempts[1]
    assert abandoned.usage.prompt_tokens == whole.usage.prompt_tokens > 0
    assert 0 < abandoned.cost < whole.cost


async def test_an_abandoned_call_speaks_neither_for_nor_against_the_server(bench, fake):
    b = bench(fake("small", DOUBTFUL), fake("large", "right"), failures=1)
    for _ in range(3):
        await b.executor.run(two_tiers(b), ASK, b.trace)
    assert b.endpoints["small"].breaker.state == "closed"


async def test_an_answer_that_is_accepted_is_the_same_as_without_a_watch(bench, fake):
    b = bench(fake("small", CONFIDENT), fake("large", "right"))
    outcome = await b.executor.run(two_tiers(b), ASK, b.trace)
    assert (outcome.samples[0], outcome.verdict) == (CONFIDENT, ACCEPT((CONFIDENT,)))
    assert b.backends["large"].calls == []


async def test_requests_are_watched_only_where_the_tier_says_so_and_streams_always(bench, fake):
    b = bench(fake("small", DOUBTFUL), fake("large", "right"))
    await b.executor.run(two_tiers(b, everywhere=False), ASK, b.trace)
    assert b.trace.attempts[0].error is None
    await stream(b, two_tiers(b, everywhere=False))
    assert b.trace.attempts[2].error_type == "Abandoned"


async def test_the_last_tier_is_never_abandoned(bench, fake):
    """Nobody else could be asked."""
    b = bench(fake("small", DOUBTFUL))
    outcome = await b.executor.run(Plan((watching(b, "small"),)), ASK, b.trace)
    assert (outcome.samples[0], outcome.verdict.accepted) == (DOUBTFUL, False)


@pytest.mark.parametrize("where", ["request", "plan", "tier"])
async def test_nothing_is_abandoned_where_a_budget_may_leave_nobody_to_ask(bench, fake, where):
    """A doubtful answer is better than none."""
    dear = {"small": Price(1.0, 1.0), "large": Price(1e9, 1e9)}
    b = bench(fake("small", DOUBTFUL), fake("large", "right"), prices=dear)
    budget = {where: 0.01}
    large = Tier.of(b.candidates("large"), "large", budget=budget.get("tier"))
    plan = Plan((watching(b, "small"), large), budget=budget.get("plan"))
    request = LLMRequest.of("What is 2 + 2?", budget=budget.get("request"))
    outcome = await b.executor.run(plan, request, b.trace)
    assert (outcome.samples[0], outcome.verdict.accepted) == (DOUBTFUL, False)
    assert len(b.backends["small"].calls) == 1


async def test_an_answer_is_not_abandoned_at_its_very_end(bench, fake):
    """Where log-probabilities come with the last piece there is nothing left to save, and an answer to keep."""

    class Late(FakeBackend):
        async def stream(self, call):
            yield Chunk("bad")
            yield Chunk(finish_reason="stop", logprobs=DOUBTFUL.logprobs)

    b = bench(Late(name="small"), fake("large", ServerUnreachable("down")))
    outcome = await b.executor.run(two_tiers(b), ASK, b.trace)
    assert (outcome.samples[0].text, outcome.verdict.accepted) == ("bad", False)


async def test_a_candidate_that_fails_on_the_way_is_replaced_and_heard_afresh(bench, fake):
    b = bench(fake("down", Interrupted("bad bad", ServerFailed("died"))), fake("small", CONFIDENT), fake("large", "x"))
    outcome = await b.executor.run(Plan((watching(b, "down", "small"), Tier.of(b.candidates("large")))), ASK, b.trace)
    assert (outcome.samples[0], outcome.fallback_depth) == (CONFIDENT, 1)


@pytest.mark.parametrize(
    ("request_limit", "context", "longest"), [(7, None, 7), (None, 50, 50), (60, 50, 50), (None, None, LONGEST_ANSWER)]
)
async def test_the_watch_is_told_how_long_the_answer_can_become(bench, fake, request_limit, context, longest):
    told = []

    class Deaf:
        def hear(self, tokens):
            return None

    def start(limit):
        told.append(limit)
        return Deaf()

    b = bench(fake("small", CONFIDENT), fake("large", "x"), lengths={"small": context})
    tier = Tier.of(b.candidates("small"), accept=ACCEPT, watch=start, watch_all=True)
    request = LLMRequest.of("x", max_tokens=request_limit)
    await b.executor.run(Plan((tier, Tier.of(b.candidates("large")))), request, b.trace)
    assert told == [longest]


async def test_a_deadline_holds_for_a_watched_tier_too(bench, fake):
    async def never(call):
        await asyncio.Event().wait()

    b = bench(fake("small", never), fake("large", "right"))
    outcome = await b.executor.run(two_tiers(b, deadline=0.01), ASK, b.trace)
    assert outcome.samples[0].text == "right"


class TestWithoutLogprobs:
    @staticmethod
    def refusing(*texts, **options):
        """A model that cannot give log-probabilities and says so."""

        def answer(call):
            return Unsupported("no log-probabilities") if call.request.logprobs else texts[0]

        return FakeBackend(answer, **options)

    @pytest.mark.parametrize("everywhere", [False, True])
    async def test_who_cannot_give_what_only_the_tier_wants_is_asked_without(self, bench, everywhere):
        b = bench(self.refusing("4", name="small"), self.refusing("5", name="large"))
        outcome = await b.executor.run(
            two_tiers(b, accept=RuleAcceptance(FeedbackRules(), True), everywhere=everywhere), ASK, b.trace
        )
        assert (outcome.samples[0].text, outcome.verdict.confidence, outcome.verdict.accepted) == ("4", None, True)
        assert [call.request.logprobs for call in b.backends["small"].calls] == [True, False]

    async def test_the_last_tier_is_asked_without_too_also_live(self, bench):
        b = bench(self.refusing("4", name="small"))
        plan = Plan((watching(b, "small"),))
        assert (await b.executor.run(plan, ASK, b.trace)).samples[0].text == "4"
        chunks, _ = await stream(b, plan)
        assert "".join(chunk.text for chunk in chunks) == "4"

    async def test_what_the_client_wants_is_not_dropped(self, bench):
        """The request itself asks for log-probabilities: who has none cannot answer it."""
        b = bench(self.refusing("4", name="small"), FakeBackend(CONFIDENT, name="large"))
        request = LLMRequest.of("x", logprobs=True, top_logprobs=5)
        outcome = await b.executor.run(two_tiers(b), request, b.trace)
        assert outcome.samples[0].logprobs == CONFIDENT.logprobs

    async def test_the_candidate_behind_is_asked_with_them_again(self, bench):
        down = FakeBackend(Unsupported("no log-probabilities"), ServerUnreachable("down"), name="down")
        b = bench(down, FakeBackend(CONFIDENT, name="small"), FakeBackend("x", name="large"))
        plan = Plan((watching(b, "down", "small"), Tier.of(b.candidates("large"))))
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert outcome.samples[0] == CONFIDENT
        assert b.backends["small"].calls[0].request.logprobs

    async def test_a_field_that_the_backend_cannot_honour_otherwise_is_still_refused(self, bench, fake):
        b = bench(fake("small", Unsupported("no seed")), fake("large", "4"))
        outcome = await b.executor.run(two_tiers(b), ASK, b.trace)
        assert outcome.samples[0].text == "4"
        assert b.names_tried() == ["small", "small", "large"]


class TestWhenUnknown:
    async def test_an_answer_that_tells_nothing_is_replaced_by_a_vote(self, bench, fake):
        b = bench(fake("small", Sample("4", logprobs=())), fake("large", "x"))
        asked_again = Tier.of(b.candidates("small"), "small", accept=lambda samples: Verdict(True, 0.8, "voted"))
        outcome = await b.executor.run(two_tiers(b, when_unknown=asked_again), ASK, b.trace)
        assert (outcome.verdict.reason, outcome.tier, len(b.backends["small"].calls)) == ("voted", 0, 2)

    @pytest.mark.parametrize("sample", [CONFIDENT, DOUBTFUL])
    async def test_an_answer_that_tells_something_is_judged_by_that(self, bench, fake, sample):
        b = bench(fake("small", sample), fake("large", "x"))
        asked_again = Tier.of(b.candidates("small"), "small", accept=lambda samples: Verdict(True, 0.8, "voted"))
        await b.executor.run(two_tiers(b, when_unknown=asked_again), ASK, b.trace)
        assert len(b.backends["small"].calls) == 1


class TestStreams:
    async def test_a_client_never_sees_what_was_abandoned(self, bench, fake):
        b = bench(fake("small", DOUBTFUL), fake("large", "one right answer"))
        chunks, run = await stream(b, two_tiers(b))
        assert [chunk.text for chunk in chunks if chunk.text] == ["one", " right", " answer"]
        assert run.outcome.tier == 1

    async def test_an_accepted_answer_arrives_in_one_piece(self, bench, fake):
        b = bench(fake("small", CONFIDENT), fake("large", "x"))
        chunks, _ = await stream(b, two_tiers(b))
        assert [chunk.text for chunk in chunks] == [CONFIDENT.text]

    async def test_what_was_sent_live_is_never_replaced(self, bench, fake):
        """The last tier breaks in mid-answer: an error, not the first tier's words."""
        small = Sample("doubtful", logprobs=sure(-8.0).logprobs)
        b = bench(fake("small", small), fake("large", Interrupted("one right", ServerFailed("died"))))
        with pytest.raises(StreamInterrupted):
            await stream(b, Plan((Tier.of(b.candidates("small"), accept=ACCEPT), Tier.of(b.candidates("large")))))


scripts = answers(8).map(lambda tokens: Sample("x " * len(tokens), "stop", logprobs=tuple(tokens)))
ends = st.sampled_from([None, None, None, ServerUnreachable("down")])


@settings(deadline=None)
@given(scripts, scripts, ends, rules(), st.sampled_from([None, 8, 20]), st.booleans())
def test_a_watch_changes_what_is_paid_and_nothing_else(first, second, failure, limits, longest, unknown):
    """For any answers of three tiers, the second of which may be down, and any rules: the same answer, no dearer."""
    accept = RuleAcceptance(limits, accept_unknown=unknown)

    async def run(watch, live):
        backends = (FakeBackend(first, name="a"), FakeBackend(failure or second, name="b"), FakeBackend("end", name="c"))
        b = Bench(*backends, prices={name: Price(1.0, 1.0) for name in "abc"})
        tiers = [watching(b, name, accept=accept, everywhere=watch) for name in "ab"]
        plan = Plan((*tiers, Tier.of(b.candidates("c"), "c")))
        request = LLMRequest.of("x", max_tokens=longest)
        if not live:
            outcome = await b.executor.run(plan, request, b.trace)
            return outcome.answer.text, outcome.tier, outcome.verdict.accepted, b.trace.cost
        chunks, made = await stream(b, plan, request)
        assert "".join(chunk.text for chunk in chunks) == made.outcome.answer.text
        return made.outcome.answer.text, made.outcome.tier, made.outcome.verdict.accepted, b.trace.cost

    *plain, cost = asyncio.run(run(watch=False, live=False))
    for live in (False, True):
        *watched, paid = asyncio.run(run(watch=True, live=live))
        assert watched == plain
        assert paid <= cost + 1e-12
