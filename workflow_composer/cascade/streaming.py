"""Running a plan as a stream.

Before the first piece, failures fall back unnoticed; after it, nothing that was delivered is replaced: the stream ends with
`StreamInterrupted`. A tier whose answer must be judged before it may be shown (a vote, a threshold with a tier behind it)
arrives in one piece once it is accepted.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from workflow_composer.cascade.attempt import MeteredCall, Walk
from workflow_composer.cascade.bound import Bounded
from workflow_composer.cascade.endpoint import Endpoint
from workflow_composer.cascade.executor import PlanExecutor, within
from workflow_composer.cascade.trace import Outcome, Trace
from workflow_composer.errors import (
    AllCandidatesFailed,
    ModelError,
    ServerFailed,
    StreamInterrupted,
)
from workflow_composer.types import ALWAYS, Chunk, LLMRequest, ModelCall, Plan, Sample, Tier, TokenLogprob, Usage


class StreamRun:
    """One request run as a stream: iterate over `chunks`; ``outcome`` is there after the last one."""

    def __init__(self, executor: PlanExecutor, plan: Plan, request: LLMRequest, trace: Trace) -> None:
        self.outcome: Outcome | None = None
        self._executor = executor
        self._plan = plan
        self._request = request
        self._trace = trace

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Yield the answer piece by piece. Closing the generator stops the work at the server."""
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
                ascent.answered(await self._executor.run_tier(index, tier, self._request, self._trace, last=last))
            except AllCandidatesFailed as error:
                ascent.failed(index, self._executor.failure(error, self._trace))
        self.outcome = ascent.outcome()
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
        while (candidate := walk.next()) is not None:
            told = _Told()
            try:
                async with aclosing(self._attempt(self._executor.endpoints[candidate.name], call, walk, told)) as pieces:
                    async for piece in pieces:
                        yield piece
            except ModelError as error:
                if told.pieces:
                    raise StreamInterrupted(
                        f"the stream from {candidate.name} broke after {told.pieces} pieces: {error.message}",
                        attempts=self._trace.attempts,
                        hint="what was delivered stands; ask again for a whole answer",
                    ) from error
                await walk.failed(error)
            else:
                sample = told.sample()
                verdict = await self._executor.judge(tier, sample)
                self.outcome = Outcome((sample,), told.model or candidate.name, candidate, index, walk.position, verdict)
                return
        raise walk.exhausted()

    async def _attempt(self, endpoint: Endpoint, call: ModelCall, walk: Walk, told: _Told) -> AsyncGenerator[Chunk, None]:
        with MeteredCall(endpoint, walk) as metered:
            limit = self._executor.limit(self._trace.deadline)
            started = time.monotonic()
            async with aclosing(endpoint.backend.stream(within(call, limit))) as pieces:
                while True:
                    whole = limit - (time.monotonic() - started)
                    wait = whole if told.pieces else min(whole, call.timeouts.first_token)
                    with Bounded(endpoint, wait, "end of the stream" if told.pieces else "first token"):
                        piece = await anext(pieces, None)
                    if piece is None:
                        break
                    told.hear(piece)
                    metered.usage = told.usage
                    yield piece
            if told.finish_reason is None:
                raise ServerFailed("the stream stopped before its end")


class _Told:
    """What a stream has delivered so far."""

    def __init__(self) -> None:
        self.pieces = 0
        self.finish_reason: str | None = None
        self.model: str | None = None
        self._texts: list[str] = []
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[TokenLogprob] = []
        self._usage: Usage | None = None

    @property
    def usage(self) -> Usage:
        """The server's count; until it is known, one token per piece, which is the least it can be."""
        return self._usage or Usage(0, self.pieces)

    def hear(self, chunk: Chunk) -> None:
        self.pieces += chunk.carries_content
        if chunk.text:
            self._texts.append(chunk.text)
        for call in chunk.tool_calls:
            self._hear_tool_call(call)
        if chunk.logprobs:
            self._logprobs.extend(chunk.logprobs)
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.model = chunk.model or self.model
        self._usage = chunk.usage or self._usage

    def _hear_tool_call(self, piece: Mapping[str, Any]) -> None:
        """Join the pieces of a tool call: the first names it, the rest continue its arguments."""
        index = piece.get("index", len(self._tool_calls))
        function = piece.get("function") or {}
        whole = self._tool_calls.setdefault(
            index, {"id": None, "type": "function", "function": {"name": None, "arguments": ""}}
        )
        whole["id"] = piece.get("id") or whole["id"]
        whole["function"]["name"] = function.get("name") or whole["function"]["name"]
        whole["function"]["arguments"] += function.get("arguments") or ""

    def sample(self) -> Sample:
        """The whole answer."""
        calls = tuple(self._tool_calls[i] for i in sorted(self._tool_calls))
        return Sample("".join(self._texts), self.finish_reason, calls, tuple(self._logprobs) or None)
