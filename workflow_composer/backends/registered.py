"""What the registry says now, for clients: read beside the event loop, seldom, and kept while it is read again.

The registry lies on a network file system, whose look-ups may take seconds where the file server is busy. A request waits
for them only where nothing recent is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

from workflow_composer.backends.registry import Entry, Registry

EVERY = 1.0
"""Seconds between two readings while requests come."""
OLD = 2.5
"""Seconds from which a reading is too old to go by: nobody has asked for a while, and the next request waits for one."""
PATIENCE = 2.0
"""Seconds that a request waits for a reading."""
BELIEVED = 300.0
"""Seconds for which the last reading counts while the folder cannot be read. Servers do not die of a busy file server; but
in the end somebody else's may listen on their ports."""

_LOOPBACK = ("127.", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Picture:
    """One reading: the entries that could be believed then, and when that was (monotonic seconds)."""

    entries: tuple[Entry, ...] = ()
    at: float = float("-inf")
    fault: str = ""


NOTHING = Picture()


class RegistryView:
    """The registry's entries as one process sees them; shared by all roles, threads and loops. ``node``: this machine's."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.monotonic, node: str | None = None) -> None:
        self.directory = directory
        self._clock = clock
        self._node = _short(node or os.uname().nodename)
        self._lock = threading.Lock()
        self._reading: tuple[Future[None], float] | None = None
        self._picture = NOTHING

    async def picture(self) -> Picture:
        """What is known: read again behind the caller's back where it is a second old; waited for where it is old."""
        now = self._clock()
        age = now - self._picture.at
        if age >= EVERY:
            reading, since = self._read_in_thread(now)
            if age >= OLD:  # whoever comes while a file server hangs waits for the rest of the first one's patience only
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.wrap_future(reading), PATIENCE - (now - since))
        found = self._picture
        if self._clock() - found.at < BELIEVED:
            return found
        return replace(NOTHING, fault=found.fault or f"{self.directory} has not been read yet: its file system is slow")

    @property
    def known(self) -> Picture:
        """The last reading."""
        return self._picture

    def here(self, entry: Entry) -> bool:
        """Whether a server runs on this machine."""
        return entry.host.startswith(_LOOPBACK) or self._node in (_short(entry.node), _short(entry.host))

    def read(self) -> None:
        """Read now, in this thread."""
        try:
            if self.directory.stat().st_mode & stat.S_IWOTH:
                self._picture = Picture((), self._clock(), f"anyone may write to {self.directory}, so it is not believed")
                return
            found = tuple(entry for entry in Registry(self.directory).entries() if self._reachable(entry))
        except (FileNotFoundError, NotADirectoryError):
            self._picture = Picture((), self._clock(), f"there is no folder {self.directory}")
        except OSError as error:  # the last reading goes on counting
            known = self._picture
            self._picture = Picture(known.entries, known.at, f"{self.directory}: {error.strerror or type(error).__name__}")
        else:
            self._picture = Picture(found, self._clock())

    def _reachable(self, entry: Entry) -> bool:
        """Not a server that listens on another machine's loopback only."""
        return not entry.host.startswith(_LOOPBACK) or entry.node in ("", entry.host) or self._node == _short(entry.node)

    def _read_in_thread(self, now: float) -> tuple[Future[None], float]:
        """The reading that is under way, or one of the last second, or a new one; and when it began.

        Its thread is no pool's, so that a file server that hangs keeps no program from ending.
        """
        with self._lock:
            known = self._reading
            if known is not None and (not known[0].done() or now - known[1] < EVERY):
                return known
            reading: Future[None] = Future()
            reading.set_running_or_notify_cancel()  # it cannot be cancelled by one of those who wait
            self._reading = reading, now
        threading.Thread(target=self._deliver, args=(reading,), name="registry", daemon=True).start()
        return reading, now

    def _deliver(self, reading: Future[None]) -> None:
        try:
            self.read()
        finally:
            reading.set_result(None)


def _short(host: str) -> str:
    return host.partition(".")[0].lower()


_views: weakref.WeakValueDictionary[Path, RegistryView] = weakref.WeakValueDictionary()
_making = threading.Lock()


def view_of(directory: Path) -> RegistryView:
    """The view of a folder that all who ask for it share, so that four roles do not read it four times a second."""
    with _making:
        view = _views.get(directory)
        if view is None:
            view = _views[directory] = RegistryView(directory)
        return view
