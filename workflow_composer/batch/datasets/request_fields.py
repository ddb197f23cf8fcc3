"""A row's own fields of the request, such as ``temperature`` and ``tools``: honoured, or refused by name, never ignored.

In a table, only columns with these names are fields. In a line of the OpenAI Batch API, every key of ``body`` is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from workflow_composer.batch.datasets.values import is_missing, literal, messages_of, sent
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import kind
from workflow_composer.types import EMPTY, Message

Check = Callable[[Any], Any]
"""Returns the value for the request. Raises ValueError that says what the value must be."""


def _number(least: float, most: float) -> Check:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise ValueError(f"a number from {least:g} to {most:g}")
        return float(value)

    return check


def _whole(least: int, most: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}" if most < 2**31 else f"a whole number from {least}")
        return value

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004  # the caller handles all faults of a value alike
    return value


def _stop(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, str) and each for each in value):
        return tuple(value)
    raise ValueError("a text or a list of texts")


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    fine = isinstance(value, (list, tuple)) and value
    if not fine or not all(isinstance(tool, Mapping) and isinstance(tool.get("type"), str) for tool in value):
        raise ValueError('a list of tools, each with a type: [{"type": "function", "function": {"name": ...}}]')
    return tuple(value)


def _tool_choice(value: Any) -> str | Mapping[str, Any]:
    if not isinstance(value, (str, Mapping)):
        raise ValueError("a text or an object")  # noqa: TRY004  # as above
    return value


def _format(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise ValueError('an object with a type, such as {"type": "json_object"}')  # noqa: TRY004  # as above
    return value


def _any(value: Any) -> Any:
    return value


_TOKENS = _whole(1, 2**40)
_FIELDS: dict[str, tuple[str, Check]] = {
    "max_tokens": ("max_tokens", _TOKENS),
    "max_completion_tokens": ("max_tokens", _TOKENS),
    "temperature": ("temperature", _number(0, 2)),
    "top_p": ("top_p", _number(0, 1)),
    "stop": ("stop", _stop),
    "seed": ("seed", _whole(-(2**63), 2**63 - 1)),
    "tools": ("tools", _tools),
    "tool_choice": ("tool_choice", _tool_choice),
    "response_format": ("response_format", _format),
    "logprobs": ("logprobs", _flag),
    "top_logprobs": ("top_logprobs", _whole(0, 20)),
}
"""The field of a row, that of `LLMRequest`, and its check."""

_PASSED: dict[str, Check] = {
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "logit_bias": _any,
    "parallel_tool_calls": _flag,
    "reasoning_effort": _any,
    "top_k": _whole(-1, 2**31),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0, 100),
    "chat_template_kwargs": _any,
}
"""Fields that only some servers support; they are passed on as they are."""

_REFUSED = {
    "stream": "answers are written whole",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "modalities": "only text is written",
    "n": "one answer is written for a row; repeat the row",
}
"""Fields that are refused unless their value asks for nothing."""

_NOTHING: dict[str, tuple[Any, ...]] = {"stream": (False,), "n": (1,), "modalities": (["text"],)}
_NO_EFFECT = frozenset({"user", "store", "metadata", "service_tier", "prompt_cache_key", "safety_identifier"})
"""Keys of a Batch body that cannot change the answer."""

NAMES = frozenset((*_FIELDS, *_PASSED, *_REFUSED))
"""All fields that a row may have or that are refused; ``n`` only beside messages, because tables have columns ``n``."""


def own_fields(row: Mapping[str, Any], where: str, used: frozenset[str] | set[str] = frozenset()) -> Mapping[str, Any]:
    """Return a row's own fields as fields of `LLMRequest`; columns in ``used`` hold something else.

    Raises `InputError` that names a field that is refused or has an invalid value.
    """
    there = NAMES.intersection(row)
    if not there:
        return EMPTY
    found: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name in sorted(there - used):
        value = row[name]
        if not is_missing(value):
            _take(name, _parsed(name, value), where, found, extra)
    if extra:
        found["extra"] = extra
    return found or EMPTY


def _parsed(name: str, value: Any) -> Any:
    """Return the value of a field that a table holds as text."""
    if not isinstance(value, str):
        return value
    if name == "stop":
        return literal(value)
    text = value.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return literal(text)


def _take(name: str, value: Any, where: str, found: dict[str, Any], extra: dict[str, Any]) -> None:
    if name in _REFUSED:
        if value not in _NOTHING.get(name, ()):
            raise InputError(f"{where}: the field {name!r} is not supported", hint=_REFUSED[name])
        return
    to, check = _FIELDS.get(name, (None, _PASSED.get(name, _any)))
    try:
        checked = check(sent(value))
    except ValueError as error:
        shown = repr(value) if isinstance(value, (str, int, float)) else kind(value)
        hint = f"it is a field of the request; give {error}, or rename the column if it holds something else"
        raise InputError(f"{where}: {name!r} is {shown}, not {error}", hint=hint) from None
    if to is None:
        extra[name] = checked
    else:
        found[to] = checked


# ----------------------------------------------------------------------------------------------------- OpenAI Batch lines

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def is_batch_line(row: Mapping[str, Any]) -> bool:
    """Whether a row is a request of the OpenAI Batch API."""
    return "custom_id" in row and isinstance(row.get("body"), Mapping)


def request_of(row: Mapping[str, Any], where: str) -> tuple[tuple[Message, ...], Mapping[str, Any]]:
    """Return the messages and the fields of `LLMRequest` of a Batch line. Raises `InputError`."""
    body, url = row.get("body"), row.get("url", CHAT)
    if not is_batch_line(row) or not isinstance(body, Mapping):
        hint = 'write {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}'
        raise InputError(f"{where}: not a line of the OpenAI Batch API", hint=hint)
    if row.get("method", "POST") != "POST":
        raise InputError(f"{where}: the method {row['method']!r} is not supported", hint="use POST")
    readers = {CHAT: _chat, COMPLETIONS: _completion, RESPONSES: _response}
    if url not in readers:
        raise InputError(f"{where}: the url {url!r} is not supported", hint=f"use {', '.join(readers)}")
    messages, rest, own = readers[url](body, where)
    if model := rest.pop("model", None):
        own["model"] = model
    extra: dict[str, Any] = {}
    for name, value in rest.items():
        if is_missing(value) or name in _NO_EFFECT:
            continue
        _take(name, value, where, own, extra)
    return messages, own | ({"extra": extra} if extra else {})


Parts = tuple[tuple[Message, ...], dict[str, Any], dict[str, Any]]
"""Messages, fields of the body that are still to be read, and fields of `LLMRequest`."""


def _chat(body: Mapping[str, Any], where: str) -> Parts:
    messages = messages_of(body.get("messages"))
    if messages is None:
        hint = 'write [{"role": "user", "content": "What is 2 + 2?"}]'
        raise InputError(f"{where}: 'body.messages' is not a list of messages", hint=hint)
    return messages, {name: value for name, value in body.items() if name != "messages"}, {}


def _completion(body: Mapping[str, Any], where: str) -> Parts:
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where}: 'body.prompt' is {kind(prompt)}, not a text", hint="give one text per line")
    rest = {name: value for name, value in body.items() if name != "prompt"}
    return ({"role": "user", "content": prompt},), rest, {"kind": "completion"}


def _response(body: Mapping[str, Any], where: str) -> Parts:
    given = body.get("input")
    messages = ({"role": "user", "content": given},) if isinstance(given, str) and given.strip() else messages_of(given)
    if messages is None:
        raise InputError(f"{where}: 'body.input' is {kind(given)}, not a text or a list of messages", hint="write a text")
    if instructions := body.get("instructions"):
        messages = ({"role": "system", "content": instructions}, *messages)
    rest = {name: value for name, value in body.items() if name not in ("input", "instructions", "max_output_tokens")}
    if (limit := body.get("max_output_tokens")) is not None:
        rest["max_tokens"] = limit
    for name in ("tools", "text", "previous_response_id", "reasoning"):
        if not is_missing(rest.get(name)):
            raise InputError(f"{where}: the field {name!r} of responses is not supported", hint=f"use {CHAT}")
    return messages, rest, {}
