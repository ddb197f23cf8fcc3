"""Relay: the way of an answer's own bytes from a model's server to a caller who speaks the same API.

Most requests of a service are answered by one model whose answer is taken as it comes. Reading that answer and writing it
again would be nearly all of the service's work, and could lose what only the server and the client know. So the caller sends
a `Relay` along with its request: a backend that can hand over what it receives does so; any other leaves it untouched, and
the answer goes the usual way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Source(Protocol):
    """Where a relayed stream comes from."""

    def pause(self) -> None:
        """Take nothing more from the server for now: the client reads too slowly."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...


@dataclass(slots=True, eq=False)
class Relay:
    """Takes the bytes of one answer.

    A whole answer is left in ``body``. With ``write`` the answer is wanted as a stream: ``write`` takes whole server-sent
    events as they come, and ``begun`` says that some have been delivered, so that no other model may take over.
    ``usage``: the client has asked for the usage at the stream's end; else that event is kept from it. ``keep``: somebody
    here wants to read the answer, too; else a stream's text is not gathered. ``source`` is there while a stream comes.
    """

    write: Callable[[bytes], None] | None = None
    usage: bool = False
    keep: bool = False
    body: bytes | None = None
    begun: bool = False
    source: Source | None = None
