"""Relay: passes a model server's response bytes unchanged to a caller that uses the same API.

Most requests of a service are answered by one model whose answer is returned unchanged. Decoding and re-encoding it would be
most of the service's work, and could lose fields that only the server and the client know. The caller therefore attaches a
`Relay` to its request: a backend that can pass on the raw bytes does so; any other backend ignores it and returns the answer
as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from workflow_composer.usage import Delivered


class RelaySource(Protocol):
    """The source of a relayed stream."""

    def pause(self) -> None:
        """Stop reading from the server, because the client reads too slowly."""
        ...

    def resume(self) -> None:
        """Resume reading."""
        ...


@dataclass(slots=True, eq=False)
class Relay:
    """Receives the bytes of one answer.

    A whole answer is stored in ``body``. With ``write`` the answer is streamed: ``write`` gets complete server-sent events
    as they arrive, and ``begun`` is True once some were delivered, so that no other model may take over. ``usage``: the
    client requested the usage at the end of the stream; otherwise that event is dropped. ``keep``: the service also needs
    the answer's text; otherwise a stream's text is not collected. ``source`` is set while a stream runs, and ``delivery``
    says what has arrived of it. ``heard`` is when its last event came (`time.perf_counter`); infinite while its client takes
    no more.
    """

    write: Callable[[bytes], None] | None = None
    usage: bool = False
    keep: bool = False
    body: bytes | None = None
    begun: bool = False
    source: RelaySource | None = None
    heard: float = 0.0
    delivery: Delivered | None = None
