"""A server's log: bounded in size; writing continues after disk errors."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from workflow_composer.errors import FleetError
from workflow_composer.storage.replacing import set_aside

LARGEST = 50 * 1000 * 1000
"""Size in bytes at which a log is rotated to ``NAME.log.1``."""
TAIL = 64 * 1024
"""Bytes of the end that are kept in memory, so that the cause of a failure is known even if the disk is full."""


class Log:
    """An append-only log. Data that cannot be written is lost; the log notes that as soon as it can be written again."""

    def __init__(self, path: Path, *, largest: int = LARGEST) -> None:
        """Open the log. Raises `FleetError` if it cannot be created."""
        self.path = path
        self._largest = largest
        self._tail = b""
        self._lost = 0
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._set_aside()
            self._file = self._open()
        except OSError as error:
            raise FleetError(f"the log {path} cannot be written: {error.strerror}") from error

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Append output of the server."""
        with self._lock:
            self._tail = (self._tail + data)[-TAIL:]
            self._append(data)

    def say(self, text: str) -> None:
        """Append a line of the supervisor, marked [fleet]."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} [fleet] {text}\n"
        with self._lock:
            self._append(line.encode())

    def _append(self, data: bytes) -> None:
        note = f"[fleet] {self._lost} bytes of this log were lost: it could not be written\n".encode() if self._lost else b""
        try:
            if os.fstat(self._file).st_size > self._largest:
                self._begin_anew()
            written = os.write(self._file, note + data)
        except OSError:
            self._lost += len(data)
            return
        self._lost = max(0, len(note) + len(data) - written) if written >= len(note) else self._lost + len(data)

    def _begin_anew(self) -> None:
        self._set_aside()
        fresh = self._open()
        os.close(self._file)
        self._file = fresh

    def _set_aside(self) -> None:
        if self.path.exists() and self.path.stat().st_size > self._largest:
            set_aside(self.path, f"{self.path.name}.1")

    @property
    def tail(self) -> str:
        """The end of the server's output."""
        with self._lock:
            return self._tail.decode("utf-8", "replace")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1
