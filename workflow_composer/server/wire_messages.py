"""Anthropic's messages: ``POST /v1/messages``, as far as text, images, tools and streams go.

https://docs.anthropic.com/en/api/messages and .../messages-streaming give the shapes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from workflow_composer.server import checks
from workflow_composer.server.addressing import address_of
from workflow_composer.server.checks import wrong
from workflow_composer.server.failures import HttpFailure
from workflow_composer.server.wire import Asked, Fields, encode, event
from workflow_composer.types import Chunk, LLMRequest, LLMResponse

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
_REFUSED = {
    "container": "is not known here",
    "mcp_servers": "is not known here",
    "n": "is one in this form; ask /v1/chat/completions for more",
}
_CACHE = "cache_control is not known here; servers keep what requests have in common by themselves"
_BLOCKS = {
    "text": {"type", "text", "cache_control", "citations"},
    "image": {"type", "source", "cache_control"},
    "tool_use": {"type", "id", "name", "input", "cache_control", "caller"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
}
"""The fields of each kind of block. Citations and callers are of answers that are sent back: they say nothing new."""
_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class MessagesDialect:
    """Reads and writes messages."""

    name = "messages"

    def read(self, data: Mapping[str, Any], headers: Mapping[str, str]) -> Asked:
        """Read a body. Raises `HttpFailure`."""
        fields = Fields(data)
        found = fields.items("messages")
        if not found:
            raise wrong("messages", "must be a list of at least one message")
        notes: dict[str, None] = {}  # a set in order
        messages = _system(fields.take("system"), notes)
        for number, message in enumerate(found):
            messages += _messages(message, f"messages[{number}]", notes)
        limit = fields.whole("max_tokens", least=1)
        if limit is None:
            raise wrong("max_tokens", "is required")
        stream = bool(fields.flag("stream"))
        metadata = fields.mapping("metadata") or {}
        if metadata.get("user_id") is not None:
            notes["metadata.user_id is not told to the model"] = None
        if fields.get("thinking", checks.mapping) not in (None, {"type": "disabled"}):
            raise wrong("thinking", "cannot be honoured here", code="unsupported_parameter")
        fields.refuse(_REFUSED)
        warnings = fields.leave_out({"service_tier": "is not known here"})
        if fields.mapping("cache_control"):
            notes[_CACHE] = None
        choice, parallel = _tool_choice(fields.mapping("tool_choice"))
        tools = fields.items("tools")
        request = LLMRequest(
            messages=tuple(messages),
            **address_of(fields.text("model"), headers, metadata),
            max_tokens=limit,
            temperature=fields.number("temperature", 0.0, 2.0),
            top_p=fields.number("top_p", 0.0, 1.0),
            stop=fields.get("stop_sequences", checks.texts),
            tools=tuple(_tool(tool, f"tools[{number}]", notes) for number, tool in enumerate(tools)) if tools else None,
            tool_choice=choice,
            metadata=metadata,
            request_id="",
            extra={**parallel, **fields.passed_on()},
        )
        return Asked(request, stream, warnings=(*warnings, *notes))

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

    def piece(self, chunk: Chunk) -> bytes:
        """The events for a piece."""
        out = self._open(chunk.model or "")
        if chunk.text:
            out += self._enter("text", -1, {"type": "text", "text": ""})
            out += self._delta({"type": "text_delta", "text": chunk.text})
        for number, call in enumerate(chunk.tool_calls):
            index, function = call.get("index", number), call.get("function") or {}
            if self._block != ("tool", index):
                out += self._enter("tool", index, _begun(call, index))
            if function.get("arguments"):
                out += self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})
            self._reason = "tool_use"
        if chunk.finish_reason and self._reason != "tool_use":
            self._reason = _REASONS.get(chunk.finish_reason, "end_turn")
        return out

    def end(self, response: LLMResponse) -> bytes:
        """The last block's end, why the model stopped, and the usage."""
        out = self._open(response.model)
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


# ------------------------------------------------------------------------------------------------------------- reading


def _system(found: Any, notes: dict[str, None]) -> list[dict[str, Any]]:
    if found is None:
        return []
    if isinstance(found, str):
        return [{"role": "system", "content": found}]
    if not isinstance(found, list) or not all(_is_text(one) for one in found):
        raise wrong("system", "must be a text or a list of text blocks")
    for number, block in enumerate(found):
        _known(block, _BLOCKS["text"], f"system[{number}]", notes)
    return [{"role": "system", "content": "\n\n".join(one["text"] for one in found)}] if found else []


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type", "text") == "text" and isinstance(block.get("text"), str)


def _known(found: Mapping[str, Any], names: Collection[str], place: str, notes: dict[str, None]) -> None:
    """Refuse what is not known of a block or tool; note what is known and cannot change the answer."""
    for name, value in found.items():
        if name not in names and value is not None:
            raise wrong(f"{place}.{name}", "cannot be honoured here", code="unsupported_parameter")
    if found.get("cache_control") is not None:
        notes[_CACHE] = None


def _messages(message: Any, place: str, notes: dict[str, None]) -> list[dict[str, Any]]:
    """One of Anthropic's messages as OpenAI's: results of tools become messages of their own, before the rest."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise wrong(f"{place}.role", "must be user or assistant")
    _known(message, ("role", "content"), place, notes)
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not content or not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise wrong(f"{place}.content", "must be a text or a list of at least one block")
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, block in enumerate(content):
        where = f"{place}.content[{number}]"
        _block(block, where, parts, calls, results)
        _known(block, _BLOCKS[block["type"]], where, notes)
        if block.get("is_error"):
            notes["tool_result.is_error is not told to the model; the content should say it"] = None
    rest: dict[str, Any] = {"role": role, "content": _content(parts)}
    if calls:
        rest["tool_calls"] = calls
    return [*results, *([rest] if parts or calls else [])]


def _block(
    block: Mapping[str, Any],
    place: str,
    parts: list[dict[str, Any]],
    calls: list[dict[str, Any]],
    results: list[dict[str, Any]],
) -> None:
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        parts.append({"type": "text", "text": block["text"]})
    elif kind == "image" and isinstance(block.get("source"), dict):
        parts.append({"type": "image_url", "image_url": {"url": _image(block["source"], place)}})
    elif kind == "tool_use" and isinstance(block.get("id"), str) and isinstance(block.get("name"), str):
        arguments = json.dumps(block.get("input") or {})
        calls.append({"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": arguments}})
    elif kind == "tool_result" and isinstance(block.get("tool_use_id"), str):
        results.append(
            {"role": "tool", "tool_call_id": block["tool_use_id"], "content": _result(block.get("content"), place)}
        )
    else:
        raise wrong(place, "must be a text, image, tool_use or tool_result block", code="unsupported_parameter")


def _content(parts: list[dict[str, Any]]) -> Any:
    if not parts:
        return None
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _image(source: Mapping[str, Any], place: str) -> str:
    if source.get("type") == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    if source.get("type") == "base64" and isinstance(source.get("data"), str) and isinstance(source.get("media_type"), str):
        return f"data:{source['media_type']};base64,{source['data']}"
    raise wrong(f"{place}.source", "must be a url or base64 data with a media_type")


def _result(content: Any, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(_is_text(one) for one in content):
        return "\n".join(one["text"] for one in content)
    raise wrong(f"{place}.content", "must be a text or a list of text blocks")


def _tool(tool: Any, place: str, notes: dict[str, None]) -> dict[str, Any]:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise wrong(place, "must be an object with a name")
    if (tool.get("type") or "custom") != "custom":
        raise wrong(f"{place}.type", "must be custom; the service runs no tools itself", code="unsupported_parameter")
    _known(tool, ("type", "name", "input_schema", "description", "strict", "cache_control"), place, notes)
    function = {"name": tool["name"], "parameters": tool.get("input_schema") or {"type": "object"}}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(found: Mapping[str, Any] | None) -> tuple[str | Mapping[str, Any] | None, dict[str, Any]]:
    if found is None:
        return None, {}
    parallel = {"parallel_tool_calls": False} if found.get("disable_parallel_tool_use") else {}
    _known(found, ("type", "name", "disable_parallel_tool_use"), "tool_choice", {})
    kind = found.get("type")
    if kind == "tool" and isinstance(found.get("name"), str):
        return {"type": "function", "function": {"name": found["name"]}}, parallel
    named = {"auto": "auto", "any": "required", "none": "none"}
    if not isinstance(kind, str) or kind not in named:
        raise wrong("tool_choice.type", "must be auto, any, none or tool")
    return named[kind], parallel


# ------------------------------------------------------------------------------------------------------------- writing


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


def _begun(call: Mapping[str, Any], index: int) -> dict[str, Any]:
    name = (call.get("function") or {}).get("name") or ""
    return {"type": "tool_use", "id": call.get("id") or f"toolu_{index}", "name": name, "input": {}}


def _error(failure: HttpFailure) -> dict[str, Any]:
    kind = _TYPES.get(failure.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": failure.message}}
