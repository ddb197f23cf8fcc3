"""Anthropic's messages: ``POST /v1/messages``, as far as text, images, tools and streams go.

https://docs.anthropic.com/en/api/messages and .../messages-streaming give the shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from workflow_composer.backends.tool_calls import ToolCalls, ToolDelta
from workflow_composer.server.failures import HttpFailure
from workflow_composer.server.form_messages import CACHE, FORM
from workflow_composer.server.forms import ADDRESS_HEADERS, address_of
from workflow_composer.server.wire import Asked, encode, event
from workflow_composer.types import EMPTY, Chunk, LLMResponse

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
    """Reads and writes messages."""

    name = "messages"

    def read(self, body: bytes, headers: Mapping[str, str]) -> Asked:
        """Read a body. Raises `HttpFailure`."""
        fields, own, extra, warnings = FORM.read(body)
        (system, notes), (messages, more) = own.get("system", ([], {})), own["messages"]
        notes = {**notes, **more}
        if fields.get("metadata", EMPTY).get("user_id") is not None:
            notes["metadata.user_id is not told to the model"] = None
        if own.get("cache_control"):
            notes[CACHE] = None
        tools, more = own.get("tools", (None, {}))
        choice, parallel = own.get("tool_choice", (None, {}))
        told = fields.get("metadata", EMPTY).get("task_type")
        fields.update(
            address_of(own.get("model"), told, *map(headers.get, ADDRESS_HEADERS)),
            messages=(*system, *messages),
            tools=tools,
            tool_choice=choice,
            extra={**parallel, **extra},
        )
        return Asked(fields, own.get("stream", False), warnings=(*warnings, *{**notes, **more}))

    def whole(self, asked: Asked, response: LLMResponse) -> bytes:
        """A ``message`` object."""
        sample = response.samples[0]
        content: list[dict[str, Any]] = (
            [{"type": "text", "text": sample.text}] if sample.text or not sample.tool_calls else []
        )
        content += [_use(call) for call in sample.tool_calls]
        reason = "tool_use" if sample.tool_calls else _REASONS.get(sample.finish_reason or "", "end_turn")
        head = _head(response.request_id, response.model, response.usage.prompt_tokens)
        usage = {"input_tokens": response.usage.prompt_tokens, "output_tokens": response.usage.completion_tokens}
        return encode({**head, "content": content, "stop_reason": reason, "usage": usage})

    def events(self, asked: Asked) -> MessageEvents:
        """A writer of a message's events."""
        return MessageEvents(asked)

    def failure(self, failure: HttpFailure) -> bytes:
        """An error object."""
        return encode(_error(failure))


class MessageEvents:
    """Writes one stream: text in one block, each tool call in a block of its own."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._begun = False
        self._block: tuple[str, int] | None = None
        self._blocks = 0
        self._reason = "end_turn"
        self._calls = ToolCalls()
        self._call: int | None = None
        self._arguments = ""
        self._waiting: list[str | ToolDelta] = []

    def piece(self, chunk: Chunk) -> bytes:
        """The events for a piece."""
        out = self._open(chunk.model or "")
        if chunk.text:
            out += self._in_turn(chunk.text)
        if chunk.tool_calls or self._calls:
            self._reason = "tool_use"
            for call in self._calls.hear(chunk.tool_calls, last=chunk.finish_reason is not None):
                out += self._in_turn(call)
        if chunk.finish_reason and self._reason != "tool_use":
            self._reason = _REASONS.get(chunk.finish_reason, "end_turn")
        return out

    def end(self, response: LLMResponse) -> bytes:
        """The last block's end, why the model stopped, and the usage."""
        out = self._open(response.model)
        self._call = None
        while self._waiting:
            out += self._flushed()
            self._call = None
        if not self._blocks:
            out += self._enter("text", -1, {"type": "text", "text": ""})
        out += self._leave()
        usage = {"input_tokens": response.usage.prompt_tokens, "output_tokens": response.usage.completion_tokens}
        delta = {"stop_reason": self._reason, "stop_sequence": None}
        out += event({"type": "message_delta", "delta": delta, "usage": usage}, "message_delta")
        return out + event({"type": "message_stop"}, "message_stop")

    def failed(self, failure: HttpFailure) -> bytes:
        """The error, as an event."""
        return event(_error(failure), "error")

    def _in_turn(self, piece: str | ToolDelta) -> bytes:
        """A piece of text or of a call, unless another call must end first: blocks come one after the other here."""
        number = None if isinstance(piece, str) else piece.number
        if self._call is not None and self._call != number:
            if self._waiting or not _is_whole(self._arguments):
                self._waiting.append(piece)
                return b""
        elif self._call is not None and self._waiting:
            out = self._written(piece)
            return out + self._flushed() if _is_whole(self._arguments) else out
        return self._written(piece)

    def _flushed(self) -> bytes:
        """What waited, up to the next call that must end first."""
        waiting, self._waiting, self._call = self._waiting, [], None
        first = next((piece.number for piece in waiting if not isinstance(piece, str)), None)
        out = b""
        for piece in waiting:
            if isinstance(piece, str) or piece.number == first:
                out += self._written(piece)
            else:
                self._waiting.append(piece)
        return out

    def _written(self, piece: str | ToolDelta) -> bytes:
        if isinstance(piece, str):
            self._call = None
            out = self._enter("text", -1, {"type": "text", "text": ""})
            return out + self._delta({"type": "text_delta", "text": piece})
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
        head = _head(self._asked.request.request_id, model, 0)
        return event({"type": "message_start", "message": {**head, "content": [], "stop_reason": None}}, "message_start")

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
        return event({"type": "content_block_stop", "index": self._blocks - 1}, "content_block_stop")


def _head(request_id: str, model: str, prompt_tokens: int) -> dict[str, Any]:
    usage = {"input_tokens": prompt_tokens, "output_tokens": 0}
    return {
        "id": f"msg_{request_id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "stop_sequence": None,
        "usage": usage,
    }


def _use(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (ValueError, RecursionError):  # a model's mistake, shown as it is
        arguments = {"arguments": function["arguments"]}
    return {"type": "tool_use", "id": call.get("id") or "toolu_0", "name": function.get("name") or "", "input": arguments}


def _is_whole(arguments: str) -> bool:
    """Whether a call's arguments have come to their end."""
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    return True


def _error(failure: HttpFailure) -> dict[str, Any]:
    kind = _TYPES.get(failure.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": failure.message}}
