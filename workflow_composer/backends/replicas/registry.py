"""The registry: one small file per running server, on a file system that all nodes share.

The process that runs a server publishes its entry, renews it as a heartbeat, and withdraws it at the end; clients read it.
Files are replaced atomically, so that readers never see a partial one. An entry not renewed for `LIFETIME` seconds is
ignored: the server's node may have crashed, and another user's server may listen on that port now. So is one whose file
belongs to a user whose servers are not one's own; or, if a key is named, one that was not signed with it.

Backends read the registry; the fleet publishes to it.

The clocks of the nodes must agree to within a few seconds, for example by NTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from workflow_composer.config.own_machines import own_users, user_name
from workflow_composer.errors import ConfigError, WorkflowComposerError
from workflow_composer.storage.replacing import is_full, overwrite_file, replace_file
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
    """One read: the entries valid then, and its time (monotonic seconds).

    ``stale``: entries that are not used, with the reason. ``keys``: the servers' keys, by the names of their files.
    """

    entries: tuple[Entry, ...] = ()
    at: float = float("-inf")
    fault: str = ""
    stale: tuple[tuple[Entry, str], ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)


NOTHING = Picture()


class RegistryView:
    """A process's view of the registry, shared by all roles, threads and loops.

    ``node``: this machine's name. ``users``: the numbers of the users whose entries are believed. ``key``: believe
    what is signed with it instead.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        node: str | None = None,
        users: frozenset[int] | None = None,
        key: SigningKey | None = None,
    ) -> None:
        self.directory = directory
        self._registry = ServerRegistry(directory, users, key)
        self._signed = key is not None
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
            if self.directory.stat().st_mode & stat.S_IWOTH and not self._signed:
                self._picture = Picture((), self._clock(), f"{self.directory} is ignored, because any user may write to it")
                return
            there = self._registry.entries()
        except (FileNotFoundError, NotADirectoryError):
            self._picture = Picture((), self._clock(), f"no folder {self.directory}")
        except OSError as error:  # the last read stays valid
            known = self._picture
            self._picture = Picture(known.entries, known.at, f"{self.directory}: {error.strerror or type(error).__name__}")
        else:
            self._picture = self._of(there)

    def _of(self, there: list[Entry]) -> Picture:
        keys = {entry.file_name: self._registry.key_of(entry) for entry in there if entry.key}
        near = tuple(entry for entry in there if self._reachable(entry))
        far = [(entry, f"it listens on {entry.host} there, not for other machines") for entry in there if entry not in near]
        return Picture(near, self._clock(), self._registry.strangers, (*self._registry.stale, *far), keys)

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


_views: weakref.WeakValueDictionary[tuple[Any, ...], RegistryView] = weakref.WeakValueDictionary()
_making = threading.Lock()


def view_of(directory: Path, users: frozenset[int] | None = None, key: SigningKey | None = None) -> RegistryView:
    """Return the shared view of a folder, so that four roles do not read it four times a second.

    ``users``: the numbers of the users whose entries are believed; None: this user and root. ``key``: believe what is signed
    with it instead.
    """
    users = own_users() if users is None else users
    belief = (directory, users, key)
    with _making:
        view = _views.get(belief)
        if view is None:
            view = _views[belief] = RegistryView(directory, users=users, key=key)
        return view


def _after_fork() -> None:
    """Forget the views: the threads that were reading for them are not in a forked child."""
    global _views, _making  # one of each per process
    _views, _making = weakref.WeakValueDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_after_fork)

State = Literal["starting", "ready", "draining"]

REGISTRY_VARIABLE = "WORKFLOW_COMPOSER_REGISTRY"
"""Environment variable that sets the registry's folder."""
KEY_VARIABLE = "WORKFLOW_COMPOSER_REGISTRY_KEY"
"""Environment variable that names the file of the key with which entries are signed."""
SHORTEST_KEY = 32
"""Bytes that a key has at least."""

FORM = 1
"""Version of the file format."""
BEAT = 10.0
"""Seconds between renewals of an entry."""
LIFETIME = 45.0
"""Seconds for which an entry stays valid after its last renewal."""
LARGEST = 16_384
"""Maximum size of a registry file in bytes; real ones have about 400."""
_LONGEST_PATH = 4096
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Valid role names, which become part of file names and SLURM job names."""
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|[0-9A-Fa-f:.]{2,45}")


@dataclass(frozen=True, slots=True)
class _Formed:
    """The format version of a file."""

    form: int


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """A secret that the publishers and the readers of a registry share; `read` reads it from its file."""

    secret: bytes

    def sign(self, content: Mapping[str, Any]) -> str:
        """Return the signature of all fields of an entry: HMAC-SHA256, hexadecimal."""
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hmac.new(self.secret, b"workflow-composer registry entry\n" + text.encode(), hashlib.sha256).hexdigest()

    def derived(self, entry: Entry) -> str:
        """Return the API key of a server whose clients have this secret, too."""
        text = json.dumps([entry.server, entry.host, entry.port, entry.started])
        return hmac.new(self.secret, b"workflow-composer server key\n" + text.encode(), hashlib.sha256).hexdigest()

    def verified(self, text: bytes) -> bytes:
        """Return the content of a file if its signature is right. Raises ValueError.

        It is written anew from what was verified, because two parsers may read one text in two ways.
        """
        try:
            content = json.loads(text)
            signature = content.pop("signature")
            right = hmac.compare_digest(self.sign(content).encode(), signature.encode("utf-8", "replace"))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            right = False
        if not right:
            raise ValueError("no valid signature")
        return json.dumps(content).encode()

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self | None:
        """Return the key in the file that the environment names; None if it names none.

        Raises `ConfigError` unless the file is this user's or root's, unreadable for others, and long enough.
        """
        if not (named := environ.get(KEY_VARIABLE, "").strip()):
            return None
        place = f"the key of the registry (${KEY_VARIABLE}: {named})"
        try:
            descriptor = os.open(Path(named).expanduser(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                found, secret = os.fstat(descriptor), file.read(LARGEST).strip()
        except OSError as error:
            make = f"make one: (umask 077; openssl rand -hex 32 > {named})"
            raise ConfigError(f"{place} cannot be read: {error.strerror}", hint=make) from None
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in own_users() or found.st_mode & 0o077:
            hint = f"it must be your own file, which no other user can read or write: chmod 600 {named}"
            raise ConfigError(f"{place} is open to others", hint=hint)
        if len(secret) < SHORTEST_KEY:
            hint = f"make another: (umask 077; openssl rand -hex 32 > {named})"
            raise ConfigError(f"{place} has fewer than {SHORTEST_KEY} bytes", hint=hint)
        return cls(secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One server: its address, its model and its end. Times are seconds since 1970.

    ``server`` names it within its fleet (a role, or ``role-2`` for the second replica). ``model`` is the id that requests
    must use. ``expires`` is the end of its SLURM job. ``draining`` servers finish their calls and accept no new ones.
    ``fleet`` is the id of its fleet, ``fleet_file`` the path of that fleet's file, ``cluster`` the SLURM cluster of
    ``job_id``; earlier versions published none of the three.
    ``max_model_len`` is the length in tokens of its context (None: unknown), ``engine`` what serves it, with its version.
    ``key`` says where the API key is that the fleet has made for it: in the ``file`` beside the entry, which its owner alone
    can read, or ``derived`` from the registry's key; empty: the server has none, or clients are told it in another way.
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
    fleet: str = ""
    cluster: str = ""
    fleet_file: str = ""
    max_model_len: int | None = None
    engine: str = ""
    key: Literal["", "file", "derived"] = ""

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

    def stale(self, now: float) -> str:
        """Return why the entry is not valid, in one line; empty if it is."""
        age, there = now - self.updated, self.node or self.host
        if age <= -LIFETIME:
            return f"its entry is from {-age:.0f} s in the future: the clocks of {there} and of this machine differ"
        if self.expires is not None and now >= self.expires:
            return f"its job has ended by its time limit, {now - self.expires:.0f} s ago by this machine's clock"
        if age >= LIFETIME:
            return (
                f"its entry was renewed {age:.0f} s ago and counts for {LIFETIME:.0f} s: its supervisor has ended or cannot"
                f" write to the registry, or the clocks of {there} and of this machine differ"
            )
        return ""

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
        texts = (
            self.server,
            self.role,
            self.host,
            self.model,
            self.node,
            self.job_id,
            self.fleet,
            self.cluster,
            self.engine,
        )
        right = (
            all(len(text) < 1000 and text.isprintable() for text in texts)
            and len(self.fleet_file) < _LONGEST_PATH
            and ROLE.fullmatch(self.role)
            and ROLE.fullmatch(self.server)
            and _HOST.fullmatch(self.host)
            and self.model
            and 0 < self.port < 65536
        )
        if not right:
            raise ValueError("a field has an invalid value")

    def text(self, key: SigningKey | None = None) -> str:
        """Return the content of its file, signed if there is a key."""
        content = {"form": FORM, **asdict(self)}
        if key is not None:
            content["signature"] = key.sign(content)
        return json.dumps(content, indent=1) + "\n"


class ServerRegistry:
    """Publishes, renews, withdraws and reads entries in a folder. Blocking; the files are small and few.

    Prompts go where an entry says. It is believed only if its file belongs to one of ``users`` (numbers; None: this user and
    root): whoever else can write to the folder, or has made it, cannot redirect them. With a ``key``, owners say nothing:
    what is published is signed with it, and only what is signed with it is believed.
    """

    def __init__(self, directory: Path, users: frozenset[int] | None = None, key: SigningKey | None = None) -> None:
        self.directory = directory
        self._users = own_users() if users is None else users
        self._key = key
        self.stale: list[tuple[Entry, str]] = []
        self._strangers: set[int] = set()
        self._unsigned = 0

    @property
    def strangers(self) -> str:
        """Say whose entries the last reading has passed over; empty if there were none."""
        if self._unsigned:
            count = "1 entry is" if self._unsigned == 1 else f"{self._unsigned} entries are"
            return f"{count} ignored, not signed with the key that ${KEY_VARIABLE} names (start those servers with it)"
        if not self._strangers:
            return ""
        names = ", ".join(sorted(user_name(number) for number in self._strangers))
        return f"entries of {names} are ignored (add a user whose servers are yours to local_users of the profile)"

    def publish(self, entry: Entry, key: str = "") -> Entry:
        """Write or renew the entry; return it with its new ``updated``. ``key`` is a key to publish for its owner alone.

        An entry is renewed even on a full disk. Raises `WorkflowComposerError` if the folder is not writable.
        """
        entry = replace(entry, updated=time.time())
        try:
            # Others may read and connect; only the owner may decide where prompts go.
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            if key and entry.key == "file":
                replace_file(self._key_file(entry), key, mode=0o600, follow=False)
            self._write(entry)
        except OSError as error:
            raise WorkflowComposerError(
                f"cannot write to the registry {self.directory}: {error.strerror or error}",
                hint="use a folder with free space on a file system that all nodes share",
            ) from error
        return entry

    def _write(self, entry: Entry) -> None:
        path, text = self.directory / entry.file_name, entry.text(self._key)
        try:
            replace_file(path, text, mode=0o644, follow=False)
        except OSError as error:
            if not is_full(error) or not path.is_file():
                raise
            overwrite_file(path, text)

    def withdraw(self, entry: Entry) -> None:
        """Remove the entry, if it still exists, and its key."""
        for path in (self.directory / entry.file_name, self._key_file(entry)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _key_file(self, entry: Entry) -> Path:
        return self.directory / f".{entry.file_name.removesuffix('.json')}.key"

    def new_key(self, entry: Entry) -> tuple[Entry, str]:
        """Return a key for a server, and its entry, which says where clients find it."""
        if self._key is not None:
            return replace(entry, key="derived"), self._key.derived(entry)
        return replace(entry, key="file"), secrets.token_urlsafe(32)

    def key_of(self, entry: Entry) -> str:
        """Return the key that the fleet has made for a server; empty if there is none, or if it is another user's."""
        if entry.key == "derived" and self._key is not None:
            return self._key.derived(entry)
        if entry.key == "file":
            with contextlib.suppress(OSError, ValueError):
                found = _content(self._key_file(entry), self._check_owner).decode("ascii")
                return found if found.isprintable() else ""
        return ""

    def entries(self, role: str | None = None, *, now: float | None = None) -> list[Entry]:
        """Return the valid entries of one role or of all, oldest first; keep the others in `stale`, with the reasons.

        Invalid files are skipped.
        """
        now = time.time() if now is None else now
        there = [entry for entry in self.all() if role in (None, entry.role)]
        self.stale = [(entry, entry.stale(now)) for entry in there if not entry.alive(now)]
        found = [entry for entry in there if entry.alive(now)]
        return sorted(found, key=lambda entry: (entry.started, entry.file_name))

    def all(self) -> Iterator[Entry]:
        """Yield every well-formed entry, including those not renewed in time."""
        self._strangers, self._unsigned = set(), 0
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            for path in sorted(self.directory.iterdir()):
                if path.suffix == ".json" and not path.name.startswith("."):
                    with contextlib.suppress(OSError, ValueError):
                        yield self._signed(path) if self._key is not None else Entry.read(self._believed(path))

    def _signed(self, path: Path) -> Entry:
        """Read a file that the key has signed. Raises OSError, ValueError."""
        assert self._key is not None
        text = _content(path)
        try:
            entry = Entry.read(self._key.verified(text))
            if path.name == entry.file_name:  # else a copy
                return entry
        except ValueError:
            self._unsigned += 1
            raise
        raise ValueError("the entry of another file")

    def _believed(self, path: Path) -> bytes:
        """Read a file that one of the users owns and nobody else can write. Raises OSError, ValueError."""
        return _content(path, self._check_owner)

    def _check_owner(self, found: os.stat_result) -> None:
        if found.st_uid not in self._users:
            self._strangers.add(found.st_uid)
            raise ValueError("the file of another user")
        if found.st_mode & _OTHERS_WRITE:
            raise ValueError("others can write the file")


def _content(path: Path, check: Callable[[os.stat_result], None] = lambda found: None) -> bytes:
    """Read a small regular file, after ``check`` of its status, which may raise ValueError. Raises OSError, ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        check(found)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            raise ValueError("not a regular file, or too large")
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
