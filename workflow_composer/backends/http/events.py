"""Parsing of server-sent events, both to pass on complete events unchanged and to decode them.

Every byte is scanned once, however it arrives: an event in a thousand pieces is joined only at its end.
"""

from __future__ import annotations

from collections.abc import Iterator

from workflow_composer.backends.http.connection import BOUNDS, LARGE, TooLong, values_in

DONE = b"[DONE]"
"""OpenAI's end-of-stream marker, sent in place of data."""
_ENDS = (b"\n\n", b"\n\r\n")
_REACH = 3
"""Bytes of the held-back data in which an event's end may start."""


class EventReader:
    """Splits a stream after its last complete event; ``longest`` is the maximum size of an event in bytes."""

    __slots__ = ("_held", "_longest", "_tail")

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._held = bytearray()
        self._tail = b""

    def whole(self, data: bytes) -> bytes:
        """Return the bytes of the events that ``data`` completes; hold back the rest. Raises `TooLong`."""
        if not self._held and data.endswith(b"\n\n"):
            return data
        joint = self._tail + data
        end = max(joint.rfind(mark) + len(mark) if mark in joint else 0 for mark in _ENDS) - len(self._tail)
        if end <= 0:
            self._hold(data)
            return b""
        self._held.extend(data[:end])
        found = bytes(self._held)
        self._clear()
        if len(found) > LARGE and values_in(found) > BOUNDS.values:
            raise TooLong(f"an event of the stream has more than {BOUNDS.values} values")
        if end < len(data):
            self._hold(data[end:])
        return found

    def rest(self) -> bytes:
        """Return the held-back data as the event that the end of the stream completes; empty if there is none."""
        found = bytes(self._held)
        self._clear()
        return found + b"\n\n" if found.strip() else b""

    def _hold(self, data: bytes) -> None:
        self._held.extend(data)
        self._tail = (self._tail + data)[-_REACH:]
        if len(self._held) > self._longest:
            raise TooLong(f"an event of the stream is longer than {self._longest} bytes")

    def _clear(self) -> None:
        self._held, self._tail = bytearray(), b""


def payloads(events: bytes) -> Iterator[bytes]:
    """Yield the data of complete events in order, skipping comments and events without data."""
    if b"data:" not in events:
        return
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
