"""What all dialects share: what is asked, how answers are written, and how JSON from the network is read.

A dialect is one form of API (OpenAI's chat completions, its older completions, its responses, Anthropic's messages). It
turns a body into an `LLMRequest` and an `LLMResponse` into a body, and does no I/O. Of a request nothing is dropped in
silence: a field is honoured, passed on to the model, or refused by name; one that cannot change the answer may be left out
with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec

from workflow_composer.server import checks
from workflow_composer.server.checks import wrong
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import Chunk, LLMRequest, LLMResponse

T = TypeVar("T")

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and how its answer is wanted. ``warnings`` tell of fields that were left out."""

    request: LLMRequest
    stream: bool = False
    include_usage: bool = False
    warnings: tuple[str, ...] = ()


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

    def read(self, data: Mapping[str, Any], headers: Mapping[str, str]) -> Asked:
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


# ------------------------------------------------------------------------------------------------------------- reading


def decode(body: bytes) -> dict[str, Any]:
    """A JSON object from the network. Raises `HttpFailure`."""
    try:
        found = _decode(body)
    except UnicodeDecodeError:
        raise HttpFailure(400, "the body is not UTF-8") from None
    except msgspec.DecodeError as error:
        raise HttpFailure(400, f"the body is not JSON: {error}" if body else "the body is empty; send JSON") from None
    except RecursionError:
        raise HttpFailure(400, "the body is nested too deeply") from None
    if not isinstance(found, dict):
        raise HttpFailure(400, "the body must be a JSON object")
    return found


NOTHING: tuple[Any, ...] = (None, False, "", [], {})
"""Values by which a field asks for nothing."""
OTHERS = frozenset(
    {"messages", "prompt", "n", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"}
) | frozenset({"response_format", "stream_options"})
"""Fields that a model's server is sent in any case, or whose effect on the answer only some dialects can write."""


class Fields:
    """A body's fields, each taken once; what is left at the end are the ones that only a model may know."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._left = dict(data)

    def take(self, name: str) -> Any:
        """Any value."""
        return self._left.pop(name, None)

    def get(self, name: str, check: Callable[[str, Any], T]) -> T | None:
        """A value that passes the check; None where there is none. Raises `HttpFailure`."""
        value = self._left.pop(name, None)
        return None if value is None else check(name, value)

    def text(self, name: str) -> str | None:
        """A text."""
        return self.get(name, checks.text)

    def flag(self, name: str) -> bool | None:
        """True or false."""
        return self.get(name, checks.flag)

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object."""
        return self.get(name, checks.mapping)

    def items(self, name: str) -> list[Any] | None:
        """A list."""
        return self.get(name, checks.items)

    def whole(self, name: str, *, least: int | None = None, most: int = 2**31 - 1) -> int | None:
        """A whole number within limits."""
        return self.get(name, checks.whole(least=least, most=most))

    def number(self, name: str, least: float, most: float) -> float | None:
        """A number within limits."""
        return self.get(name, checks.number(least, most))

    def stop(self, name: str = "stop") -> str | tuple[str, ...] | None:
        """A text or a list of texts."""
        return self.get(name, checks.stop)

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Refuse fields that cannot be honoured, unless they ask for nothing."""
        for name, reason in reasons.items():
            if self._left.pop(name, None) not in NOTHING:
                raise wrong(name, reason, code="unsupported_parameter")

    def leave_out(self, names: Mapping[str, str]) -> tuple[str, ...]:
        """Leave out fields that cannot change the answer; the warnings."""
        return tuple(f"{name} {why}" for name, why in names.items() if self._left.pop(name, None) not in NOTHING)

    def nothing_else(self, reason: str = "is not known here", *, within: str = "") -> None:
        """Refuse whatever is left. ``within``: the field that these are parts of."""
        for name in self.rest:
            raise wrong(f"{within}.{name}" if within else name, reason, code="unsupported_parameter")

    def passed_on(self) -> dict[str, Any]:
        """What is left, for the model's server, which may know it. Raises `HttpFailure`.

        Fields of its own API that this dialect says in other words would contradict what is sent along with them.
        """
        for name in self._left.keys() & OTHERS:
            if self._left[name] is not None:
                raise wrong(name, "is no field of this form of API", code="unsupported_parameter")
        return self.rest

    @property
    def rest(self) -> dict[str, Any]:
        """What has not been taken, but for nulls."""
        return {name: value for name, value in self._left.items() if value is not None}


# ------------------------------------------------------------------------------------------------------------- writing


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
