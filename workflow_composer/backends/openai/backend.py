"""Models behind OpenAI's HTTP API: local vLLM servers, and cloud APIs with the same protocol.

`wire` encodes requests and decodes responses, `http.client` sends them. Retries are the executor's task.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from workflow_composer.backends.base import BackendContext, Passed, Upload
from workflow_composer.backends.http.client import Limit, Stream
from workflow_composer.backends.http.connection import BOUNDS, bounds_of
from workflow_composer.backends.http.events import DONE, EventReader, payloads
from workflow_composer.backends.openai import adapting, shapes, wire
from workflow_composer.backends.openai.relaying import STREAM_SIGNS, headers_of
from workflow_composer.backends.openai.server import OpenAIServer, Secrets
from workflow_composer.backends.replicas.observer import Readings, ServerObserver, probe
from workflow_composer.errors import (
    AnswerTooLong,
    AuthenticationFailed,
    BadRequest,
    CallTimeout,
    ServerUnreachable,
    Unsupported,
)
from workflow_composer.support import large_json
from workflow_composer.support.large_json import LARGE, apart
from workflow_composer.types import (
    Chunk,
    Completion,
    Embeddings,
    EndpointStatus,
    LLMRequest,
    ModelCall,
    Relay,
    Timeouts,
)
from workflow_composer.usage import NO_USAGE, Sending

if TYPE_CHECKING:
    from workflow_composer.backends.http.proxied import ProxiedStream
    from workflow_composer.config.strategy import ModelSpec

T = TypeVar("T")

_REFUSED = (BadRequest, Unsupported)
"""Errors of a request that a server rejects, perhaps only for a field that this package added."""

_SIGNS = (b"data: ", b"data:{", b"event:")
_REMEMBERED = 600.0
"""Seconds for which it is believed that a model lacks something; its server may be started again with other options."""

_ONE_AT_A_TIME = frozenset({"api.anthropic.com", "api.deepseek.com"})
"""Hosts that return one answer per call, whatever ``n`` is (Anthropic: "must be exactly 1"; DeepSeek has no ``n``)."""

_IGNORED = {"api.anthropic.com": ("seed", "logprobs", "top_logprobs", "response_format")}
"""Fields that a host documents as ignored: https://docs.anthropic.com/en/api/openai-sdk"""

_DEVELOPERS = ("api.openai.com", "api.anthropic.com", ".openai.azure.com")
"""Hosts, or their ends, that know messages of developers."""
_THOUGHTS = ("api.deepseek.com", "api.moonshot.ai", "api.moonshot.cn", "api.z.ai", "openrouter.ai")
"""Hosts in the cloud that take earlier reasoning back; others refuse what they do not know."""

_OPTIONS = ("api.openai.com",)
"""Ends of hosts that know `adapting.OPTIONS`."""

_TEXT, _LOGPROBS = {"size": 2**20, "values": 100_000}, {"size": 32 * 2**20, "values": 8_000_000}
_VECTOR = {"size": 512 * 2**10, "values": 20_000}
"""What a response may have more for each answer, for each with its log-probabilities, and for each vector."""

_TOGETHER = 8
"""Events that arrived together and are decoded before the event loop serves others."""

_DRAIN = 0.2
"""Seconds to wait for the end of a stream after its last event, so that the connection can be reused."""


class OpenAICompatibleBackend:
    """One model of one OpenAI-compatible server."""

    def __init__(self, spec: ModelSpec, context: BackendContext) -> None:
        self.name: str = spec.name
        self.local: bool = spec.local
        self._model = spec.model
        self._server = OpenAIServer(spec, context)
        self._observer = ServerObserver(self._server.ask, self._server.url)
        self._suits = {
            "developers": self._server.host.endswith(_DEVELOPERS),
            "thoughts": spec.local or self._server.host in _THOUGHTS,
        }
        self._several = self._server.host not in _ONE_AT_A_TIME
        self._ignored = _IGNORED.get(self._server.host, ())
        self._words: frozenset[str] = frozenset()
        self.takes = adapting.OPTIONAL if self._server.host.endswith(_OPTIONS) else adapting.USUAL
        self._lacks: Mapping[str, float] = {}
        self._report, self._told = context.report, False
        self.relays: bool = self._several and self._server.direct
        self.tells_sending = self.keeps_private = True

    def complete(self, call: ModelCall) -> Coroutine[Any, Any, Completion]:
        """Return ``call.samples`` answers. The caller must bound the time of a relayed one, as the executor does."""
        relay = call.request.relay
        if self._lacks:
            self._refuse_lacking(call.request)
        if relay is None or not self.relays:
            return self._sampled(call)
        return self._draw(call, samples=call.samples) if relay.write is None else self._relayed(call, relay)

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk, None]:
        """Yield one answer piece by piece; the last piece may carry only the usage."""
        self._refuse_ignored(call.request)
        if self._lacks:
            self._refuse_lacking(call.request)
        clock = _Clock(call.timeouts)
        body = {
            **wire.chat_body(call, draw=call.first_sample),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if call.request.adapts:
            body["messages"] = adapting.suited(call.request.messages, **self._suits)
        secrets = Secrets(call.request)
        with self._limit_by(clock):
            stream = await self._opened(call, body, secrets)
        if stream.whole is not None:
            yield await self._at_once(stream.whole.body, secrets, body["model"])
            return
        finished, size = False, 0
        try:
            async with aclosing(self._events(stream, clock, secrets)) as events:
                async for data in events:
                    chunk = self._server.understood(wire.chunk_of, data)
                    clock.started = clock.started or wire.shows_work(data)
                    if chunk is not None:
                        size += len(chunk.text) + len(chunk.reasoning) + sum(len(str(one)) for one in chunk.tool_calls)
                        if size > BOUNDS.whole:
                            too_long = AnswerTooLong(
                                f"{self._server.label.name}: an answer of more than {BOUNDS.whole} characters"
                            )
                            too_long.fault = "ours"  # as of a whole answer
                            raise too_long
                        finished = finished or chunk.finish_reason is not None
                        yield chunk
        except ServerUnreachable:
            if not finished:  # a finish reason is the end, whatever becomes of the connection
                raise
        finally:
            await stream.close()
        if not finished and clock.started and clock.ended:  # the end marker, without a reason
            yield Chunk(finish_reason="stop")
        elif not finished:
            raise ServerUnreachable(f"{self._server.label.name}: the stream ended before the answer was complete")

    async def _opened(self, call: ModelCall, body: dict[str, Any], secrets: Secrets) -> Stream | ProxiedStream:
        path, sending, bulk = wire.PATHS[call.request.kind], call.sending, call.request.bulk
        connect, more = call.timeouts.connect, headers_of(call)
        private = call.request.private
        begin = partial(
            self._server.open, path, body, secrets, connect=connect, sending=sending, bulk=bulk, more=more, private=private
        )
        adapting.reword(body, self._words, call.request, self.name)
        try:
            return await begin()
        except _REFUSED as error:
            return await self._in_other_words(error, body, call.request, begin)

    async def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        timeout: float,
        dimensions: int | None = None,
        sending: Sending | None = None,
        request: LLMRequest | None = None,
        private: bool = False,
    ) -> Embeddings:
        """Return one vector per text or list of tokens; ``request`` has further fields of the body, and headers."""
        if not texts:
            return Embeddings(vectors=(), model=self._model or self.name)
        body: dict[str, Any] = {
            "input": list(texts),
            "encoding_format": "float",
            **({} if request is None else request.extra),
        }
        secrets = [text for text in texts if isinstance(text, str)]
        more = None if request is None else request.headers
        if dimensions is not None:
            body["dimensions"] = dimensions
        with self._limit(timeout, "the vectors"):
            bounds, bulk = bounds_of(len(texts), **_VECTOR), sum(map(len, texts))
            answer = await self._server.send(
                "/embeddings",
                body,
                secrets,
                connect=timeout,
                bounds=bounds,
                sending=sending,
                bulk=bulk,
                more=more,
                private=private,
            )

        def read() -> Embeddings:
            data = self._server.read_json(answer.body, secrets)
            return self._server.understood(
                lambda found: wire.embeddings_of(found, count=len(texts), model=body["model"]), data
            )

        if len(answer.body) <= LARGE:
            return read()
        quick = await apart(wire.quick_embeddings, answer.body, count=len(texts), model=body["model"])
        return await apart(read) if quick is None else quick

    async def passed(
        self,
        path: str,
        body: Mapping[str, Any] | Upload,
        request: LLMRequest,
        *,
        timeout: float,
        sending: Sending | None = None,
    ) -> Passed:
        """Send a request of the server's own API to it as it is, but for the model's name; return what it answers."""
        upload = body if isinstance(body, Upload) else None
        if (upload is not None or path.startswith("//")) and not (self._server.direct or request.private):
            what = f"{self.name}: /{path.lstrip('/')} is not sent through a proxy"
            raise Unsupported(what, hint="name a model without one")
        with self._limit(timeout, "the answer"):
            answer = await self._server.send(
                path,
                {} if isinstance(body, Upload) else dict(body),
                Secrets(request),
                connect=timeout,
                upload=upload,
                bounds=bounds_of(1, **_LOGPROBS),
                sending=sending,
                bulk=request.bulk,
                more=request.headers,
                private=request.private,
            )
        kind, usage = answer.headers.get("content-type", "application/json"), NO_USAGE
        if "json" in kind and len(answer.body) <= LARGE:
            usage = wire.usage_of(self._server.read_json(answer.body, Secrets(request)).get("usage"))
        return Passed(body=answer.body, kind=kind, model=self._model or self.name, usage=usage)

    async def health(self, *, timeout: float) -> EndpointStatus:
        """Return whether the server answers and, if it is local, serves the model. Never raises."""
        label = self._server.label
        try:
            self._server.key()
        except AuthenticationFailed as error:
            return EndpointStatus(name=self.name, url=label.url, healthy=False, detail=str(error))
        # The lists of cloud APIs omit aliases and fine-tuned models that can still be called.
        expected = self._model if self.local else None
        return await probe(self._observer, self.name, limit=timeout, model=expected)

    async def readings(self, limit: float) -> Readings:
        """Return the load that the server reports (vLLM's metrics). Raises as `ServerObserver`."""
        return await self._observer.readings(limit)

    async def close(self) -> None:
        """Close all connections."""
        await self._server.close()

    async def _relayed(self, call: ModelCall, relay: Relay) -> Completion:
        """Relay a stream's bytes unchanged."""
        from workflow_composer.backends.openai.relaying import relayed

        path = wire.PATHS[call.request.kind]
        body = wire.chat_body(call, samples=call.samples, draw=call.first_sample)
        if call.request.adapts:
            body["messages"] = adapting.suited(call.request.messages, **self._suits)
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
        if relay.continuous:
            body["stream_options"]["continuous_usage_stats"] = True
        adapting.reword(body, self._words, call.request, self.name)
        try:
            return await relayed(self._server, path, call, body)
        except _REFUSED as error:
            if relay.begun:
                raise
            return await self._in_other_words(error, body, call.request, lambda: relayed(self._server, path, call, body))

    # ------------------------------------------------------------------------------------------------- several samples

    async def _sampled(self, call: ModelCall) -> Completion:
        self._refuse_ignored(call.request)
        with self._limit(call.timeouts.total, "the whole answer"):
            return await self._sample(call)

    async def _sample(self, call: ModelCall) -> Completion:
        if call.samples > 1 and not self._several:
            return await self._draw_singly(call, call.samples)
        try:
            first = await self._draw(call, samples=call.samples)
        except _REFUSED:
            if call.samples == 1:
                raise
            # The server may reject only `n`. Otherwise, the single calls fail with the same error.
            found = await self._draw_singly(call, call.samples)
            self._several = False
            return found
        missing = call.samples - len(first.samples)
        if missing <= 0:
            return Completion(samples=first.samples[: call.samples], usage=first.usage, model=first.model)
        self._several = False
        if call.sending is not None:
            call.sending.ended = [first.usage]
        rest = await self._draw_singly(call, missing, start=len(first.samples))
        return Completion(samples=first.samples + rest.samples, usage=first.usage + rest.usage, model=first.model)

    async def _draw_singly(self, call: ModelCall, count: int, *, start: int = 0) -> Completion:
        if call.sending is not None and call.sending.ended is None:
            call.sending.ended = []
        parts = await _together([self._draw(call, draw=start + number) for number in range(count)])
        usage = sum((part.usage for part in parts), NO_USAGE)
        return Completion(samples=tuple(part.samples[0] for part in parts), usage=usage, model=parts[0].model)

    async def _draw(self, call: ModelCall, *, samples: int = 1, draw: int = 0) -> Completion:
        """Make one call; a relayed response's bytes go to the relay."""
        server, request, connect, sending = self._server, call.request, call.timeouts.connect, call.sending
        bulk, private = request.bulk, request.private
        path, secrets = wire.PATHS[request.kind], Secrets(request)
        body = wire.chat_body(call, samples=samples, draw=call.first_sample + draw)
        if request.adapts:
            body["messages"] = adapting.suited(request.messages, **self._suits)
        if self._words:
            adapting.reword(body, self._words, request, self.name)
        bounds = BOUNDS
        if request.logprobs or request.top_logprobs is not None:
            bounds = bounds_of(samples, **_LOGPROBS)
        elif samples > 1:
            bounds = bounds_of(samples, **_TEXT)
        more = None if request.headers is None else headers_of(call, draw)
        try:
            answer = await server.send(
                path, body, secrets, connect=connect, bounds=bounds, sending=sending, bulk=bulk, more=more, private=private
            )
        except _REFUSED as error:
            again = partial(
                server.send,
                path,
                body,
                secrets,
                connect=connect,
                bounds=bounds,
                sending=sending,
                bulk=bulk,
                more=more,
                private=private,
            )
            answer = await self._in_other_words(error, body, request, again)
        content = answer.body
        if content[:6] in _SIGNS:  # a stream that nobody asked for
            content = await apart(shapes.joined, bytes(content), server.label.name)
        if len(content) > LARGE:
            found, content = await apart(self._read, content, secrets, body["model"])
        else:
            done = wire.quick_completion(content, model=body["model"])
            found = done or server.completion(content, secrets, model=body["model"])
            if done is None:
                content = wire.strict(content)
        if sending is not None and sending.ended is not None:
            sending.ended.append(found.usage)
        if request.relay is not None and self.relays:
            request.relay.body = content
        return found

    async def _at_once(self, content: bytes | bytearray, secrets: Secrets, model: str) -> Chunk:
        """Return an answer that was asked for as a stream and came whole, or as a stream that is not called so."""
        if content.lstrip().startswith(STREAM_SIGNS):
            content = await apart(shapes.joined, bytes(content), self._server.label.name)
        found, _ = await apart(self._read, content, secrets, model)
        sample = found.samples[0]
        chunk = Chunk(sample.text, sample.finish_reason or "stop", sample.tool_calls, sample.logprobs or (), found.usage)
        return replace(chunk, model=found.model, reasoning=sample.reasoning, stop=sample.stop)

    def _read(self, content: bytes | bytearray, secrets: Secrets, model: str) -> tuple[Completion, bytes | bytearray]:
        """Decode a large response, in a thread; return it and its bytes as strict JSON."""
        done = wire.quick_completion(content, model=model)
        if done is not None:
            return done, content
        return self._server.completion(content, secrets, model=model), wire.strict(content)

    # ------------------------------------------------------------------------------------------ adapting to the server

    async def _in_other_words(
        self, refusal: BadRequest | Unsupported, body: dict[str, Any], request: LLMRequest, send: Callable[[], Awaitable[T]]
    ) -> T:
        """Send ``body`` again with the fields that the server's error asks for; re-raise the error if it asks for none.

        The change is kept for later calls only if it helped this one and the error named the field apart from its text,
        which may repeat anything that a client wrote.
        """
        words = learned = self._words
        while (lesson := adapting.lesson_of(refusal.message, refusal.params, body, request)) is not None:
            words |= {lesson.change}
            learned |= {lesson.change} if lesson.certain else frozenset()
            adapting.reword(body, words, request, self.name)
            try:
                answer = await send()
            except _REFUSED as error:
                refusal = error
            else:
                self._words |= learned
                if adapting.NO_TEMPERATURE in words and not self._told:
                    self._told = True
                    self._report(f"{self.name}: the server takes no temperature, so the plan's is not sent")
                return answer
        if isinstance(refusal, Unsupported) and refusal.certain and refusal.field is not None:
            self._lacks = {**self._lacks, refusal.field: time.monotonic()}
        raise refusal

    def _refuse_lacking(self, request: LLMRequest) -> None:
        """Raise `Unsupported` for a field that the model's server has said not long ago that it does not support."""
        for field, at in self._lacks.items():
            if time.monotonic() - at < _REMEMBERED and adapting.asks_for(request, field):
                said = f"{self.name} does not support what {field} asks for; its server has said so not long ago"
                error = Unsupported(said, hint="leave it out, or use another model", status=400)
                error.field = field
                raise error

    # ------------------------------------------------------------------------------------------------------ the stream

    async def _events(
        self, stream: Stream | ProxiedStream, clock: _Clock, secrets: Secrets
    ) -> AsyncGenerator[dict[str, Any], None]:
        reader = EventReader(BOUNDS.event)
        while True:
            with self._limit_by(clock), self._server.errors():
                part = await stream.read()
                whole = reader.whole(part) if part else reader.rest()
            for number, event in enumerate(payloads(whole), 1):
                if number % _TOGETHER == 0:
                    await asyncio.sleep(0)
                if event.startswith(DONE):
                    clock.ended = True
                    await _drain(stream)
                    return
                if len(event) <= LARGE:
                    data = self._server.understood(json.loads, event)
                else:
                    data = await apart(self._server.understood, large_json.decode, event)
                self._server.raise_reported(data, secrets)
                yield data
            if not part:
                return

    # ------------------------------------------------------------------------------------------------------ the limits

    def _limit(self, seconds: float, what: str) -> Limit:
        return Limit(seconds, lambda: self._late(f"{what} took longer than {seconds:g} s (total)"))

    def _limit_by(self, clock: _Clock) -> Limit:
        return Limit(clock.deadline - asyncio.get_running_loop().time(), lambda: self._late(clock.reason))

    def _late(self, reason: str) -> CallTimeout:
        hint = "raise the profile's timeouts, or check the server's load"
        return CallTimeout(f"{self._server.label.name}: {reason}", hint=hint)

    def _refuse_ignored(self, request: LLMRequest) -> None:
        lost = [name for name in self._ignored if getattr(request, name) not in (None, False)]
        if lost:
            reason = f"{self._server.label.name} ignores {', '.join(lost)}"
            raise Unsupported(reason, hint="leave it out, or route to another model")


class _Clock:
    """The deadlines of a stream for its first token and its end; loop time in seconds."""

    def __init__(self, timeouts: Timeouts) -> None:
        now = asyncio.get_running_loop().time()
        self._timeouts = timeouts
        self._first = now + timeouts.first_token
        self._total = now + timeouts.total
        self.started = self.ended = False

    @property
    def deadline(self) -> float:
        return self._total if self.started else min(self._first, self._total)

    @property
    def reason(self) -> str:
        if self.started or self._total <= self._first:
            return f"the whole stream took longer than {self._timeouts.total:g} s (total)"
        return f"no first token within {self._timeouts.first_token:g} s (first_token)"


async def _together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Return all results, or cancel the rest and raise the first error. (A TaskGroup would wrap the error in a group.)"""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _drain(stream: Stream | ProxiedStream) -> None:
    with suppress(Exception):  # the answer is complete; at worst the connection is not reused
        async with asyncio.timeout(_DRAIN):
            while await stream.read():
                pass
