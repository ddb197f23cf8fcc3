"""OpenAI's responses: ``POST /v1/responses``, as far as text, images, tools and streams go; nothing is stored.

https://platform.openai.com/docs/api-reference/responses and .../responses-streaming give the shapes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from workflow_composer.backends.tool_calls import ToolCalls, ToolDelta
from workflow_composer.server.failures import HttpFailure
from workflow_composer.server.form_responses import FORM
from workflow_composer.server.forms import ADDRESS_HEADERS, address_of
from workflow_composer.server.wire import Asked, encode, event, openai_failure
from workflow_composer.server.wire_chat import logprobs_of
from workflow_composer.types import EMPTY, Chunk, LLMResponse, TokenLogprob, Usage

_LOGPROBS = "message.output_text.logprobs"


class ResponsesDialect:
    """Reads and writes responses."""

    name = "responses"

    def read(self, body: bytes, headers: Mapping[str, str]) -> Asked:
        """Read a body. Raises `HttpFailure`."""
        fields, own, extra, warnings = FORM.read(body)
        messages = own["input"]
        if (instructions := own.get("instructions")) is not None:
            messages.insert(0, {"role": "system", "content": instructions})
        wanted = own.get("include", [])
        warnings += (f"include: {one} is not known here" for one in wanted if one != _LOGPROBS)
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
        """A ``response`` object."""
        sample = response.samples[0]
        output: list[dict[str, Any]] = []
        identity = response.request_id
        if sample.text or not sample.tool_calls:
            output.append(_message(identity, sample.text, _logprobs(asked, sample.logprobs or ())))
        output += [_call(call, f"fc_{identity}_{number}") for number, call in enumerate(sample.tool_calls)]
        cut = sample.finish_reason == "length"
        return encode(_response(asked, response.model, output, usage=response.usage, cut=cut))

    def events(self, asked: Asked) -> ResponseEvents:
        """A writer of a response's events."""
        return ResponseEvents(asked)

    def failure(self, failure: HttpFailure) -> bytes:
        """An error object."""
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
        """The events for a piece."""
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
        """Every item's end, and the whole response."""
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
        """The error, as an event."""
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
    """The tokens' log-probabilities, where the client wants to see them."""
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
