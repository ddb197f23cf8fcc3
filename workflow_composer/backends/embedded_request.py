"""Converts a `ModelCall` to a request of mistral.rs, and rejects fields that the engine does not support."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from workflow_composer.errors import BadRequest, Unsupported
from workflow_composer.types import LLMRequest, Message, ModelCall

if TYPE_CHECKING:
    from workflow_composer.backends.embedded_engine import Engine

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_EXTRA = frozenset(
    {"frequency_penalty", "ignore_eos", "logit_bias", "min_p", "presence_penalty", "repetition_penalty", "top_k"}
)
_HINT = "leave it out, or route to a server"


def fields_of(call: ModelCall, engine: Engine) -> dict[str, Any]:
    """Return the fields of ``mistralrs.ChatCompletionRequest``. Raises `Unsupported` or `BadRequest` with the field."""
    request = call.request
    if request.kind == "completion":
        raise Unsupported("the embedded engine supports only chat completions", hint="use /chat/completions")
    if engine.checkpoint.embedding:
        raise Unsupported(f"{engine.directory.name} is an embedding model and does not generate text")
    temperature = request.temperature if call.temperature is None else call.temperature
    _check_numbers(request, temperature)
    _refuse(request, sampled=bool(temperature))
    fields = dict(request.extra)
    if "logit_bias" in fields:
        fields["logit_bias"] = _logit_bias(fields["logit_bias"], engine.checkpoint.vocabulary)
    if temperature and not fields.get("top_k"):
        fields["top_k"] = engine.checkpoint.all_tokens
    return {
        **fields,
        **_format(request.response_format, engine),
        "messages": _messages(request.messages),
        "temperature": temperature or 0.0,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "stop_seqs": _stops(request.stop),
        "logprobs": request.logprobs or request.top_logprobs is not None,
        "top_logprobs": request.top_logprobs or None,
    }


def _refuse(request: LLMRequest, *, sampled: bool) -> None:
    refused = [name for name in ("tools", "tool_choice") if getattr(request, name) is not None]
    refused += sorted(set(request.extra) - _EXTRA)
    if refused:
        raise Unsupported(f"the embedded engine does not support {', '.join(refused)}", hint=_HINT)
    if request.seed is not None and sampled:
        raise Unsupported("the embedded engine does not support seed", hint=f"{_HINT}; or use temperature 0")


def _check_numbers(request: LLMRequest, temperature: float | None) -> None:
    """Check ranges, because the engine silently accepts invalid values (a negative temperature, ``top_p`` of 2)."""
    rules: list[tuple[str, Any, str, Callable[[Any], bool]]] = [
        ("temperature", temperature, "0 or above", lambda x: 0 <= x < math.inf),
        ("top_p", request.top_p, "above 0, at most 1", lambda x: 0 < x <= 1),
        ("max_tokens", request.max_tokens, "1 or above", lambda x: x >= 1),
        ("top_logprobs", request.top_logprobs, "from 0 to 20", lambda x: 0 <= x <= 20),
    ]
    for name, value, allowed, holds in rules:
        if value is not None and not (isinstance(value, (int, float)) and holds(value)):
            raise BadRequest(f"{name} is {value!r}; it must be {allowed}")


def _messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    if not messages:
        raise BadRequest("messages is empty")
    return [_message(message, number) for number, message in enumerate(messages)]


def _message(message: Message, number: int) -> dict[str, Any]:
    role = message.get("role")
    if role not in _ROLES:
        raise BadRequest(f"messages[{number}]: role is {role!r}; it must be one of {', '.join(sorted(_ROLES))}")
    plain = {"role": role, "content": _content(message.get("content"), number, optional=role == "assistant")}
    unknown = sorted(key for key, value in message.items() if key not in plain and value is not None)
    if unknown:
        raise Unsupported(f"messages[{number}]: the embedded engine does not support {', '.join(unknown)}", hint=_HINT)
    return plain


def _content(content: Any, number: int, *, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if not isinstance(content, (list, tuple)):
        raise BadRequest(f"messages[{number}]: content must be text or a list of parts")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in {"text", "image_url", "input_audio", "file", "refusal"}:
            raise BadRequest(f"messages[{number}]: unknown type {kind!r} of a content part")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise Unsupported(f"messages[{number}]: the embedded engine supports only text, not {kind}", hint=_HINT)
    return "\n".join(part["text"] for part in content)


def _stops(stop: str | tuple[str, ...] | None) -> list[str] | None:
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if not all(isinstance(text, str) and text for text in stops):
        raise BadRequest("stop must be one or more non-empty strings")
    return stops or None


def _logit_bias(bias: Any, vocabulary: int) -> dict[int, float]:
    try:
        found = {int(token): float(value) for token, value in bias.items()}
    except (AttributeError, TypeError, ValueError):
        raise BadRequest("logit_bias must map token ids to numbers") from None
    outside = [token for token in found if not 0 <= token < vocabulary]
    if outside:
        raise BadRequest(f"logit_bias: token {outside[0]} is outside the vocabulary of {vocabulary} tokens")
    return found


def _format(wanted: Mapping[str, Any] | None, engine: Engine) -> dict[str, str]:
    kind = None if wanted is None else wanted.get("type")
    if wanted is None or kind == "text":
        return {}
    if kind == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if not isinstance(schema, Mapping):
            raise BadRequest("response_format: json_schema.schema must be a JSON schema")
    elif kind == "json_object":
        schema = {"type": "object"}
    else:
        raise BadRequest(f"response_format: type is {kind!r}; it must be text, json_object or json_schema")
    if not engine.can_write('{"":[]}'):
        raise Unsupported(f"response_format: the vocabulary of {engine.directory.name} cannot represent JSON", hint=_HINT)
    return {"grammar": json.dumps(schema), "grammar_type": "json_schema"}
