"""One supervisor for a server: whoever runs it holds its lock, which the system takes back however that process ends."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from workflow_composer.backends.registry import ROLE
from workflow_composer.errors import FleetError
from workflow_composer.storage.locks import FileLock, lock_beside
from workflow_composer.storage.replacing import replace_file
from workflow_composer.storage.saved import read_saved

_MOMENT = 0.2
"""Seconds for which the lock is tried: another thread of this process that asks who holds it has it for an instant."""


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
    """The lock of one server, in the folder of the fleet's state, and a file beside it that says who has it.

    The lock is the process's own: no process that it forks or starts has it, and it ends with the process.
    """

    def __init__(self, directory: Path, server: str) -> None:
        if not ROLE.fullmatch(server):
            raise ValueError(f"not a server's name: {server!r}")
        self._path = directory / f"{server}.run"
        self._lock = FileLock(lock_beside(self._path), mode=0o600)

    def take(self) -> Holder | None:
        """Take the lock; who has it, where that is another. Raises `FleetError` where the folder cannot be written."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.take(_MOMENT)
        except TimeoutError:
            return self.holder() or Holder(0, "")
        except OSError as error:
            raise FleetError(
                f"{self._path} cannot be written: {error.strerror}", hint="the fleet's state is kept there"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            self._path.unlink(missing_ok=True)  # first: it names a process that was killed
            replace_file(self._path, json.dumps([os.getpid(), os.uname().nodename]), mode=0o600)
        return None

    def release(self) -> None:
        """Let others take it."""
        if self._lock.held:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._lock.release()

    def holder(self) -> Holder | None:
        """Who looks after the server now; None where nobody does."""
        try:
            if not self._lock.is_taken():
                return None
        except OSError:
            return None
        with contextlib.suppress(OSError, ValueError):
            pid, node = read_saved(tuple[int, str], self._path.read_bytes())
            if pid > 0:  # others are groups of processes to whoever sends it a signal
                return Holder(pid, node)
        return Holder(0, "")
