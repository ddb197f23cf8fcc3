"""The shared parts of all dialects: the parsed request and the JSON encoding of responses.

A dialect is one API format (OpenAI's chat completions, legacy completions, responses; Anthropic's messages). It converts a
body to the fields of an `LLMRequest` and an `LLMResponse` to a body, and does no I/O. `forms` declares the fields of a body.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import Chunk, LLMRequest, LLMResponse, Usage

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Asked:
    """A parsed request body. ``warnings`` name ignored fields.

    ``fields`` are those of an `LLMRequest`; the handler adds the rest and sets ``request``. ``continuous``: the usage so far
    is wanted with every piece. ``quiet``: thinking is not to be shown. ``tools`` says which of the client's tools a
    function stands for, where it is another kind of tool for the client. ``previous`` is the response that this one goes on
    from, and ``resume`` adds what was said up to it, for the key that asks; ``store``: this one may be continued.
    ``instructed``: the first message is of this turn only.
    """

    fields: dict[str, Any]
    stream: bool = False
    include_usage: bool = False
    warnings: tuple[str, ...] = ()
    continuous: bool = False
    quiet: bool = False
    tools: Mapping[str, Any] | None = None
    previous: str | None = None
    resume: Callable[[Any], None] | None = None
    store: bool = False
    instructed: bool = False
    request: LLMRequest = field(init=False)


class EventWriter(Protocol):
    """Writes one stream as bytes of complete server-sent events."""

    def waiting(self) -> bytes:
        """Return a sign of life before the first piece, which may open the stream."""
        ...

    def piece(self, chunk: Chunk) -> bytes:
        """Return the events for a piece, or b"". The first call also opens the stream."""
        ...

    def end(self, response: LLMResponse) -> bytes:
        """Return the events after the last piece."""
        ...

    def failed(self, failure: HttpFailure) -> bytes:
        """Return the error event, which ends the stream."""
        ...


class Dialect(Protocol):
    """One API format."""

    name: str

    def read(self, body: bytes | bytearray, headers: Mapping[str, str]) -> Asked:
        """Parse a request body. Raises `HttpFailure`."""
        ...

    def whole(self, asked: Asked, response: LLMResponse) -> bytes:
        """Return the body of a complete response."""
        ...

    def events(self, asked: Asked) -> EventWriter:
        """Return a writer for a stream."""
        ...

    def failure(self, failure: HttpFailure) -> bytes:
        """Return the body of an error response."""
        ...


# ------------------------------------------------------------------------------------------------------------- writing


def encode(value: Any) -> bytes:
    """Return a value as JSON in UTF-8."""
    try:
        return _encode(value)
    except UnicodeEncodeError:  # half a surrogate pair from a model server: JSON can escape it, UTF-8 cannot encode it
        return json.dumps(value, separators=(",", ":")).encode()


def openai_failure(failure: HttpFailure) -> bytes:
    """Return an error in OpenAI's format."""
    error = {"message": failure.message, "type": failure.type, "param": failure.param, "code": failure.code}
    return encode({"error": error})


def event(data: Mapping[str, Any], name: str = "") -> bytes:
    """Return one server-sent event."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + encode(data) + b"\n\n"


WAITING = b": waiting for the model\n\n"
"""A comment, which readers of events skip."""


def usage_of(response: LLMResponse) -> dict[str, Any]:
    """Return token counts in OpenAI's format, including rejected and failed attempts."""
    return counts_of(response.usage, context_of(response))


def counts_of(usage: Usage, context: int | None = None) -> dict[str, Any]:
    """Return token counts in OpenAI's format, with what is known of caches and reasoning."""
    found: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens:
        found["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens:
        found["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    if context is not None:
        found["context_tokens"] = context
    return found


def context_of(response: LLMResponse) -> int | None:
    """Return the tokens of the longest prompt of one call, where the usage is a sum over several; None for one call.

    Clients take the prompt's tokens for the length of the conversation, and shorten it when it grows.
    """
    if len(response.attempts) < 2:
        return None
    return max(attempt.usage.prompt_tokens for attempt in response.attempts)
