"""The run of one member of a tier: its calls, retries of the same candidate, and fallback to the next one."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from workflow_composer.backends.base import Passed, Upload
from workflow_composer.backends.openai.adapting import OPTIONAL, USUAL, not_taken
from workflow_composer.backends.openai.stream_accumulator import StreamAccumulator
from workflow_composer.errors import (
    AllCandidatesFailed,
    AuthenticationFailed,
    BudgetExceeded,
    BudgetReserved,
    ContextOverflow,
    DeadlineExceeded,
    LocalModelUnavailable,
    ModelError,
    RateLimited,
    ServerFailed,
    Unpaid,
    Unsupported,
)
from workflow_composer.execution.call import REST, Call, Endpoint, Trace
from workflow_composer.execution.reservation import Reservation
from workflow_composer.plan import Candidate, Member, Plan, Tier, Watch
from workflow_composer.support.fast_dataclass import changed
from workflow_composer.types import (
    Attempt,
    Chunk,
    Completion,
    Embeddings,
    LLMRequest,
    ModelCall,
    Timeouts,
    Verdict,
)
from workflow_composer.usage import NO_USAGE, Sending


class CallObserver(Protocol):
    """Receives an event when a request falls back or escalates. Methods must be fast and must not raise."""

    def on_fallback(self, request: LLMRequest, failed: Attempt, candidate: Candidate) -> None:
        """``failed`` was the last attempt with the previous candidate; ``candidate`` is next."""

    def on_escalation(self, request: LLMRequest, plan: Plan, tier: int, verdict: Verdict) -> None:
        """The answer of tier ``tier`` was not accepted, and the next tier runs."""


class KeptReplies(Protocol):
    """Replies of models to one question, kept while it has no answer (`LLMRequest.replies`).

    ``place`` says which call it was: the tier, the member within it, and the candidate's name.
    """

    def find(self, place: tuple[int, int, str], asked: ModelCall) -> Completion | None:
        """Return what has been kept of this call, perhaps fewer samples than it asks for; None: it must be made."""

    def add(self, place: tuple[int, int, str], asked: ModelCall, done: Completion, used: Attempt, *, vote: bool) -> None:
        """Take what a call has brought. ``vote``: other samples may be waited for before there is an answer."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter: the n-th pause is uniform in [0, min(max_delay, base_delay * 2**n)].

    ``attempts`` is the number of calls to one candidate, including the first. Delays are in seconds. Full jitter spreads
    many clients best (Brooker, "Exponential Backoff And Jitter", 2015).
    """

    attempts: int = 3
    base_delay: float = 0.25
    max_delay: float = 8.0
    random: Callable[[], float] = field(default=random.random, repr=False)

    def pause(self, error: ModelError, tried: int, *, others_left: bool, time_left: float) -> float | None:
        """Return the seconds to wait before the next call to the same candidate; None for no further call.

        ``tried`` calls have been made. A ``Retry-After`` is the minimum pause. If it exceeds ``max_delay``, the next
        candidate is preferred; only the last candidate is waited for, if ``time_left`` allows.
        """
        if not error.retryable or tried >= self.attempts:
            return None
        pause = self.random() * min(self.max_delay, self.base_delay * 2.0 ** (tried - 1))
        if error.retry_after is not None:
            if error.retry_after > self.max_delay and others_left:
                return None
            pause += error.retry_after
        return pause if pause < time_left else None


@dataclass(frozen=True, slots=True, eq=False)
class Models:
    """The models of one snapshot by name, with the retry policy, timeouts and observer of their calls.

    ``local_only``: the profile forbids cloud models. ``fallback_on_auth``: the next model is tried if a key is refused.
    """

    endpoints: Mapping[str, Endpoint]
    retry: RetryPolicy
    timeouts: Timeouts
    observer: CallObserver | None
    local_only: bool = False
    fallback_on_auth: bool = True

    def exhausted(self, trace: Trace, first: int, why: str = "") -> AllCandidatesFailed:
        """Return the error for a tier whose attempts, those of the request from ``first`` on, all failed.

        It lists every attempt of the request: it is the request's error if no other tier answers.
        """
        attempts, hint = trace.attempts, "run `status` to see which servers are up"
        if trace.over:
            return DeadlineExceeded("the request timed out", attempts=attempts, hint="raise its timeout")
        count = len(attempts) - first
        summary = f"no model answered after {count} attempt{'' if count == 1 else 's'}" + (f": {why}" if why else "")
        kind = AllCandidatesFailed
        if self.local_only:
            kind, hint = LocalModelUnavailable, f"the profile forbids cloud models, so nothing was sent to one; {hint}"
        error = kind(summary, attempts=attempts, hint=hint)
        error.refusal = trace.refusal
        if trace.retry_at is not None:
            error.retry_after = max(0.0, trace.retry_at - time.perf_counter())
        return error


class Abandoned(Exception):  # no error: the call was ended on purpose
    """The answer could no longer be accepted, so the call was ended; ``verdict`` says why."""

    def __init__(self, verdict: Verdict, tokens: int) -> None:
        reason = f"abandoned after {tokens} tokens: {verdict.reason}"
        super().__init__(reason)
        self.verdict = replace(verdict, reason=reason)


class MemberRun:
    """The loop over one member's candidates::

        while run.next():
            try:
                return await run.complete()
            except ModelError as error:
                await run.failed(error)
        raise run.exhausted()

    A call that was not foreseen when the request began (a retry, another candidate, a later tier), or that may cost more
    than was foreseen, begins only once the request's reservation covers it (`Reservation.cover`); else it is `Unpaid`.

    After a failed call, `failed` decides whether `next` selects the same candidate again (after a pause), the following one,
    or none. ``asked`` is the call: ``samples`` answers, numbered from ``first``. ``position`` is the position of the current
    candidate.
    """

    def __init__(
        self,
        models: Models,
        index: int,
        tier: Tier,
        member: Member,
        request: LLMRequest,
        trace: Trace,
        *,
        position: int = 0,
        samples: int | None = None,
        first: int = 0,
    ) -> None:
        self.position = position
        self._models = models
        self._index = index
        self._tier = tier
        self._member = member
        self._request = request
        self._trace = trace
        self._tried = 0
        self._too_short = -1
        self._limited: dict[int, tuple[float, int]] | None = None
        self._local_only = False
        self.unpaid: BudgetExceeded | None = None
        self.usage = NO_USAGE
        self._first_attempt = len(trace.attempts)
        temperature = request.temperature if member.temperature is None else member.temperature
        if tier.is_plain:
            samples = request.n
        shown = request if tier.is_plain and member.form is None else shown_to(member, tier, request)
        count = member.samples if samples is None else samples
        self.asked = ModelCall(shown, count, temperature, models.timeouts, first, Sending())
        self._planned = self.asked

    def next(self) -> bool:
        """Select the next candidate as ``candidate`` and ``endpoint``; return False if none or no time is left."""
        candidates = self._member.candidates
        if self.position >= len(candidates) or time.perf_counter() >= self._trace.ends:
            return False
        self._tried += 1
        self.candidate = candidates[self.position]
        self.endpoint = self._models.endpoints[self.candidate.name]
        if self._request.left_out is not None and self.asked is self._planned:
            self.asked = self._planned = self._taken(self._request.left_out)
        return True

    def _taken(self, told: list[str]) -> ModelCall:
        """Return the planned call without optional fields that the candidate does not take, of which the caller is told."""
        takes, extra = getattr(self.endpoint.backend, "takes", USUAL), dict(self._request.extra)
        for name in OPTIONAL.intersection(extra) - takes:
            del extra[name]
            told.append(not_taken(name, self.candidate.name))
        return replace(self._planned, request=changed(self._planned.request, extra=extra))

    # ---------------------------------------------------------------------------------------------------------- calls

    async def complete(self) -> Completion:
        """Make one call for complete answers, unless its answers have been kept. Raises `ModelError`.

        ``usage`` is then what the call has used.
        """
        purse, replies = self._request.purse, self._request.replies
        if replies is not None and (kept := replies.find(self._place, self.asked)) is not None:
            self.usage = kept.usage
            return cast("Completion", kept)
        if purse is not None and (self._trace.attempts or not self._tier.is_plain):
            await self._cover(purse, self.asked.request)
        try:
            with Call(self.endpoint, self.asked, self._trace, self._index, self.position) as call:
                done = await self.endpoint.backend.complete(call.asked)
                call.usage, call.cost, call.failovers = done.usage, done.cost, done.failovers
                call.model, call.samples = done.model, done.samples
                if not done.samples:
                    raise ServerFailed("the response has no choices")
        finally:
            if purse is not None and purse.calls:
                purse.over(self)
        self.usage = call.usage
        if replies is not None:
            used, vote = self._trace.attempts[-1], self._tier.voting is not None and self._tier.samples > 1
            replies.add(self._place, self.asked, done, used, vote=vote)
        return done

    @property
    def _place(self) -> tuple[int, int, str]:
        """Which call of the request it is, for `KeptReplies`."""
        return self._index, self._tier.members.index(self._member), self.candidate.name

    async def listen(self, heard: StreamAccumulator, watch: Watch | None = None) -> AsyncGenerator[Chunk, None]:
        """Make one streaming call and collect its chunks in ``heard``.

        Raises `ModelError`, and `Abandoned` as soon as ``watch`` returns a verdict.
        """
        asked, patience = self.asked, self.asked.timeouts.first_token
        place = (self._index, self.position)
        purse = self._request.purse
        if purse is not None and (self._trace.attempts or not self._tier.is_plain):
            await self._cover(purse, asked.request)
        try:
            with Call(self.endpoint, asked, self._trace, *place, awaited="first token", patience=patience) as call:
                if asked.samples > 1:
                    reason = f"{self.candidate.name} streams one answer only, but n is {asked.samples}"
                    raise Unsupported(reason, hint="omit n or stream")
                call.delivery = heard.delivery
                async with aclosing(self.endpoint.backend.stream(call.asked)) as pieces:
                    while (piece := await anext(pieces, None)) is not None:
                        call.pause()
                        heard.add(piece)
                        call.model = heard.model
                        call.failovers = piece.failovers or call.failovers
                        going_on = piece.finish_reason is None  # abandoning a finished answer would save nothing
                        if watch is not None and going_on and piece.logprobs and (verdict := watch.hear(piece.logprobs)):
                            raise Abandoned(verdict, heard.tokens)
                        yield piece
                        if heard.pieces:
                            call.resume(REST)
                        else:
                            call.resume("first token", patience)
                if heard.finish_reason is None:
                    raise ServerFailed("the stream ended without a finish reason")
        finally:
            if purse is not None and purse.calls:
                purse.over(self)

    async def embed(self, texts: Sequence[str | Sequence[int]], dimensions: int | None) -> Embeddings:
        """Make one call for embeddings. Raises `ModelError`."""
        purse = self._request.purse
        if purse is not None and self._trace.attempts:
            await self._cover(purse, self._request)
        try:
            with Call(self.endpoint, self.asked, self._trace, self._index, self.position, awaited="embeddings") as call:
                wanted: dict[str, Any] = {} if dimensions is None else {"dimensions": dimensions}
                if getattr(self.endpoint.backend, "tells_sending", False):
                    wanted["sending"] = call.asked.sending
                    if self._request.extra or self._request.headers:
                        wanted["request"] = self._request
                else:
                    _refuse_tokens(self.candidate, texts, self._request)
                if call.asked.request.private and getattr(self.endpoint.backend, "keeps_private", False):
                    wanted["private"] = True
                found = await self.endpoint.backend.embed(cast("Sequence[str]", texts), timeout=call.seconds, **wanted)
                call.usage, call.failovers, call.model = found.usage, found.failovers, found.model
                return found
        finally:
            if purse is not None and purse.calls:
                purse.over(self)

    async def passed(self, path: str, body: Mapping[str, Any] | Upload) -> Passed:
        """Make one call of a server's own API. Raises `ModelError`."""
        purse = self._request.purse
        if purse is not None and self._trace.attempts:
            await self._cover(purse, self._request)
        try:
            with Call(self.endpoint, self.asked, self._trace, self._index, self.position, awaited="answer") as call:
                ask = getattr(self.endpoint.backend, "passed", None)
                if ask is None:
                    raise Unsupported(f"{self.candidate.name} has no server to which {path.lstrip('/')} could be passed on")
                found: Passed = await ask(path, body, self._request, timeout=call.seconds, sending=call.asked.sending)
                call.usage, call.failovers, call.model = found.usage, found.failovers, found.model
                call.cost = self.endpoint.price.cost(found.usage)
                return found
        finally:
            if purse is not None and purse.calls:
                purse.over(self)

    async def _cover(self, purse: Reservation, shown: LLMRequest) -> None:
        """Wait until the reservation pays for a call with this request. Raises `Unpaid`."""
        trace, samples, price, forecast = self._trace, self.asked.samples, self.endpoint.price, self.endpoint.forecast
        until = min(trace.ends, time.perf_counter() + self._models.timeouts.total)

        def expected() -> float:
            found = forecast.expect(shown, samples)
            return price.cost(found.usage, found.gpu_seconds)

        try:
            await purse.cover(
                self, lambda: forecast.most(shown, price, samples), expected, lambda: used_by(trace), until=until
            )
        except BudgetExceeded as error:
            told = f"{self.candidate.name} is not called: {error.summary}"
            self.unpaid = type(error)(told, attempts=trace.attempts, hint=error.hint)
            raise Unpaid(told) from None

    # -------------------------------------------------------------------------------------------- after a failed call

    async def failed(self, error: ModelError) -> None:
        """Handle a failed call: return when the next one may start, or raise ``error`` if fallback cannot fix it.

        If only the tier asked for log-probabilities and the model does not support them, the call is repeated without them.
        A candidate at its rate limit is asked again only if no other answers.
        """
        if self.asked.sending is not None:
            self.asked.sending.clear()
        if isinstance(error, Unsupported) and self._asks_alone(error):
            plain = changed(self._planned.request, logprobs=False, top_logprobs=self._request.top_logprobs)
            self.asked = replace(self._planned, request=plain)
            return
        self.asked = self._planned
        error.model = self.candidate.name
        candidates, trace = self._member.candidates, self._trace
        self._note(error)
        refused_key = isinstance(error, AuthenticationFailed) and self._models.fallback_on_auth
        if not (error.fallback or error.retryable or refused_key):
            raise error
        if isinstance(error, ContextOverflow):
            self._too_short = max(self._too_short, candidates[self.position].context_length or 0)
        self._local_only = self._local_only or (refused_key and candidates[self.position].local)
        following = self._following()
        pause = self._models.retry.pause(
            error,
            self._tried,
            others_left=following < len(candidates),
            time_left=min(trace.left, self._models.timeouts.total),
        )
        if pause is not None and isinstance(error, RateLimited):
            self._limited = {**(self._limited or {}), self.position: (time.perf_counter() + pause, self._tried)}
        elif pause is not None:
            await self._wait(pause)
            return
        if following >= len(candidates) and self._limited:
            await self._come_back(self._limited)
            return
        if not error.fallback and (not refused_key or following >= len(candidates)):
            raise error
        self.position, self._tried = following, 0
        observer = self._models.observer
        if observer is not None and following < len(candidates) and not trace.over and trace.attempts:
            observer.on_fallback(self._request, trace.attempts[-1], candidates[following])

    def _asks_alone(self, error: Unsupported) -> bool:
        """Whether an unsupported field is one that only the tier asks for: log-probabilities to judge the answer by."""
        shown = self.asked.request
        return (
            self.asked is self._planned
            and error.field in (None, "logprobs", "top_logprobs")
            and (shown.logprobs, shown.top_logprobs) != (self._request.logprobs, self._request.top_logprobs)
            and not self._request.logprobs
        )

    def _note(self, error: ModelError) -> None:
        """Keep what the request's error will say if nothing answers: when to come back, and which field was refused."""
        trace = self._trace
        if error.retry_after is not None:
            at = time.perf_counter() + error.retry_after
            trace.retry_at = at if trace.retry_at is None else min(at, trace.retry_at)
        if error.field is not None:
            trace.refusal = error

    async def _come_back(self, limited: dict[int, tuple[float, int]]) -> None:
        """Wait for the candidate at its rate limit that may be asked first, and select it again."""
        position = min(limited, key=limited.__getitem__)
        ready, tried = limited.pop(position)
        self.position, self._tried = position, tried
        await self._wait(max(0.0, ready - time.perf_counter()))

    def _following(self) -> int:
        """Return the next position whose model may be asked: not known to have too short a context for the prompt, and local
        if the key of a local one was refused.
        """
        candidates = self._member.candidates
        for position in range(self.position + 1, len(candidates)):
            length = candidates[position].context_length
            if (length is None or length > self._too_short) and (candidates[position].local or not self._local_only):
                return position
        return len(candidates)

    async def _wait(self, seconds: float) -> None:
        self._trace.wait(time.perf_counter())
        try:
            await asyncio.sleep(seconds)
        finally:
            self._trace.go_on(time.perf_counter())

    def exhausted(self) -> AllCandidatesFailed:
        """Return the error for a tier in which no candidate answered: money, if that was what a candidate lacked."""
        if self.unpaid is not None and (not self._trace.over or isinstance(self.unpaid, BudgetReserved)):
            return self.unpaid
        return self._models.exhausted(self._trace, self._first_attempt)


def _refuse_tokens(candidate: Candidate, texts: Sequence[str | Sequence[int]], request: LLMRequest) -> None:
    """Raise `Unsupported` for tokens in place of texts, and for fields of servers, where there is no server."""
    if request.extra or not all(isinstance(text, str) for text in texts):
        field = next(iter(request.extra), "input")
        error = Unsupported(f"{candidate.name} takes texts only, without {', '.join(request.extra) or 'lists of tokens'}")
        error.field = field
        raise error


def used_by(trace: Trace) -> tuple[float, int]:
    """Return the dollars and tokens that a request has used so far."""
    usage, cost = trace.total
    return cost, usage.total_tokens


def shown_to(member: Member, tier: Tier, request: LLMRequest) -> LLMRequest:
    """Return the request as sent to the member's candidates: in its prompt form, with the tier's log-probabilities."""
    changes: dict[str, Any] = {}
    if member.form is not None:
        changes["messages"] = tuple(member.form.shown(request.messages))
    if not tier.is_plain:
        changes["relay"] = None  # an answer that is judged or voted on must be read here
        if tier.logprobs is not None:
            changes |= {"logprobs": True, "top_logprobs": max(tier.logprobs, request.top_logprobs or 0)}
        elif tier.voting is not None and tier.voting.measure == "logprob":
            changes["logprobs"] = True
    return changed(request, **changes)
