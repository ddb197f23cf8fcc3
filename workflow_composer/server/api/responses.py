"""OpenAI's responses, ``POST /v1/responses``: text, reasoning, images, tools, streams, and going on from an earlier one.

Sources: https://platform.openai.com/docs/api-reference/responses and .../responses-streaming. `response_form` reads bodies.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workflow_composer.backends.openai.stream_accumulator import ToolCalls, ToolDelta
from workflow_composer.server.api import field_checks
from workflow_composer.server.api.chat import logprobs_of
from workflow_composer.server.api.field_checks import wrong
from workflow_composer.server.api.json_wire import WAITING, Asked, context_of, encode, event, openai_failure
from workflow_composer.server.api.response_form import Meant, asked_of
from workflow_composer.server.conversations import FIELD, Conversations
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import Chunk, LLMRequest, LLMResponse, Sample, TokenLogprob, Usage

_CUT = {
    "length": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "model_length": "max_output_tokens",
    "content_filter": "content_filter",
}
"""Reasons for which an answer ended -> why the response is incomplete."""
_FUNCTION = Meant("function", "")


class ResponsesDialect:
    """The OpenAI responses format."""

    name = "responses"

    def __init__(self, conversations: Conversations | None = None) -> None:
        self._conversations = conversations

    def read(self, body: bytes | bytearray, headers: Mapping[str, str]) -> Asked:
        """Parse a request body. Raises `HttpFailure`."""
        asked = asked_of(body, headers)
        if (previous := asked.previous) is None:
            return asked
        if (kept := self._conversations) is None:
            reason = "responses are kept in memory by a service with one worker, and this one has several"
            message = f"{reason}; send the whole conversation as input"
            raise wrong(FIELD, message, code=field_checks.UNSUPPORTED)

        def resume(key: Any) -> None:
            own = asked.fields["messages"]
            first = 1 if asked.instructed else 0
            asked.fields["messages"] = (*own[:first], *kept.of(previous, key), *own[first:])

        asked.resume = resume
        return asked

    def keep(self, asked: Asked, sample: Sample) -> None:
        """Keep a response for those that go on from it."""
        if asked.store and self._conversations is not None:
            self._conversations.keep(asked.request, sample, instructed=asked.instructed)

    def whole(self, asked: Asked, response: LLMResponse) -> bytes:
        """Return a ``response`` object."""
        sample = response.samples[0]
        self.keep(asked, sample)
        output: list[dict[str, Any]] = []
        identity = response.request_id
        if sample.reasoning:
            output.append(_reasoning(identity, sample.reasoning))
        if sample.text or not sample.tool_calls:
            output.append(_message(identity, sample.text, _logprobs(asked, sample.logprobs or ())))
        output += [_call(asked, call, f"{identity}_{number}") for number, call in enumerate(sample.tool_calls)]
        usage = _usage(response.usage, context_of(response))
        return encode(_response(asked, response.model, output, usage=usage, cut=_CUT.get(sample.finish_reason or "")))

    def events(self, asked: Asked) -> ResponseEvents:
        """Return a writer of a response's events."""
        return ResponseEvents(asked, self.keep)

    def failure(self, failure: HttpFailure) -> bytes:
        """Return an error object."""
        return openai_failure(failure)


class ResponseEvents:
    """Writes one stream: an item for the reasoning, one for the text, and one for each call of a tool."""

    def __init__(self, asked: Asked, keep: Callable[[Asked, Sample], None] = lambda asked, sample: None) -> None:
        self._asked = asked
        self._keep = keep
        self._number = 0
        self._model = ""
        self._begun = False
        self._thoughts: list[str] = []
        self._thoughts_at: int | None = None
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._text_at: int | None = None
        self._heard = ToolCalls()
        self._calls: dict[int, dict[str, Any]] = {}
        self._output: dict[int, dict[str, Any]] = {}
        self._items = 0
        self._cut: str | None = None

    def waiting(self) -> bytes:
        """Return the response's start, which names the model as the client does, and a comment."""
        return self._open(self._asked.request.model or "auto") + WAITING

    def piece(self, chunk: Chunk) -> bytes:
        """Return the events for a piece."""
        out = self._open(chunk.model or "")
        if chunk.reasoning:
            out += self._begin_thoughts()
            self._thoughts.append(chunk.reasoning)
            out += self._event("response.reasoning_text.delta", **self._thoughts_place(), delta=chunk.reasoning)
        if chunk.text:
            out += self._begin_text()
            self._text.append(chunk.text)
            logprobs = _logprobs(self._asked, chunk.logprobs)
            self._logprobs += logprobs
            out += self._event("response.output_text.delta", **self._text_place(), delta=chunk.text, logprobs=logprobs)
        if chunk.tool_calls or self._heard:
            for call in self._heard.hear(chunk.tool_calls, last=chunk.finish_reason is not None):
                out += self._called(call)
        self._cut = _CUT.get(chunk.finish_reason or "") or self._cut
        return out

    def end(self, response: LLMResponse) -> bytes:
        """Return the end of every item, and the whole response."""
        self._keep(self._asked, response.samples[0])
        out = self._open(response.model)
        if self._text_at is None and not self._calls:
            out += self._begin_text()
        out += self._end_thoughts() + self._end_text()
        for call in self._calls.values():
            out += self._end_call(call["at"], call["item"])
        items = [item for _, item in sorted(self._output.items())]
        usage = _usage(response.usage, context_of(response))
        whole = _response(self._asked, response.model, items, usage=usage, cut=self._cut)
        return out + self._event("response.incomplete" if self._cut else "response.completed", response=whole)

    def failed(self, failure: HttpFailure) -> bytes:
        """Return the error as an event, and the response as it has failed, which ends the stream."""
        code = failure.code or failure.type
        out = self._open(self._model) if not self._begun else b""
        out += self._event("error", code=code, message=failure.message, param=failure.param)
        items = [item for _, item in sorted(self._output.items())]
        whole = _response(self._asked, self._model, items, usage=None)
        failed = {**whole, "status": "failed", "error": {"code": code, "message": failure.message}}
        return out + self._event("response.failed", response=failed)

    def _open(self, model: str) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        self._model = model
        begun = {**_response(self._asked, model, [], usage=None), "status": "in_progress"}
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    # ------------------------------------------------------------------------------------------------- reasoning, text

    def _begin_thoughts(self) -> bytes:
        if self._thoughts_at is not None:
            return b""
        self._thoughts_at = self._items
        self._items += 1
        item = {**_reasoning(self._asked.request.request_id, ""), "status": "in_progress", "content": []}
        part = {"type": "reasoning_text", "text": ""}
        opened = self._event("response.output_item.added", output_index=self._thoughts_at, item=item)
        return opened + self._event("response.content_part.added", **self._thoughts_place(), part=part)

    def _end_thoughts(self) -> bytes:
        if self._thoughts_at is None or self._thoughts_at in self._output:
            return b""
        item = _reasoning(self._asked.request.request_id, "".join(self._thoughts))
        part = item["content"][0]
        self._output[self._thoughts_at] = item
        out = self._event("response.reasoning_text.done", **self._thoughts_place(), text=part["text"])
        out += self._event("response.content_part.done", **self._thoughts_place(), part=part)
        return out + self._event("response.output_item.done", output_index=self._thoughts_at, item=item)

    def _begin_text(self) -> bytes:
        if self._text_at is not None:
            return b""
        out = self._end_thoughts()
        self._text_at = self._items
        self._items += 1
        item = {**_message(self._asked.request.request_id, ""), "status": "in_progress", "content": []}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        out += self._event("response.output_item.added", output_index=self._text_at, item=item)
        return out + self._event("response.content_part.added", **self._text_place(), part=part)

    def _end_text(self) -> bytes:
        if self._text_at is None:
            return b""
        item = _message(self._asked.request.request_id, "".join(self._text), self._logprobs)
        part = item["content"][0]
        self._output[self._text_at] = item
        out = self._event("response.output_text.done", **self._text_place(), text=part["text"], logprobs=self._logprobs)
        out += self._event("response.content_part.done", **self._text_place(), part=part)
        return out + self._event("response.output_item.done", output_index=self._text_at, item=item)

    # ------------------------------------------------------------------------------------------------- calls of tools

    def _called(self, piece: ToolDelta) -> bytes:
        out = b""
        if piece.begins:
            out = self._end_thoughts()
            function = {"name": piece.name, "arguments": ""}
            identity = f"{self._asked.request.request_id}_{piece.number}"
            item = {**_call(self._asked, {"id": piece.id, "function": function}, identity), "status": "in_progress"}
            self._calls[piece.number] = {"at": self._items, "item": item, "text": ""}
            out += self._event("response.output_item.added", output_index=self._items, item=dict(item))
            self._items += 1
        call = self._calls[piece.number]
        if piece.arguments:
            if call["item"]["type"] == "custom_tool_call":  # its input is known once the arguments are whole
                call["text"] += piece.arguments
                call["item"]["input"] = _input_of(call["text"])
                return out
            call["item"]["arguments"] += piece.arguments
            place = {"item_id": call["item"]["id"], "output_index": call["at"]}
            out += self._event("response.function_call_arguments.delta", **place, delta=piece.arguments)
        return out

    def _end_call(self, at: int, item: dict[str, Any]) -> bytes:
        item["status"] = "completed"
        place = {"item_id": item["id"], "output_index": at}
        if item["type"] == "custom_tool_call":
            out = self._event("response.custom_tool_call_input.delta", **place, delta=item["input"])
            out += self._event("response.custom_tool_call_input.done", **place, input=item["input"])
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            out = self._event("response.function_call_arguments.done", **place, **done)
        self._output[at] = item
        return out + self._event("response.output_item.done", output_index=at, item=item)

    def _thoughts_place(self) -> dict[str, Any]:
        return {"item_id": f"rs_{self._asked.request.request_id}", "output_index": self._thoughts_at, "content_index": 0}

    def _text_place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._asked.request.request_id}", "output_index": self._text_at, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **fields}, kind)


def _logprobs(asked: Asked, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return the tokens' log-probabilities if the client requested them."""
    return logprobs_of(tokens) if asked.request.logprobs else []


def _reasoning(request_id: str, text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": f"rs_{request_id}", "type": "reasoning", "summary": [], "content": content, "status": "completed"}


def _message(request_id: str, text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
    return {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def _call(asked: Asked, call: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """Return a call of a tool as the client knows the tool."""
    function = call.get("function") or {}
    name, arguments = function.get("name") or "", function.get("arguments") or ""
    meant: Meant = (asked.tools or {}).get(name) or _FUNCTION
    shown = meant.name or name
    if meant.kind == "custom":
        item = {"id": f"ctc_{identity}", "type": "custom_tool_call", "name": shown, "input": _input_of(arguments)}
    else:
        item = {"id": f"fc_{identity}", "type": "function_call", "name": shown, "arguments": arguments}
    if meant.namespace is not None:
        item["namespace"] = meant.namespace
    return {**item, "call_id": call.get("id") or item["id"], "status": "completed"}


def _input_of(arguments: str) -> str:
    """Return the text that a model gives to a custom tool; what is no such object is the text itself."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = found.get("input") if isinstance(found, dict) else None
    return text if isinstance(text, str) else arguments


def _response(
    asked: Asked, model: str, output: list[dict[str, Any]], *, usage: Mapping[str, Any] | None, cut: str | None = None
) -> dict[str, Any]:
    request = asked.request
    return {
        "id": f"resp_{request.request_id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": cut} if cut else None,
        "instructions": None,
        "max_output_tokens": request.max_tokens,
        "metadata": dict(request.metadata),
        "model": model,
        "output": output,
        "previous_response_id": asked.previous,
        "store": asked.store,
        "parallel_tool_calls": request.extra.get("parallel_tool_calls", True),
        "reasoning": {"effort": request.extra.get("reasoning_effort"), "summary": None},
        "temperature": request.temperature,
        "text": _form_of(request),
        "tool_choice": request.tool_choice or "auto",
        "tools": [
            {"type": "function", "strict": None, "parameters": None, **tool["function"]} for tool in request.tools or ()
        ],
        "top_p": request.top_p,
        "usage": usage,
    }


def _form_of(request: LLMRequest) -> dict[str, Any]:
    """Return what the text had to look like, as the client asked for it: some read a stream's text by what stands here."""
    wanted = request.response_format or {"type": "text"}
    verbosity = {name: request.extra[name] for name in ("verbosity",) if name in request.extra}
    return {"format": {"type": wanted["type"], **wanted.get("json_schema", {})}, **verbosity}


def _usage(usage: Usage, context: int | None) -> dict[str, Any]:
    """Return token counts; beside the sum over the samples of a vote, the length of one's context."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
        **({} if context is None else {"context_tokens": context}),
    }
