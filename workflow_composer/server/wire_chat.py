"""OpenAI's chat completions: ``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workflow_composer.server import checks
from workflow_composer.server.addressing import address_of
from workflow_composer.server.checks import wrong
from workflow_composer.server.failures import HttpFailure
from workflow_composer.server.wire import Asked, Fields, encode, event, openai_failure, usage_of
from workflow_composer.types import Chunk, LLMRequest, LLMResponse, Sample, TokenLogprob

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
DONE = b"data: [DONE]\n\n"
UNHEARD = {"store": "is not done here", "service_tier": "is not known here", "prompt_cache_key": "is not known here"}
"""Fields of OpenAI's own service that say nothing to a model."""

MOST_CHOICES = 128


class ChatDialect:
    """Reads and writes chat completions."""

    name = "chat"

    def read(self, data: Mapping[str, Any], headers: Mapping[str, str]) -> Asked:
        """Read a body. Raises `HttpFailure`."""
        request: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        own: dict[str, Any] = {}
        warnings: list[str] = []
        for name, value in data.items():
            if value is None:
                continue
            if (rule := _RULES.get(name)) is not None:
                request[rule[0]] = rule[1](name, value)
            elif (check := _OWN.get(name)) is not None:
                own[name] = check(name, value)
            elif name in UNHEARD:
                if value is not False:
                    warnings.append(f"{name} {UNHEARD[name]}")
            else:
                extra[name] = value
        if "messages" not in request:
            raise wrong("messages", "must be a list of at least one message")
        if (limit := own.get("max_completion_tokens")) is not None:
            if request.get("max_tokens", limit) != limit:
                warnings.append("max_tokens is not heeded beside max_completion_tokens")
            request["max_tokens"] = limit
        stream = own.get("stream", False)
        options = own.get("stream_options")
        if options is not None and not stream:
            raise wrong("stream_options", "is allowed only with stream")
        metadata = request.get("metadata", {})
        request.update(address_of(own.get("model"), headers, metadata))
        made = LLMRequest(extra=extra, request_id="", **request)  # the handler knows the ID
        return Asked(made, stream, bool(options), tuple(warnings))

    def whole(self, asked: Asked, response: LLMResponse) -> bytes:
        """A ``chat.completion`` object."""
        choices = [
            {
                "index": index,
                "message": _message(sample),
                "finish_reason": sample.finish_reason or "stop",
                "logprobs": _logprobs(sample.logprobs) if asked.request.logprobs else None,
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
        """A writer of ``chat.completion.chunk`` objects."""
        return ChatEvents(asked)

    def failure(self, failure: HttpFailure) -> bytes:
        """An error object."""
        return openai_failure(failure)


class ChatEvents:
    """Writes one stream of chunks."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._frame: dict[str, Any] = {}
        self._calls = 0

    def piece(self, chunk: Chunk) -> bytes:
        """The chunk for a piece; the first one is preceded by the role."""
        opening = b"" if self._frame else self._open(chunk.model or "")
        if not chunk.carries_content:
            return opening
        delta: dict[str, Any] = {"content": chunk.text} if chunk.text else {}
        if chunk.tool_calls:
            delta["tool_calls"] = [self._call(call) for call in chunk.tool_calls]
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": chunk.finish_reason}
        if self._asked.request.logprobs and chunk.logprobs:
            choice["logprobs"] = _logprobs(chunk.logprobs)
        return opening + event({**self._frame, "choices": [choice]})

    def end(self, response: LLMResponse) -> bytes:
        """The usage, where it was asked for, and the end mark."""
        opening = b"" if self._frame else self._open(response.model)
        if self._asked.include_usage:
            opening += event({**self._frame, "choices": [], "usage": usage_of(response)})
        return opening + DONE

    def failed(self, failure: HttpFailure) -> bytes:
        """The error object, as an event."""
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

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """A piece of a tool call; a whole one, which has no index, gets the next."""
        if "index" in call:
            return dict(call)
        self._calls += 1
        return {"index": self._calls - 1, **call}


# ------------------------------------------------------------------------------------------------------------- reading


def checked_messages(found: Any) -> tuple[Mapping[str, Any], ...]:
    """Messages in OpenAI's form. Raises `HttpFailure` naming the one at fault."""
    if not found or not isinstance(found, list):
        raise wrong("messages", "must be a list of at least one message")
    for number, message in enumerate(found):
        if not isinstance(message, dict):
            raise wrong(f"messages[{number}]", "must be an object")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise wrong(f"messages[{number}].role", f"must be one of {', '.join(sorted(ROLES))}")
        content = message.get("content")
        if not isinstance(content, str):
            _check_parts(content, number, role)
    return tuple(found)


def _check_parts(content: Any, number: int, role: str) -> None:
    place = f"messages[{number}].content"
    if content is None:
        if role not in {"assistant", "function"}:
            raise wrong(place, "must be a text or a list of parts")
        return
    if not isinstance(content, list) or not all(
        isinstance(part, dict) and isinstance(part.get("type"), str) for part in content
    ):
        raise wrong(place, "must be a text or a list of parts, each an object with a type")
    for index, part in enumerate(content):
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise wrong(f"{place}[{index}].text", "must be a text")


def stream_options(fields: Fields, *, stream: bool) -> bool:
    """Whether the usage is wanted at a stream's end. Raises `HttpFailure`."""
    options = fields.take("stream_options")
    if options is not None and not stream:
        raise wrong("stream_options", "is allowed only with stream")
    return options is not None and _include_usage("stream_options", options)


def _include_usage(name: str, options: Any) -> bool:
    for option, value in checks.mapping(name, options).items():
        if option not in {"include_usage", "include_obfuscation"}:
            raise wrong(f"{name}.{option}", "cannot be honoured here", code="unsupported_parameter")
        if value is not None and not isinstance(value, bool):
            raise wrong(f"{name}.{option}", "must be true or false")
    return bool(options.get("include_usage"))


def _tools(name: str, found: Any) -> tuple[Mapping[str, Any], ...] | None:
    for number, tool in enumerate(checks.items(name, found)):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise wrong(f"tools[{number}]", "must be an object with a type")
        if tool["type"] == "function":
            _check_function(tool.get("function"), f"tools[{number}].function")
    return tuple(found) or None


def _check_function(function: Any, place: str) -> None:
    checks.text(f"{place}.name", checks.mapping(place, function).get("name"))
    for name, check in (("description", checks.text), ("parameters", checks.mapping)):
        if function.get(name) is not None:
            check(f"{place}.{name}", function[name])


def _tool_choice(name: str, found: Any) -> str | Mapping[str, Any]:
    if not isinstance(found, (str, dict)):
        raise wrong(name, "must be a text or an object")
    return found


_RULES: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "messages": ("messages", lambda name, value: checked_messages(value)),
    "max_tokens": ("max_tokens", checks.whole(least=1)),
    "temperature": ("temperature", checks.number(0.0, 2.0)),
    "top_p": ("top_p", checks.number(0.0, 1.0)),
    "stop": ("stop", checks.stop),
    "seed": ("seed", checks.whole(most=2**63 - 1)),
    "logprobs": ("logprobs", checks.flag),
    "top_logprobs": ("top_logprobs", checks.whole(least=0, most=100)),
    "tools": ("tools", _tools),
    "tool_choice": ("tool_choice", _tool_choice),
    "response_format": ("response_format", checks.mapping),
    "n": ("n", checks.whole(least=1, most=MOST_CHOICES)),
    "metadata": ("metadata", checks.mapping),
}
"""Fields that a request has: the name there, and what checks the value."""

_OWN: dict[str, Callable[[str, Any], Any]] = {
    "model": checks.text,
    "stream": checks.flag,
    "stream_options": _include_usage,
    "max_completion_tokens": checks.whole(least=1),
}
"""Fields that say how the answer is wanted."""


# ------------------------------------------------------------------------------------------------------------- writing


def _message(sample: Sample) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": sample.text}
    if sample.tool_calls:
        message["content"] = sample.text or None
        message["tool_calls"] = [{"type": "function", **call} for call in sample.tool_calls]
    return message


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {"content": logprobs_of(tokens)}


def logprobs_of(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens with their log-probabilities, in OpenAI's form."""
    return [{**_token(one.token, one.logprob), "top_logprobs": _top(one)} for one in tokens]


def _top(one: TokenLogprob) -> list[dict[str, Any]]:
    return [_token(token, logprob) for token, logprob in one.top]


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "surrogatepass"))}
