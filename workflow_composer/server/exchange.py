"""One HTTP request and its response, as handlers see them (without sockets).

A handler is an async function of an `Exchange`. It returns a complete `Reply`, or streams the response (`open_stream`,
`write`, `close_stream`) and returns None. `workflow_composer.server.failures` maps its exceptions to error responses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from workflow_composer.types import Relay

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"

Fields = Sequence[tuple[str, str]]
"""Pairs of a lower-case header name and its value."""


@dataclass(slots=True)
class Reply:
    """A complete response."""

    status: int = 200
    body: bytes | bytearray = b""
    content_type: str = JSON
    headers: Fields = ()


@dataclass(slots=True, eq=False)
class Exchange(ABC):
    """A request, and the means to respond to it.

    ``path`` is decoded, without the query; ``query`` is the raw text after the question mark. ``headers`` have lower-case
    names; the values of a repeated header are joined by ", ". ``client`` is the client's address. ``started`` is the
    `time.perf_counter` value at the first byte of the request. ``relay`` is set while a model server's stream is relayed to
    the client, so that a slow client can slow it down. ``shared`` are headers of the response, whatever it is (CORS, and
    the limits of a key).
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(kw_only=True)
    body: bytes | bytearray = field(default=b"", kw_only=True)
    query: str = field(default="", kw_only=True)
    client: str = field(default="", kw_only=True)
    request_id: str = field(default="", kw_only=True)
    started: float = field(default=0.0, kw_only=True)
    relay: Relay | None = field(default=None, kw_only=True)
    shared: Fields = field(default=(), kw_only=True)

    @abstractmethod
    def open_stream(self, *, content_type: str = EVENTS, headers: Fields = ()) -> None:
        """Send status 200 and the headers; send the body with `write`."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send a piece of an opened stream; discard it if the client has disconnected."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait until the client has read enough of the written data."""

    @abstractmethod
    def close_stream(self, trailers: Fields = ()) -> None:
        """Complete the opened stream; ``trailers`` are headers known only at the end."""

    @property
    @abstractmethod
    def opened(self) -> bool:
        """Whether a stream has been opened, after which no other status can be sent."""


Handler = Callable[[Exchange], Awaitable[Reply | None]]
"""The handler's task is cancelled if the client disconnects."""
