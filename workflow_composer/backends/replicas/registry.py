"""The registry: one small file per running server, on a file system that all nodes share.

The process that runs a server publishes its entry, renews it as a heartbeat, and withdraws it at the end; clients read it.
Files are replaced atomically, so that readers never see a partial one. An entry not renewed for `LIFETIME` seconds is
ignored: the server's node may have crashed, and another user's server may listen on that port now. So is one whose file
belongs to a user whose servers are not one's own.

Backends read the registry; the fleet publishes to it.

The clocks of the nodes must agree to within a few seconds, for example by NTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self

from workflow_composer.config.own_machines import own_users, user_name
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.storage.replacing import replace_file
from workflow_composer.storage.saved import read_saved
from workflow_composer.support.places import state_folder

# -------------------------------------------------------------------------------------------------------------- registered
#
# A client's cached view of the registry, read in a separate thread at most once a second.
#
# The registry is on a network file system, where lookups may take seconds if the file server is busy. A request waits for a
# read only if no recent one is cached.


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
    """A process's view of the registry, shared by all roles, threads and loops.

    ``node``: this machine's name. ``users``: the numbers of the users whose entries are believed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        node: str | None = None,
        users: frozenset[int] | None = None,
    ) -> None:
        self.directory = directory
        self._registry = ServerRegistry(directory, users)
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
            found = tuple(entry for entry in self._registry.entries() if self._reachable(entry))
        except (FileNotFoundError, NotADirectoryError):
            self._picture = Picture((), self._clock(), f"no folder {self.directory}")
        except OSError as error:  # the last read stays valid
            known = self._picture
            self._picture = Picture(known.entries, known.at, f"{self.directory}: {error.strerror or type(error).__name__}")
        else:
            self._picture = Picture(found, self._clock(), self._registry.strangers)

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


_views: weakref.WeakValueDictionary[tuple[Path, frozenset[int]], RegistryView] = weakref.WeakValueDictionary()
_making = threading.Lock()


def view_of(directory: Path, users: frozenset[int] | None = None) -> RegistryView:
    """Return the shared view of a folder, so that four roles do not read it four times a second.

    ``users``: the numbers of the users whose entries are believed; None: this user and root.
    """
    users = own_users() if users is None else users
    with _making:
        view = _views.get((directory, users))
        if view is None:
            view = _views[directory, users] = RegistryView(directory, users=users)
        return view


def _after_fork() -> None:
    """Forget the views: the threads that were reading for them are not in a forked child."""
    global _views, _making  # one of each per process
    _views, _making = weakref.WeakValueDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_after_fork)

State = Literal["starting", "ready", "draining"]

REGISTRY_VARIABLE = "WORKFLOW_COMPOSER_REGISTRY"
"""Environment variable that sets the registry's folder."""

FORM = 1
"""Version of the file format."""
BEAT = 10.0
"""Seconds between renewals of an entry."""
LIFETIME = 45.0
"""Seconds for which an entry stays valid after its last renewal."""
LARGEST = 16_384
"""Maximum size of a registry file in bytes; real ones have about 400."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Valid role names, which become part of file names and SLURM job names."""
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|[0-9A-Fa-f:.]{2,45}")


@dataclass(frozen=True, slots=True)
class _Formed:
    """The format version of a file."""

    form: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One server: its address, its model and its end. Times are seconds since 1970.

    ``server`` names it within its fleet (a role, or ``role-2`` for the second replica). ``model`` is the id that requests
    must use. ``expires`` is the end of its SLURM job. ``draining`` servers finish their calls and accept no new ones.
    """

    server: str
    role: str
    host: str
    port: int
    model: str
    state: State = "starting"
    node: str = ""
    pid: int = 0
    job_id: str = ""
    started: float
    expires: float | None = None
    updated: float

    @property
    def url(self) -> str:
        """The API's address, up to and including ``/v1``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"

    @property
    def file_name(self) -> str:
        """The name of its file; a server restarted on another node gets another file."""
        return f"{self.server}@{self.host.replace(':', '_')}-{self.port}.json"

    def alive(self, now: float) -> bool:
        """Whether the entry is still valid."""
        return abs(now - self.updated) < LIFETIME and (self.expires is None or now < self.expires)

    @classmethod
    def read(cls, text: bytes) -> Self:
        """Parse a file's entry. Raises ValueError if it is invalid; other users may be able to write to the folder."""
        if read_saved(_Formed, text).form != FORM:
            raise ValueError("unsupported version of a registry entry")
        entry = read_saved(cls, text)
        entry._check()
        return entry

    def _check(self) -> None:
        """Check what the fields' types do not. Raises ValueError."""
        texts = (self.server, self.role, self.host, self.model, self.node, self.job_id)
        right = (
            all(len(text) < 1000 and text.isprintable() for text in texts)
            and ROLE.fullmatch(self.role)
            and ROLE.fullmatch(self.server)
            and _HOST.fullmatch(self.host)
            and self.model
            and 0 < self.port < 65536
        )
        if not right:
            raise ValueError("a field has an invalid value")

    def text(self) -> str:
        """Return the content of its file."""
        return json.dumps({"form": FORM, **asdict(self)}, indent=1) + "\n"


class ServerRegistry:
    """Publishes, renews, withdraws and reads entries in a folder. Blocking; the files are small and few.

    Prompts go where an entry says. It is believed only if its file belongs to one of ``users`` (numbers; None: this user and
    root): whoever else can write to the folder, or has made it, cannot redirect them.
    """

    def __init__(self, directory: Path, users: frozenset[int] | None = None) -> None:
        self.directory = directory
        self._users = own_users() if users is None else users
        self._strangers: set[int] = set()

    @property
    def strangers(self) -> str:
        """Say whose entries the last reading has passed over; empty if there were none."""
        if not self._strangers:
            return ""
        names = ", ".join(sorted(user_name(number) for number in self._strangers))
        return f"entries of {names} are ignored (add a user whose servers are yours to local_users of the profile)"

    def publish(self, entry: Entry) -> Entry:
        """Write or renew the entry; return it with its new ``updated``.

        Raises `WorkflowComposerError` if the folder is not writable.
        """
        entry = replace(entry, updated=time.time())
        try:
            # Others may read and connect; only the owner may decide where prompts go.
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            replace_file(self.directory / entry.file_name, entry.text(), mode=0o644, follow=False)
        except OSError as error:
            raise WorkflowComposerError(
                f"cannot write to the registry {self.directory}: {error.strerror or error}",
                hint="use a folder with free space on a file system that all nodes share",
            ) from error
        return entry

    def withdraw(self, entry: Entry) -> None:
        """Remove the entry, if it still exists."""
        with contextlib.suppress(OSError):
            (self.directory / entry.file_name).unlink(missing_ok=True)

    def entries(self, role: str | None = None, *, now: float | None = None) -> list[Entry]:
        """Return the valid entries of one role or of all, oldest first. Invalid files are skipped."""
        now = time.time() if now is None else now
        found = [entry for entry in self.all() if entry.alive(now) and role in (None, entry.role)]
        return sorted(found, key=lambda entry: (entry.started, entry.file_name))

    def all(self) -> Iterator[Entry]:
        """Yield every well-formed entry, including those not renewed in time."""
        self._strangers = set()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            for path in sorted(self.directory.iterdir()):
                if path.suffix == ".json" and not path.name.startswith("."):
                    with contextlib.suppress(OSError, ValueError):
                        yield Entry.read(self._believed(path))

    def _believed(self, path: Path) -> bytes:
        """Read a file that one of the users owns and nobody else can write. Raises OSError, ValueError."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if found.st_uid not in self._users:
                self._strangers.add(found.st_uid)
                raise ValueError("the file of another user")
            if not stat.S_ISREG(found.st_mode) or found.st_mode & _OTHERS_WRITE or found.st_size > LARGEST:
                raise ValueError("not a regular file that only its owner can write, or too large")
            return file.read(LARGEST)


def registry_directory(environ: Mapping[str, str], named: str | os.PathLike[str] | None = None) -> Path:
    """Return the registry's folder: from the environment, else ``named``, else the user's default."""
    return shared_directory(environ, REGISTRY_VARIABLE, named, "registry")


def shared_directory(environ: Mapping[str, str], variable: str, named: str | os.PathLike[str] | None, name: str) -> Path:
    """Return a folder shared by a fleet: ``variable``'s, else ``named``, else ``name`` in the user's state directory.

    It must be on a file system that every node sees, as a home directory usually is.
    """
    if place := environ.get(variable, "").strip() or named:
        return Path(place).expanduser().absolute()
    return state_folder(environ) / name
