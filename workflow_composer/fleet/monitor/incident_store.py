"""The monitor's state on disk: one file per server, written before a restart or an alert.

Pending alerts are saved there and removed just before they are sent: a monitor killed at any moment sends no alert twice and
loses at most the one being sent. An alert whose channel failed is retried once in the next round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.fleet.monitor.alerts import Alert
from workflow_composer.fleet.monitor.incidents import Memory
from workflow_composer.storage.locks import FileLock
from workflow_composer.storage.replacing import replace_file
from workflow_composer.storage.saved import read_saved, saved


@dataclass(frozen=True, slots=True)
class Unsent:
    """An alert pending for one channel; ``failed``: it has been tried once."""

    channel: str
    alert: Alert
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """A server's incident state and its pending alerts."""

    memory: Memory = field(default_factory=Memory)
    unsent: tuple[Unsent, ...] = ()


class MonitorFiles:
    """The monitor's files in a folder, used by one round at a time (see `turn`)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        """Lock the files; yield False if another monitor holds them. Raises `WorkflowComposerError` if not writable."""
        lock = FileLock(self.directory / "monitor.lock")
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(TimeoutError):  # another round may take minutes and does the same work
                lock.take()
        except OSError as error:
            raise self._unwritable(error) from error
        with lock:
            yield lock.held

    def load(self, server: str) -> Remembered:
        """Return a server's saved state; a fresh one if the file is missing or damaged."""
        with contextlib.suppress(OSError, ValueError):
            return read_saved(Remembered, self._path(server).read_bytes())
        return Remembered()

    def save(self, server: str, remembered: Remembered) -> None:
        """Save a server's state. Raises `WorkflowComposerError`: an unsaved action would be repeated, so it must not run."""
        if remembered == self.load(server):
            return
        try:
            replace_file(self._path(server), saved(remembered), mode=0o644)
        except OSError as error:
            raise self._unwritable(error) from error

    def servers(self) -> list[str]:
        """The servers with a saved state."""
        return sorted(path.stem for path in self.directory.glob("*.json") if not path.name.startswith("."))

    def _path(self, server: str) -> Path:
        return self.directory / f"{server}.json"

    def _unwritable(self, error: OSError) -> WorkflowComposerError:
        return WorkflowComposerError(
            f"the monitor's state in {self.directory} cannot be written: {error.strerror or error}",
            hint="nothing was restarted or sent; free disk space, or set `state` in the fleet file to another folder",
        )
