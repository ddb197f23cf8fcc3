"""A stream's pieces, put together to the answer that they make: the one place that does."""

from __future__ import annotations

from workflow_composer.backends.tool_calls import ToolCalls
from workflow_composer.types import Chunk, Sample, TokenLogprob, Usage


class StreamAccumulator:
    """What a stream has delivered so far."""

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
        """The server's count; until it is known, one token per piece, which is the least it can be."""
        return self._usage or Usage(0, self.pieces)

    @property
    def tokens(self) -> int:
        """Tokens heard, as far as they can be counted."""
        return len(self._logprobs) or self.pieces

    def usage_so_far(self, prompt_tokens: int) -> Usage:
        """The usage of a stream that is left before its end; servers tell the prompt's tokens at the end only."""
        return self._usage or Usage(prompt_tokens, self.tokens)

    def add(self, chunk: Chunk) -> None:
        """Take note of one piece."""
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
        """The whole answer."""
        return Sample(
            "".join(self._texts),
            self.finish_reason,
            self._tool_calls.whole(),
            tuple(self._logprobs) or None,
            reasoning="".join(self._reasoning),
        )
