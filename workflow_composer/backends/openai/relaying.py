"""Relaying of streams unchanged: how an OpenAI-compatible backend handles a request with a `Relay` for a stream.

The request is encoded from its fields as usual. Of the stream, only what the executor needs is decoded: the events before
the first token, the one with the usage, and whether the answer was truncated. Errors are mapped as everywhere (`errors`).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from workflow_composer.backends.http.client import Limit
from workflow_composer.backends.http.connection import BOUNDS, Connection, TooLong
from workflow_composer.backends.http.events import DONE, EventReader, payloads
from workflow_composer.backends.openai import errors, shapes, wire
from workflow_composer.backends.openai.server import Secrets
from workflow_composer.backends.openai.stream_accumulator import StreamAccumulator
from workflow_composer.errors import AnswerTooLong, CallTimeout, ModelError, ServerFailed, ServerUnreachable
from workflow_composer.types import Completion, ModelCall, Relay, Sample
from workflow_composer.usage import NO_USAGE, Delivered

if TYPE_CHECKING:
    from workflow_composer.backends.openai.server import OpenAIServer

_EMPTY = re.compile(
    rb'"delta": ?\{(?:"\w+": ?(?:""|null|\[\]|"assistant"),? ?)*\}'  # the role, or only the finish reason
    rb'|"choices": ?\[\{(?:[^"{}]|"(?!delta|text)\w*")*"text": ?""'
)
"""An event of a stream that brings no content."""

_CUT_OFF = re.compile(rb'"finish_reason": ?"(length|content_filter)"')


async def relayed(server: OpenAIServer, path: str, call: ModelCall, body: dict[str, Any]) -> Completion:
    """Post a body and pass the response's stream to the call's relay. Raises `ModelError`, `EgressDenied`."""
    relay = call.request.relay
    assert relay is not None  # checked by the caller
    secrets, connect = Secrets(call.request), call.timeouts.connect
    limit = Limit(call.timeouts.first_token, lambda: _late(server, call.timeouts.first_token))
    pump = _Pump(relay, limit.end)
    relay.delivery = pump.delivery
    streams = True
    try:
        with limit:
            answer = await server.send(
                path,
                body,
                secrets,
                connect=connect,
                sink=pump,
                sending=call.sending,
                bulk=call.request.bulk,
                more=headers_of(call),
                private=call.request.private,
            )
    except ModelError as error:
        _raise_reported(server, pump, secrets)
        if isinstance(error, AnswerTooLong) or not pump.whole:  # what is held back of a too long event is none
            raise
    else:
        streams = "event-stream" in answer.headers.get("content-type", "")
    finally:
        relay.source = None
    _raise_reported(server, pump, secrets)
    label = server.label
    if not streams:
        if not answer.body.lstrip().startswith(STREAM_SIGNS):
            return _at_once(server, answer.body, relay, secrets, model=str(body["model"]))
        pump.feed(bytes(answer.body))
        _raise_reported(server, pump, secrets)
    if not pump.whole:
        raise ServerUnreachable(f"{label.name}: the stream ended before the answer was complete")
    if not pump.works:
        raise ServerFailed(f"{label.name}: the stream ended without an answer")
    pump.end()
    return Completion(
        samples=(pump.sample(),), usage=pump.delivery.usage or NO_USAGE, model=pump.model or str(body["model"])
    )


STREAM_SIGNS = (b"data:", b"event:", b": ")
"""How the body of an event stream begins, whatever its headers say."""


def headers_of(call: ModelCall, draw: int = 0) -> Mapping[str, str] | None:
    """Return the headers that travel with a call; each draw of a vote gets an ID of its own, by which servers tell requests
    apart.
    """
    headers, number = call.request.headers, call.first_sample + draw
    if headers is None or not number or REQUEST_ID not in headers:
        return headers
    return {**headers, REQUEST_ID: f"{headers[REQUEST_ID]}-{number}"}


REQUEST_ID = "x-request-id"


def _at_once(server: OpenAIServer, content: bytes | bytearray, relay: Relay, secrets: Secrets, *, model: str) -> Completion:
    """Pass on a whole answer of a server that does not stream, as one event."""
    found = server.completion(content, secrets, model=model)
    event = shapes.as_stream(msgspec.json.decode(wire.strict(content)))
    usage = event.pop("usage", None)
    events = [event, *([{**event, "choices": [], "usage": usage}] if relay.usage and usage else ())]
    relay.begun, relay.delivery = True, None
    relay.heard = time.perf_counter()
    assert relay.write is not None  # only for streams
    relay.write(b"".join(b"data: " + wire.encode(one) + b"\n\n" for one in events) + b"data: [DONE]\n\n")
    return found


def _overhead(data: bytes) -> int:
    """Return the bytes of the first event with content that are not content."""
    for event in payloads(data):
        try:
            choice = msgspec.json.decode(event)["choices"][0]
            content = _content(choice["text"] if "text" in choice else choice["delta"])
        except (msgspec.DecodeError, LookupError, TypeError, RecursionError):
            continue
        if content > 0:
            return len(event) + len(b"data: \n\n") - content
    return 0


def _content(said: Any) -> int:
    """Return the characters of all texts but the role and identifiers."""
    if isinstance(said, str):
        return len(said)
    if isinstance(said, dict):
        return sum(_content(value) for name, value in said.items() if name not in ("role", "id", "type"))
    return sum(map(_content, said)) if isinstance(said, list) else 0


def _late(server: OpenAIServer, seconds: float) -> CallTimeout:
    hint = "raise the profile's timeouts, or check the server's load"
    return CallTimeout(f"{server.label.name}: no first token within {seconds:g} s (first_token)", hint=hint)


def _raise_reported(server: OpenAIServer, pump: _Pump, secrets: Secrets) -> None:
    if pump.error is not None:
        raise errors.from_stream(pump.error, server.label, secrets)


_COMMENTS = 4096
"""Bytes of comments before the first token that are passed on with it; some servers send one now and then."""
_MOST_KEPT = 64 * 2**20
"""Bytes of a stream whose answer is needed as a whole: the events of more than a hundred thousand tokens."""


class _Pump:
    """Passes on a stream's complete events.

    Events before the first token are held back, so that another model may still take over. An event with an error is not
    passed on: it ends the stream, and the executor reports it.
    """

    def __init__(self, relay: Relay, on_first_token: Callable[[], None]) -> None:
        assert relay.write is not None  # only for streams
        self._relay = relay
        self._write = relay.write
        self._connection: Connection | None = None
        self._reader = EventReader(BOUNDS.event)
        self._on_first_token = on_first_token
        self._held: list[bytes] = []
        self._held_size = 0
        self._last: tuple[bytes, bytes] = (b"", b"")
        self._kept: list[bytes] = []
        self._kept_size = 0
        self._cut_off: str | None = None
        self.works = False
        self.model: str | None = None
        self.delivery = Delivered()
        self._overhead = 0
        self.error: Mapping[str, Any] | None = None

    def attach(self, connection: Connection) -> None:
        """Set the connection of the stream."""
        self._connection, self._relay.source = connection, self

    def pause(self) -> None:
        """Stop reading: the client is too slow, so the silence is not the server's."""
        self._relay.heard = math.inf
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Resume reading."""
        self._relay.heard = time.perf_counter()
        if self._connection is not None:
            self._connection.resume()

    def begin(self) -> None:
        """Do nothing when the headers arrive."""

    def feed(self, data: bytes) -> None:
        """Accept received bytes."""
        if self.error is None and (data := self._reader.whole(data)):
            self._hand_on(data)

    def _hand_on(self, data: bytes) -> None:
        """Accept complete events."""
        self._count(data)
        if (b'"length"' in data or b'"content_filter"' in data) and (found := _CUT_OFF.search(data)):
            self._cut_off = found[1].decode()
        if (
            not self.works
            or b'"usage":{' in data
            or b'"usage": {' in data
            or b"error" in data
            or data.count(b'"choices"') < data.count(b"data:")  # an event that is none of an answer
        ):
            data = self._looked_at(data)
        if data:
            self._last = (self._last[1], data)
            self._relay.begun = True
            self._relay.heard = time.perf_counter()
            if self._relay.keep:
                self._kept.append(data)
                self._kept_size += len(data)
                if self._kept_size > _MOST_KEPT:
                    raise TooLong(f"the stream is longer than {_MOST_KEPT} bytes", ours=True)
            self._write(data)

    def _count(self, data: bytes) -> None:
        """Count the pieces with content, without decoding them: a quoted text cannot contain these bytes."""
        pieces = data.count(b'"choices":[{') + data.count(b'"choices": [{') - len(_EMPTY.findall(data))
        if pieces > 0:
            delivery = self.delivery
            self._overhead = self._overhead or _overhead(data)
            delivery.pieces += pieces
            delivery.uncounted += pieces
            delivery.characters += max(pieces, len(data) - pieces * self._overhead)

    def _looked_at(self, data: bytes) -> bytes:
        """Decode these events and return those to pass on."""
        if not self.works and b"data:" not in data and self._held_size + len(data) > _COMMENTS:
            return b""
        passed: list[bytes] = []
        for event in data.replace(b"\r\n", b"\n").split(b"\n\n"):
            if self.error is not None:
                break
            if event and self._shows(event):
                passed.append(event + b"\n\n")
        if not self.works:
            self._held += passed
            self._held_size += sum(map(len, passed)) + 100 * len(passed)  # each takes more than its bytes
            if self._held_size > BOUNDS.event:
                raise TooLong(f"the events before the first token are longer than {BOUNDS.event} bytes")
            return b""
        if self._held:
            passed = self._held + passed
            self._held = []
        return b"".join(passed)

    def _shows(self, event: bytes) -> bool:
        """Process one event; return whether the client should get it."""
        payload = next(payloads(event), b"").strip()
        if not payload or payload.startswith(DONE):
            return bool(payload) or self.works or self._held_size < _COMMENTS
        try:
            found = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self._stop({"error": {"message": "an event is malformed"}})
            return False
        if (error := shapes.reported(found)) is not None:
            self._stop(error)
            return False
        self.model = wire.name_in(found) or self.model
        try:
            works = self.works or wire.shows_work(found)
        except wire.Malformed as error:
            self._stop({"error": {"message": f"an event is malformed: {error}"}})
            return False
        if works and not self.works:
            self.works = True
            self._on_first_token()
        usage = wire.usage_within(found)
        if usage and (counted := wire.usage_in(usage)) is not None:
            self.delivery.take(counted)
        return bool(self._relay.usage or found.get("choices") or not usage)

    def _stop(self, error: Mapping[str, Any]) -> None:
        self.error = error
        if self._connection is not None:
            self._connection.abort()

    @property
    def whole(self) -> bool:
        """Whether the answer is complete: it has the protocol's end marker or a finish reason."""
        if self.works and self.error is None and (rest := self._reader.rest()):
            self._hand_on(rest)  # the last event, ended by the end of the stream
        if self._is_done:
            return self.error is None
        for event in (event for part in self._last for event in payloads(part)):
            try:
                choices = msgspec.json.decode(event).get("choices") or ()
                if any(choice.get("finish_reason") for choice in choices):
                    return self.error is None
            except (msgspec.DecodeError, AttributeError, TypeError, RecursionError):
                continue
        return False

    @property
    def _is_done(self) -> bool:
        return any(b"data: [DONE]" in part or b"data:[DONE]" in part for part in (*self._last, *self._held))

    def end(self) -> None:
        """Write the end marker, which some clients wait for, if the server ended a whole answer without one."""
        if not self._is_done:
            self._write(b"data: [DONE]\n\n")

    def sample(self) -> Sample:
        """Return the answer if the relay keeps it; else an empty one that only says whether it was truncated."""
        if not self._relay.keep:
            return Sample("", self._cut_off)
        heard = StreamAccumulator()
        for event in (event for part in self._kept for event in payloads(part)):
            try:
                chunk = None if event.startswith(DONE) else wire.chunk_of(msgspec.json.decode(event))
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                continue  # the client has it already
            if chunk is not None:
                heard.add(chunk)
        return heard.sample()
