"""One supervisor for a server: whoever runs it holds its lock, which the system takes back however that process ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from workflow_composer.errors import FleetError
from workflow_composer.fleet.registry import ROLE


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that looks after a server."""

    pid: int
    node: str

    @property
    def here(self) -> bool:
        """Whether it runs on this machine."""
        return self.node == os.uname().nodename


class Holding:
    """The lock of one server, in the folder of the fleet's state: flock, which goes with the open file."""

    def __init__(self, directory: Path, server: str) -> None:
        if not ROLE.fullmatch(server):
            raise ValueError(f"not a server's name: {server!r}")
        self._path = directory / f"{server}.run"
        self._file: int | None = None

    def take(self) -> Holder | None:
        """Take the lock; who has it, where that is another. Raises `FleetError` where the folder cannot be written."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FleetError(
                f"{self._path} cannot be written: {error.strerror}", hint="the fleet's state is kept there"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return self.holder() or Holder(0, "")
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps([os.getpid(), os.uname().nodename]).encode(), 0)
        self._file = file
        return None

    def release(self) -> None:
        """Let others take it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None

    def holder(self) -> Holder | None:
        """Who looks after the server now; None where nobody does."""
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return self._named(os.pread(file, 1000, 0))
        finally:
            os.close(file)
        return None

    def _named(self, text: bytes) -> Holder:
        try:
            pid, node = json.loads(text)
            return Holder(int(pid), str(node))
        except (ValueError, TypeError):
            return Holder(0, "")
