"""Fallback within a tier, escalation over tiers, and what is written down about both."""

import asyncio

import pytest

from workflow_composer.backends.fake import Delay
from workflow_composer.backends.pricing import Price
from workflow_composer.errors import (
    AllCandidatesFailed,
    BadRequest,
    ContextOverflow,
    DeadlineExceeded,
    EgressDenied,
    LocalModelUnavailable,
    RateLimited,
    ServerFailed,
    ServerUnreachable,
    Unsupported,
)
from workflow_composer.execution.call import Trace
from workflow_composer.execution.member_run import RetryPolicy
from workflow_composer.plan import Plan, Tier
from workflow_composer.types import Completion, LLMRequest, Sample, Timeouts, Usage, Verdict

ASK = LLMRequest.of("What is 2 + 2?")


def one_tier(bench, *names, **options):
    return Plan((Tier.of(bench.candidates(*names), **options),))


def accept_only(text):
    def accept(samples):
        good = samples[0].text == text
        return Verdict(good, 0.9 if good else 0.2, "as wanted" if good else "doubtful")

    return accept


class TestFallback:
    async def test_the_first_candidate_that_works_answers(self, bench, fake):
        """No further candidate is called once one has answered."""
        b = bench(fake("a", "4"), fake("b", "5"))
        outcome = await b.executor.run(one_tier(b), ASK, b.trace)
        assert (outcome.samples[0].text, outcome.candidate.name, outcome.fallback_depth) == ("4", "a", 0)
        assert b.backends["b"].calls == []

    async def test_a_failing_candidate_is_retried_and_then_left_for_the_next(self, bench, fake):
        """Three calls to the one that is down, then the next; the depth counts candidates, not calls."""
        b = bench(fake("a", ServerUnreachable("down")), fake("b", "4"))
        outcome = await b.executor.run(one_tier(b), ASK, b.trace)
        assert b.names_tried() == ["a", "a", "a", "b"]
        assert (outcome.candidate.name, outcome.fallback_depth, outcome.tier) == ("b", 1, 0)
        assert b.observer.fallbacks == [("a", "ServerUnreachable", "b")]

    async def test_a_passing_failure_is_retried_without_fallback(self, bench, fake):
        """One bad answer of the server does not change the candidate."""
        b = bench(fake("a", ServerFailed("500"), "4"), fake("b", "5"))
        outcome = await b.executor.run(one_tier(b), ASK, b.trace)
        assert (outcome.candidate.name, b.names_tried(), b.observer.fallbacks) == ("a", ["a", "a"], [])

    @pytest.mark.parametrize("error", [BadRequest("no"), EgressDenied("no")])
    async def test_what_no_other_can_mend_ends_the_request_at_once(self, bench, fake, error):
        """A bad request and a forbidden host are tried once and nowhere else."""
        b = bench(fake("a", error), fake("b", "4"))
        with pytest.raises(type(error)):
            await b.executor.run(one_tier(b), ASK, b.trace)
        assert b.names_tried() == ["a"]

    async def test_what_a_backend_cannot_do_goes_to_the_next_without_a_retry(self, bench, fake):
        """A field that one backend cannot honour may be honoured by another."""
        b = bench(fake("a", Unsupported("no seed")), fake("b", "4"))
        await b.executor.run(one_tier(b), ASK, b.trace)
        assert b.names_tried() == ["a", "b"]

    async def test_an_overflow_goes_only_to_a_longer_context(self, bench, fake):
        """Candidates whose context is known to be no longer are passed over."""
        lengths = {"short": 8, "same": 8, "long": 9}
        b = bench(fake("short", ContextOverflow("too long")), fake("same", "x"), fake("long", "4"), lengths=lengths)
        outcome = await b.executor.run(one_tier(b), ASK, b.trace)
        assert b.names_tried() == ["short", "long"]
        assert outcome.candidate.name == "long"

    async def test_an_overflow_with_nothing_longer_says_so(self, bench, fake):
        """The one error carries the overflow as the cause."""
        b = bench(fake("short", ContextOverflow("too long")), fake("same", "x"), lengths={"short": 8, "same": 8})
        with pytest.raises(AllCandidatesFailed, match="short: too long"):
            await b.executor.run(one_tier(b), ASK, b.trace)

    async def test_when_all_fail_one_error_lists_every_attempt(self, bench, fake):
        """Each with its cause, in order."""
        b = bench(fake("a", ServerUnreachable("refused")), fake("b", Unsupported("no tools")))
        with pytest.raises(AllCandidatesFailed) as caught:
            await b.executor.run(one_tier(b), ASK, b.trace)
        assert [(a.name, a.error) for a in caught.value.attempts] == [("a", "refused")] * 3 + [("b", "no tools")]
        assert "a: refused" in str(caught.value)
        assert "b: no tools" in str(caught.value)

    async def test_where_the_cloud_is_forbidden_the_error_says_that_nothing_was_sent_out(self, bench, fake):
        """A profile without the cloud ends in `LocalModelUnavailable`, whatever failed."""
        b = bench(fake("a", ServerUnreachable("refused")), local_only=True)
        with pytest.raises(LocalModelUnavailable, match="nothing was sent to one") as caught:
            await b.executor.run(one_tier(b), ASK, b.trace)
        assert str(caught.value).count("refused") == 3  # once per attempt

    async def test_a_fault_in_a_backends_code_is_a_failed_call(self, bench, fake):
        """A plugin's bug does not keep another candidate from answering, and is named."""
        b = bench(fake("a", KeyError("oops")), fake("b", "4"))
        outcome = await b.executor.run(one_tier(b), ASK, b.trace)
        assert outcome.candidate.name == "b"
        assert "FakeBackend raised KeyError" in b.trace.attempts[0].error

    async def test_an_answer_without_choices_is_a_failed_call(self, bench, fake):
        """An empty list of samples is not an answer."""
        b = bench(fake("a", Completion(samples=(), usage=Usage(), model="m")), fake("b", "4"))
        assert (await b.executor.run(one_tier(b), ASK, b.trace)).candidate.name == "b"


class TestTooManyRequests:
    async def test_a_short_pause_asked_for_is_kept(self, bench, fake):
        """`Retry-After` is the least that is waited."""
        b = bench(fake("a", RateLimited("slow", retry_after=0.05), "4"), retry=RetryPolicy(3, 0.0, 1.0))
        await b.executor.run(one_tier(b), ASK, b.trace)
        assert b.names_tried() == ["a", "a"]
        assert b.trace.waited >= 0.05

    async def test_a_long_pause_falls_back(self, bench, fake):
        """Another candidate is preferred to waiting beyond the policy's longest delay."""
        b = bench(fake("a", RateLimited("slow", retry_after=30.0)), fake("b", "4"))
        outcome = await b.executor.run(one_tier(b), ASK, b.trace)
        assert (outcome.candidate.name, b.names_tried()) == ("b", ["a", "b"])


class TestTime:
    async def test_a_call_past_its_total_time_falls_back(self, bench, fake):
        """The executor itself ends a call that a backend lets run on."""

        async def never(call):
            await asyncio.Event().wait()

        b = bench(fake("a", never), fake("b", "4"), timeouts=Timeouts(0.05, 0.05, 0.05))
        outcome = await b.executor.run(one_tier(b), ASK, b.trace)
        assert outcome.candidate.name == "b"
        assert b.trace.attempts[0].error_type == "CallTimeout"

    async def test_the_deadline_covers_all_attempts(self, bench, fake):
        """When the request's time is over, no further candidate is asked."""
        b = bench(fake("a", Delay(5.0, "x")), fake("b", "4"))
        trace = Trace(0.05)
        with pytest.raises(DeadlineExceeded):
            await b.executor.run(one_tier(b), ASK, trace)
        assert [a.name for a in trace.attempts] == ["a"]

    async def test_backends_are_told_the_time_that_is_left(self, bench, fake):
        """A call's times are cut to the request's deadline."""
        b = bench(fake("a", "4"))
        await b.executor.run(one_tier(b), ASK, Trace(0.5))
        times = b.backends["a"].calls[0].timeouts
        assert times.total <= 0.5
        assert times.connect <= 0.5

    async def test_cancellation_reaches_the_backend_and_is_written_down(self, bench, fake):
        """The task that awaits the answer may be cancelled; the attempt is recorded as such."""
        b = bench(fake("a", Delay(60.0, "x")), timeouts=Timeouts(60, 60, 60))
        task = asyncio.ensure_future(b.executor.run(one_tier(b), ASK, b.trace))
        while not b.backends["a"].in_flight:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert b.backends["a"].cancelled == 1
        assert b.trace.attempts[0].error_type == "CancelledError"


class TestEscalation:
    async def test_a_doubtful_answer_goes_to_the_next_tier(self, bench, fake):
        """Escalation is counted apart from fallback."""
        b = bench(fake("small", "5"), fake("large", "4"))
        plan = Plan(tuple(Tier.of(b.candidates(name), accept=accept_only("4")) for name in ("small", "large")))
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert (outcome.candidate.name, outcome.tier, outcome.fallback_depth) == ("large", 1, 0)
        assert b.observer.escalations == [(0, "doubtful")]
        assert outcome.verdict.confidence == 0.9

    async def test_the_last_tiers_answer_is_taken_and_marked(self, bench, fake):
        """An answer that no tier accepted is returned as not accepted."""
        b = bench(fake("small", "5"), fake("large", "6"))
        plan = Plan(tuple(Tier.of(b.candidates(name), accept=accept_only("4")) for name in ("small", "large")))
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert (outcome.samples[0].text, outcome.verdict.accepted) == ("6", False)

    async def test_a_tier_that_is_down_hands_over(self, bench, fake):
        """Its failed calls are not escalation by doubt, and the verdict says so."""
        b = bench(fake("small", Unsupported("no")), fake("large", "4"))
        plan = Plan((Tier.of(b.candidates("small")), Tier.of(b.candidates("large"))))
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert (outcome.tier, b.observer.escalations) == (1, [(0, "every candidate failed")])

    async def test_a_doubtful_answer_is_better_than_none(self, bench, fake):
        """Where the stronger tier is down, the weaker one's answer is returned, not accepted."""
        b = bench(fake("small", "5"), fake("large", Unsupported("no")))
        plan = Plan((Tier.of(b.candidates("small"), accept=accept_only("4")), Tier.of(b.candidates("large"))))
        outcome = await b.executor.run(plan, ASK, b.trace)
        assert (outcome.samples[0].text, outcome.tier, outcome.verdict.accepted) == ("5", 0, False)

    async def test_a_tier_draws_its_samples_at_its_temperature(self, bench, fake):
        """Samples and temperature reach the backend in one call."""
        b = bench(fake("a", ["4", "5", "4"]))
        outcome = await b.executor.run(one_tier(b, samples=3, temperature=0.7), ASK, b.trace)
        call = b.backends["a"].calls[0]
        assert (call.samples, call.temperature, [s.text for s in outcome.samples]) == (3, 0.7, ["4", "5", "4"])


class TestCost:
    async def test_failed_and_rejected_calls_are_paid_for(self, bench, fake):
        """The cost of a run is the sum over every attempt that used tokens."""
        answer = Completion(samples=(Sample("5"),), usage=Usage(100, 10), model="m")
        b = bench(fake("small", answer), fake("large", answer), prices={"small": Price(1, 1), "large": Price(10, 10)})
        plan = Plan(tuple(Tier.of(b.candidates(name), accept=accept_only("4")) for name in ("small", "large")))
        await b.executor.run(plan, ASK, b.trace)
        assert b.trace.cost == pytest.approx(110 * 11 / 1e6)
        assert b.trace.usage == Usage(200, 20)

    async def test_gpu_time_is_paid_also_when_the_call_fails(self, bench, fake):
        """A server priced by the hour costs while it works, whatever comes of it."""
        b = bench(fake("a", Delay(0.05, Unsupported("no"))), prices={"a": Price(gpu_hour=3600.0)})
        with pytest.raises(AllCandidatesFailed):
            await b.executor.run(one_tier(b), ASK, b.trace)
        assert b.trace.cost >= 0.05


class TestBreaker:
    async def test_an_open_breaker_makes_the_fallback_immediate(self, bench, fake):
        """After enough failures the endpoint is not called, and the attempt says why."""
        b = bench(fake("a", ServerUnreachable("down")), fake("b", "4"), failures=2)
        for _ in range(2):
            await b.executor.run(one_tier(b), ASK, Trace())
        calls = len(b.backends["a"].calls)
        await b.executor.run(one_tier(b), ASK, b.trace)
        assert len(b.backends["a"].calls) == calls == 4  # three tries, and one that opens it
        assert b.trace.attempts[-2].error_type == "CircuitOpen"

    @pytest.mark.parametrize("form", ["complete", "embed"])
    async def test_a_call_cut_by_its_requests_own_limit_is_nobodys_failure(self, bench, fake, form):
        """However many requests are impatient, the breaker stays closed; the profile's own limit still opens it."""
        slow = fake("a", Delay(30.0, "late"))
        if form == "embed":

            async def late(texts, **_):
                await asyncio.sleep(30.0)

            slow.embed = late
        b = bench(slow, failures=3, timeouts=Timeouts(1.0, 1.0, 0.3), retry=RetryPolicy(attempts=1))

        async def ask(seconds):
            trace = Trace(seconds)
            with pytest.raises(AllCandidatesFailed):
                if form == "embed":
                    await b.executor.embed(b.candidates("a")[0], ["x"], ASK, trace)
                else:
                    await b.executor.run(one_tier(b), ASK, trace)

        for _ in range(6):
            await ask(0.01)
        assert b.endpoints["a"].breaker.state == "closed"
        for _ in range(3):
            await ask(None)
        assert b.endpoints["a"].breaker.state == "open"

    async def test_an_impatient_probe_leaves_the_place_to_another(self, bench, fake):
        """A half-open breaker's one probe that ended at its own limit has said nothing; the next request may try."""
        b = bench(
            fake("a", ServerUnreachable("down"), Delay(30.0, "late"), "4"),
            failures=1,
            cooldown=0.0,
            retry=RetryPolicy(attempts=1),
        )
        with pytest.raises(AllCandidatesFailed):
            await b.executor.run(one_tier(b), ASK, b.trace)
        with pytest.raises(AllCandidatesFailed):
            await b.executor.run(one_tier(b), ASK, Trace(0.01))
        outcome = await b.executor.run(one_tier(b), ASK, Trace(None))
        assert outcome.samples[0].text == "4"


@pytest.mark.parametrize("tokens", [-1, 2**40 + 1, 2**64, 1e308, float("nan"), "abc", None])
@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
async def test_what_a_backend_claims_to_have_used_is_unknown_where_it_cannot_be(bench, fake, tokens, cost):
    """A plugin's figures are checked as a server's are: later requests are priced and forecast as if none had come."""
    b = bench(
        fake("a", Completion(samples=(Sample("4"),), usage=Usage(5, tokens), model="m", cost=cost)),
        prices={"a": Price(1.0, 1.0)},
    )
    await b.executor.run(one_tier(b), ASK, b.trace)
    prompt = len("What is 2 + 2?") / 4
    assert b.trace.usage == Usage(round(prompt), 1, estimated=True)
    assert b.trace.cost == pytest.approx((round(prompt) + 1) / 1e6)
    assert b.endpoints["a"].forecast.expect(ASK).usage.prompt_tokens >= 0


class TestEmbeddings:
    async def test_embeddings_are_retried_with_the_same_model_only(self, bench, fake):
        """Vectors of another model could not be compared."""
        state = {"failed": False}

        def vector(text):
            if not state["failed"]:
                state["failed"] = True
                raise ServerFailed("once")
            return (1.0, 2.0)

        b = bench(fake("a", vector=vector), prices={"a": Price(1.0, 1.0)})
        found = await b.executor.embed(b.candidates("a")[0], ["x"], ASK, b.trace)
        assert (found.vectors, found.candidate, b.names_tried()) == (((1.0, 2.0),), "a", ["a", "a"])
        assert found.cost == b.trace.cost > 0
