"""The shapes in which answers come that were asked for in another: errors in place of answers, whole ones in place of
streams, and streams in place of whole ones. What counts as an answer is decided here, for all forms.
"""

from __future__ import annotations

import json
from typing import Any

from workflow_composer.backends.http.connection import BOUNDS
from workflow_composer.backends.http.events import DONE, payloads
from workflow_composer.backends.openai import wire
from workflow_composer.backends.openai.stream_accumulator import StreamAccumulator
from workflow_composer.errors import AnswerTooLong, ServerFailed

_REPORTING = ("message", "msg", "detail", "errors", "code", "status", "status_code")


def reported(data: Any) -> Any:
    """Return the error that an answer, or an event of a stream, is, in any of the shapes in which servers report one."""
    if not isinstance(data, dict):
        return None
    if data.get("error") or data.get("object") == "error" or data.get("type") == "error":
        return data
    choices = data.get("choices")
    if choices is None:
        return data if "data" not in data and any(data.get(name) for name in _REPORTING) else None
    choice = choices[0] if choices and isinstance(choices, list) else None
    if isinstance(choice, dict) and (choice.get("error") or choice.get("finish_reason") == "error"):
        return {"error": choice.get("error") or "the server broke the answer off"}
    return None


def as_stream(data: dict[str, Any]) -> dict[str, Any]:
    """Return a whole answer as the one event of a stream."""
    choices = []
    for choice in data["choices"]:
        rest = {name: value for name, value in choice.items() if name != "message"}
        if isinstance(message := choice.get("message"), dict):
            calls = [{"index": index, **call} for index, call in enumerate(message.get("tool_calls") or ())]
            rest["delta"] = {**message, **({"tool_calls": calls} if calls else {})}
        choices.append({**rest, "finish_reason": rest.get("finish_reason") or "stop"})
    kind = "text_completion" if choices and "text" in choices[0] else "chat.completion.chunk"
    return {**data, "object": kind, "choices": choices}


def joined(content: bytes, server: str) -> bytes:
    """Return the whole answer, as JSON, in the body of an event stream, whose events have their usual bound.

    Raises `ServerFailed`.
    """
    heard, usage, found = StreamAccumulator(), None, {}
    try:
        for event in payloads(content):
            if event.startswith(DONE):
                break
            if len(event) > BOUNDS.event:
                raise AnswerTooLong(f"{server}: an event of the stream is longer than {BOUNDS.event} bytes")
            found = json.loads(event)
            if reported(found) is not None:
                return event
            usage = wire.usage_within(found) or usage
            if (chunk := wire.chunk_of(found)) is not None:
                heard.add(chunk)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ServerFailed(f"{server}: invalid response: an event of the stream is malformed") from None
    sample = heard.sample()
    if not heard.pieces:
        raise ServerFailed(f"{server}: the stream ended without an answer")
    choice = {"index": 0, "finish_reason": sample.finish_reason or "stop", "message": wire.message_of(sample)}
    if "text" in (found.get("choices") or [{}])[0]:
        choice = {"index": 0, "finish_reason": sample.finish_reason or "stop", "text": sample.text}
    whole = {"id": found.get("id"), "object": "chat.completion", "created": found.get("created"), "model": heard.model}
    return wire.encode({**whole, "choices": [choice], "usage": usage})
