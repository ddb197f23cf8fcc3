"""Event streams (server-sent events), read in one way for both uses: to hand whole events on as they are, or to read them.

Every byte is looked at once, however it arrives: an event that comes in a thousand pieces is put together at its end.
"""

from __future__ import annotations

from collections.abc import Iterator

from workflow_composer.backends.http.connection import TooLong

DONE = b"[DONE]"
"""What OpenAI's API sends in the place of data at a stream's end."""
_ENDS = (b"\n\n", b"\n\r\n")
_REACH = 3
"""Bytes of what was held back in which an end may have begun."""


class EventReader:
    """Cuts a stream's bytes behind its last whole event; ``longest``: bytes of one event, at the most."""

    __slots__ = ("_held", "_longest", "_size", "_tail")

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._held: list[bytes] = []
        self._size = 0
        self._tail = b""

    def whole(self, data: bytes) -> bytes:
        """The bytes of whole events that ``data`` completes; the rest is held back. Raises `TooLong`."""
        if not self._held and data.endswith(b"\n\n"):
            return data
        joint = self._tail + data
        end = max(joint.rfind(mark) + len(mark) if mark in joint else 0 for mark in _ENDS) - len(self._tail)
        if end <= 0:
            self._hold(data)
            return b""
        found = b"".join((*self._held, data[:end]))
        self._clear()
        if end < len(data):
            self._hold(data[end:])
        return found

    def rest(self) -> bytes:
        """What is held back, as an event that the stream's end completes; empty where nothing is."""
        found = b"".join(self._held)
        self._clear()
        return found + b"\n\n" if found.strip() else b""

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._size += len(data)
        self._tail = (self._tail + data)[-_REACH:]
        if self._size > self._longest:
            raise TooLong(f"an event of its stream is longer than {self._longest} bytes")

    def _clear(self) -> None:
        self._held, self._size, self._tail = [], 0, b""


def payloads(events: bytes) -> Iterator[bytes]:
    """The data of whole events, in order; comments and events without data have none."""
    data: list[bytes] = []
    for line in events.split(b"\n"):
        if line.endswith(b"\r"):
            line = line[:-1]  # noqa: PLW2901  # the same line without its end
        if line.startswith(b"data:"):
            data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif not line and data:
            yield data[0] if len(data) == 1 else b"\n".join(data)
            data = []
    if data:
        yield b"\n".join(data)
