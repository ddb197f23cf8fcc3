"""A thread that writes lines, so that a full pipe, a slow disk or another's lock never blocks an event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

MOST_BYTES = 4 * 2**20
"""Bytes that may wait to be written; what comes beyond is dropped and counted."""
_AGAIN = 0.1
"""Seconds before lines that could not be written yet are tried again."""

Write = Callable[[bytes, int], bool]
"""Writes lines, told how many were dropped before them; False: try again later. May block; must not raise OSError."""


class LineWriter:
    """Hands lines to ``write`` in their order, in a daemon thread that the first line starts."""

    def __init__(self, write: Write, *, most: int = MOST_BYTES) -> None:
        self._write = write
        self._most = most
        self._waiting: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = False

    def put(self, lines: bytes) -> None:
        """Accept whole lines, from any thread; never blocks."""
        with self._changed:
            if self._size + len(lines) > self._most:
                self._dropped += lines.count(b"\n")
                return
            self._waiting.append(lines)
            self._size += len(lines)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="line writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait up to ``seconds`` until everything is written; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._busy), seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines, dropped = b"".join(self._waiting), self._dropped
                self._waiting.clear()
                self._dropped, self._busy = 0, True  # the lines count as waiting until they are written
            written = False
            while not written:
                written = True
                with suppress(OSError):
                    written = self._write(lines, dropped)
                if not written:
                    threading.Event().wait(_AGAIN)
            with self._changed:
                self._size -= len(lines)
                self._busy = False
                self._changed.notify_all()
