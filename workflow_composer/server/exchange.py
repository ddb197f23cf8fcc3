"""One HTTP request and the answer to it, as handlers see them; they know nothing of sockets.

A handler is an asynchronous function of an `Exchange`. It returns a `Reply`, or answers piece by piece (`open_stream`,
`write`, `close_stream`) and returns None. What it raises is answered by `workflow_composer.server.failures`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from workflow_composer.types import Relay

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"

Fields = Sequence[tuple[str, str]]
"""Header names, in lower case, and their values."""


@dataclass(slots=True)
class Reply:
    """A whole answer."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Fields = ()


@dataclass(slots=True, eq=False)
class Exchange(ABC):
    """A request, and the way back to its sender.

    ``path`` is decoded and has no query; ``query`` is the raw text behind the question mark. ``headers`` have names in lower
    case; of a name that stands twice the values are joined by ", ". ``client`` is the sender's address. ``started`` is
    `time.perf_counter` when the first byte of the request came. ``relay`` is set by who has a stream relayed to the sender,
    so that it can be slowed down where the sender reads slowly.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(kw_only=True)
    body: bytes = field(default=b"", kw_only=True)
    query: str = field(default="", kw_only=True)
    client: str = field(default="", kw_only=True)
    request_id: str = field(default="", kw_only=True)
    started: float = field(default=0.0, kw_only=True)
    relay: Relay | None = field(default=None, kw_only=True)

    @abstractmethod
    def open_stream(self, *, content_type: str = EVENTS, headers: Fields = ()) -> None:
        """Send status 200 and the headers; the body follows by `write`."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send a piece of an opened stream; dropped in silence where the sender has gone."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait until the sender has taken enough of what was written."""

    @abstractmethod
    def close_stream(self, trailers: Fields = ()) -> None:
        """The opened stream is complete; ``trailers`` are headers that were not known before."""

    @property
    @abstractmethod
    def opened(self) -> bool:
        """Whether a stream has been opened: from then on no other status can be sent."""


Handler = Callable[[Exchange], Awaitable[Reply | None]]
"""Where the sender goes away, the handler's task is cancelled."""
