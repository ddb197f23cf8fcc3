"""Anthropic's messages, ``POST /v1/messages``: text, thinking, images, tools and streams.

Sources: https://docs.anthropic.com/en/api/messages and .../messages-streaming. `message_form` reads the bodies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from workflow_composer.backends.openai.stream_accumulator import ToolCalls, ToolDelta
from workflow_composer.server.api.json_wire import Asked, context_of, encode, event
from workflow_composer.server.api.message_form import asked_of, sealed
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import Chunk, LLMResponse, Sample, Usage

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class MessagesDialect:
    """The Anthropic messages format."""

    name = "messages"

    def read(self, body: bytes | bytearray, headers: Mapping[str, str]) -> Asked:
        """Parse a request body. Raises `HttpFailure`."""
        return asked_of(body, headers)

    def whole(self, asked: Asked, response: LLMResponse) -> bytes:
        """Return a ``message`` object."""
        sample = response.samples[0]
        content: list[dict[str, Any]] = []
        if sample.reasoning:
            shown, signature = ("", sealed(sample.reasoning)) if asked.quiet else (sample.reasoning, "")
            content.append({"type": "thinking", "thinking": shown, "signature": signature})
        if sample.text or not (sample.tool_calls or content):
            content.append({"type": "text", "text": sample.text})
        content += [_use(call) for call in sample.tool_calls]
        head = _head(response.request_id, response.model)
        ended = _ended(asked, sample)
        return encode({**head, "content": content, **ended, "usage": _usage(response.usage, context_of(response))})

    def events(self, asked: Asked) -> MessageEvents:
        """Return a writer of a message's events."""
        return MessageEvents(asked)

    def failure(self, failure: HttpFailure) -> bytes:
        """Return an error object."""
        return encode(_error(failure))


class _Thought(NamedTuple):
    """A piece of what a model thinks before it answers."""

    text: str


_Piece = str | _Thought | ToolDelta


class MessageEvents:
    """Writes one stream: thinking and text as blocks, and one block per tool call."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._begun = False
        self._block: tuple[str, int] | None = None
        self._blocks = 0
        self._reason: str | None = None
        self._stop = ""
        self._calls = ToolCalls()
        self._call: int | None = None
        self._arguments = ""
        self._waiting: list[_Piece] = []
        self._hidden: list[str] = []

    def waiting(self) -> bytes:
        """Return a ping, after the message's start, which names the model as the client does."""
        return self._open(self._asked.request.model or "auto") + event({"type": "ping"}, "ping")

    def piece(self, chunk: Chunk) -> bytes:
        """Return the events for a piece."""
        out = self._open(chunk.model or "")
        if chunk.reasoning:
            out += self._in_turn(_Thought(chunk.reasoning))
        if chunk.text:
            out += self._in_turn(chunk.text)
        if chunk.tool_calls or self._calls:
            for call in self._calls.hear(chunk.tool_calls, last=chunk.finish_reason is not None):
                out += self._in_turn(call)
        self._reason = chunk.finish_reason or self._reason
        self._stop = chunk.stop or self._stop
        return out

    def end(self, response: LLMResponse) -> bytes:
        """Return the end of the last block, the stop reason, and the usage."""
        out = self._open(response.model)
        self._call = None
        while self._waiting:
            out += self._flushed()
            self._call = None
        if not self._blocks:
            out += self._enter("text", -1, {"type": "text", "text": ""})
        out += self._leave()
        usage = _usage(response.usage, context_of(response))
        calls: tuple[dict[str, Any], ...] = ({},) if self._calls else ()
        delta = _ended(self._asked, Sample("", self._reason, calls, stop=self._stop))
        out += event({"type": "message_delta", "delta": delta, "usage": usage}, "message_delta")
        return out + event({"type": "message_stop"}, "message_stop")

    def failed(self, failure: HttpFailure) -> bytes:
        """Return the error as an event."""
        return event(_error(failure), "error")

    def _in_turn(self, piece: _Piece) -> bytes:
        """Write a piece of text or of a call, or queue it until the open call's block ends: blocks must not interleave."""
        number = piece.number if isinstance(piece, ToolDelta) else None
        if self._call is not None and self._call != number:
            if self._waiting or not _is_whole(self._arguments):
                self._waiting.append(piece)
                return b""
        elif self._call is not None and self._waiting:
            out = self._written(piece)
            return out + self._flushed() if _is_whole(self._arguments) else out
        return self._written(piece)

    def _flushed(self) -> bytes:
        """Write queued pieces, up to the next call that must end first."""
        waiting, self._waiting, self._call = self._waiting, [], None
        first = next((piece.number for piece in waiting if isinstance(piece, ToolDelta)), None)
        out = b""
        for piece in waiting:
            if not isinstance(piece, ToolDelta) or piece.number == first:
                out += self._written(piece)
            else:
                self._waiting.append(piece)
        return out

    def _written(self, piece: _Piece) -> bytes:
        if isinstance(piece, str):
            self._call = None
            out = self._enter("text", -1, {"type": "text", "text": ""})
            return out + self._delta({"type": "text_delta", "text": piece})
        if isinstance(piece, _Thought):
            self._call = None
            out = self._enter("thinking", -1, {"type": "thinking", "thinking": "", "signature": ""})
            if self._asked.quiet:
                self._hidden.append(piece.text)
                return out
            return out + self._delta({"type": "thinking_delta", "thinking": piece.text})
        out = b""
        if piece.begins:
            self._call, self._arguments = piece.number, ""
            out = self._enter("tool", piece.number, {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}})
        if piece.arguments:
            self._arguments += piece.arguments
            out += self._delta({"type": "input_json_delta", "partial_json": piece.arguments})
        return out

    def _open(self, model: str) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        head = _head(self._asked.request.request_id, model)
        begun = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(Usage())}
        return event({"type": "message_start", "message": begun}, "message_start")

    def _enter(self, kind: str, number: int, block: Mapping[str, Any]) -> bytes:
        if self._block == (kind, number):
            return b""
        out = self._leave()
        self._block = (kind, number)
        start = {"type": "content_block_start", "index": self._blocks, "content_block": block}
        self._blocks += 1
        return out + event(start, "content_block_start")

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return event({"type": "content_block_delta", "index": self._blocks - 1, "delta": delta}, "content_block_delta")

    def _leave(self) -> bytes:
        if self._block is None:
            return b""
        self._block = None
        out = b""
        if self._hidden:
            out = self._delta({"type": "signature_delta", "signature": sealed("".join(self._hidden))})
            self._hidden = []
        return out + event({"type": "content_block_stop", "index": self._blocks - 1}, "content_block_stop")


def _head(request_id: str, model: str) -> dict[str, Any]:
    return {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "model": model}


def _ended(asked: Asked, sample: Sample) -> dict[str, Any]:
    """Return why an answer ended, and the stop sequence that ended it, if one of the request's did."""
    stop, wanted = sample.stop, asked.request.stop or ()
    if sample.tool_calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if not stop and sample.finish_reason == "stop_sequence" and len(wanted) == 1:
        stop = wanted[0]
    if stop and stop in wanted:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": _REASONS.get(sample.finish_reason or "", "end_turn"), "stop_sequence": None}


def _usage(usage: Usage, context: int | None = None) -> dict[str, int]:
    """Return token counts in Anthropic's way: what was read from a cache is not among the input; beside the sum over the
    samples of a vote, the length of one's context.
    """
    found = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
    return found if context is None else {**found, "context_tokens": context}


def _use(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (ValueError, RecursionError):  # invalid JSON from the model: show it unchanged
        arguments = {"arguments": function["arguments"]}
    return {"type": "tool_use", "id": call.get("id") or "toolu_0", "name": function.get("name") or "", "input": arguments}


def _is_whole(arguments: str) -> bool:
    """Whether a call's arguments are complete JSON."""
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    return True


def _error(failure: HttpFailure) -> dict[str, Any]:
    kind = _TYPES.get(failure.status, "api_error")
    more = {name: value for name, value in (("code", failure.code), ("param", failure.param)) if value is not None}
    return {"type": "error", "error": {"type": kind, "message": failure.message, **more}}
