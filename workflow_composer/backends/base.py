"""The interface between the executor and model backends.

A backend uses one engine or API and serves one model. Routes, retries and prices are outside its scope. It maps foreign
errors to those of `workflow_composer.errors`, and honours every field of a request or raises `Unsupported`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from workflow_composer.types import Attempt, Chunk, Completion, Embeddings, EndpointStatus, ModelCall
from workflow_composer.usage import NO_USAGE, Usage

if TYPE_CHECKING:
    from workflow_composer.backends.http.egress import EgressPolicy
    from workflow_composer.config.strategy import ModelSpec, StrategyConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What a server has answered to a request of its own API that was passed on to it. ``kind`` is the content type."""

    body: bytes | bytearray
    kind: str
    model: str
    usage: Usage = NO_USAGE
    candidate: str = ""
    failovers: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A body that is passed on as it is, but for the model's name, which stands between its pieces ``before`` and ``after``.

    ``kind`` is its content type, ``text`` what it says of itself in words (a prompt, or nothing).
    """

    before: tuple[bytes, ...]
    after: tuple[bytes, ...]
    kind: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What all backends of a snapshot share: the profile, the egress policy and the environment variables.

    ``report`` logs a message of one sentence.
    """

    config: StrategyConfig
    egress: EgressPolicy
    environ: Mapping[str, str]
    report: Callable[[str], None] = lambda text: None


@runtime_checkable
class Backend(Protocol):
    """One model behind one engine or API. ``local`` is True if no data leaves the profile's own machines.

    Cancelling the task that awaits a method must stop the work at the server too. Every method raises only `ModelError`,
    `EgressDenied` or `asyncio.CancelledError`.

    A backend that chooses one of several servers for each call has a ``meter`` (`GpuMeter`), which knows how many GPUs are
    busy. It tracks each server's failures itself, so no circuit breaker blocks a new server.
    """

    name: str
    local: bool

    async def complete(self, call: ModelCall) -> Completion:
        """Return ``call.samples`` answers."""
        ...

    def stream(self, call: ModelCall) -> AsyncGenerator[Chunk, None]:
        """Yield one answer piece by piece. Closing the generator stops the work.

        A piece with ``finish_reason`` ends the answer; ``usage``, if known, comes with it or after it.
        """
        ...

    async def embed(self, texts: Sequence[str], *, timeout: float, dimensions: int | None = None) -> Embeddings:
        """Return one vector per text, of ``dimensions`` numbers if the model supports that."""
        ...

    async def health(self, *, timeout: float) -> EndpointStatus:
        """Return whether the model could answer now. Never raises."""
        ...

    async def close(self) -> None:
        """Release connections, threads and memory; safe to call twice."""
        ...


BackendFactory = Callable[["ModelSpec", BackendContext], Backend]
"""Makes the backend of one model; called once per snapshot, without I/O."""
