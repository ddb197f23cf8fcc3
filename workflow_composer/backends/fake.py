"""A scripted model for tests of plugins, routers and profiles, without a server, a key or a network."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import itertools
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from workflow_composer.errors import CallTimeout
from workflow_composer.types import (
    Chunk,
    Completion,
    Embeddings,
    EndpointStatus,
    LLMRequest,
    ModelCall,
    Sample,
    TokenLogprob,
    Usage,
    texts,
)

if TYPE_CHECKING:
    from workflow_composer.backends.base import BackendContext
    from workflow_composer.config.strategy import ModelSpec

_PIECES = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class Delay:
    """Answer with ``then`` after ``seconds``; if the call's time limit is shorter, raise `CallTimeout` at the limit."""

    seconds: float
    then: Item = ""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Stream ``text``, then raise ``error``; a call without streaming raises at once."""

    text: str
    error: Exception


Answer: TypeAlias = "str | Sample | Sequence[str | Sample] | Completion"
Item: TypeAlias = (
    "Answer | Exception | type[Exception] | Delay | Interrupted | Callable[[ModelCall], Item | Awaitable[Item]]"
)


class FakeBackend:
    """A model that answers from a script and records its calls.

    Each call uses the next item of the script; the last item is repeated. An item is

    - a text, or a `Sample` (with its own log-probabilities or tool calls): used for every sample of the call;
    - a list of those: one per sample, repeated from the start if the call asks for more;
    - a `Completion`: returned unchanged;
    - an exception or its class: raised;
    - ``Delay(seconds, item)``: the item, after a delay;
    - ``Interrupted(text, error)``: a stream that breaks after ``text``;
    - a function or coroutine function of the `ModelCall` that returns any of these.

    Without a script it repeats the last message. Tokens are words: they are counted in `Usage`, streamed one by one, and
    each has ``logprob`` if the request asks for log-probabilities. Other fields of a request are accepted and can be
    inspected in ``calls``.

    >>> import asyncio
    >>> from workflow_composer.errors import RateLimited
    >>> from workflow_composer.types import LLMRequest, ModelCall
    >>> fake = FakeBackend(RateLimited("slow down"), ["4", "4", "5"])
    >>> call = ModelCall(LLMRequest.of("What is 2 + 2?"), samples=3)
    >>> asyncio.run(fake.complete(call))
    Traceback (most recent call last):
        ...
    workflow_composer.errors.RateLimited: slow down
    >>> [sample.text for sample in asyncio.run(fake.complete(call)).samples]
    ['4', '4', '5']
    >>> len(fake.calls), fake.calls[-1].samples
    (2, 3)

    ``calls`` lists the `ModelCall`s in order; ``embedded`` the texts given to `embed`; ``in_flight`` and
    ``most_in_flight`` count concurrent calls; ``cancelled`` counts cancelled calls, including streams closed before
    their end; ``closed`` says whether `close` was called. ``healthy`` may be set at any time. ``vector`` maps a text to its
    embedding (default: eight numbers derived from its hash) and may raise.
    """

    def __init__(
        self,
        *script: Item,
        name: str = "fake",
        model: str | None = None,
        local: bool = True,
        healthy: bool = True,
        logprob: float = -0.1,
        vector: Callable[[str], Sequence[float]] | None = None,
        record: bool = True,
    ) -> None:
        self.name = name
        self.model = model or name
        self.local = local
        self.healthy = healthy
        self.calls: list[ModelCall] = []
        self.embedded: list[str] = []
        self.in_flight = self.most_in_flight = self.cancelled = 0
        self.closed = False
        self._script = script or (_last_text,)
        self._position = itertools.count()
        self._logprob = logprob
        self._vector = vector or _vector_of_hash
        self._record = record

    @classmethod
    def of_spec(cls, spec: ModelSpec, context: BackendContext) -> FakeBackend:
        """Return the backend for ``backend: fake`` in a profile, which repeats the last message."""
        return cls(name=spec.name, model=spec.model, local=spec.local)

    async def complete(self, call: ModelCall) -> Completion:
        """Return or raise the script's next item."""
        self._begin(call)
        try:
            item = await self._next_item(call, call.timeouts.total)
            if isinstance(item, Interrupted):
                raise item.error.with_traceback(None)
            return self._completion(item, call)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk, None]:
        """Yield the first sample word by word; the last chunk carries finish reason, usage and model."""
        self._begin(call)
        try:
            item = await self._next_item(call, call.timeouts.first_token)
            completion = self._completion(item.text if isinstance(item, Interrupted) else item, call)
            sample = completion.samples[0]
            for chunk in _chunks(sample):
                yield chunk
                await asyncio.sleep(0)
            if isinstance(item, Interrupted):
                raise item.error.with_traceback(None)
            yield Chunk(
                finish_reason=sample.finish_reason or "stop",
                tool_calls=sample.tool_calls,
                usage=completion.usage,
                model=completion.model,
            )
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    async def embed(self, texts: Sequence[str], *, timeout: float, dimensions: int | None = None) -> Embeddings:
        """Return one vector per text."""
        self.embedded.extend(texts)
        tokens = sum(map(_count, texts))
        return Embeddings(
            vectors=tuple(tuple(self._vector(text))[:dimensions] for text in texts),
            model=self.model,
            usage=Usage(tokens),
            candidate=self.name,
        )

    async def health(self, *, timeout: float) -> EndpointStatus:
        """Return the value of ``healthy``."""
        detail = "scripted" if self.healthy else "scripted to be down"
        return EndpointStatus(
            name=self.name,
            url=f"fake://{self.name}",
            healthy=self.healthy,
            models=(self.model,),
            latency_ms=0.0,
            detail=detail,
        )

    async def close(self) -> None:
        """Set ``closed``."""
        self.closed = True

    def _begin(self, call: ModelCall) -> None:
        if self._record:
            self.calls.append(call)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    async def _next_item(self, call: ModelCall, limit: float) -> Answer | Interrupted:
        item: Item = self._script[min(next(self._position), len(self._script) - 1)]
        while not isinstance(item, (str, Sample, Completion, list, tuple, Interrupted)):
            if isinstance(item, Delay):
                item = await _delayed(item, limit)
            elif isinstance(item, type):
                raise item(f"scripted {item.__name__}")
            elif isinstance(item, Exception):
                raise item.with_traceback(None)
            elif callable(item):
                made = item(call)
                item = await _in_time(made, limit) if inspect.isawaitable(made) else made
            else:
                raise TypeError(f"{item!r} is not a valid item of a FakeBackend's script")
        return item

    def _completion(self, item: Answer, call: ModelCall) -> Completion:
        if isinstance(item, Completion):
            return item
        given: Sequence[str | Sample] = (item,) if isinstance(item, (str, Sample)) else item
        numbers = range(call.first_sample, call.first_sample + call.samples)
        samples = tuple(self._sample(given[i % len(given)], call.request) for i in numbers)
        prompt = sum(_count(text) for message in call.request.messages for text in texts(message))
        return Completion(
            samples=samples, usage=Usage(prompt, sum(_count(sample.text) for sample in samples)), model=self.model
        )

    def _sample(self, given: str | Sample, request: LLMRequest) -> Sample:
        sample = Sample(given, "stop") if isinstance(given, str) else given
        if not request.logprobs or sample.logprobs is not None:
            return sample
        rest = math.log(-math.expm1(self._logprob)) if self._logprob < 0 else -math.inf
        tokens = tuple(
            TokenLogprob(piece, self._logprob, ((piece, self._logprob), ("<other>", rest))[: request.top_logprobs or 0])
            for piece in _pieces(sample.text)
        )
        return replace(sample, logprobs=tokens)


def _pieces(text: str) -> list[str]:
    """Split a text into words with the space before them."""
    return _PIECES.findall(text)


def _count(text: str) -> int:
    """Count the `_pieces`, at a third of the cost."""
    return len(text.split()) + text[-1:].isspace()


def _chunks(sample: Sample) -> list[Chunk]:
    if sample.logprobs is not None:
        return [Chunk(text=token.token, logprobs=(token,)) for token in sample.logprobs]
    return [Chunk(text=piece) for piece in _pieces(sample.text)]


async def _delayed(delay: Delay, limit: float) -> Item:
    await asyncio.sleep(min(delay.seconds, limit))
    if delay.seconds > limit:
        raise CallTimeout(f"no answer within {limit:g} s")
    return delay.then


async def _in_time(made: Awaitable[Item], limit: float) -> Item:
    try:
        async with asyncio.timeout(limit) as scope:
            return await made
    except TimeoutError:
        if not scope.expired():
            raise
        raise CallTimeout(f"no answer within {limit:g} s") from None


def _last_text(call: ModelCall) -> str:
    return " ".join(texts(call.request.messages[-1])) if call.request.messages else ""


def _vector_of_hash(text: str) -> tuple[float, ...]:
    """Eight numbers in [-1, 1), the same for the same text on every machine."""
    return tuple(byte / 128 - 1 for byte in hashlib.sha256(text.encode()).digest()[:8])
