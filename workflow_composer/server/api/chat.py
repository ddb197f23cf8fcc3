"""OpenAI's chat completions: ``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from workflow_composer.backends.openai.adapting import OPTIONS
from workflow_composer.backends.openai.stream_accumulator import ToolCalls, ToolDelta
from workflow_composer.backends.openai.wire import message_of
from workflow_composer.server.api import field_checks, schemas
from workflow_composer.server.api.field_checks import UNSUPPORTED, described, wrong
from workflow_composer.server.api.forms import (
    ADDRESS_HEADERS,
    COMMON,
    ONLY_SOME,
    TOKENS,
    TOP_LOGPROBS,
    Field,
    Form,
    address_of,
    carry,
    left_out,
    optional,
    renamed,
)
from workflow_composer.server.api.json_wire import WAITING, Asked, counts_of, encode, event, openai_failure, usage_of
from workflow_composer.server.api.schemas import Schema
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import EMPTY, Chunk, LLMResponse, TokenLogprob

DONE = b"data: [DONE]\n\n"

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_MAY_BE_SILENT = frozenset({"assistant", "function"})
"""Roles whose messages may have tool calls instead of content."""
_NO_MESSAGES = "must be a list of at least one message"


class ChatDialect:
    """The chat completions format."""

    name = "chat"

    def read(self, body: bytes | bytearray, headers: Mapping[str, str]) -> Asked:
        """Parse a request body. Raises `HttpFailure`."""
        fields, own, extra, warnings = FORM.read(body)
        if (limit := own.get("max_completion_tokens")) is not None:
            if fields.get("max_tokens", limit) != limit:
                warnings.append("max_tokens is ignored because max_completion_tokens is set")
            fields["max_tokens"] = limit
        include_usage = "stream_options" in own and usage_at_end(own)
        metadata = fields.setdefault("metadata", EMPTY)
        address = address_of(own.get("model"), metadata.get("task_type"), *map(headers.get, ADDRESS_HEADERS))
        if extra:
            renamed(extra, warnings)
        if not OPTIONS.isdisjoint(own):
            optional(own, extra)
        if metadata:
            carry(metadata, extra)
        fields.update(address, extra=extra)
        continuous = include_usage and own["stream_options"].get("continuous_usage_stats") is True
        return Asked(fields, own.get("stream", False), include_usage, tuple(warnings), continuous)

    def whole(self, asked: Asked, response: LLMResponse) -> bytes:
        """Return a ``chat.completion`` object."""
        choices = [
            {
                "index": index,
                "message": message_of(sample),
                "finish_reason": sample.finish_reason or "stop",
                "logprobs": _logprobs(sample.logprobs) if asked.request.logprobs else None,
                **({"stop_reason": sample.stop} if sample.stop else {}),
            }
            for index, sample in enumerate(response.samples[: asked.request.n])
        ]
        return encode(
            {
                "id": f"chatcmpl-{response.request_id}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": response.model,
                "choices": choices,
                "usage": usage_of(response),
            }
        )

    def events(self, asked: Asked) -> ChatEvents:
        """Return a writer of ``chat.completion.chunk`` objects."""
        return ChatEvents(asked)

    def failure(self, failure: HttpFailure) -> bytes:
        """Return an error object."""
        return openai_failure(failure)


class ChatEvents:
    """Writes one stream of chunks."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._frame: dict[str, Any] = {}
        self._calls = ToolCalls()

    def waiting(self) -> bytes:
        """Return a comment."""
        return WAITING

    def piece(self, chunk: Chunk) -> bytes:
        """Return the chunk for a piece, preceded by the role for the first one."""
        opening = b"" if self._frame else self._open(chunk.model or "")
        if not chunk.carries_content:
            return opening
        delta: dict[str, Any] = {"content": chunk.text} if chunk.text else {}
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if chunk.tool_calls or self._calls:
            calls = self._calls.hear(chunk.tool_calls, last=chunk.finish_reason is not None)
            if pieces := [_piece(call) for call in calls]:
                delta["tool_calls"] = pieces
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": chunk.finish_reason}
        if chunk.stop:
            choice["stop_reason"] = chunk.stop
        if self._asked.request.logprobs and chunk.logprobs:
            choice["logprobs"] = _logprobs(chunk.logprobs)
        usage = {"usage": counts_of(chunk.usage)} if self._asked.continuous and chunk.usage is not None else {}
        return opening + event({**self._frame, "choices": [choice], **usage})

    def end(self, response: LLMResponse) -> bytes:
        """Return the usage, if requested, and the end marker."""
        opening = b"" if self._frame else self._open(response.model)
        if self._asked.include_usage:
            opening += event({**self._frame, "choices": [], "usage": usage_of(response)})
        return opening + DONE

    def failed(self, failure: HttpFailure) -> bytes:
        """Return the error object as an event."""
        return b"data: " + openai_failure(failure) + b"\n\n"

    def _open(self, model: str) -> bytes:
        self._frame = {
            "id": f"chatcmpl-{self._asked.request.request_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        start = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return event({**self._frame, "choices": [start]})


def _piece(call: ToolDelta) -> dict[str, Any]:
    """Return a piece of a tool call; the first piece has its name."""
    if not call.begins:
        return {"index": call.number, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.number, "id": call.id, "type": "function", "function": function}


# ------------------------------------------------------------------------------------------------------------- reading


def _message_schema() -> Schema:
    part = schemas.either(
        schemas.record({"type": schemas.constant("text"), "text": schemas.TEXT}, "type", "text"),
        schemas.record({"type": {**schemas.TEXT, "not": schemas.constant("text")}}, "type"),
    )
    content = schemas.either(schemas.TEXT, schemas.listed(part))
    spoken = {"role": schemas.constant(*sorted(_ROLES - _MAY_BE_SILENT)), "content": content}
    silent = {"role": schemas.constant(*sorted(_MAY_BE_SILENT)), "content": schemas.nullable(content)}
    return schemas.either(schemas.record(spoken, "role", "content"), schemas.record(silent, "role"))


@described(schemas.listed(_message_schema(), least=1))
def _messages(name: str, found: Any) -> tuple[Mapping[str, Any], ...]:
    """Return messages in OpenAI's format. Raises `HttpFailure` with the index of the invalid one."""
    if not found or not isinstance(found, list):
        raise wrong(name, _NO_MESSAGES)
    for number, message in enumerate(found):
        if not isinstance(message, dict):
            raise wrong(f"{name}[{number}]", "must be an object")
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise wrong(f"{name}[{number}].role", f"must be one of {', '.join(sorted(_ROLES))}")
        content = message.get("content")
        if not isinstance(content, str):
            _check_parts(content, f"{name}[{number}].content", role)
    return tuple(found)


def _check_parts(content: Any, place: str, role: str) -> None:
    if content is None:
        if role not in _MAY_BE_SILENT:
            raise wrong(place, "must be a string or a list of parts")
        return
    if not isinstance(content, list) or not all(
        isinstance(part, dict) and isinstance(part.get("type"), str) for part in content
    ):
        raise wrong(place, "must be a string or a list of parts, each an object with a type")
    for index, part in enumerate(content):
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise wrong(f"{place}[{index}].text", "must be a string")


_OPTIONS = dict.fromkeys(
    ("include_usage", "include_obfuscation", "continuous_usage_stats"), schemas.nullable(schemas.BOOLEAN)
)


@described({**schemas.record(_OPTIONS), "additionalProperties": False})
def _stream_options(name: str, options: Any) -> dict[str, Any]:
    for option, value in field_checks.mapping(name, options).items():
        if option not in _OPTIONS:
            raise wrong(f"{name}.{option}", "is not supported", code=UNSUPPORTED)
        if value is not None and not isinstance(value, bool):
            raise wrong(f"{name}.{option}", "must be true or false")
    return dict(options)


STREAM_OPTIONS = Field(_stream_options, note="Only with `stream`")
STREAM_OPTIONS_IN_STREAMS = schemas.either(
    {"properties": {"stream_options": schemas.NULL}},
    {"properties": {"stream": schemas.constant(True)}, "required": ["stream"]},
)
"""The field that `usage_at_end` checks."""


def usage_at_end(own: Mapping[str, Any]) -> bool:
    """Whether ``stream_options`` request the usage at the stream's end. Raises `HttpFailure` without ``stream``."""
    if not own.get("stream"):
        raise wrong("stream_options", "is allowed only with stream")
    return bool(own["stream_options"].get("include_usage"))


_FUNCTION = {"description": field_checks.text, "parameters": field_checks.mapping}
_FUNCTION_TOOL = {
    "type": schemas.constant("function"),
    "function": schemas.record(
        {"name": schemas.TEXT, **{name: schemas.nullable(check.schema) for name, check in _FUNCTION.items()}}, "name"
    ),
}
_OTHER_TOOL = {"type": {**schemas.TEXT, "not": schemas.constant("function")}}


@described(
    schemas.listed(
        schemas.either(schemas.record(_FUNCTION_TOOL, "type", "function"), schemas.record(_OTHER_TOOL, "type")),
    )
)
def _tools(name: str, found: Any) -> tuple[Mapping[str, Any], ...] | None:
    for number, tool in enumerate(field_checks.items(name, found)):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise wrong(f"{name}[{number}]", "must be an object with a type")
        if tool["type"] == "function":
            _check_function(tool.get("function"), f"{name}[{number}].function")
    return tuple(found) or None


def _check_function(function: Any, place: str) -> None:
    field_checks.text(f"{place}.name", field_checks.mapping(place, function).get("name"))
    for name, check in _FUNCTION.items():
        if function.get(name) is not None:
            check(f"{place}.{name}", function[name])


@described(schemas.either(schemas.TEXT, schemas.OBJECT))
def _tool_choice(name: str, found: Any) -> str | Mapping[str, Any]:
    if not isinstance(found, (str, dict)):
        raise wrong(name, "must be a string or an object")
    return found


CHOICES = Field(field_checks.whole(least=1, most=128), "n")
SEED = Field(field_checks.whole(most=2**63 - 1), "seed")

FORM = Form(
    {
        **COMMON,
        "messages": Field(_messages, "messages", required=_NO_MESSAGES),
        "max_tokens": Field(TOKENS, "max_tokens"),
        "max_completion_tokens": Field(TOKENS, note="Takes precedence over `max_tokens`"),
        "n": CHOICES,
        "stop": Field(field_checks.stop, "stop"),
        "seed": SEED,
        "stream_options": STREAM_OPTIONS,
        "logprobs": Field(field_checks.flag, "logprobs"),
        "top_logprobs": Field(TOP_LOGPROBS, "top_logprobs"),
        "tools": Field(_tools, "tools"),
        "tool_choice": Field(_tool_choice, "tool_choice"),
        "response_format": Field(field_checks.mapping, "response_format"),
        "store": left_out("completions are not stored"),
        "service_tier": Field(field_checks.text, note=ONLY_SOME),
        "prompt_cache_key": Field(field_checks.text, note=ONLY_SOME),
    },
    beside=STREAM_OPTIONS_IN_STREAMS,
    example={"model": "auto", "messages": [{"role": "user", "content": "What is 2 + 2?"}]},
)


# ------------------------------------------------------------------------------------------------------------- writing


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {"content": logprobs_of(tokens)}


def logprobs_of(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return tokens with their log-probabilities in OpenAI's format."""
    return [{**_token(one.token, one.logprob, list(one.bytes)), "top_logprobs": _top(one)} for one in tokens]


def _top(one: TokenLogprob) -> list[dict[str, Any]]:
    said = list(one.bytes[1:]) if one.bytes and one.bytes[0][0] == one.token else list(one.bytes)
    return [_token(token, logprob, said) for token, logprob in one.top]


def _token(token: str, logprob: float, said: list[tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
    """Return a token with its bytes; ``said`` are those that its text does not say, which are used up."""
    for at, (text, data) in enumerate(said):
        if text == token:
            del said[at]
            return {"token": token, "logprob": logprob, "bytes": list(data)}
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "surrogatepass"))}
