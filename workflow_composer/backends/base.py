"""The one seam between the executor and whatever answers.

A backend speaks one engine or API and serves one model. It knows nothing of routes, retries or prices; it maps foreign
errors to the tree in `workflow_composer.errors`, and honours every field of a request or raises `Unsupported`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from workflow_composer.types import Chunk, Completion, Embeddings, EndpointStatus, ModelCall

if TYPE_CHECKING:
    from workflow_composer.backends.egress import EgressPolicy
    from workflow_composer.backends.pricing import GpuMeter
    from workflow_composer.strategy import ModelSpec, StrategyConfig


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What every backend of one snapshot shares: the profile, where bytes may go, and the environment's variables.

    ``report`` tells a person of what a backend has noticed, in a sentence.
    """

    config: StrategyConfig
    egress: EgressPolicy
    environ: Mapping[str, str]
    report: Callable[[str], None] = lambda text: None


@runtime_checkable
class Backend(Protocol):
    """One model behind one engine or API. ``local`` is True where no byte leaves the profile's own machines.

    Cancelling the task that awaits a method must stop the work at the server too. Every method raises only `ModelError`,
    `EgressDenied` or `asyncio.CancelledError`.
    """

    name: str
    local: bool

    async def complete(self, call: ModelCall) -> Completion:
        """Return ``call.samples`` answers."""
        ...

    def stream(self, call: ModelCall) -> AsyncGenerator[Chunk, None]:
        """Yield one answer piece by piece. Closing the generator stops the work.

        The last piece but one names a ``finish_reason``; ``usage`` comes with it or after it, where it is known.
        """
        ...

    async def embed(self, texts: Sequence[str], *, timeout: float, dimensions: int | None = None) -> Embeddings:
        """Return one vector per text, shortened to ``dimensions`` numbers where the model can do that."""
        ...

    async def health(self, *, timeout: float) -> EndpointStatus:
        """Say whether the model could answer now. Never raises."""
        ...

    async def close(self) -> None:
        """Release connections, threads and memory; safe to call twice."""
        ...


@runtime_checkable
class ManyServers(Backend, Protocol):
    """A backend that finds one of several servers for each call.

    It keeps record of each server's failures itself, so that no breaker closes the way to a server that has just come. Its
    ``meter`` knows how many GPUs are at work.
    """

    meter: GpuMeter


BackendFactory = Callable[["ModelSpec", BackendContext], Backend]
"""Makes the backend of one model; called once per snapshot, does no I/O."""
