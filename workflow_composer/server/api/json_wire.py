"""What all dialects share: what is asked, and how answers are written.

A dialect is one form of API (OpenAI's chat completions, its older completions, its responses, Anthropic's messages). It
turns a body into the fields of an `LLMRequest` and an `LLMResponse` into a body, and does no I/O. `forms` says what a body
may hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import Chunk, LLMRequest, LLMResponse

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Asked:
    """What a body asks, and how its answer is wanted. ``warnings`` tell of fields that were left out.

    ``fields`` are those of an `LLMRequest`. The handler knows the others, and makes the ``request`` of all of them.
    """

    fields: dict[str, Any]
    stream: bool = False
    include_usage: bool = False
    warnings: tuple[str, ...] = ()
    request: LLMRequest = field(init=False)


class EventWriter(Protocol):
    """Writes one stream, as bytes of whole server-sent events."""

    def piece(self, chunk: Chunk) -> bytes:
        """The events for a piece; may be empty. The first also open the stream."""
        ...

    def end(self, response: LLMResponse) -> bytes:
        """The events behind the last piece."""
        ...

    def failed(self, failure: HttpFailure) -> bytes:
        """The event that tells of an error; nothing follows it."""
        ...


class Dialect(Protocol):
    """One form of API."""

    name: str

    def read(self, body: bytes, headers: Mapping[str, str]) -> Asked:
        """Read a body. Raises `HttpFailure`."""
        ...

    def whole(self, asked: Asked, response: LLMResponse) -> bytes:
        """The body of a complete answer."""
        ...

    def events(self, asked: Asked) -> EventWriter:
        """A writer for a stream."""
        ...

    def failure(self, failure: HttpFailure) -> bytes:
        """The body of an error."""
        ...


# ------------------------------------------------------------------------------------------------------------- writing


def encode(value: Any) -> bytes:
    """JSON in UTF-8."""
    try:
        return _encode(value)
    except UnicodeEncodeError:  # half a surrogate pair, as a model's server may send it: JSON can say it, UTF-8 cannot
        return json.dumps(value, separators=(",", ":")).encode()


def openai_failure(failure: HttpFailure) -> bytes:
    """An error in OpenAI's form."""
    error = {"message": failure.message, "type": failure.type, "param": failure.param, "code": failure.code}
    return encode({"error": error})


def event(data: Mapping[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + encode(data) + b"\n\n"


def usage_of(response: LLMResponse) -> dict[str, int]:
    """Tokens, in OpenAI's form: all that the answer took, rejected and failed attempts included."""
    usage = response.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
