"""Supervisor lock: at most one supervisor per server; the operating system releases the lock when its process ends."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from workflow_composer.backends.replicas.registry import ROLE
from workflow_composer.errors import FleetError
from workflow_composer.fleet.processes import same_host
from workflow_composer.storage.locks import FileLock, lock_beside
from workflow_composer.storage.replacing import replace_file
from workflow_composer.storage.saved import read_saved

_MOMENT = 0.2
"""Seconds to try for the lock: a thread of this process that queries the holder takes it for an instant."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that supervises a server."""

    pid: int
    node: str

    @property
    def here(self) -> bool:
        """Whether it runs on this machine."""
        return same_host(self.node, os.uname().nodename)


class Holding:
    """The supervisor lock of one server, in the fleet's state folder, and a file beside it with the holder's process.

    The lock belongs to this process: child processes do not inherit it, and it is released when the process ends.
    """

    def __init__(self, directory: Path, server: str) -> None:
        if not ROLE.fullmatch(server):
            raise ValueError(f"invalid server name: {server!r}")
        self._path = directory / f"{server}.run"
        self._lock = FileLock(lock_beside(self._path), mode=0o600)

    def take(self) -> Holder | None:
        """Take the lock; return the holder if another process has it. Raises `FleetError` if the folder is not writable."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.take(_MOMENT)
        except TimeoutError:
            return self.holder() or Holder(0, "")
        except OSError as error:
            raise FleetError(
                f"{self._path} cannot be written: {error.strerror}",
                hint="the fleet keeps its state there; set `state` in the fleet file to a writable folder",
            ) from error
        with contextlib.suppress(OSError):  # on a full disk the lock still holds
            self._path.unlink(missing_ok=True)  # first: it may name a killed process
            replace_file(self._path, json.dumps([os.getpid(), os.uname().nodename]), mode=0o600)
        return None

    def release(self) -> None:
        """Release the lock."""
        if self._lock.held:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._lock.release()

    def holder(self) -> Holder | None:
        """Return the current holder; None if there is none."""
        try:
            if not self._lock.is_taken():
                return None
        except OSError:
            return None
        with contextlib.suppress(OSError, ValueError):
            pid, node = read_saved(tuple[int, str], self._path.read_bytes())
            if pid > 0:  # `os.kill` treats 0 and negative numbers as process groups
                return Holder(pid, node)
        return Holder(0, "")
