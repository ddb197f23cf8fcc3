"""OpenAI's responses, ``POST /v1/responses``: text, images, tools and streams; stateless.

Sources: https://platform.openai.com/docs/api-reference/responses and .../responses-streaming.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from workflow_composer.backends.openai.stream_accumulator import ToolCalls, ToolDelta
from workflow_composer.server.api import field_checks, schemas
from workflow_composer.server.api.chat import logprobs_of
from workflow_composer.server.api.field_checks import UNSUPPORTED, described, wrong
from workflow_composer.server.api.forms import (
    ADDRESS_HEADERS,
    COMMON,
    TOKENS,
    TOP_LOGPROBS,
    Field,
    Form,
    address_of,
    left_out,
    refused,
)
from workflow_composer.server.api.json_wire import Asked, encode, event, openai_failure
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import EMPTY, Chunk, LLMResponse, TokenLogprob, Usage

# ---------------------------------------------------------------------------------------------------------- form responses
#
# Fields of OpenAI's responses, translated to those of chat completions.


_PART = schemas.either(
    schemas.record({"type": schemas.constant("input_text", "output_text", "text"), "text": schemas.TEXT}, "type", "text"),
    schemas.record({"type": schemas.constant("input_image"), "image_url": schemas.TEXT}, "type", "image_url"),
)
_CONTENT = schemas.either(schemas.TEXT, schemas.listed(_PART))
_ROLES = ("user", "assistant", "system", "developer")
_CALL_PARTS = ("call_id", "name", "arguments")
_ITEM = schemas.either(
    schemas.record(
        {"type": schemas.constant("message"), "role": schemas.constant(*_ROLES), "content": _CONTENT}, "role", "content"
    ),
    schemas.record(
        {"type": schemas.constant("function_call"), **dict.fromkeys(_CALL_PARTS, schemas.TEXT)}, "type", *_CALL_PARTS
    ),
    schemas.record(
        {"type": schemas.constant("function_call_output"), "call_id": schemas.TEXT, "output": _CONTENT},
        *("type", "call_id", "output"),
    ),
)
_NO_INPUT = "must be a string or a list of items"


@described(schemas.either(schemas.TEXT, schemas.listed(_ITEM, least=1)))
def _input(name: str, found: Any) -> list[dict[str, Any]]:
    if isinstance(found, str):
        return [{"role": "user", "content": found}]
    if not isinstance(found, list) or not found:
        raise wrong(name, _NO_INPUT)
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(found):
        if not isinstance(item, dict):
            raise wrong(f"{name}[{number}]", "must be an object")
        message = _item(item, f"{name}[{number}]")
        if "tool_calls" in message and messages and "tool_calls" in messages[-1]:
            messages[-1]["tool_calls"] += message["tool_calls"]  # parallel calls belong to one message
        else:
            messages.append(message)
    return messages


def _item(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "message" and item.get("role") in _ROLES:
        return {"role": item["role"], "content": _content(item.get("content"), place)}
    if kind == "function_call" and all(isinstance(item.get(name), str) for name in _CALL_PARTS):
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output" and isinstance(item.get("call_id"), str):
        output = item.get("output")
        content = output if isinstance(output, str) else _content(output, f"{place}.output")
        return {"role": "tool", "tool_call_id": item["call_id"], "content": content}
    message = "must be a message, function_call or function_call_output with all of its fields"
    raise wrong(place, message, code=UNSUPPORTED)


def _content(content: Any, place: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise wrong(f"{place}.content", "must be a string or a list of parts")
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        if part.get("type") in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif part.get("type") == "input_image" and isinstance(part.get("image_url"), str):
            image = {"url": part["image_url"], **({"detail": part["detail"]} if isinstance(part.get("detail"), str) else {})}
            parts.append({"type": "image_url", "image_url": image})
        else:
            raise wrong(f"{place}.content[{number}]", "must be a text part or an image given by URL", code=UNSUPPORTED)
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


_FUNCTION = schemas.record({"type": schemas.constant("function"), "name": schemas.TEXT}, "type", "name")


@described(schemas.listed(_FUNCTION))
def _tools(name: str, found: Any) -> tuple[dict[str, Any], ...] | None:
    return tuple(_tool(tool, f"{name}[{number}]") for number, tool in enumerate(field_checks.items(name, found))) or None


def _tool(tool: Any, place: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("name"), str):
        message = "must be a function with a name; the service runs no tools itself"
        raise wrong(place, message, code=UNSUPPORTED)
    return {"type": "function", "function": {name: tool[name] for name in tool if name != "type" and tool[name] is not None}}


@described(schemas.either(schemas.TEXT, _FUNCTION))
def _tool_choice(name: str, found: Any) -> str | Mapping[str, Any]:
    if isinstance(found, str):
        return found
    if isinstance(found, dict) and found.get("type") == "function" and isinstance(found.get("name"), str):
        return {"type": "function", "function": {"name": found["name"]}}
    raise wrong(name, "must be a string or a function with a name")


@described(schemas.record({"type": schemas.constant("text", "json_object", "json_schema")}, "type"))
def _format(name: str, found: Any) -> Mapping[str, Any] | None:
    form = field_checks.mapping(name, found)
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type" and value is not None}
        return {"type": "json_schema", "json_schema": schema}
    raise wrong(f"{name}.type", "must be text, json_object or json_schema")


FORM = Form(
    {
        **COMMON,
        "input": Field(_input, required=_NO_INPUT),
        "instructions": Field(field_checks.text),
        "max_output_tokens": Field(TOKENS, "max_tokens"),
        "top_logprobs": Field(TOP_LOGPROBS),
        "include": Field(field_checks.items),
        "reasoning": Field(field_checks.record({"effort": field_checks.text})),
        "text": Field(field_checks.record({"format": _format, "verbosity": field_checks.text})),
        "tools": Field(_tools, "tools"),
        "tool_choice": Field(_tool_choice, "tool_choice"),
        # Obfuscation (padding that hides the lengths of pieces on an encrypted connection) is not supported.
        "stream_options": Field(field_checks.record({"include_obfuscation": field_checks.flag})),
        "store": left_out("responses are not stored"),
        "service_tier": left_out("not supported"),
        "truncation": left_out("the model server decides"),
        "prompt_cache_key": left_out("not supported"),
        "safety_identifier": left_out("not supported"),
        "previous_response_id": refused(
            "is not supported, because responses are not stored; send the whole conversation as input"
        ),
        "conversation": refused("is not supported, because conversations are not stored"),
        "background": refused("is not supported; responses are synchronous"),
        "prompt": refused("is not supported, because prompt templates are not stored"),
        "context_management": refused("is not supported"),
        "max_tool_calls": refused("is not supported; the service does not run tools itself"),
        "n": refused("must be 1 in this API; use /v1/chat/completions for more"),
    },
    translated=True,
    example={"model": "auto", "input": "What is 2 + 2?"},
)


_LOGPROBS = "message.output_text.logprobs"


class ResponsesDialect:
    """The OpenAI responses format."""

    name = "responses"

    def read(self, body: bytes | bytearray, headers: Mapping[str, str]) -> Asked:
        """Parse a request body. Raises `HttpFailure`."""
        fields, own, extra, warnings = FORM.read(body)
        messages = own["input"]
        if (instructions := own.get("instructions")) is not None:
            messages.insert(0, {"role": "system", "content": instructions})
        wanted = own.get("include", [])
        warnings += (f"include: {one} is not supported" for one in wanted if one != _LOGPROBS)
        reasoning, form = own.get("reasoning", {}), own.get("text", {})
        said = {"reasoning_effort": reasoning.get("effort"), "verbosity": form.get("verbosity")}
        top = own.get("top_logprobs")
        told = fields.get("metadata", EMPTY).get("task_type")
        fields.update(
            address_of(own.get("model"), told, *map(headers.get, ADDRESS_HEADERS)),
            messages=tuple(messages),
            top_logprobs=top or None,
            logprobs=bool(top) or _LOGPROBS in wanted,
            response_format=form.get("format"),
            extra={**{name: value for name, value in said.items() if value is not None}, **extra},
        )
        return Asked(fields, own.get("stream", False), warnings=tuple(warnings))

    def whole(self, asked: Asked, response: LLMResponse) -> bytes:
        """Return a ``response`` object."""
        sample = response.samples[0]
        output: list[dict[str, Any]] = []
        identity = response.request_id
        if sample.text or not sample.tool_calls:
            output.append(_message(identity, sample.text, _logprobs(asked, sample.logprobs or ())))
        output += [_call(call, f"fc_{identity}_{number}") for number, call in enumerate(sample.tool_calls)]
        cut = sample.finish_reason == "length"
        return encode(_response(asked, response.model, output, usage=response.usage, cut=cut))

    def events(self, asked: Asked) -> ResponseEvents:
        """Return a writer of a response's events."""
        return ResponseEvents(asked)

    def failure(self, failure: HttpFailure) -> bytes:
        """Return an error object."""
        return openai_failure(failure)


class ResponseEvents:
    """Writes one stream: a message item for the text, a function call item for each tool call."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._number = 0
        self._model = ""
        self._begun = False
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._text_at: int | None = None
        self._heard = ToolCalls()
        self._calls: dict[int, dict[str, Any]] = {}
        self._items = 0
        self._cut = False

    def piece(self, chunk: Chunk) -> bytes:
        """Return the events for a piece."""
        out = self._open(chunk.model or "")
        if chunk.text:
            out += self._begin_text()
            self._text.append(chunk.text)
            logprobs = _logprobs(self._asked, chunk.logprobs)
            self._logprobs += logprobs
            out += self._event("response.output_text.delta", **self._text_place(), delta=chunk.text, logprobs=logprobs)
        if chunk.tool_calls or self._heard:
            for call in self._heard.hear(chunk.tool_calls, last=chunk.finish_reason is not None):
                out += self._called(call)
        self._cut = self._cut or chunk.finish_reason == "length"
        return out

    def end(self, response: LLMResponse) -> bytes:
        """Return the end of every item, and the whole response."""
        out = self._open(response.model)
        if self._text_at is None and not self._calls:
            out += self._begin_text()
        output: list[tuple[int, dict[str, Any]]] = []
        if self._text_at is not None:
            item = _message(self._asked.request.request_id, "".join(self._text), self._logprobs)
            part = item["content"][0]
            out += self._event("response.output_text.done", **self._text_place(), text=part["text"], logprobs=self._logprobs)
            out += self._event("response.content_part.done", **self._text_place(), part=part)
            out += self._event("response.output_item.done", output_index=self._text_at, item=item)
            output.append((self._text_at, item))
        for call in self._calls.values():
            at, item = call["at"], call["item"]
            item["status"] = "completed"
            place = {"item_id": item["id"], "output_index": at}
            arguments = item["arguments"]
            out += self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=arguments)
            out += self._event("response.output_item.done", output_index=at, item=item)
            output.append((at, item))
        items = [item for _, item in sorted(output, key=lambda pair: pair[0])]
        whole = _response(self._asked, response.model, items, usage=response.usage, cut=self._cut)
        return out + self._event("response.incomplete" if self._cut else "response.completed", response=whole)

    def failed(self, failure: HttpFailure) -> bytes:
        """Return the error as an event."""
        return self._event("error", code=failure.code or failure.type, message=failure.message, param=failure.param)

    def _open(self, model: str) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        self._model = model
        begun = {**_response(self._asked, model, [], usage=None), "status": "in_progress"}
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def _begin_text(self) -> bytes:
        if self._text_at is not None:
            return b""
        self._text_at = self._items
        self._items += 1
        item = {**_message(self._asked.request.request_id, ""), "status": "in_progress", "content": []}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        opened = self._event("response.output_item.added", output_index=self._text_at, item=item)
        return opened + self._event("response.content_part.added", **self._text_place(), part=part)

    def _called(self, piece: ToolDelta) -> bytes:
        out = b""
        if piece.begins:
            function = {"name": piece.name, "arguments": ""}
            item = _call({"id": piece.id, "function": function}, f"fc_{self._asked.request.request_id}_{piece.number}")
            item["status"] = "in_progress"
            self._calls[piece.number] = {"at": self._items, "item": item}
            out = self._event("response.output_item.added", output_index=self._items, item=dict(item))
            self._items += 1
        call = self._calls[piece.number]
        if piece.arguments:
            call["item"]["arguments"] += piece.arguments
            place = {"item_id": call["item"]["id"], "output_index": call["at"]}
            out += self._event("response.function_call_arguments.delta", **place, delta=piece.arguments)
        return out

    def _text_place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._asked.request.request_id}", "output_index": self._text_at, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **fields}, kind)


def _logprobs(asked: Asked, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return the tokens' log-probabilities if the client requested them."""
    return logprobs_of(tokens) if asked.request.logprobs else []


def _message(request_id: str, text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
    return {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def _call(call: Mapping[str, Any], identity: str) -> dict[str, Any]:
    function = call.get("function") or {}
    return {
        "id": identity,
        "type": "function_call",
        "call_id": call.get("id") or identity,
        "name": function.get("name") or "",
        "arguments": function.get("arguments") or "",
        "status": "completed",
    }


def _response(
    asked: Asked, model: str, output: list[dict[str, Any]], *, usage: Usage | None, cut: bool = False
) -> dict[str, Any]:
    request = asked.request
    return {
        "id": f"resp_{request.request_id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": None,
        "max_output_tokens": request.max_tokens,
        "metadata": dict(request.metadata),
        "model": model,
        "output": output,
        "parallel_tool_calls": request.extra.get("parallel_tool_calls", True),
        "temperature": request.temperature,
        "tool_choice": request.tool_choice or "auto",
        "tools": [
            {"type": "function", "strict": None, "parameters": None, **tool["function"]} for tool in request.tools or ()
        ],
        "top_p": request.top_p,
        "usage": None if usage is None else _usage(usage),
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
