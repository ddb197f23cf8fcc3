"""Execution of a plan as a stream.

Before the first chunk, a failed call falls back to the next candidate. After it, delivered text is never replaced: a failure
ends the stream with `StreamInterrupted`. If a tier's answer must be judged first (a vote, or a threshold in a tier other
than the last), it is delivered as one chunk once it is accepted; until then its tokens are watched, and it may be abandoned
for the next tier. If a tier accepts every answer, its chunks are delivered as they arrive, and the answer stands even if it
is truncated, because the caller has already received it.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from workflow_composer.backends.openai.stream_accumulator import StreamAccumulator
from workflow_composer.errors import AllCandidatesFailed, ModelError, StreamInterrupted
from workflow_composer.execution.call import Outcome, Trace
from workflow_composer.execution.executor import PlanExecutor, judged, refuse_several, refuse_too_many
from workflow_composer.plan import Plan, Tier
from workflow_composer.types import Chunk, LLMRequest, Sample, TokenLogprob, Verdict

_SHORT, _MOST_PIECES = 48, 256
"""Characters of an answer that is delivered at once, and pieces of a longer one."""


def pieces_of(sample: Sample) -> list[tuple[str, tuple[TokenLogprob, ...]]]:
    """Return the text of an answer that was judged as a whole in pieces, each with its tokens, as clients expect of streams.

    >>> [text for text, _ in pieces_of(Sample("one two three " * 8))][:2]
    ['one two three one two three one two three one two ', 'three one two three one two three one two three ']
    """
    text, tokens = sample.text, sample.logprobs or ()
    size = max(_SHORT, len(text) // _MOST_PIECES)
    parts: list[tuple[str, tuple[TokenLogprob, ...]]]
    if tokens and "".join(token.token for token in tokens) == text:
        parts = [(token.token, (token,)) for token in tokens]
    elif tokens:
        return [(text, tokens)]
    else:
        parts = [(word, ()) for word in _WORD.findall(text)]
    found: list[tuple[str, tuple[TokenLogprob, ...]]] = []
    said: list[str] = []
    heard: list[TokenLogprob] = []
    length = 0
    for part, own in parts:
        said.append(part)
        heard += own
        length += len(part)
        if length >= size:
            found.append(("".join(said), tuple(heard)))
            said, heard, length = [], [], 0
    if said or not found:
        found.append(("".join(said), tuple(heard)))
    return found


_WORD = re.compile(r"\s*\S{1,4096}\s?|\s+")


class StreamRun:
    """One request run as a stream: iterate over `chunks`; ``outcome`` is set after the last one.

    ``at`` is the current position: tier number, candidate, and number of the tier's candidates that failed. ``asked_at`` is
    the start of the call to that candidate (`time.perf_counter`).
    """

    def __init__(self, executor: PlanExecutor, plan: Plan, request: LLMRequest, trace: Trace) -> None:
        self.outcome: Outcome | None = None
        self.at = (0, plan.tiers[0].members[0].candidates[0], 0)
        self.asked_at = time.perf_counter()
        self._executor = executor
        self._plan = executor.formed.of(plan, request)
        self._request = request
        self._trace = trace

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Yield the answer's chunks. Closing the generator cancels the call to the server."""
        if self._request.n > 1:
            refuse_several(self._plan, self._request)
        if self._request.most_calls is not None:
            refuse_too_many(self._plan, self._request)
        if self._request.purse is not None:
            self._request = await self._executor.paid(self._plan, self._request, self._trace)
        ascent = self._executor.ascent(self._plan, self._request, self._trace)
        for index, tier in ascent.tiers():
            last = ascent.is_last(index)
            try:
                if tier.is_plain or (last and tier.samples == 1 and tier.form is None):
                    async with aclosing(self._live(index, tier)) as pieces:
                        async for piece in pieces:
                            yield piece
                    assert self.outcome is not None  # a live tier that ends without an error has answered
                    ascent.answered(self.outcome)
                    return
                run = self._executor.run_tier(index, tier, self._request, self._trace, last=last, watch=ascent.may_abandon)
                ascent.answered(await run)
            except AllCandidatesFailed as error:
                ascent.failed(index, error)
        self.outcome = found = ascent.outcome()
        self.at = (found.tier, found.candidate, found.fallback_depth)
        sample, model = self.outcome.answer, self.outcome.model
        *first, (text, logprobs) = pieces_of(sample)
        reasoning = sample.reasoning
        for part, tokens in first:
            yield Chunk(part, logprobs=tokens, model=model, reasoning=reasoning)
            reasoning = ""
        yield Chunk(
            text,
            sample.finish_reason or "stop",
            sample.tool_calls,
            logprobs,
            self._trace.usage,
            model,
            reasoning=reasoning,
            stop=sample.stop,
        )

    async def _live(self, index: int, tier: Tier) -> AsyncGenerator[Chunk, None]:
        run = self._executor.member_run(index, tier, self._request, self._trace)
        relay = run.asked.request.relay
        while run.next():
            self.at, self.asked_at = (index, run.candidate, run.position), time.perf_counter()
            heard = StreamAccumulator()
            try:
                if relay is not None and getattr(run.endpoint.backend, "relays", False):
                    done = await run.complete()
                    # A relayed stream's text is read only on demand; whether it was truncated is always known.
                    is_known = relay.keep or done.samples[0].cut_off
                    verdict = judged(tier, done.samples, self._request) if is_known else tier.accept(done.samples)
                    self.outcome = Outcome(done.samples, done.model, run.candidate, index, run.position, verdict)
                    return
                async with aclosing(run.listen(heard)) as pieces:
                    async for piece in pieces:
                        yield piece
            except ModelError as error:
                if heard.pieces or (relay is not None and relay.begun):
                    delivered = f"after {heard.pieces} chunks" if heard.pieces else "within the answer"
                    raise StreamInterrupted(
                        f"the stream from {run.candidate.name} failed {delivered}: {error.message}",
                        attempts=self._trace.attempts,
                        hint="the delivered text stays valid; repeat the request for a complete answer",
                    ) from error
                await run.failed(error)
            else:
                sample, model = heard.sample(), heard.model or run.candidate.name
                verdict = await self._verdict(tier, sample)
                self.outcome = Outcome((sample,), model, run.candidate, index, run.position, verdict)
                return
        raise run.exhausted()

    async def _verdict(self, tier: Tier, sample: Sample) -> Verdict:
        """Return the verdict on a tier's only sample."""
        if tier.voting is None:
            return judged(tier, (sample,), self._request)
        from workflow_composer.execution.voting.ballot import Ballot

        ballot = Ballot(
            tier.voting, tier.members, last=True, kind=self._executor.vote_kind(tier, self._request, self._trace)
        )
        await ballot.add(sample)
        return ballot.verdict()
