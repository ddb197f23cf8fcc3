"""Hearing a stream out: one metered call whose answer comes in pieces."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workflow_composer.cascade.attempt import MeteredCall, Walk, within
from workflow_composer.cascade.bound import Bounded
from workflow_composer.cascade.endpoint import Endpoint
from workflow_composer.errors import ServerFailed
from workflow_composer.plan import Verdict, Watch
from workflow_composer.types import Chunk, ModelCall, Sample, TokenLogprob, Usage

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
    told: Told,
    watch: Watch | None = None,
) -> AsyncGenerator[Chunk, None]:
    """Yield the pieces of one call, noted in ``told``. Raises `Abandoned` as soon as ``watch`` says why."""
    with MeteredCall(endpoint, walk) as metered:
        limit = executor.limit(walk.trace.deadline)
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
                if piece.failovers:
                    metered.failovers = piece.failovers
                going_on = piece.finish_reason is None  # at its end there is nothing to save
                if watch is not None and going_on and piece.logprobs and (verdict := watch.hear(piece.logprobs)):
                    metered.usage = told.usage_so_far(endpoint.prompt_tokens(call.request))
                    raise Abandoned(verdict, told.tokens)
                yield piece
        if told.finish_reason is None:
            raise ServerFailed("the stream stopped before its end")


class Told:
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

    @property
    def tokens(self) -> int:
        """Tokens heard, as far as they can be counted."""
        return len(self._logprobs) or self.pieces

    def usage_so_far(self, prompt_tokens: int) -> Usage:
        """The usage of a stream that is left before its end; servers tell the prompt's tokens at the end only."""
        return self._usage or Usage(prompt_tokens, self.tokens)

    def hear(self, chunk: Chunk) -> None:
        """Take note of one piece."""
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
