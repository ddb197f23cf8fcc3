"""Models in this process: checkpoints run by mistral.rs, without a server, GPU, key or network."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.backends.embedded import engine as embedded_engine
from workflow_composer.backends.embedded.engine import Checkpoint, Engine, Piece
from workflow_composer.backends.http.client import Limit
from workflow_composer.backends.openai.adapting import suited
from workflow_composer.errors import BadRequest, CallTimeout, ModelError, ServerFailed, ServerUnreachable, Unsupported
from workflow_composer.support.installing import install_command
from workflow_composer.types import Chunk, Completion, Embeddings, EndpointStatus, LLMRequest, Message, ModelCall, Usage

if TYPE_CHECKING:
    from workflow_composer.backends.base import BackendContext
    from workflow_composer.backends.embedded.engine import Engine
    from workflow_composer.config.strategy import ModelSpec


# -------------------------------------------------------------------------------------------------------- embedded request
#
# Converts a `ModelCall` to a request of mistral.rs, and rejects fields that the engine does not support.


_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_EXTRA = frozenset(
    {"frequency_penalty", "ignore_eos", "logit_bias", "min_p", "presence_penalty", "repetition_penalty", "top_k"}
)
_HINT = "leave it out, or route to a server"


def fields_of(call: ModelCall, engine: Engine) -> dict[str, Any]:
    """Return the fields of ``mistralrs.ChatCompletionRequest``. Raises `Unsupported` or `BadRequest` with the field."""
    request = call.request
    if request.kind == "completion":
        raise Unsupported("the embedded engine supports only chat completions", hint="use /chat/completions")
    if engine.checkpoint.embedding:
        raise Unsupported(f"{engine.directory.name} is an embedding model and does not generate text")
    temperature = request.temperature if call.temperature is None else call.temperature
    _check_numbers(request, temperature)
    _refuse(request, sampled=bool(temperature))
    fields = {name: value for name, value in request.extra.items() if name != "metadata"}
    if "logit_bias" in fields:
        fields["logit_bias"] = _logit_bias(fields["logit_bias"], engine.checkpoint.vocabulary)
    if temperature and not fields.get("top_k"):
        fields["top_k"] = engine.checkpoint.all_tokens
    return {
        **fields,
        **_format(request.response_format, engine),
        "messages": _messages(_suited(request)),
        "temperature": temperature or 0.0,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "stop_seqs": _stops(request.stop),
        "logprobs": request.logprobs or request.top_logprobs is not None,
        "top_logprobs": request.top_logprobs or None,
    }


def _suited(request: LLMRequest) -> Sequence[Message]:
    """Return the messages without roles and fields that chat templates do not know."""
    return suited(request.messages, developers=False, thoughts=False) if request.adapts else request.messages


def _refuse(request: LLMRequest, *, sampled: bool) -> None:
    refused = [name for name in ("tools", "tool_choice") if getattr(request, name) is not None]
    refused += sorted(set(request.extra) - _EXTRA - {"metadata"})
    if refused:
        raise Unsupported(f"the embedded engine does not support {', '.join(refused)}", hint=_HINT)
    if request.seed is not None and sampled:
        raise Unsupported("the embedded engine does not support seed", hint=f"{_HINT}; or use temperature 0")


def _check_numbers(request: LLMRequest, temperature: float | None) -> None:
    """Check ranges, because the engine silently accepts invalid values (a negative temperature, ``top_p`` of 2)."""
    rules: list[tuple[str, Any, str, Callable[[Any], bool]]] = [
        ("temperature", temperature, "0 or above", lambda x: 0 <= x < math.inf),
        ("top_p", request.top_p, "above 0, at most 1", lambda x: 0 < x <= 1),
        ("max_tokens", request.max_tokens, "1 or above", lambda x: x >= 1),
        ("top_logprobs", request.top_logprobs, "from 0 to 20", lambda x: 0 <= x <= 20),
    ]
    for name, value, allowed, holds in rules:
        if value is not None and not (isinstance(value, (int, float)) and holds(value)):
            raise BadRequest(f"{name} is {value!r}; it must be {allowed}")


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not messages:
        raise BadRequest("messages is empty")
    return [_message(message, number) for number, message in enumerate(messages)]


def _message(message: Message, number: int) -> dict[str, Any]:
    role = message.get("role")
    if role not in _ROLES:
        raise BadRequest(f"messages[{number}]: role is {role!r}; it must be one of {', '.join(sorted(_ROLES))}")
    plain = {"role": role, "content": _content(message.get("content"), number, optional=role == "assistant")}
    unknown = sorted(key for key, value in message.items() if key not in plain and value is not None)
    if unknown:
        raise Unsupported(f"messages[{number}]: the embedded engine does not support {', '.join(unknown)}", hint=_HINT)
    return plain


def _content(content: Any, number: int, *, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if not isinstance(content, (list, tuple)):
        raise BadRequest(f"messages[{number}]: content must be text or a list of parts")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in {"text", "image_url", "input_audio", "file", "refusal"}:
            raise BadRequest(f"messages[{number}]: unknown content part type {kind!r}")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise Unsupported(f"messages[{number}]: the embedded engine supports only text, not {kind}", hint=_HINT)
    return "\n".join(part["text"] for part in content)


def _stops(stop: str | tuple[str, ...] | None) -> list[str] | None:
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if not all(isinstance(text, str) and text for text in stops):
        raise BadRequest("stop must be one or more non-empty strings")
    return stops or None


def _logit_bias(bias: Any, vocabulary: int) -> dict[int, float]:
    try:
        found = {int(token): float(value) for token, value in bias.items()}
    except (AttributeError, TypeError, ValueError):
        raise BadRequest("logit_bias must map token ids to numbers") from None
    outside = [token for token in found if not 0 <= token < vocabulary]
    if outside:
        raise BadRequest(f"logit_bias: token {outside[0]} is outside the vocabulary of {vocabulary} tokens")
    return found


def _format(wanted: Mapping[str, Any] | None, engine: Engine) -> dict[str, str]:
    kind = None if wanted is None else wanted.get("type")
    if wanted is None or kind == "text":
        return {}
    if kind == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if not isinstance(schema, Mapping):
            raise BadRequest("response_format: json_schema.schema must be a JSON schema")
    elif kind == "json_object":
        schema = {"type": "object"}
    else:
        raise BadRequest(f"response_format: type is {kind!r}; it must be text, json_object or json_schema")
    if not engine.can_write('{"":[]}'):
        raise Unsupported(f"response_format: the vocabulary of {engine.directory.name} cannot represent JSON", hint=_HINT)
    return {"grammar": json.dumps(schema), "grammar_type": "json_schema"}


CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
_AHEAD = 64


class EmbeddedBackend:
    """One checkpoint behind the embedded engine.

    ``path`` is the name of a shipped checkpoint or a directory with ``config.json``, ``tokenizer.json`` (and its chat
    template) and ``*.safetensors``. It is loaded on first use and shared by all backends of that directory, so that a
    switch of the strategy loads nothing twice.

    The default temperature is 0: the most likely token. Above 0, log-probabilities are those of the sampling distribution,
    after the temperature. Tools, a seed for sampling and other features that the engine lacks raise `Unsupported`. Embedding
    requires one of the embedding models that mistral.rs supports.
    """

    local = True
    takes: frozenset[str] = frozenset()

    def __init__(self, spec: ModelSpec, context: BackendContext) -> None:
        self.name = spec.name
        self.directory = _directory(spec.path or spec.model or spec.name)
        self._model = spec.model or spec.name
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._closed = False

    async def complete(self, call: ModelCall) -> Completion:
        """Return ``call.samples`` answers, generated side by side."""
        with Limit(call.timeouts.total, lambda: self._late(call.timeouts.total, "total")):
            return await self._complete(call)

    async def _complete(self, call: ModelCall) -> Completion:
        engine = await self._ready()
        fields = fields_of(call, engine)
        stop, loop = threading.Event(), asyncio.get_running_loop()
        alternatives = call.request.top_logprobs or 0

        errors: list[ModelError] = []

        def sample() -> tuple[Any, Usage] | None:
            try:
                return engine.sample(fields, stop, alternatives=alternatives)
            except ModelError as error:
                # Kept, not raised: if the interpreter ends first, nobody fetches a future's exception, and Python prints it.
                errors.append(error)
                stop.set()
                return None

        try:
            drawn = await asyncio.gather(*(self._submit(loop, engine, sample) for _ in range(call.samples)))
        finally:
            # After an error, a cancellation or the time limit, the other samples stop at their next token.
            stop.set()
        if errors:
            raise errors[0]
        usage = Usage(drawn[0][1].prompt_tokens, sum(usage.completion_tokens for _, usage in drawn))
        return Completion(samples=tuple(sample for sample, _ in drawn), usage=usage, model=self._model)

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk, None]:
        """Yield one answer token by token. A slow reader blocks the reading thread, not the engine."""
        loop = asyncio.get_running_loop()
        started, limits = loop.time(), call.timeouts
        first, total = started + limits.first_token, started + limits.total
        engine = await self._in_time(self._ready(), min(first, total), limits.first_token, "first_token")
        fields, alternatives = fields_of(call, engine), call.request.top_logprobs or 0
        feed = _Feed(loop, engine)
        try:
            self._submit(loop, engine, lambda: feed.fill(engine.generate(fields, feed.stop, alternatives=alternatives)))
            piece = await self._in_time(feed.get(), min(first, total), limits.first_token, "first_token")
            while piece is not None:
                yield Chunk(
                    piece.text,
                    piece.finish_reason,
                    logprobs=(piece.logprob,) if piece.logprob else (),
                    usage=piece.usage,
                    model=self._model,
                )
                if piece.finish_reason is not None:
                    return
                piece = await self._in_time(feed.get(), total, limits.total, "total")
            raise ServerFailed(f"{self.name}: the embedded engine stopped before the end of the answer")
        finally:
            feed.close()

    async def embed(self, texts: Sequence[str], *, timeout: float, dimensions: int | None = None) -> Embeddings:
        """Return one vector per text. Raises `Unsupported` if the checkpoint is not an embedding model."""
        if dimensions is not None:
            raise Unsupported("the embedded engine does not support dimensions", hint="leave it out, or route to a server")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        engine = await self._in_time(self._ready(), deadline, timeout, "total")
        if engine.checkpoint.embedding is None:
            raise Unsupported(
                f"{self.name}: {engine.checkpoint.architecture} in {self.directory.name} does not support embeddings",
                hint="route embeddings to a Qwen3-Embedding or EmbeddingGemma checkpoint, or to a server",
            )
        if not texts:
            return Embeddings(vectors=(), model=self._model)
        job = self._submit(loop, engine, lambda: engine.embed(texts))
        vectors, tokens = await self._in_time(job, deadline, timeout, "total")
        return Embeddings(vectors=tuple(map(tuple, vectors)), model=self._model, usage=Usage(tokens))

    async def health(self, *, timeout: float) -> EndpointStatus:
        """Return whether the checkpoint exists and the engine is installed; loads nothing."""
        url = f"embedded:{self.directory.name}"
        if self._closed:
            return EndpointStatus(name=self.name, url=url, healthy=False, detail="closed")
        if importlib.util.find_spec("mistralrs") is None:
            detail = f"mistral.rs is not installed: {install_command('embedded')}"
            return EndpointStatus(name=self.name, url=url, healthy=False, detail=detail)
        try:
            await asyncio.to_thread(Checkpoint.read, self.directory)
        except ModelError as error:
            return EndpointStatus(name=self.name, url=url, healthy=False, detail=str(error))
        loaded = self._engine is not None and self._engine.loaded
        detail = "loaded" if loaded else "loads on first use"
        return EndpointStatus(name=self.name, url=url, healthy=True, models=(self._model,), latency_ms=0.0, detail=detail)

    async def close(self) -> None:
        """Stop all generation; end threads and free memory if no other backend uses the checkpoint."""
        with self._lock:
            self._closed, engine, self._engine = True, self._engine, None
        if engine is not None:
            await asyncio.to_thread(embedded_engine.release, engine)

    async def _ready(self) -> Engine:
        with self._lock:
            if self._closed:
                raise self._is_closed()
            if self._engine is None:
                self._engine = embedded_engine.acquire(self.directory)
            engine = self._engine
        if not engine.loaded:
            await asyncio.to_thread(engine.load)
        return engine

    def _submit(self, loop: asyncio.AbstractEventLoop, engine: Engine, work: Any) -> asyncio.Future[Any]:
        try:
            return loop.run_in_executor(engine.pool, work)
        except RuntimeError:  # the pool was shut down between _ready and here
            raise self._is_closed() from None

    async def _in_time(self, work: Any, deadline: float, seconds: float, which: str) -> Any:
        with Limit(deadline - asyncio.get_running_loop().time(), lambda: self._late(seconds, which)):
            return await work

    def _late(self, seconds: float, which: str) -> CallTimeout:
        return CallTimeout(f"{self.name}: no answer within {seconds:g} s ({which})", hint="raise the profile's timeouts")

    def _is_closed(self) -> ServerUnreachable:
        return ServerUnreachable(f"{self.name}: the embedded model is closed")


class _Feed:
    """Passes pieces from the engine's thread to the event loop; after `_AHEAD` unread pieces, the thread waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: Engine) -> None:
        self.stop = threading.Event()
        self._loop = loop
        self._engine = engine
        self._queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        self._room = threading.Semaphore(_AHEAD)

    def fill(self, pieces: Any) -> None:
        """Pass on all pieces, and an error, until the reader stops. Runs in the engine's thread."""
        try:
            for piece in pieces:
                if not self._put(piece):
                    return
            self._put(None)
        except ModelError as error:
            self._put(error)
        finally:
            pieces.close()

    async def get(self) -> Piece | None:
        """Return the next piece; None at the end. Raises the engine's error."""
        item = await self._queue.get()
        self._room.release()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Release the engine's thread, even if it is waiting."""
        self.stop.set()
        self._room.release()

    def _put(self, item: Piece | Exception | None) -> bool:
        while not self._room.acquire(timeout=0.25):
            if self._engine.stopped:  # at interpreter exit nothing reads or closes the stream
                return False
        if self.stop.is_set():
            return False
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop was closed without closing the stream
            return False
        return True


def _directory(path: str) -> Path:
    """Return the directory of a checkpoint; a bare name is a shipped one."""
    place = Path(path)
    return CHECKPOINTS / path if path not in {"", ".", ".."} and place.name == path else place.expanduser()
