"""A request makes no more calls than it may: plans are refused before the first, everything else ends at the limit."""

import pytest

from workflow_composer.answers.output_form import output_form
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.errors import RateLimited, ServerFailed, ServerUnreachable, TooManyCalls
from workflow_composer.execution.call import Trace
from workflow_composer.execution.member_run import RetryPolicy
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.plan import Plan, Tier, Voting
from workflow_composer.types import LLMRequest

PATIENT = RetryPolicy(attempts=50, base_delay=0.0, max_delay=0.0)


def limited(most, **fields):
    return LLMRequest.of("What is 2 + 2?", most_calls=most, **fields)


async def answered(b, plan, request, form):
    """Run a plan in one of the two ways."""
    trace = b.trace = Trace(None, request.most_calls)
    if form == "whole":
        return await b.executor.run(plan, request, trace)
    return [piece async for piece in StreamRun(b.executor, plan, request, trace).chunks()]


@pytest.fixture(params=["whole", "stream"])
def form(request):
    return request.param


class TestPlans:
    @pytest.mark.parametrize("draw", ["at_once", "as_needed"])
    async def test_a_plan_with_more_samples_is_refused_before_the_first_call(self, bench, fake, form, draw):
        """By its routing string, with the number over all its tiers."""
        b = bench(fake("small", "4"), fake("large", "4"))
        tiers = [
            Tier.of(b.candidates(name), name, samples=k, voting=Voting(draw=draw))
            for name, k in (("small", 5), ("large", 4))
        ]
        with pytest.raises(TooManyCalls, match=r"small_k5.*large_k4.* 9 calls \(5 \+ 4 samples\).* may make 8"):
            await answered(b, Plan(tuple(tiers)), limited(8), form)
        assert all(not backend.calls for backend in b.backends.values())
        await answered(b, Plan(tuple(tiers)), limited(9), form)

    async def test_several_answers_are_several_calls(self, bench, fake):
        """A server may need one call for each."""
        b = bench(fake("a", "4"))
        with pytest.raises(TooManyCalls):
            await b.executor.run(Plan((Tier.of(b.candidates()),)), limited(3, n=4), b.trace)
        assert b.backends["a"].calls == []

    async def test_without_a_limit_any_plan_runs(self, bench, fake):
        """As from Python and from the command line."""
        b = bench(fake("a", "4"))
        await answered(
            b, Plan((Tier.of(b.candidates(), samples=100, voting=Voting(stopping="fixed")),)), limited(None), "whole"
        )


class TestTheLimit:
    @pytest.mark.parametrize("error", [ServerFailed("x"), ServerUnreachable("x"), RateLimited("x")])
    async def test_retries_end_there(self, bench, fake, form, error):
        """With an error of its own, which lists the calls made."""
        b = bench(fake("a", error), retry=PATIENT, failures=100)
        with pytest.raises(TooManyCalls) as caught:
            await answered(b, Plan((Tier.of(b.candidates()),)), limited(7), form)
        assert len(caught.value.attempts) == len(b.backends["a"].calls) == 7

    async def test_fallbacks_end_there(self, bench, fake, form):
        """However many candidates are left."""
        b = bench(*(fake(f"m{n}", ServerUnreachable("x")) for n in range(9)), retry=RetryPolicy(1))
        with pytest.raises(TooManyCalls):
            await answered(b, Plan((Tier.of(b.candidates()),)), limited(4), form)
        assert b.names_tried() == ["m0", "m1", "m2", "m3"]

    async def test_the_retries_of_a_vote_end_there(self, bench, fake, form):
        """All its samples together, whether they are drawn at once or not."""
        b = bench(fake("a", ServerFailed("x")), retry=PATIENT, failures=1000)
        with pytest.raises(TooManyCalls):
            await answered(b, Plan((Tier.of(b.candidates(), samples=5, voting=Voting()),)), limited(12), form)
        assert len(b.backends["a"].calls) == 12

    async def test_redraws_of_a_form_end_there(self, bench, fake, form):
        """Replies that do not have the form are asked for again only so often."""
        b = bench(FakeBackend(*(f"no number {n}" for n in "abcdefghij"), name="a"))
        tier = Tier.of(b.candidates(), output_form=output_form("number"), retries=9)
        with pytest.raises(TooManyCalls):
            await answered(b, Plan((tier,)), limited(4), form)
        assert len(b.backends["a"].calls) == 4

    async def test_a_request_within_its_limit_is_answered(self, bench, fake, form):
        """The last call may still be the one that answers."""
        b = bench(fake("a", ServerFailed("x"), ServerFailed("x"), "4"), retry=PATIENT)
        await answered(b, Plan((Tier.of(b.candidates()),)), limited(3), form)
        assert len(b.trace.attempts) == 3

    async def test_a_probe_is_not_left_hanging(self, bench, fake):
        """A call that may not be made takes no place at the breaker."""
        b = bench(fake("a", ServerUnreachable("x")), failures=1, cooldown=0.0, retry=PATIENT)
        with pytest.raises(TooManyCalls):
            await answered(b, Plan((Tier.of(b.candidates()),)), limited(2), "whole")
        assert b.endpoints["a"].breaker.admit() is True
