"""Bodies that are not complete yet, over all connections of an event loop: how many bytes, and who waits for room.

The service bounds the bodies of its clients' requests so, and the client the large answers of model servers.

Beyond the limit, reading from a connection pauses, except from the one that began first, so that some body is always
completed. While others wait, bodies that hardly grow are refused: whoever announces much and sends little stops nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

PIECE = 256 * 2**10
"""Bytes that a connection may deliver after it is resumed, before it pauses again."""
PATIENCE = 2.0
"""Seconds that a body may stand still while others wait."""


class Receiving(Protocol):
    """A connection on which a body arrives."""

    def hold(self) -> None:
        """Pause reading from it."""
        ...

    def go_on(self) -> None:
        """Resume reading from it."""
        ...

    def cut_off(self) -> None:
        """Refuse its request: it is too slow while others wait."""
        ...


@dataclass(slots=True)
class _Share:
    size: int = 0
    began: float = 0.0
    seconds: float = 0.0
    waits: bool = False

    def seconds_at(self, now: float) -> float:
        """Seconds in which the client could send."""
        return self.seconds if self.waits else self.seconds + now - self.began


class UnfinishedBodies:
    """At most ``most`` bytes, and beyond that a piece of each connection and the rest of one body; ``pace`` in bytes/s."""

    def __init__(self, most: int, pace: int) -> None:
        self.held = 0
        self._most = most
        self._pace = pace
        self._shares: dict[Receiving, _Share] = {}  # the first one began first
        self._waiting = 0

    def add(self, connection: Receiving, size: int, now: float) -> None:
        """Count received bytes; pause the connection if there is no room for more."""
        share = self._shares.get(connection)
        if share is None:
            share = self._shares[connection] = _Share(began=now)
        share.size += size
        self.held += size
        if self.held > self._most and not share.waits and connection is not next(iter(self._shares)):
            share.seconds, share.waits = share.seconds_at(now), True
            self._waiting += 1
            connection.hold()

    def remove(self, connection: Receiving, now: float) -> None:
        """Forget a body that is complete or given up, and resume those for which there is room now."""
        share = self._shares.pop(connection, None)
        if share is None:
            return
        self.held -= share.size
        self._waiting -= share.waits
        room = self._most - self.held
        for number, (other, waiting) in enumerate(list(self._shares.items()) if self._waiting else ()):
            if number and room <= 0:
                break
            if waiting.waits:
                room -= PIECE
                waiting.began, waiting.waits = now, False
                self._waiting -= 1
                other.go_on()

    def waits(self, connection: Receiving) -> bool:
        """Whether reading from a connection is paused."""
        share = self._shares.get(connection)
        return share is not None and share.waits

    def cut_off_the_slow(self, now: float) -> None:
        """While others wait, refuse the bodies that come slower than the pace."""
        if not self._waiting:
            return
        for connection, share in list(self._shares.items()):
            seconds = share.seconds_at(now)
            if not share.waits and seconds > PATIENCE and share.size < (seconds - PATIENCE) * self._pace:
                connection.cut_off()


__all__ = ["UnfinishedBodies"]
