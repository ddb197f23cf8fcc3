"""Running a plan as a stream.

Before the first piece, failures fall back unnoticed; after it, nothing that was delivered is replaced: the stream ends with
`StreamInterrupted`. A tier whose answer must be judged before it may be shown (a vote, a threshold with a tier behind it)
arrives in one piece once it is accepted; until then its tokens are watched, and it may be abandoned for the next tier. One
whose answer is taken whatever it is arrives piece by piece, and stands even where it is cut off: it was shown.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from workflow_composer.backends.stream_accumulator import StreamAccumulator
from workflow_composer.cascade.attempt import MeteredCall
from workflow_composer.cascade.executor import PlanExecutor, refuse_several
from workflow_composer.cascade.judging import judged
from workflow_composer.cascade.listening import listen
from workflow_composer.cascade.trace import Outcome, Trace
from workflow_composer.errors import AllCandidatesFailed, ModelError, StreamInterrupted, Unsupported
from workflow_composer.types import ALWAYS, Chunk, LLMRequest, Plan, Tier


class StreamRun:
    """One request run as a stream: iterate over `chunks`; ``outcome`` is there after the last one.

    ``at`` is where the run stands: tier, candidate, and candidates of the tier that have failed. ``asked_at`` is when that
    candidate was asked (`time.perf_counter`).
    """

    def __init__(self, executor: PlanExecutor, plan: Plan, request: LLMRequest, trace: Trace) -> None:
        self.outcome: Outcome | None = None
        self.at = (0, plan.tiers[0].candidates[0], 0)
        self.asked_at = time.perf_counter()
        self._executor = executor
        self._plan = plan
        self._request = request
        self._trace = trace

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Yield the answer piece by piece. Closing the generator stops the work at the server."""
        if self._request.n > 1:
            refuse_several(self._plan, self._request)
        ascent = self._executor.ascent(self._plan, self._request, self._trace)
        for index, tier in ascent.tiers():
            last = ascent.is_last(index)
            always = tier.voting is None and tier.accept is ALWAYS
            try:
                if tier.samples == 1 and (always or last):
                    async with aclosing(self._live(index, tier)) as pieces:
                        async for piece in pieces:
                            yield piece
                    assert self.outcome is not None  # a live tier that ends without an error has answered
                    ascent.answered(self.outcome)
                    return
                run = self._executor.run_tier(index, tier, self._request, self._trace, last=last, watch=ascent.may_abandon)
                ascent.answered(await run)
            except AllCandidatesFailed as error:
                ascent.failed(index, self._executor.failure(error, self._trace))
        self.outcome = found = ascent.outcome()
        self.at = (found.tier, found.candidate, found.fallback_depth)
        sample = self.outcome.answer
        yield Chunk(
            sample.text,
            sample.finish_reason or "stop",
            sample.tool_calls,
            sample.logprobs or (),
            self._trace.usage,
            self.outcome.model,
        )

    async def _live(self, index: int, tier: Tier) -> AsyncGenerator[Chunk, None]:
        call = self._executor.call(tier, self._request)
        walk = self._executor.walk(index, tier, self._request, self._trace)
        relay = call.request.relay
        while (candidate := walk.next()) is not None:
            self.at, self.asked_at = (index, candidate, walk.position), time.perf_counter()
            heard, endpoint = StreamAccumulator(), self._executor.endpoints[candidate.name]
            try:
                if relay is not None and getattr(endpoint.backend, "relays", False):
                    done = await self._executor.attempt(endpoint, call, walk)
                    # A relayed stream's text is read only where somebody wants it; that it was cut off is known in any case.
                    is_known = relay.keep or done.samples[0].cut_off
                    verdict = judged(tier, done.samples, self._request) if is_known else tier.accept(done.samples)
                    self.outcome = Outcome(done.samples, done.model, candidate, index, walk.position, verdict)
                    return
                if call.samples > 1:
                    with MeteredCall(endpoint, walk):  # an attempt as any other
                        reason = f"{candidate.name} streams one answer, and n is {call.samples}"
                        raise Unsupported(reason, hint="leave n or stream out")
                async with aclosing(listen(self._executor, endpoint, call, walk, heard)) as pieces:
                    async for piece in pieces:
                        yield piece
            except ModelError as error:
                if heard.pieces or (relay is not None and relay.begun):
                    delivered = f"after {heard.pieces} pieces" if heard.pieces else "within the answer"
                    raise StreamInterrupted(
                        f"the stream from {candidate.name} broke {delivered}: {error.message}",
                        attempts=self._trace.attempts,
                        hint="what was delivered stands; ask again for a whole answer",
                    ) from error
                call = await self._executor.after(error, call, tier, self._request, walk)
            else:
                sample = heard.sample()
                verdict = await self._executor.judge(tier, sample, self._request)
                self.outcome = Outcome((sample,), heard.model or candidate.name, candidate, index, walk.position, verdict)
                return
        raise walk.exhausted()
