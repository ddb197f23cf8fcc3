"""What a server's own ways ask of a request: fields that it takes under other names or not at all, roles that it knows."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from workflow_composer.types import LLMRequest, Message

_WORD = re.compile(r"\w+")

NEW_LIMIT, NO_STREAM_USAGE, NO_TEMPERATURE = "max_completion_tokens", "stream_options", "temperature"
NO_METADATA = "metadata"
OPTIONS = frozenset({"service_tier", "prompt_cache_key"})
"""Fields of OpenAI's that change no answer; few other servers know them."""
OPTIONAL = OPTIONS | {NO_METADATA}
"""Fields that are left out where a model's server does not take them; `LLMRequest.left_out` is told. A backend's ``takes``
names those that it sends.
"""
USUAL = frozenset({NO_METADATA})
"""What is sent to a model whose backend does not say what it takes."""
_NOT_AT_ALL = re.compile(r"deprecat|unsupported|not (?:be )?(?:support|permit|allow)|only the default", re.IGNORECASE)
_STREAM_USAGE = {"include_usage": True}


class Lesson(NamedTuple):
    """A change of the body that a server's error asks for; ``certain``: it names the field apart from its text."""

    change: str
    certain: bool


def suited(messages: Sequence[Message], *, developers: bool, thoughts: bool) -> Sequence[Message]:
    """Return messages in a form that a server takes.

    Without ``developers`` it knows no such role, as the chat templates of open models: their messages are joined to one
    system message in front. Without ``thoughts`` it refuses earlier reasoning (``reasoning_content``), which is left out.
    """
    if not thoughts:
        messages = [{name: value for name, value in message.items() if name != "reasoning_content"} for message in messages]
    return messages if developers else led(messages)


def led(messages: Sequence[Message]) -> Sequence[Message]:
    """Return messages with those of developers, and systems, as one system message in front, if there are developers'.

    >>> led([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}])[0]
    {'role': 'system', 'content': 'Be brief.'}
    """
    if not any(message.get("role") == "developer" for message in messages):
        return messages
    parts: list[Any] = []
    for message in messages:
        if message.get("role") in ("developer", "system"):
            content = message.get("content")
            parts += [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
    plain = all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts)
    content = "\n\n".join(part["text"] for part in parts) if plain else parts
    rest = [message for message in messages if message.get("role") not in ("developer", "system")]
    return [{"role": "system", "content": content}, *rest]


def lesson_of(refusal: str, params: Collection[str], body: Mapping[str, Any], request: LLMRequest) -> Lesson | None:
    """Return the change that a server's error asks for: `NEW_LIMIT` (OpenAI's reasoning models), `NO_STREAM_USAGE` (servers
    older than that field), `NO_TEMPERATURE` (newer models), `NO_METADATA`, or None. Covers labels, and what this
    package adds itself.

    ``refusal`` is the error's text, which may quote the client; ``params`` are the fields that it names apart from it. A
    limit may also be refused for its value, so that text must name the other field, too.
    """
    said = set(_WORD.findall(refusal))
    if NEW_LIMIT in said and "max_tokens" in body:
        return Lesson(NEW_LIMIT, certain="max_tokens" in params)
    named = any(param.partition(".")[0] == NO_STREAM_USAGE for param in params)
    if (named or NO_STREAM_USAGE in said) and body.get("stream_options") == _STREAM_USAGE:
        return Lesson(NO_STREAM_USAGE, certain=named)
    planned = body.get("temperature") not in (None, request.temperature)
    if planned and NO_TEMPERATURE in {*said, *params} and _NOT_AT_ALL.search(refusal):
        return Lesson(NO_TEMPERATURE, certain=NO_TEMPERATURE in params)
    if (
        NO_METADATA in {*said, *params} and NO_METADATA in body
    ):  # labels, which change no answer; OpenAI takes them with `store`
        return Lesson(NO_METADATA, certain=NO_METADATA in params)
    return None


def reword(body: dict[str, Any], lessons: Collection[str], request: LLMRequest, name: str) -> None:
    """Change the body as earlier errors of the server require; ``name`` is the model's, for those who are told."""
    if NEW_LIMIT in lessons and "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
    if NO_STREAM_USAGE in lessons:
        body.pop("stream_options", None)
    if NO_TEMPERATURE in lessons and body.get("temperature") != request.temperature:
        body.pop("temperature", None)
    if NO_METADATA in lessons and body.pop("metadata", None) is not None and request.left_out is not None:
        request.left_out.append(not_taken(NO_METADATA, name))


def not_taken(field: str, name: str) -> str:
    """Return the warning about a field that the server of a model does not take."""
    return f"{field} is left out: {name} does not take it"


def asks_for(request: LLMRequest, field: str) -> bool:
    """Whether a request asks for what the field of a body is for; ``messages``: for images and the like."""
    name = field.partition(".")[0]
    if name in ("logprobs", "top_logprobs"):
        return request.logprobs or request.top_logprobs is not None
    if name == "messages":
        return "vision" in request.needs
    return name in request.extra or getattr(request, name, None) is not None
