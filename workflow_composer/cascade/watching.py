"""Following an answer while it is generated, to abandon it as soon as it cannot be accepted any more.

Whatever is abandoned would have been rejected at its end, so watching changes what is paid, never what is accepted. Nothing
reaches the caller before the answer is whole and accepted. Where all tiers behind an abandoned answer fail, it is asked for
again (`Ascent.tiers`); where a budget might leave them out, nothing is abandoned (`Ascent.may_abandon`).
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from workflow_composer.backends.stream_accumulator import StreamAccumulator
from workflow_composer.cascade.judging import judged
from workflow_composer.cascade.listening import Abandoned, listen
from workflow_composer.cascade.trace import Outcome, Trace
from workflow_composer.errors import ModelError
from workflow_composer.types import Candidate, LLMRequest, Tier, Verdict

if TYPE_CHECKING:
    from workflow_composer.cascade.executor import PlanExecutor

LONGEST_ANSWER = 2**20
"""Tokens that an answer is thought to have at the most where neither the request nor the model limits it."""


async def watched(executor: PlanExecutor, index: int, tier: Tier, request: LLMRequest, trace: Trace) -> Outcome:
    """Ask a tier's candidates in order, as a stream, until one answers or is abandoned.

    Raises `AllCandidatesFailed` where none does.
    """
    assert tier.watch is not None  # the executor has looked
    call, walk = executor.call(tier, request), executor.walk(index, tier, request, trace)
    while (candidate := walk.next()) is not None:
        heard, watch = StreamAccumulator(), tier.watch(_longest(request, candidate))
        abandoned: Verdict | None = None
        try:
            async with aclosing(listen(executor, executor.endpoints[candidate.name], call, walk, heard, watch)) as pieces:
                async for _ in pieces:
                    pass
        except Abandoned as end:
            abandoned = end.verdict
        except ModelError as error:
            call = await executor.after(error, call, tier, request, walk)
            continue
        sample = heard.sample()
        verdict, model = abandoned or judged(tier, (sample,), request), heard.model or candidate.name
        return Outcome((sample,), model, candidate, index, walk.position, verdict, whole=abandoned is None)
    raise walk.exhausted()


def _longest(request: LLMRequest, candidate: Candidate) -> int:
    """Tokens that the answer can have at the most."""
    limits = [limit for limit in (request.max_tokens, candidate.context_length) if limit]
    return min(limits, default=LONGEST_ANSWER)
