"""A client's cached view of the registry, read in a separate thread at most once a second.

The registry is on a network file system, where lookups may take seconds if the file server is busy. A request waits for a
read only if no recent one is cached.
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
"""Seconds between two reads while requests arrive."""
OLD = 2.5
"""Age in seconds at which a cached read is too old: the next request waits for a new one."""
PATIENCE = 2.0
"""Maximum seconds that a request waits for a read."""
BELIEVED = 300.0
"""Seconds for which the last read stays valid while the folder is unreadable. Servers keep running if the file server is
busy, but eventually another user's server may listen on their ports."""

_LOOPBACK = ("127.", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Picture:
    """One read: the entries valid then, and its time (monotonic seconds)."""

    entries: tuple[Entry, ...] = ()
    at: float = float("-inf")
    fault: str = ""


NOTHING = Picture()


class RegistryView:
    """A process's view of the registry, shared by all roles, threads and loops. ``node``: this machine's name."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.monotonic, node: str | None = None) -> None:
        self.directory = directory
        self._clock = clock
        self._node = _short(node or os.uname().nodename)
        self._lock = threading.Lock()
        self._reading: tuple[Future[None], float] | None = None
        self._picture = NOTHING

    async def picture(self) -> Picture:
        """Return the cached read. Refreshes it in the background after `EVERY` seconds, and waits for that after `OLD`."""
        now = self._clock()
        age = now - self._picture.at
        if age >= EVERY:
            reading, since = self._read_in_thread(now)
            if age >= OLD:  # while a file server hangs, later requests wait only for the rest of the first one's limit
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.wrap_future(reading), PATIENCE - (now - since))
        found = self._picture
        if self._clock() - found.at < BELIEVED:
            return found
        return replace(NOTHING, fault=found.fault or f"{self.directory} is not read yet: its file system is slow")

    @property
    def known(self) -> Picture:
        """The last read."""
        return self._picture

    def here(self, entry: Entry) -> bool:
        """Whether a server runs on this machine."""
        return entry.host.startswith(_LOOPBACK) or self._node in (_short(entry.node), _short(entry.host))

    def read(self) -> None:
        """Read now, in this thread."""
        try:
            if self.directory.stat().st_mode & stat.S_IWOTH:
                self._picture = Picture((), self._clock(), f"{self.directory} is ignored, because any user may write to it")
                return
            found = tuple(entry for entry in Registry(self.directory).entries() if self._reachable(entry))
        except (FileNotFoundError, NotADirectoryError):
            self._picture = Picture((), self._clock(), f"no folder {self.directory}")
        except OSError as error:  # the last read stays valid
            known = self._picture
            self._picture = Picture(known.entries, known.at, f"{self.directory}: {error.strerror or type(error).__name__}")
        else:
            self._picture = Picture(found, self._clock())

    def _reachable(self, entry: Entry) -> bool:
        """Whether the server is reachable: it does not listen only on another machine's loopback address."""
        return not entry.host.startswith(_LOOPBACK) or entry.node in ("", entry.host) or self._node == _short(entry.node)

    def _read_in_thread(self, now: float) -> tuple[Future[None], float]:
        """Return the running read, or one of the last second, or a new one; and its start time.

        It runs in a daemon thread, so that a hanging file server does not keep the program from exiting.
        """
        with self._lock:
            known = self._reading
            if known is not None and (not known[0].done() or now - known[1] < EVERY):
                return known
            reading: Future[None] = Future()
            reading.set_running_or_notify_cancel()  # one waiting request must not cancel it for the others
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
    """Return the shared view of a folder, so that four roles do not read it four times a second."""
    with _making:
        view = _views.get(directory)
        if view is None:
            view = _views[directory] = RegistryView(directory)
        return view
