"""Joins the pieces of a stream to an answer; the only module that does."""

from __future__ import annotations

from workflow_composer.backends.tool_calls import ToolCalls
from workflow_composer.types import Chunk, Sample, TokenLogprob, Usage


class StreamAccumulator:
    """The part of an answer that a stream has delivered so far."""

    def __init__(self) -> None:
        self.pieces = 0
        self.finish_reason: str | None = None
        self.model: str | None = None
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls = ToolCalls()
        self._logprobs: list[TokenLogprob] = []
        self._usage: Usage | None = None

    @property
    def usage(self) -> Usage:
        """The server's count; until it arrives, one token per piece, a lower bound."""
        return self._usage or Usage(0, self.pieces)

    @property
    def tokens(self) -> int:
        """Tokens received, as far as they can be counted."""
        return len(self._logprobs) or self.pieces

    def usage_so_far(self, prompt_tokens: int) -> Usage:
        """Return the usage of a stream closed early; servers report the prompt's tokens only at the end."""
        return self._usage or Usage(prompt_tokens, self.tokens)

    def add(self, chunk: Chunk) -> None:
        """Add one piece."""
        self.pieces += chunk.carries_content
        if chunk.text:
            self._texts.append(chunk.text)
        if chunk.reasoning:
            self._reasoning.append(chunk.reasoning)
        if chunk.tool_calls:
            for _ in self._tool_calls.hear(chunk.tool_calls):
                pass
        if chunk.logprobs:
            self._logprobs.extend(chunk.logprobs)
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.model = chunk.model or self.model
        self._usage = chunk.usage or self._usage

    def sample(self) -> Sample:
        """Return the whole answer."""
        return Sample(
            "".join(self._texts),
            self.finish_reason,
            self._tool_calls.whole(),
            tuple(self._logprobs) or None,
            reasoning="".join(self._reasoning),
        )
