"""Hearing a stream out: one metered call whose answer comes in pieces."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from workflow_composer.backends.stream_accumulator import StreamAccumulator
from workflow_composer.cascade.attempt import MeteredCall, Walk, within
from workflow_composer.cascade.bound import Bounded
from workflow_composer.cascade.endpoint import Endpoint
from workflow_composer.errors import ServerFailed
from workflow_composer.plan import Verdict, Watch
from workflow_composer.types import Chunk, ModelCall

if TYPE_CHECKING:
    from workflow_composer.cascade.executor import PlanExecutor


class Abandoned(Exception):  # no error: the call was ended on purpose
    """The answer cannot be accepted any more, so the call was ended; ``verdict`` says why."""

    def __init__(self, verdict: Verdict, tokens: int) -> None:
        reason = f"abandoned after {tokens} tokens: {verdict.reason}"
        super().__init__(reason)
        self.verdict = replace(verdict, reason=reason)


async def listen(
    executor: PlanExecutor,
    endpoint: Endpoint,
    call: ModelCall,
    walk: Walk,
    heard: StreamAccumulator,
    watch: Watch | None = None,
) -> AsyncGenerator[Chunk, None]:
    """Yield the pieces of one call, noted in ``heard``. Raises `Abandoned` as soon as ``watch`` says why."""
    with MeteredCall(endpoint, walk) as metered:
        limit = executor.limit(walk.trace.deadline)
        started = time.monotonic()
        async with aclosing(endpoint.backend.stream(within(call, limit))) as pieces:
            while True:
                whole = limit - (time.monotonic() - started)
                wait = whole if heard.pieces else min(whole, call.timeouts.first_token)
                with Bounded(endpoint, wait, "end of the stream" if heard.pieces else "first token"):
                    piece = await anext(pieces, None)
                if piece is None:
                    break
                heard.add(piece)
                metered.usage = heard.usage
                if piece.failovers:
                    metered.failovers = piece.failovers
                going_on = piece.finish_reason is None  # at its end there is nothing to save
                if watch is not None and going_on and piece.logprobs and (verdict := watch.hear(piece.logprobs)):
                    metered.usage = heard.usage_so_far(endpoint.prompt_tokens(call.request))
                    raise Abandoned(verdict, heard.tokens)
                yield piece
        if heard.finish_reason is None:
            raise ServerFailed("the stream stopped before its end")
