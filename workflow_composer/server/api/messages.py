"""Anthropic's messages, ``POST /v1/messages``: text, images, tools and streams.

Sources: https://docs.anthropic.com/en/api/messages and .../messages-streaming.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from workflow_composer.backends.openai.stream_accumulator import ToolCalls, ToolDelta
from workflow_composer.server.api import field_checks, schemas
from workflow_composer.server.api.field_checks import NOTHING, UNSUPPORTED, described, wrong
from workflow_composer.server.api.forms import ADDRESS_HEADERS, COMMON, TOKENS, Field, Form, address_of, left_out, refused
from workflow_composer.server.api.json_wire import Asked, encode, event
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import EMPTY, Chunk, LLMResponse

# ----------------------------------------------------------------------------------------------------------- form messages
#
# Fields of Anthropic's messages, translated to those of OpenAI's chat completions.


CACHE = "cache_control is not supported; model servers cache common prefixes automatically"

_NO_MESSAGES = "must be a list of at least one message"
Notes = dict[str, None]
"""Warnings about ignored values: each once, in order."""

_ANY = schemas.ANYTHING
_CACHED = {"cache_control": _ANY}
_TEXT_BLOCK = {"type": schemas.constant("text"), "text": schemas.TEXT}
_SOURCE = schemas.either(
    schemas.record({"type": schemas.constant("url"), "url": schemas.TEXT}, "type", "url"),
    schemas.record(
        {"type": schemas.constant("base64"), "data": schemas.TEXT, "media_type": schemas.TEXT}, "type", "data", "media_type"
    ),
)
_RESULT = schemas.nullable(schemas.either(schemas.TEXT, schemas.listed(schemas.record(_TEXT_BLOCK, "text"))))
_BLOCKS = {
    "text": {"text": schemas.TEXT, "citations": _ANY, **_CACHED},
    "image": {"source": _SOURCE, **_CACHED},
    "tool_use": {"id": schemas.TEXT, "name": schemas.TEXT, "input": _ANY, "caller": _ANY, **_CACHED},
    "tool_result": {"tool_use_id": schemas.TEXT, "content": _RESULT, "is_error": _ANY, **_CACHED},
}
"""Fields by block type. Citations and callers occur in returned responses and are redundant."""
_NEEDED = {"text": ("text",), "image": ("source",), "tool_use": ("id", "name"), "tool_result": ("tool_use_id",)}
_BLOCK = schemas.either(
    *(
        schemas.record({**parts, "type": schemas.constant(kind)}, "type", *_NEEDED[kind], closed=True)
        for kind, parts in _BLOCKS.items()
    )
)
_MESSAGE = {
    "role": schemas.constant("user", "assistant"),
    "content": schemas.either(schemas.TEXT, schemas.listed(_BLOCK, least=1)),
}
_TOOL = {
    "type": schemas.constant("custom", *NOTHING),
    "name": schemas.TEXT,
    **dict.fromkeys(("description", "input_schema", "strict"), _ANY),
    **_CACHED,
}


@described(
    schemas.either(schemas.TEXT, schemas.listed(schemas.record({**_TEXT_BLOCK, **_BLOCKS["text"]}, "text", closed=True)))
)
def _system(name: str, found: Any) -> tuple[list[dict[str, Any]], Notes]:
    notes: Notes = {}
    if isinstance(found, str):
        return [{"role": "system", "content": found}], notes
    if not isinstance(found, list) or not all(_is_text(one) for one in found):
        raise wrong(name, "must be a string or a list of text blocks")
    for number, block in enumerate(found):
        _known(block, ("type", *_BLOCKS["text"]), f"{name}[{number}]", notes)
    return ([{"role": "system", "content": "\n\n".join(one["text"] for one in found)}] if found else []), notes


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type", "text") == "text" and isinstance(block.get("text"), str)


def _known(found: Mapping[str, Any], names: Collection[str], place: str, notes: Notes) -> None:
    """Refuse unknown fields of a block or tool; warn about known ones that cannot change the response."""
    for name, value in found.items():
        if name not in names and value is not None:
            raise wrong(f"{place}.{name}", "is not supported", code=UNSUPPORTED)
    if found.get("cache_control") is not None:
        notes[CACHE] = None


@described(schemas.listed(schemas.record(_MESSAGE, "role", "content", closed=True), least=1))
def _messages(name: str, found: Any) -> tuple[list[dict[str, Any]], Notes]:
    if not field_checks.items(name, found):
        raise wrong(name, _NO_MESSAGES)
    notes: Notes = {}
    return [one for number, message in enumerate(found) for one in _message(message, f"{name}[{number}]", notes)], notes


def _message(message: Any, place: str, notes: Notes) -> list[dict[str, Any]]:
    """Translate a message to OpenAI's format; tool results become separate messages, before the rest."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise wrong(f"{place}.role", "must be user or assistant")
    _known(message, _MESSAGE, place, notes)
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not content or not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise wrong(f"{place}.content", "must be a string or a list of at least one block")
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, block in enumerate(content):
        where = f"{place}.content[{number}]"
        _block(block, where, parts, calls, results)
        _known(block, ("type", *_BLOCKS[block["type"]]), where, notes)
        if block.get("is_error"):
            notes["tool_result.is_error is not passed to the model; state the error in the content"] = None
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
        raise wrong(place, "must be a text, image, tool_use or tool_result block", code=UNSUPPORTED)


def _content(parts: list[dict[str, Any]]) -> Any:
    if not parts:
        return None
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _image(source: Mapping[str, Any], place: str) -> str:
    if source.get("type") == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    if source.get("type") == "base64" and isinstance(source.get("data"), str) and isinstance(source.get("media_type"), str):
        return f"data:{source['media_type']};base64,{source['data']}"
    raise wrong(f"{place}.source", "must be a URL, or base64 data with a media_type")


def _result(content: Any, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(_is_text(one) for one in content):
        return "\n".join(one["text"] for one in content)
    raise wrong(f"{place}.content", "must be a string or a list of text blocks")


@described(schemas.listed(schemas.record(_TOOL, "name", closed=True)))
def _tools(name: str, found: Any) -> tuple[tuple[dict[str, Any], ...] | None, Notes]:
    notes: Notes = {}
    made = (_tool(tool, f"{name}[{number}]", notes) for number, tool in enumerate(field_checks.items(name, found)))
    return tuple(made) or None, notes


def _tool(tool: Any, place: str, notes: Notes) -> dict[str, Any]:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise wrong(place, "must be an object with a name")
    if (tool.get("type") or "custom") != "custom":
        raise wrong(f"{place}.type", "must be custom; the service runs no tools itself", code=UNSUPPORTED)
    _known(tool, _TOOL, place, notes)
    function = {"name": tool["name"], "parameters": tool.get("input_schema") or {"type": "object"}}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_CHOICE = {"name": _ANY, "disable_parallel_tool_use": _ANY}


@described(
    schemas.either(
        schemas.record({**_CHOICE, "type": schemas.constant(*_CHOICES)}, "type", closed=True),
        schemas.record({**_CHOICE, "type": schemas.constant("tool"), "name": schemas.TEXT}, "type", "name", closed=True),
    )
)
def _tool_choice(name: str, found: Any) -> tuple[str | Mapping[str, Any], dict[str, Any]]:
    """Return the tool choice and the setting for parallel calls."""
    choice = field_checks.mapping(name, found)
    parallel = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    for part, value in choice.items():
        if part != "type" and part not in _CHOICE and value is not None:
            raise wrong(f"{name}.{part}", "is not supported", code=UNSUPPORTED)
    kind = choice.get("type")
    if kind == "tool" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}, parallel
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise wrong(f"{name}.type", "must be auto, any, none or tool")
    return _CHOICES[kind], parallel


@described(schemas.constant({"type": "disabled"}))
def _thinking(name: str, found: Any) -> None:
    if field_checks.mapping(name, found) != {"type": "disabled"}:
        raise wrong(name, "is not supported", code=UNSUPPORTED)


FORM = Form(
    {
        **COMMON,
        "messages": Field(_messages, required=_NO_MESSAGES),
        "system": Field(_system),
        "max_tokens": Field(TOKENS, "max_tokens", required="is required"),
        "stop_sequences": Field(field_checks.texts, "stop"),
        "tools": Field(_tools),
        "tool_choice": Field(_tool_choice),
        "thinking": Field(_thinking),
        "cache_control": Field(field_checks.mapping, note=f"Ignored: {CACHE}"),
        "service_tier": left_out("not supported"),
        "container": refused("is not supported"),
        "mcp_servers": refused("is not supported"),
        "n": refused("must be 1 in this API; use /v1/chat/completions for more"),
    },
    translated=True,
    example={"model": "auto", "max_tokens": 256, "messages": [{"role": "user", "content": "What is 2 + 2?"}]},
)


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
        fields, own, extra, warnings = FORM.read(body)
        (system, notes), (messages, more) = own.get("system", ([], {})), own["messages"]
        notes = {**notes, **more}
        if fields.get("metadata", EMPTY).get("user_id") is not None:
            notes["metadata.user_id is not passed to the model"] = None
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
        """Return a ``message`` object."""
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
        """Return a writer of a message's events."""
        return MessageEvents(asked)

    def failure(self, failure: HttpFailure) -> bytes:
        """Return an error object."""
        return encode(_error(failure))


class MessageEvents:
    """Writes one stream: the text as one block, and one block per tool call."""

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
        """Return the events for a piece."""
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
        """Return the end of the last block, the stop reason, and the usage."""
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
        """Return the error as an event."""
        return event(_error(failure), "error")

    def _in_turn(self, piece: str | ToolDelta) -> bytes:
        """Write a piece of text or of a call, or queue it until the open call's block ends: blocks must not interleave."""
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
        """Write queued pieces, up to the next call that must end first."""
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
    return {"type": "error", "error": {"type": kind, "message": failure.message}}
