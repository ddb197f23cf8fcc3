"""The executor, which runs every `Plan`.

It distinguishes two kinds of retry. Fallback: within a member, the next candidate is called if a *call fails*. Escalation:
the next tier runs if an *answer is not accepted*, or if all candidates of a tier failed. If no tier is left, the last answer
is returned as not accepted; if there is no answer at all, one error lists every attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workflow_composer.backends.base import Passed, Upload
from workflow_composer.backends.openai.stream_accumulator import StreamAccumulator
from workflow_composer.errors import (
    AllCandidatesFailed,
    ModelError,
    ModelNotAllowed,
    RoutingError,
    TooManyCalls,
    Unsupported,
)
from workflow_composer.execution.call import CUT_OFF, Endpoint, Outcome, Trace
from workflow_composer.execution.escalation import Ascent
from workflow_composer.execution.forming import FormedPlans, Forming, instructed
from workflow_composer.execution.member_run import Abandoned, CallObserver, MemberRun, Models, RetryPolicy, shown_to
from workflow_composer.execution.reservation import Reservation
from workflow_composer.plan import ALWAYS, Candidate, Plan, Tier
from workflow_composer.support.fast_dataclass import changed
from workflow_composer.types import Embeddings, LLMRequest, Sample, Timeouts, Verdict

if TYPE_CHECKING:
    from workflow_composer.execution.voting.vote_kinds import Embed, VoteKind

EMPTY = "the answer is empty"
WITHHELD = "the server withheld the answer (content_filter)"
LONGEST_ANSWER = 2**20
"""Assumed maximum number of tokens of an answer if neither the request nor the model limits it."""


class PlanExecutor:
    """Runs plans against the endpoints of one snapshot. `workflow_composer.execution.streaming` runs streams.

    ``local_only``: the profile forbids cloud models, and the final error says that nothing was sent to one. ``embedding``
    returns the model of the profile's embedding role, by which votes over free texts can be grouped.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        *,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        observer: CallObserver | None = None,
        local_only: bool = False,
        fallback_on_auth: bool = True,
        embedding: Callable[[], Candidate] | None = None,
    ) -> None:
        self._embedding = embedding or _no_embedding
        self.formed = FormedPlans()
        self._models = Models(
            endpoints, retry or RetryPolicy(), timeouts or Timeouts(), observer, local_only, fallback_on_auth
        )

    def run(self, plan: Plan, request: LLMRequest, trace: Trace, *, paid: bool = False) -> Coroutine[Any, Any, Outcome]:
        """Run ``plan`` and return its outcome. ``paid``: its cost is reserved already.

        Raises `AllCandidatesFailed` (or `DeadlineExceeded`) if no tier answered, `TooManyCalls` at the request's limit. A
        `ModelError` that no other candidate can fix (an invalid request, a wrong key) is raised unchanged.
        """
        if not paid and (purse := request.purse) is not None and not purse.take(*self._most(plan, request)):
            return self._once_paid(plan, request, trace)
        if request.form is not None:
            plan = self.formed.of(plan, request)
        if request.n > 1:
            refuse_several(plan, request)
            refuse_too_many(plan, request)
        tiers = plan.tiers
        first = tiers[0]
        if (
            len(tiers) == 1
            and first.is_plain
            and not first.name
            and plan.budget is first.budget is None
            and (request.budget is None or self._estimate(first, request) <= request.budget)
        ):
            # By far the most frequent plan; the bookkeeping for several tiers would add a tenth to the core's work.
            return self._ask(0, first, request, trace)
        return self._ascend(plan, request, trace)

    async def _once_paid(self, plan: Plan, request: LLMRequest, trace: Trace) -> Outcome:
        paid = await self.paid(plan, request, trace)
        return await self.run(plan, paid, trace, paid=True)

    async def paid(self, plan: Plan, request: LLMRequest, trace: Trace) -> LLMRequest:
        """Reserve the plan's cost in the request's purse; return the request with the money that there is as its budget.

        Waits for it, within the request's time limit, while other requests have reserved it. A request that holds a
        reservation already does not wait, because others may wait for its end. Raises `BudgetExceeded`.
        """
        purse: Reservation | None = request.purse
        if purse is None or purse.take(*self._most(plan, request)) or purse.holds:
            return request
        until = min(trace.ends, time.perf_counter() + self._models.timeouts.total)
        left = await purse.wait(lambda: self._most(plan, request), until=until)
        return (
            request
            if left is None
            else changed(request, budget=left if request.budget is None else min(left, request.budget))
        )

    async def _ascend(self, plan: Plan, request: LLMRequest, trace: Trace) -> Outcome:
        refuse_too_many(plan, request)
        ascent = self.ascent(plan, request, trace)
        for index, tier in ascent.tiers():
            watch = tier.watch_all and ascent.may_abandon
            try:
                ascent.answered(await self.run_tier(index, tier, request, trace, last=ascent.is_last(index), watch=watch))
            except AllCandidatesFailed as error:
                ascent.failed(index, error)
        return ascent.outcome()

    async def run_tier(
        self, index: int, tier: Tier, request: LLMRequest, trace: Trace, *, last: bool = True, watch: bool = False
    ) -> Outcome:
        """Run one tier: collect its members' votes, or call its only member's candidates in order until one answers.

        Raises `AllCandidatesFailed` if none answers. A tier other than the last ends at its deadline and keeps the votes
        received by then. With ``watch``, the tier's watch may abandon the answer while it is generated.
        """
        if tier.voting is not None and (tier.form is None or tier.samples > 1 or tier.voting.measure == "score"):
            # Imported with the first vote: reading and comparing answers is much of what a single answer would load.
            from workflow_composer.execution.voting.vote_sampling import Poll

            kind = self.vote_kind(tier, request, trace)
            asked = request if tier.form is None else instructed(request, tier.form)
            return await Poll(self._models, index, tier, asked, trace, kind, last=last).run()
        watch = watch and not last
        if tier.deadline is None or last:
            return await self._judged(index, tier, request, trace, last=last, watch=watch)
        first_attempt = len(trace.attempts)
        try:
            async with asyncio.timeout(tier.deadline):
                return await self._judged(index, tier, request, trace, last=last, watch=watch)
        except TimeoutError:
            why = f"the tier's deadline of {tier.deadline:g} s passed"
            raise self._models.exhausted(trace, first_attempt, why) from None

    async def _judged(
        self, index: int, tier: Tier, request: LLMRequest, trace: Trace, *, last: bool, watch: bool
    ) -> Outcome:
        """Run a tier's only member; if its answer has no log-probabilities, run ``when_unknown`` instead."""
        ask = self._watched if watch and tier.watch is not None else self._ask
        if tier.form is not None:
            ask = self._formed
        outcome = await ask(index, tier, request, trace)
        verdict = outcome.verdict
        if tier.when_unknown is None or verdict.confidence is not None or verdict.accepted or not outcome.whole:
            return outcome
        return await self.run_tier(index, tier.when_unknown, request, trace, last=last)

    async def _ask(self, index: int, tier: Tier, request: LLMRequest, trace: Trace) -> Outcome:
        run = MemberRun(self._models, index, tier, tier.members[0], request, trace)
        while run.next():
            try:
                done = await run.complete()
            except ModelError as error:
                await run.failed(error)
            else:
                verdict = judged(tier, done.samples, request)
                return Outcome(done.samples, done.model, run.candidate, index, run.position, verdict, usage=run.usage)
        raise run.exhausted()

    async def _formed(self, index: int, tier: Tier, request: LLMRequest, trace: Trace) -> Outcome:
        """Ask until the answer has the tier's form, or the tier's tries are used up."""
        forming, refused = Forming(tier, request), None
        own = self.formed.bare(tier)
        while True:
            try:
                outcome = await self._ask(index, own, forming.request, trace)
            except AllCandidatesFailed:
                if refused is None or trace.over:
                    raise
                return refused
            except ModelError:  # such as a limit above the model's own
                if refused is None or not forming.asks_for_more:
                    raise
                return refused
            verdict = await forming.verdict(outcome, outcome.usage)
            if verdict is not None:
                outcome.verdict = verdict
                return outcome
            outcome.verdict = forming.refusal
            refused = outcome
            if request.budget is not None and trace.cost + self._estimate(own, forming.request) > request.budget:
                return refused

    def vote_kind(self, tier: Tier, request: LLMRequest, trace: Trace) -> VoteKind:
        """Return how samples of this tier vote on this request. Raises `RoutingError` without a model for embeddings."""
        from workflow_composer.execution.voting.vote_kinds import vote_kind

        assert tier.voting is not None  # the caller has checked
        by = request.vote_by or tier.voting.by
        embed = self._embedder(request, trace) if by == "embedding" else None
        return vote_kind(tier.voting, request, tier.form, embed, ends=trace.ends)

    def _embedder(self, request: LLMRequest, trace: Trace) -> Embed:
        candidate = self._embedding()
        if request.allowed is not None and candidate.name not in request.allowed:
            raise ModelNotAllowed(candidate.name)

        async def embed(texts: Sequence[str]) -> Sequence[Sequence[float]]:
            return (await self.embed(candidate, texts, changed(request, relay=None), trace)).vectors

        return embed

    async def _watched(self, index: int, tier: Tier, request: LLMRequest, trace: Trace) -> Outcome:
        """Call as a stream, watch the answer while it is generated, and abandon it once it can no longer be accepted.

        Every abandoned answer would have been rejected at its end, so watching lowers the cost but never changes what is
        accepted. If all later tiers fail, the tier runs again (`Ascent.tiers`); if a budget might exclude them, no answer is
        abandoned (`Ascent.may_abandon`).
        """
        assert tier.watch is not None  # the caller has checked
        run = self.member_run(index, tier, request, trace)
        while run.next():
            heard, watch = StreamAccumulator(), tier.watch(_longest(request, run.candidate))
            abandoned: Verdict | None = None
            try:
                async with aclosing(run.listen(heard, watch)) as pieces:
                    async for _ in pieces:
                        pass
            except Abandoned as end:
                abandoned = end.verdict
            except ModelError as error:
                await run.failed(error)
                continue
            sample, model = heard.sample(), heard.model or run.candidate.name
            verdict = abandoned or judged(tier, (sample,), request)
            return Outcome((sample,), model, run.candidate, index, run.position, verdict, whole=abandoned is None)
        raise run.exhausted()

    async def embed(
        self,
        candidate: Candidate,
        texts: Sequence[str | Sequence[int]],
        request: LLMRequest,
        trace: Trace,
        dimensions: int | None = None,
    ) -> Embeddings:
        """Embed with this model only, with retries: vectors of different models cannot be compared."""
        run = self.member_run(0, Tier.of((candidate,)), request, trace)
        while run.next():
            try:
                found = await run.embed(texts, dimensions)
            except ModelError as error:
                await run.failed(error)
            else:
                return replace(
                    found,
                    candidate=candidate.name,
                    cost=trace.cost,
                    cost_known=all(attempt.priced for attempt in trace.attempts),
                    cost_estimated=any(attempt.estimated for attempt in trace.attempts),
                )
        raise run.exhausted()

    async def pass_on(
        self, candidate: Candidate, path: str, body: Mapping[str, Any] | Upload, request: LLMRequest, trace: Trace
    ) -> Passed:
        """Pass a request of a server's own API on to this model's server only, with retries."""
        run = self.member_run(0, Tier.of((candidate,)), request, trace)
        while run.next():
            try:
                found = await run.passed(path, body)
            except ModelError as error:
                await run.failed(error)
            else:
                return replace(found, candidate=candidate.name)
        raise run.exhausted()

    # ------------------------------------------------------------------------------- shared with the run of a stream

    def ascent(self, plan: Plan, request: LLMRequest, trace: Trace) -> Ascent:
        """Return the escalation over the plan's tiers."""
        return Ascent(plan, request, trace, estimate=self._estimate, observer=self._models.observer)

    def _estimate(self, tier: Tier, request: LLMRequest) -> float:
        """Return the tier's expected cost in dollars, assuming that each member's first candidate works."""
        apart = tier.voting is not None and tier.voting.draw == "at_once"
        dollars = 0.0
        for member in tier.members:
            endpoint = self._models.endpoints[member.candidates[0].name]
            shown = request if member.form is None else shown_to(member, tier, request)
            expected = endpoint.forecast.expect(shown, member.samples, member.samples if apart else 1)
            dollars += endpoint.price.cost(expected.usage, expected.gpu_seconds)
        return dollars

    def _most(self, plan: Plan, request: LLMRequest) -> tuple[float, float]:
        """Return the most dollars and tokens that the plan will probably use; infinite where nothing bounds them.

        It assumes that each member's first candidate works, and that every tier is asked: whatever else is called raises
        the reservation before (`Reservation.cover`).
        """
        dollars = tokens = 0.0
        for tier in plan.tiers:
            voting = tier.voting
            apart = voting is not None and voting.draw == "at_once"
            for member in tier.members:
                endpoint = self._models.endpoints[member.candidates[0].name]
                shown = request if member.form is None else shown_to(member, tier, request)
                samples = request.n if tier.is_plain else member.samples
                some, more = endpoint.forecast.most(shown, endpoint.price, samples, member.samples if apart else 1)
                dollars += some
                tokens += more
        limit = plan.budget if request.budget is None else request.budget
        return dollars if limit is None or dollars < limit else limit, tokens

    def member_run(self, index: int, tier: Tier, request: LLMRequest, trace: Trace) -> MemberRun:
        """Return a new run over the candidates of a tier's only member."""
        return MemberRun(self._models, index, tier, tier.members[0], request, trace)


def _no_embedding() -> Candidate:
    raise RoutingError("votes cannot be grouped by embedding: there is no model for embeddings")


def refuse_several(plan: Plan, request: LLMRequest) -> None:
    """Raise `Unsupported` if the request asks for ``n`` answers but the plan votes on or judges answers and returns one."""
    if not all(tier.is_plain for tier in plan.tiers):
        votes = f"n is {request.n}, but {plan} votes on or judges answers and returns only one"
        error = Unsupported(votes, hint="omit n, or name a model")
        error.field = "n"
        raise error


def refuse_too_many(plan: Plan, request: LLMRequest) -> None:
    """Raise `TooManyCalls` if the plan's tiers draw more samples than the request may make calls."""
    if request.most_calls is None:
        return
    drawn = [request.n if tier.is_plain else tier.samples for tier in plan.tiers]
    if sum(drawn) > request.most_calls:
        told = " + ".join(map(str, drawn))
        reason = f"{plan} needs up to {sum(drawn)} calls ({told} samples), but a request may make {request.most_calls}"
        raise TooManyCalls(reason, hint="ask for fewer samples, or raise the limit (most_calls)")


def judged(tier: Tier, samples: Sequence[Sample], request: LLMRequest) -> Verdict:
    """Return the tier's verdict on its samples; a truncated, withheld or empty answer is unreadable and is not accepted.

    A bare completion normally runs until its length limit, so it is not checked for truncation. A sample without text may
    contain tool calls; one with a score has been judged already, and its text may not have been recorded.
    """
    verdict = ALWAYS.verdict if tier.accept is ALWAYS else tier.accept(samples)
    if not verdict.accepted:
        return verdict
    sample = samples[verdict.choice]
    why = ""
    if sample.finish_reason != "stop" and sample.too_long and request.kind == "chat":
        why = CUT_OFF
    elif sample.finish_reason == "content_filter":
        why = WITHHELD
    elif not sample.tool_calls and sample.score is None:
        text = sample.text
        # Nearly every answer starts with a letter or digit and ends with one or a full stop: it says something.
        plain = text[:1].isalnum() and (text[-1:].isalnum() or text[-1] == ".")
        if not plain and _says_nothing(text):
            why = EMPTY
    return replace(verdict, accepted=False, reason=why, unreadable=1) if why else verdict


def _says_nothing(text: str) -> bool:
    from workflow_composer.answers.reasoning import says_nothing

    return says_nothing(text)


def _longest(request: LLMRequest, candidate: Candidate) -> int:
    """Return the maximum number of tokens of the answer."""
    limits = [limit for limit in (request.max_tokens, candidate.context_length) if limit]
    return min(limits, default=LONGEST_ANSWER)
