"""What the monitor remembers, on disk: one file per server, written before anything is done or told.

Alerts wait there until their channel's turn, and are struck off before they are sent: a monitor that is killed at any moment
tells nothing twice, and loses at most the alert that was just under way. One whose channel failed is tried once more in the
next round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.fleet.alerts import Alert
from workflow_composer.fleet.incidents import Memory
from workflow_composer.storage.locks import FileLock
from workflow_composer.storage.replacing import replace_file
from workflow_composer.storage.saved import read_saved, saved


@dataclass(frozen=True, slots=True)
class Unsent:
    """An alert that one channel has yet to send; ``failed``: it has tried once."""

    channel: str
    alert: Alert
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """The incident's state, and the alerts that wait."""

    memory: Memory = field(default_factory=Memory)
    unsent: tuple[Unsent, ...] = ()


class MonitorFiles:
    """The monitor's files in a folder. One round at a time works with them: `turn`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether this round may work: no other monitor is at it. Raises `WorkflowComposerError` without a folder."""
        lock = FileLock(self.directory / "monitor.lock")
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(TimeoutError):  # another round may take minutes, and does what this one would do
                lock.take()
        except OSError as error:
            raise self._unwritable(error) from error
        with lock:
            yield lock.held

    def load(self, server: str) -> Remembered:
        """What is known of a server; nothing where its file is missing or damaged."""
        with contextlib.suppress(OSError, ValueError):
            return read_saved(Remembered, self._path(server).read_bytes())
        return Remembered()

    def save(self, server: str, remembered: Remembered) -> None:
        """Remember. Raises `WorkflowComposerError`: what cannot be remembered must not be done, or it is done again."""
        if remembered == self.load(server):
            return
        try:
            replace_file(self._path(server), saved(remembered), mode=0o644)
        except OSError as error:
            raise self._unwritable(error) from error

    def servers(self) -> list[str]:
        """Those that something is remembered of."""
        return sorted(path.stem for path in self.directory.glob("*.json") if not path.name.startswith("."))

    def _path(self, server: str) -> Path:
        return self.directory / f"{server}.json"

    def _unwritable(self, error: OSError) -> WorkflowComposerError:
        return WorkflowComposerError(
            f"the monitor's memory in {self.directory} cannot be written: {error.strerror or error}",
            hint="nothing was started or told; make room, or let the fleet file's `state` name another folder",
        )
