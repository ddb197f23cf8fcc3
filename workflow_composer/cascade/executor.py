"""The one executor: it runs any `Plan`, whoever made it.

Two axes, counted apart. Within a tier, candidates are tried while *calls fail* (fallback). Over tiers, the next is asked
while *answers are not accepted* (escalation). A tier whose candidates all failed hands over to the next one, too; if none
is left, an earlier answer that was not accepted is returned as such; where there is none, one error lists every attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from workflow_composer.cascade.attempt import MeteredCall, Observer, Trace, Walk
from workflow_composer.cascade.bound import Bounded
from workflow_composer.cascade.endpoint import Endpoint
from workflow_composer.cascade.retry import Deadline, RetryPolicy
from workflow_composer.errors import (
    AllCandidatesFailed,
    DeadlineExceeded,
    LocalModelUnavailable,
    ModelError,
    ServerFailed,
)
from workflow_composer.types import (
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


@dataclass(slots=True)  # not frozen: made for every request, and seen by two functions
class Outcome:
    """The answer of a run: which candidate in which tier gave it, and what the tier's rule said."""

    samples: tuple[Sample, ...]
    model: str
    candidate: Candidate
    tier: int
    fallback_depth: int
    verdict: Verdict


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
        best: Outcome | None = None
        for index, tier in enumerate(plan.tiers):
            try:
                best = await self.run_tier(index, tier, request, trace)
                verdict = best.verdict
            except AllCandidatesFailed as error:
                verdict = self.after_failed_tier(error, plan, index, trace, answered=best is not None)
            if verdict.accepted:
                break
            self.escalate(request, plan, index, verdict)
        assert best is not None  # otherwise the last tier's failure was raised
        return best

    async def run_tier(self, index: int, tier: Tier, request: LLMRequest, trace: Trace) -> Outcome:
        """Ask one tier's candidates in order until one answers; raises `AllCandidatesFailed` where none does."""
        call, walk = self.call(tier, request), self.walk(index, tier, request, trace)
        while (candidate := walk.next()) is not None:
            try:
                done = await self._attempt(self.endpoints[candidate.name], call, walk)
            except ModelError as error:
                await walk.failed(error)
            else:
                verdict = tier.accept(done.samples)
                return Outcome(done.samples, done.model, candidate, index, walk.position, verdict)
        raise walk.exhausted()

    async def _attempt(self, endpoint: Endpoint, call: ModelCall, walk: Walk) -> Completion:
        with MeteredCall(endpoint, walk) as metered:
            limit = self.limit(walk.trace.deadline)
            with Bounded(endpoint, limit, "complete answer"):
                done = await endpoint.backend.complete(within(call, limit))
            metered.usage = done.usage
            if not done.samples:
                raise ServerFailed("the answer holds no choices")
            return done

    async def embed(self, candidate: Candidate, texts: Sequence[str], request: LLMRequest, trace: Trace) -> Embeddings:
        """Embed with this one model, retried; never with another, since vectors of two models cannot be compared."""
        walk = self.walk(0, Tier((candidate,)), request, trace)
        endpoint = self.endpoints[candidate.name]
        while walk.next() is not None:
            try:
                with MeteredCall(endpoint, walk) as metered:
                    limit = self.limit(trace.deadline)
                    with Bounded(endpoint, limit, "embeddings"):
                        found = await endpoint.backend.embed(texts, timeout=limit)
                    metered.usage = found.usage
            except ModelError as error:
                await walk.failed(error)
            else:
                return replace(found, candidate=candidate.name, cost=trace.cost)
        raise self.failure(walk.exhausted(), trace)

    # ------------------------------------------------------------------------------- shared with the run of a stream

    def call(self, tier: Tier, request: LLMRequest) -> ModelCall:
        """What the tier's candidates are asked to do."""
        temperature = request.temperature if tier.temperature is None else tier.temperature
        return ModelCall(request, tier.samples, temperature, self.timeouts)

    def walk(self, index: int, tier: Tier, request: LLMRequest, trace: Trace) -> Walk:
        """A fresh way through the tier's candidates."""
        return Walk(index, tier, request, trace, retry=self._retry, patience=self.timeouts.total, observer=self.observer)

    def limit(self, deadline: Deadline) -> float:
        """Seconds that one call may take."""
        return min(self.timeouts.total, deadline.left)

    def escalate(self, request: LLMRequest, plan: Plan, index: int, verdict: Verdict) -> None:
        """Tell the observer, where there is a further tier."""
        if self.observer is not None and index + 1 < len(plan.tiers):
            self.observer.on_escalation(request, plan, index, verdict)

    def after_failed_tier(
        self, error: AllCandidatesFailed, plan: Plan, index: int, trace: Trace, *, answered: bool
    ) -> Verdict:
        """The verdict on a tier in which nothing answered; raises where that ends the request."""
        last = index + 1 == len(plan.tiers)
        if (last or trace.deadline.over) and not answered:
            raise self.failure(error, trace) from None
        return Verdict(accepted=last or trace.deadline.over, reason="every candidate failed")

    def failure(self, error: AllCandidatesFailed, trace: Trace) -> AllCandidatesFailed:
        """The error for the whole request, with all its attempts."""
        if trace.deadline.over:
            return DeadlineExceeded("the request's time is over", attempts=trace.attempts, hint="allow it more time")
        if self._local_only:
            hint = "the profile forbids the cloud, so nothing was sent elsewhere; see which servers are up: status"
            return LocalModelUnavailable(error.summary, attempts=trace.attempts, hint=hint)
        return AllCandidatesFailed(error.summary, attempts=trace.attempts, hint="see which servers are up: status")


def within(call: ModelCall, limit: float) -> ModelCall:
    """The same call, its times cut to ``limit`` seconds."""
    times = call.timeouts
    if limit >= times.total:
        return call
    cut = Timeouts(min(times.connect, limit), min(times.first_token, limit), limit)
    return replace(call, timeouts=cut)
