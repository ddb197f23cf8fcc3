"""The one executor: it runs any `Plan`, whoever made it.

Two axes, counted apart. Within a tier, candidates are tried while *calls fail* (fallback). Over tiers, the next is asked
while *answers are not accepted* (escalation). A tier whose candidates all failed hands over to the next one, too; if none
is left, an earlier answer that was not accepted is returned as such; where there is none, one error lists every attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from workflow_composer.cascade.ascent import Ascent
from workflow_composer.cascade.attempt import MeteredCall, Observer, Walk, within
from workflow_composer.cascade.bound import Bounded
from workflow_composer.cascade.endpoint import Endpoint
from workflow_composer.cascade.judging import judged
from workflow_composer.cascade.polling import GivenUp, Poll
from workflow_composer.cascade.retry import Deadline, RetryPolicy
from workflow_composer.cascade.trace import Outcome, Trace
from workflow_composer.cascade.voting import ballot_of
from workflow_composer.cascade.watching import watched
from workflow_composer.errors import (
    AllCandidatesFailed,
    DeadlineExceeded,
    LocalModelUnavailable,
    ModelError,
    ServerFailed,
    Unsupported,
)
from workflow_composer.types import (
    ALWAYS,
    Candidate,
    Completion,
    Embeddings,
    LLMRequest,
    ModelCall,
    Plan,
    Sample,
    Tier,
    Timeouts,
    Verdict,
)


class PlanExecutor:
    """Runs plans against the endpoints of one snapshot. Streams are run by `workflow_composer.cascade.streaming`.

    ``local_only`` says that the profile forbids the cloud; it makes the last error say that nothing was sent elsewhere.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        *,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        observer: Observer | None = None,
        local_only: bool = False,
    ) -> None:
        self.endpoints = endpoints
        self.timeouts = timeouts or Timeouts()
        self.observer = observer
        self._retry = retry or RetryPolicy()
        self._local_only = local_only

    async def run(self, plan: Plan, request: LLMRequest, trace: Trace) -> Outcome:
        """Run ``plan`` to an answer.

        Raises `AllCandidatesFailed` (or `DeadlineExceeded`) when no tier gave one; a `ModelError` that no other candidate
        can mend (a bad request, a wrong key) comes through as it is.
        """
        if request.n > 1:
            refuse_several(plan, request)
        tiers = plan.tiers
        first = tiers[0]
        if (
            len(tiers) == 1
            and first.voting is None
            and not first.name
            and plan.budget is first.budget is None
            and (request.budget is None or self._estimate(first, request) <= request.budget)
        ):
            # By far the most frequent plan; what only several tiers need would add a tenth to the core's work.
            try:
                return await self.run_tier(0, first, request, trace)
            except AllCandidatesFailed as error:
                raise self.failure(error, trace) from None
        ascent = self.ascent(plan, request, trace)
        for index, tier in ascent.tiers():
            watch = tier.watch_all and ascent.may_abandon
            try:
                ascent.answered(await self.run_tier(index, tier, request, trace, last=ascent.is_last(index), watch=watch))
            except AllCandidatesFailed as error:
                ascent.failed(index, self.failure(error, trace))
        return ascent.outcome()

    async def run_tier(
        self, index: int, tier: Tier, request: LLMRequest, trace: Trace, *, last: bool = True, watch: bool = False
    ) -> Outcome:
        """Ask one tier's candidates in order until one answers; raises `AllCandidatesFailed` where none does.

        A tier that is not the last is given up at its deadline; the votes that have come by then are kept. ``watch``:
        follow the answer while it comes, and abandon it where the tier's watch says so.
        """
        if tier.voting is not None:
            return await self._vote(index, tier, request, trace, last=last)
        if tier.deadline is not None and not last:
            return await self._run_in_time(index, tier, request, trace, tier.deadline, watch=watch)
        if tier.watch is not None and watch and not last:
            outcome = await watched(self, index, tier, request, trace)
        else:
            outcome = await self._ask(index, tier, request, trace)
        verdict = outcome.verdict
        if tier.when_unknown is not None and verdict.confidence is None and outcome.whole and not verdict.accepted:
            return await self.run_tier(index, tier.when_unknown, request, trace, last=last)
        return outcome

    async def _ask(self, index: int, tier: Tier, request: LLMRequest, trace: Trace) -> Outcome:
        call, walk = self.call(tier, request), self.walk(index, tier, request, trace)
        while (candidate := walk.next()) is not None:
            try:
                done = await self.attempt(self.endpoints[candidate.name], call, walk)
            except ModelError as error:
                call = await self.after(error, call, tier, request, walk)
            else:
                return Outcome(
                    done.samples, done.model, candidate, index, walk.position, judged(tier, done.samples, request)
                )
        raise walk.exhausted()

    async def _run_in_time(
        self, index: int, tier: Tier, request: LLMRequest, trace: Trace, seconds: float, *, watch: bool
    ) -> Outcome:
        walk = self.walk(index, tier, request, trace)
        unhurried = replace(tier, deadline=None)
        try:
            async with asyncio.timeout(seconds):
                return await self.run_tier(index, unhurried, request, trace, last=False, watch=watch)
        except TimeoutError:
            raise walk.exhausted(f"the tier was given up after {seconds:g} s") from None

    async def _vote(self, index: int, tier: Tier, request: LLMRequest, trace: Trace, *, last: bool) -> Outcome:
        """Fill a ballot by the first candidate that works; one that fails on the way takes its votes with it."""
        whole = self.walk(index, tier, request, trace)
        position, candidates, late = 0, tier.candidates, ""
        while True:
            ballot = ballot_of(tier, last=last)
            endpoint = self.endpoints[candidates[position].name]
            poll = Poll(
                ballot,
                position=position,
                draw=lambda candidate, call, walk: self.attempt(self.endpoints[candidate.name], call, walk),
                walk=lambda start: self.walk(index, tier, request, trace, position=start, quiet=True),
                call=lambda samples, first: self.call(tier, request, samples=samples, first=first),
            )
            try:
                async with asyncio.timeout(None if last else tier.deadline):
                    await poll.run(gently=endpoint.breaker.state != "closed")
            except TimeoutError:
                late = f"the tier was given up after {tier.deadline:g} s"
            except GivenUp as given_up:
                if given_up.position < len(candidates) and not trace.deadline.over:
                    position = given_up.position
                    self._fell_back(request, trace, candidates[position])
                    continue
                late = "no further sample could be drawn"
            if not ballot.samples:
                raise whole.exhausted(late)
            verdict = ballot.verdict(cut_short=late)
            return Outcome(tuple(ballot.samples), poll.model, candidates[position], index, position, verdict)

    def _fell_back(self, request: LLMRequest, trace: Trace, candidate: Candidate) -> None:
        if self.observer is not None:
            self.observer.on_fallback(request, trace.attempts[-1], candidate)

    async def attempt(self, endpoint: Endpoint, call: ModelCall, walk: Walk) -> Completion:
        """One metered call, within its time. Raises `ModelError`."""
        with MeteredCall(endpoint, walk, call.samples) as metered:
            limit = self.limit(walk.trace.deadline)
            with Bounded(endpoint, limit, "complete answer"):
                done = await endpoint.backend.complete(within(call, limit))
            metered.usage, metered.cost, metered.failovers = done.usage, done.cost, done.failovers
            if not done.samples:
                raise ServerFailed("the answer holds no choices")
            return done

    async def embed(
        self, candidate: Candidate, texts: Sequence[str], request: LLMRequest, trace: Trace, dimensions: int | None = None
    ) -> Embeddings:
        """Embed with this one model, retried; never with another, since vectors of two models cannot be compared."""
        walk = self.walk(0, Tier((candidate,)), request, trace)
        endpoint = self.endpoints[candidate.name]
        while walk.next() is not None:
            try:
                with MeteredCall(endpoint, walk) as metered:
                    limit = self.limit(trace.deadline)
                    with Bounded(endpoint, limit, "embeddings"):
                        wanted = {} if dimensions is None else {"dimensions": dimensions}
                        found = await endpoint.backend.embed(texts, timeout=limit, **wanted)
                    metered.usage, metered.failovers = found.usage, found.failovers
            except ModelError as error:
                await walk.failed(error)
            else:
                return replace(found, candidate=candidate.name, cost=trace.cost)
        raise self.failure(walk.exhausted(), trace)

    # ------------------------------------------------------------------------------- shared with the run of a stream

    def ascent(self, plan: Plan, request: LLMRequest, trace: Trace) -> Ascent:
        """The way up the plan's tiers."""
        return Ascent(plan, request, trace, estimate=self._estimate, observer=self.observer)

    def _estimate(self, tier: Tier, request: LLMRequest) -> float:
        endpoint = self.endpoints[tier.candidates[0].name]
        apart = tier.voting is not None and tier.voting.draw == "at_once"
        return endpoint.expected_cost(request, tier.samples, tier.samples if apart else 1)

    def call(self, tier: Tier, request: LLMRequest, *, samples: int | None = None, first: int = 0) -> ModelCall:
        """What the tier's candidates are asked to do."""
        temperature = request.temperature if tier.temperature is None else tier.temperature
        if samples is None and _is_plain(tier):
            return ModelCall(request, request.n, temperature, self.timeouts, first)
        if request.relay is not None:  # an answer that is judged, or that many make, is read here
            request = replace(request, relay=None)
        if tier.logprobs is not None:
            request = replace(request, logprobs=True, top_logprobs=max(tier.logprobs, request.top_logprobs or 0))
        elif tier.voting is not None and tier.voting.measure == "logprob" and not request.logprobs:
            request = replace(request, logprobs=True)
        return ModelCall(request, tier.samples if samples is None else samples, temperature, self.timeouts, first)

    async def after(self, error: ModelError, call: ModelCall, tier: Tier, request: LLMRequest, walk: Walk) -> ModelCall:
        """What to ask after a failed call; raises ``error`` where no candidate can mend it.

        Log-probabilities that only the tier wants are no reason to fail: who cannot give any is asked without.
        """
        if isinstance(error, Unsupported) and tier.logprobs is not None and call.request is not request:
            return replace(call, request=request)
        await walk.failed(error)
        return self.call(tier, request)

    async def judge(self, tier: Tier, sample: Sample, request: LLMRequest) -> Verdict:
        """The verdict on a tier's only sample."""
        if tier.voting is None:
            return judged(tier, (sample,), request)
        ballot = ballot_of(tier, last=True)
        await ballot.add(sample)
        return ballot.verdict()

    def walk(
        self, index: int, tier: Tier, request: LLMRequest, trace: Trace, *, position: int = 0, quiet: bool = False
    ) -> Walk:
        """A fresh way through the tier's candidates, from ``position`` on; ``quiet``: somebody else tells of fallbacks."""
        observer = None if quiet else self.observer
        return Walk(index, tier, request, trace, self._retry, self.timeouts.total, observer, position)

    def limit(self, deadline: Deadline) -> float:
        """Seconds that one call may take."""
        return min(self.timeouts.total, deadline.left)

    def failure(self, error: AllCandidatesFailed, trace: Trace) -> AllCandidatesFailed:
        """The error for the whole request, with all its attempts."""
        if trace.deadline.over:
            return DeadlineExceeded("the request's time is over", attempts=trace.attempts, hint="allow it more time")
        if self._local_only:
            hint = "the profile forbids the cloud, so nothing was sent elsewhere; see which servers are up: status"
            return LocalModelUnavailable(error.summary, attempts=trace.attempts, hint=hint)
        return AllCandidatesFailed(error.summary, attempts=trace.attempts, hint="see which servers are up: status")


def refuse_several(plan: Plan, request: LLMRequest) -> None:
    """Raise `Unsupported` where a plan that votes on answers or judges them gives one, and the request asks for ``n``."""
    if not all(_is_plain(tier) for tier in plan.tiers):
        votes = f"n is {request.n}, and {plan} gives one answer, which is voted on or judged"
        error = Unsupported(votes, hint="leave n out, or name a model")
        error.field = "n"
        raise error


def _is_plain(tier: Tier) -> bool:
    return tier.samples == 1 and tier.voting is None and tier.accept is ALWAYS
