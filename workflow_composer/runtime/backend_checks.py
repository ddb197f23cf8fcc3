"""What a plugin's backend returns and raises, checked where it enters: an error names the plugin, the backend and the value.

The package's own backends are not wrapped.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any

from workflow_composer.backends.base import Backend
from workflow_composer.errors import EgressDenied, ModelError, PluginError, ServerFailed
from workflow_composer.plugins.host import BUILTIN, shown
from workflow_composer.types import Chunk, Completion, Embeddings, EndpointStatus, ModelCall, Sample


class CheckedBackend:
    """A plugin's backend as the executor calls it: its faults are failures of that model, so that the next one is tried."""

    def __init__(self, backend: Backend, kind: str, plugin: str) -> None:
        self._backend = backend
        self._where = f"backend {kind!r} of plugin {plugin!r}"
        self.name: str = backend.name
        self.local: bool = backend.local

    def __getattr__(self, name: str) -> Any:
        """Return what else the backend has, such as a ``meter``."""
        return getattr(self._backend, name)

    async def complete(self, call: ModelCall) -> Completion:
        """Return ``call.samples`` answers. Raises `ServerFailed` if the backend returns anything else."""
        done = await self._own("complete", self._backend.complete(call))
        if not isinstance(done, Completion):
            raise self._returned("complete", done, "a Completion")
        for sample in done.samples:
            if not isinstance(sample, Sample):
                raise self._returned("complete", sample, "a Sample")
        return done

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk, None]:
        """Yield the pieces of one answer. Raises `ServerFailed` if the backend yields anything else."""
        pieces = self._backend.stream(call)
        if not hasattr(pieces, "__anext__"):
            if hasattr(pieces, "close"):  # a coroutine, which nobody will await
                pieces.close()
            raise self._returned("stream", pieces, "an asynchronous generator")
        try:
            while (piece := await self._own("stream", anext(pieces, None))) is not None:
                if not isinstance(piece, Chunk):
                    raise self._returned("stream", piece, "a Chunk")
                yield piece
        finally:
            if hasattr(pieces, "aclose"):
                await pieces.aclose()

    async def embed(self, texts: Sequence[str], *, timeout: float, dimensions: int | None = None) -> Embeddings:
        """Return one vector per text. Raises `ServerFailed` if the backend returns anything else."""
        found = await self._own("embed", self._backend.embed(texts, timeout=timeout, dimensions=dimensions))
        if not isinstance(found, Embeddings):
            raise self._returned("embed", found, "Embeddings")
        return found

    async def health(self, *, timeout: float) -> EndpointStatus:
        """Return whether the model could answer now. Never raises."""
        try:
            status: Any = await self._backend.health(timeout=timeout)
        except Exception as error:  # noqa: BLE001  # a probe must not fail for one backend
            return EndpointStatus(
                name=self.name,
                url="",
                healthy=False,
                models=(),
                latency_ms=None,
                detail=f"health of {self._where} failed: {error}",
            )
        if not isinstance(status, EndpointStatus):
            return EndpointStatus(
                name=self.name,
                url="",
                healthy=False,
                models=(),
                latency_ms=None,
                detail=f"health of {self._where} returned {shown(status)}",
            )
        return status

    async def close(self) -> None:
        """Release what the backend holds; a plugin that fails to must not keep the others from it."""
        await self._own("close", self._backend.close())

    async def _own(self, method: str, work: Awaitable[Any]) -> Any:
        try:
            return await work
        except (ModelError, EgressDenied):
            raise
        except Exception as error:
            raise ServerFailed(f"{method} of {self._where} failed: {type(error).__name__}: {error}") from error

    def _returned(self, method: str, value: object, wanted: str) -> ServerFailed:
        return ServerFailed(f"{method} of {self._where} returned {shown(value)}, not {wanted}")


_PARTS = ("name", "local", "complete", "stream", "embed", "health", "close")


def checked(backend: Any, kind: str, plugin: str) -> Backend:
    """Return what the executor calls: a backend of the package's own classes directly, any other through the checks.

    Raises `PluginError` if it lacks parts of the interface.
    """
    if type(backend).__module__.startswith(f"{BUILTIN}."):
        own: Backend = backend
        return own
    if missing := [part for part in _PARTS if not hasattr(backend, part)]:
        where = f"backend {kind!r} of plugin {plugin!r} is {shown(backend)}"
        raise PluginError(f"{where}, which has no {', '.join(missing)}", hint="see docs/plugins.md")
    return CheckedBackend(backend, kind, plugin)
