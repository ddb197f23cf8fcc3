"""A stream's pieces, gathered into the answer that they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workflow_composer.types import Chunk, Sample, TokenLogprob, Usage


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
