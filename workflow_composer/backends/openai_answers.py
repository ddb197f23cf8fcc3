"""Fast decoding of whole responses of the usual form; others are left to `openai_wire`."""

from __future__ import annotations

from typing import Any

import msgspec

from workflow_composer.backends import openai_wire
from workflow_composer.types import Completion, Sample, Usage


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None
    index: int | None = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0


class _Whole(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: _Counts | None = None
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    object: str | None = None


_read = msgspec.json.Decoder(_Whole).decode


def quick_completion(body: bytes, *, model: str) -> Completion | None:
    """Decode the completion in a response; None if it has another form and `openai_wire` must decode it."""
    try:
        found = _read(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    choices = found.choices
    if found.error is not msgspec.UNSET or not choices or found.object == "error":
        return None
    if len(choices) > 1:
        choices.sort(key=lambda choice: choice.index or 0)
    counts = found.usage
    usage = Usage(counts.prompt_tokens or 0, counts.completion_tokens or 0) if counts is not None else Usage()
    if not usage.can_be:
        return None
    try:
        return Completion(tuple(map(_sample, choices)), usage, found.model or model)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _sample(choice: _Choice) -> Sample:
    message = choice.message
    if message is not None and message.tool_calls is None and choice.logprobs is None:
        reasoning = message.reasoning_content or message.reasoning or ""
        return Sample(message.content or message.refusal or "", choice.finish_reason, reasoning=reasoning)
    return openai_wire.sample_of(msgspec.to_builtins(choice))
