"""Answers handed on as they come: what an OpenAI-compatible backend does with a request that has a `Relay`.

The request is written from its fields as always. Of the answer only what the executor must know is read: usage, model, the
text of a whole answer; of a stream only the events before the first token, the one with the usage, and whether it was cut
off. Errors become the package's own, by the same rules as everywhere (`openai_errors`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from workflow_composer.backends import openai_errors, openai_wire
from workflow_composer.backends.gathering import Told
from workflow_composer.backends.per_loop import PerLoop
from workflow_composer.backends.upstream import Answer, Broken, Connection, Upstream
from workflow_composer.errors import CallTimeout, ServerFailed, ServerUnreachable
from workflow_composer.relay import Relay
from workflow_composer.types import Completion, ModelCall, Sample, Usage

if TYPE_CHECKING:
    from workflow_composer.backends.openai_http import OpenAIServer

LONGEST_EVENT = 16 * 2**20
"""Bytes; a server that sends more without an event's end sends no events."""

_CUT_OFF = re.compile(rb'"finish_reason": ?"length"')
_HEAD = (
    "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nAccept: application/json, text/event-stream\r\n"
    "Accept-Encoding: identity\r\nUser-Agent: workflow-composer\r\nContent-Type: application/json\r\nContent-Length: "
)


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None
    index: int = 0
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


_read_whole = msgspec.json.Decoder(_Whole).decode
_encode = msgspec.json.Encoder().encode


class RelayingClient:
    """Relayed calls to one server."""

    def __init__(self, server: OpenAIServer) -> None:
        self._server = server
        self._upstreams: PerLoop[Upstream] = PerLoop(server.upstream, Upstream.close)
        self._head = ("", b"")

    async def send(self, path: str, call: ModelCall, body: Mapping[str, Any]) -> Completion:
        """Post a body that names its model; what comes back goes to the call's relay.

        Raises `ModelError`, `EgressDenied`.
        """
        relay = call.request.relay
        assert relay is not None  # who calls has looked
        content = self._encoded(body)
        data = b"%s%d\r\n\r\n%s" % (self._start(path), len(content), content)
        pump = None if relay.write is None else _Pump(relay)
        upstream = self._upstreams.made() or await self._upstreams.get()
        connection = upstream.idle() or await self._connect(upstream, call)
        try:
            answer = await self._exchange(connection, data, pump, call)
        except BaseException:
            connection.abort()
            raise
        finally:
            relay.source = None
            upstream.give_back(connection)
        if answer.status != 200:
            raise self._refusal(answer, call)
        if pump is None:
            return self._whole(answer.body, relay, call, str(body["model"]))
        return self._streamed(answer, pump, call, str(body["model"]))

    async def close(self) -> None:
        """Close all connections."""
        await self._upstreams.close()

    # -------------------------------------------------------------------------------------------------------- the request

    def _start(self, path: str) -> bytes:
        """The request's head up to its length; made anew where the key has changed."""
        key = self._server.key()
        if self._head[0] != key + path:
            text = _HEAD.format(path=self._server.path + path, host=self._server.authority, key=key)
            self._head = (key + path, text.encode("latin-1"))
        return self._head[1]

    def _encoded(self, body: Mapping[str, Any]) -> bytes:
        try:
            return _encode(body)
        except (TypeError, ValueError, UnicodeEncodeError):
            return self._server.encoded(body)

    async def _connect(self, upstream: Upstream, call: ModelCall) -> Connection:
        label, limit = self._server.label, call.timeouts.connect
        try:
            return await upstream.connect(limit)
        except TimeoutError:
            late = CallTimeout(f"{label.name}: no connection in time (connect)", hint=label.models_hint)
            late.sent = False
            raise late from None
        except OSError as error:
            raise openai_errors.unreachable(error, label, connected=False) from None

    async def _exchange(self, connection: Connection, data: bytes, pump: _Pump | None, call: ModelCall) -> Answer:
        label = self._server.label
        if pump is None:
            try:
                return await connection.ask(data, None)
            except Broken as error:
                raise openai_errors.unreachable(error, label, connected=True) from None
        timer = asyncio.get_running_loop().call_later(call.timeouts.first_token, pump.expire)
        pump.begin(connection, timer)
        try:
            return await connection.ask(data, pump.feed)
        except Broken as error:
            if pump.late:
                reason = f"no first token within {call.timeouts.first_token:g} s (first_token)"
                hint = "raise the profile's timeouts, or look at the server's load"
                raise CallTimeout(f"{label.name}: {reason}", hint=hint) from None
            self._raise_reported(pump.error, call)
            if pump.whole:
                return Answer(200, {"content-type": "text/event-stream"}, b"")
            raise openai_errors.unreachable(error, label, connected=True) from None
        finally:
            timer.cancel()

    # --------------------------------------------------------------------------------------------------------- the answer

    def _refusal(self, answer: Answer, call: ModelCall) -> Exception:
        secrets = (self._server.key(), *openai_wire.secrets_of(call.request))
        said = answer.body.decode("utf-8", "replace")
        return openai_errors.from_reply(answer.status, answer.headers, said, self._server.label, secrets)

    def _whole(self, body: bytes, relay: Relay, call: ModelCall, model: str) -> Completion:
        try:
            found = _read_whole(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = None
        if found is None or found.error is not msgspec.UNSET or not found.choices:
            data = self._server.read_json(body, openai_wire.secrets_of(call.request))
            done = self._server.understood(lambda data: openai_wire.completion_of(data, model=model), data)
        else:
            counts = found.usage
            usage = Usage(counts.prompt_tokens or 0, counts.completion_tokens or 0) if counts is not None else Usage()
            usage = usage if usage.can_be else openai_wire.usage_of(msgspec.to_builtins(counts))
            done = Completion(tuple(map(_sample, found.choices)), usage, found.model or model)
        relay.body = body
        return done

    def _streamed(self, answer: Answer, pump: _Pump, call: ModelCall, model: str) -> Completion:
        label = self._server.label
        self._raise_reported(pump.error, call)
        if "event-stream" not in answer.headers.get("content-type", ""):
            raise ServerFailed(f"{label.name}: answers a streaming request without a stream")
        if not pump.whole:
            raise ServerUnreachable(f"{label.name}: the stream ended within the answer")
        if not pump.works:
            raise ServerFailed(f"{label.name}: the stream ended without an answer")
        return Completion((pump.sample(),), pump.usage, pump.model or model)

    def _raise_reported(self, error: Mapping[str, Any] | None, call: ModelCall) -> None:
        if error is not None:
            raise openai_errors.from_stream(error, self._server.label, openai_wire.secrets_of(call.request))


def _sample(choice: _Choice) -> Sample:
    message = choice.message
    if message is not None and message.tool_calls is None and choice.logprobs is None:
        return Sample(message.content or message.refusal or "", choice.finish_reason)
    return openai_wire.sample_of(msgspec.to_builtins(choice))


class _Pump:
    """Hands a stream's whole events on.

    Events before the first token are held back, so that until then another model may still answer. An event that reports an
    error is not handed on: it ends the stream, and the executor says so.
    """

    def __init__(self, relay: Relay) -> None:
        assert relay.write is not None  # a stream is wanted
        self._relay = relay
        self._write = relay.write
        self._connection: Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rest = b""
        self._held: list[bytes] = []
        self._done = False
        self._last: tuple[bytes, bytes] = (b"", b"")
        self._kept: list[bytes] = []
        self.works = False
        self.model: str | None = None
        self.usage = Usage()
        self.late = False
        self._cut_off = False
        self.error: Mapping[str, Any] | None = None

    def begin(self, connection: Connection, timer: asyncio.TimerHandle) -> None:
        """The stream comes over this connection; the timer ends it unless a token comes first."""
        self._connection = connection
        self._timer = timer
        self._relay.source = connection

    def expire(self) -> None:
        """No token has come in time."""
        self.late = True
        assert self._connection is not None  # it has begun
        self._connection.abort()

    def feed(self, data: bytes) -> None:
        """Take what came."""
        if self.error is not None:
            return
        if self._rest:
            data = self._rest + data
        if data.endswith(b"\n\n"):
            self._rest = b""
        else:
            end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\n\r\n") + 3)
            if end < 4:
                self._keep_for_later(data)
                return
            data, self._rest = data[:end], data[end:]
        if not self.works or b'"usage":{' in data or b'"usage": {' in data or b'"error":' in data:
            data = self._looked_at(data)
        if b'"length"' in data and _CUT_OFF.search(data):
            self._cut_off = True
        if data:
            self._last = (self._last[1], data)
            self._relay.begun = True
            if self._relay.keep:
                self._kept.append(data)
            self._write(data)

    def _keep_for_later(self, data: bytes) -> None:
        self._rest = data
        if len(data) > LONGEST_EVENT:
            self._stop({"error": {"message": "an event has no end"}})

    def _looked_at(self, data: bytes) -> bytes:
        """Read these events; what is left of them to be handed on."""
        passed: list[bytes] = []
        for event in data.replace(b"\r\n", b"\n").split(b"\n\n"):
            if self.error is not None:
                break
            if event and self._shows(event):
                passed.append(event + b"\n\n")
        if not self.works:
            self._held += passed
            return b""
        if self._held:
            passed = self._held + passed
            self._held = []
        return b"".join(passed)

    def _shows(self, event: bytes) -> bool:
        """Take note of one event; whether the client is to see it."""
        lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
        payload = b"\n".join(lines)
        if not payload or payload.startswith(b"[DONE]"):
            return True
        try:
            found = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = None
        if not isinstance(found, dict):
            self._stop({"error": {"message": "an event cannot be understood"}})
            return False
        if found.get("error") or found.get("object") == "error":
            self._stop(found)
            return False
        self.model = found.get("model") or self.model
        if not self.works and openai_wire.shows_work(found):
            self.works = True
            if self._timer is not None:
                self._timer.cancel()
        usage = found.get("usage")
        if usage:
            self.usage = openai_wire.usage_of(usage)
        return bool(self._relay.usage or found.get("choices") or not usage)

    def _stop(self, error: Mapping[str, Any]) -> None:
        self.error = error
        if self._connection is not None:
            self._connection.abort()

    @property
    def whole(self) -> bool:
        """Whether the answer has come to its end: the protocol's end mark, or a reason why the model stopped."""
        if self._rest.strip() and self.works:
            self.feed(b"\n\n")  # an event that the stream's end completes
        if any(b"data: [DONE]" in part or b"data:[DONE]" in part for part in (*self._last, *self._held)):
            return self.error is None
        decoder = openai_wire.EventDecoder()
        for part in self._last:
            for event in decoder.feed(part):
                try:
                    choices = msgspec.json.decode(event).get("choices") or ()
                    if any(choice.get("finish_reason") for choice in choices):
                        return self.error is None
                except (msgspec.DecodeError, AttributeError):
                    continue
        return False

    def sample(self) -> Sample:
        """The answer, where somebody wants to read it; else an empty one, of which is known only whether it was cut off."""
        if not self._relay.keep:
            return Sample("", "length" if self._cut_off else None)
        told, decoder = Told(), openai_wire.EventDecoder()
        for part in self._kept:
            for event in decoder.feed(part):
                chunk = None if event.startswith(b"[DONE]") else openai_wire.chunk_of(msgspec.json.decode(event))
                if chunk is not None:
                    told.hear(chunk)
        return told.sample()
