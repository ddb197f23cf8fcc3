"""Conformance of backends."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from workflow_composer.backends.base import Backend
from workflow_composer.errors import EgressDenied, ModelError, Unsupported
from workflow_composer.testing.conformance import NotConforming, require
from workflow_composer.types import (
    Chunk,
    Completion,
    Embeddings,
    EndpointStatus,
    LLMRequest,
    ModelCall,
    Sample,
    Timeouts,
    Usage,
)

T = TypeVar("T")

_LIMIT = 30.0
"""Seconds for one call of a check; a backend that needs longer hangs."""
_TIMEOUTS = Timeouts(connect=5.0, first_token=_LIMIT, total=_LIMIT)


def check_backend(make: Callable[[], Backend], *, prompt: str = "What is 30 + 12?") -> None:
    """Check a backend against the interface. ``make`` returns a new one, whose server answers. Raises `NotConforming`.

    Checked: `complete` with one and with three samples, `stream` to its end and given up, a cancelled call, `embed` and
    `health`, the types of all that comes back, errors of the package only, and that `close` may be called twice. What it
    cannot do it refuses with `Unsupported`.
    """
    asyncio.run(_Check(make, prompt).run())


class _Check:
    def __init__(self, make: Callable[[], Backend], prompt: str) -> None:
        self._make = make
        self._prompt = prompt

    async def run(self) -> None:
        backend = self._make()
        for name in ("complete", "stream", "embed", "health", "close"):
            require(callable(getattr(backend, name, None)), f"it has no method {name}")
        require(isinstance(getattr(backend, "name", None), str), "it has no name, a text")
        require(isinstance(getattr(backend, "local", None), bool), "it does not say whether it is local (True or False)")
        try:
            await self._check_complete(backend)
            await self._check_stream(backend)
            await self._check_cancelled(backend)
            await self._check_embed(backend)
            await self._check_health(backend)
        finally:
            for turn in ("close", "close, called twice,"):
                await _own(turn, backend.close())

    def _call(self, samples: int = 1) -> ModelCall:
        return ModelCall(LLMRequest.of(self._prompt, max_tokens=64), samples=samples, timeouts=_TIMEOUTS)

    async def _check_complete(self, backend: Backend) -> None:
        for samples in (1, 3):
            try:
                done = await _own(f"complete with {samples} samples", backend.complete(self._call(samples)))
            except Unsupported:
                require(samples > 1, "complete refuses one sample")
                continue
            _check_completion(done, samples)

    async def _check_stream(self, backend: Backend) -> None:
        pieces = backend.stream(self._call())
        require(inspect.isasyncgen(pieces), f"stream returned {type(pieces).__name__}, not an asynchronous generator")
        text, ends = "", 0
        while (piece := await _own("stream", anext(pieces, None))) is not None:
            require(isinstance(piece, Chunk), f"stream gave {piece!r}, not a Chunk")
            require(isinstance(piece.text, str), f"a chunk's text is {piece.text!r}, not a text")
            require(not (ends and piece.text), "stream gave text after the finish reason")
            text += piece.text
            ends += piece.finish_reason is not None
        require(ends == 1, f"stream gave {ends} finish reasons, not one")
        require(text, f"stream gave no text for {self._prompt!r}")
        given_up = backend.stream(self._call())
        await _own("stream", anext(given_up, None))
        await _own("closing a stream before its end", given_up.aclose())

    async def _check_cancelled(self, backend: Backend) -> None:
        task = asyncio.ensure_future(backend.complete(self._call()))
        await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=_LIMIT)
        require(done, "complete goes on after its task was cancelled")
        error = None if task.cancelled() else task.exception()
        require(error is None or isinstance(error, ModelError), f"a cancelled call raised {error!r}")

    async def _check_embed(self, backend: Backend) -> None:
        try:
            found = await _own("embed", backend.embed(["one", "two"], timeout=_LIMIT))
        except Unsupported:
            return
        require(isinstance(found, Embeddings), f"embed returned {found!r}, not Embeddings")
        require(len(found.vectors) == 2, f"embed returned {len(found.vectors)} vectors for 2 texts")

    async def _check_health(self, backend: Backend) -> None:
        try:
            status = await asyncio.wait_for(backend.health(timeout=5.0), _LIMIT)
        except Exception as error:
            raise NotConforming(f"health raised {error!r}; it returns a status, whatever happens") from error
        require(isinstance(status, EndpointStatus), f"health returned {status!r}, not an EndpointStatus")


def _check_completion(done: Any, samples: int) -> None:
    require(isinstance(done, Completion), f"complete returned {done!r}, not a Completion")
    require(isinstance(done.samples, tuple), f"the samples are {done.samples!r}, not a tuple")
    require(len(done.samples) == samples, f"complete returned {len(done.samples)} samples, not {samples}")
    for sample in done.samples:
        require(isinstance(sample, Sample), f"a sample is {sample!r}, not a Sample")
        require(isinstance(sample.text, str), f"a sample's text is {sample.text!r}, not a text")
    require(isinstance(done.usage, Usage), f"the usage is {done.usage!r}, not a Usage")
    require(isinstance(done.model, str), f"the model is {done.model!r}, not a name")


async def _own(what: str, work: Awaitable[T]) -> T:
    """Await something that may raise errors of the package only, and must end."""
    try:
        return await asyncio.wait_for(work, _LIMIT)
    except (ModelError, EgressDenied, NotConforming):
        raise
    except TimeoutError:
        raise NotConforming(f"{what} did not end within {_LIMIT:g} s") from None
    except Exception as error:
        raise NotConforming(
            f"{what} raised {type(error).__name__}: {error}; raise a ModelError of workflow_composer.errors instead"
        ) from error
