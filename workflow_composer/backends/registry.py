"""The registry: one small file per running server, on a file system that all nodes share.

Whoever runs a server publishes it, beats while it lives and withdraws it at its end; clients read. Files are replaced whole
(written beside, then renamed), so that no reader sees half of one. An entry that has not been renewed for `LIFETIME` seconds
counts as gone: its server's node may have died with it, and what listens on that port now may be somebody else's.

Backends read it; the fleet, which stands above them, publishes.

Clocks of the nodes must agree to within a few seconds, as NTP keeps them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.storage.replacing import replace_file
from workflow_composer.storage.saved import read_saved

State = Literal["starting", "ready", "draining"]

REGISTRY_VARIABLE = "WORKFLOW_COMPOSER_REGISTRY"
"""Another folder for the registry."""

FORM = 1
"""The version of the file's form."""
BEAT = 10.0
"""Seconds between two renewals of an entry."""
LIFETIME = 45.0
"""Seconds after its last renewal for which an entry is believed."""
LARGEST = 16_384
"""Bytes that a file of the registry may have; real ones have about 400."""

ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""What a role may be called: it becomes part of file names and of SLURM's job names."""
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|[0-9A-Fa-f:.]{2,45}")


@dataclass(frozen=True, slots=True)
class _Formed:
    """What says how the rest of a file is to be read."""

    form: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One server: where it answers, what it serves, and until when. Times are seconds since 1970.

    ``server`` names it within its fleet (a role, or ``role-2`` for the second of several). ``model`` is the id that requests
    must name. ``expires`` is the end of its SLURM job. ``draining`` servers finish what they have and take nothing new.
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
        """What its file is called; a server that is started again on another node has another file."""
        return f"{self.server}@{self.host.replace(':', '_')}-{self.port}.json"

    def alive(self, now: float) -> bool:
        """Whether the entry can still be believed."""
        return abs(now - self.updated) < LIFETIME and (self.expires is None or now < self.expires)

    @classmethod
    def read(cls, text: bytes) -> Self:
        """The entry in a file. Raises ValueError where it is none: whoever can write to the folder could have written it."""
        if read_saved(_Formed, text).form != FORM:
            raise ValueError("not an entry of this version")
        entry = read_saved(cls, text)
        entry._check()
        return entry

    def _check(self) -> None:
        """What the fields' types do not say."""
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
            raise ValueError("a field has a value that it cannot have")

    def text(self) -> str:
        """What stands in its file."""
        return json.dumps({"form": FORM, **asdict(self)}, indent=1) + "\n"


class Registry:
    """Publishes, renews, withdraws and reads entries in a folder. Blocking; the files are small and few."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def publish(self, entry: Entry) -> Entry:
        """Write the entry, or renew the one of its server at this address; returns it with its new ``updated``.

        Raises `WorkflowComposerError` where the folder cannot be written to.
        """
        entry = replace(entry, updated=time.time())
        try:
            # Others may read and connect; only the owner may say where prompts go.
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            replace_file(self.directory / entry.file_name, entry.text(), mode=0o644, follow=False)
        except OSError as error:
            raise WorkflowComposerError(
                f"the registry {self.directory} cannot be written: {error.strerror or error}",
                hint="it must be a folder on a file system that all nodes share, with space left",
            ) from error
        return entry

    def withdraw(self, entry: Entry) -> None:
        """Take the entry back; it may be gone already."""
        with contextlib.suppress(OSError):
            (self.directory / entry.file_name).unlink(missing_ok=True)

    def entries(self, role: str | None = None, *, now: float | None = None) -> list[Entry]:
        """The entries that can be believed, of one role or of all, oldest first. What is no valid entry is passed over."""
        now = time.time() if now is None else now
        found = [entry for entry in self.all() if entry.alive(now) and role in (None, entry.role)]
        return sorted(found, key=lambda entry: (entry.started, entry.file_name))

    def all(self) -> Iterator[Entry]:
        """Every valid entry, those that have not been renewed in time among them."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            for path in sorted(self.directory.iterdir()):
                if path.suffix == ".json" and not path.name.startswith("."):
                    with contextlib.suppress(OSError, ValueError):
                        yield Entry.read(_trusted(path))


def _trusted(path: Path) -> bytes:
    """The content of a file that only its owner can have written. Raises OSError, ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & stat.S_IWOTH or found.st_size > LARGEST:
            raise ValueError("not a file that its owner alone writes")
        return file.read(LARGEST)


def registry_directory(environ: Mapping[str, str], named: str | os.PathLike[str] | None = None) -> Path:
    """The registry's folder: the environment's, else the one that a file names, else the user's own."""
    return shared_directory(environ, REGISTRY_VARIABLE, named, "registry")


def shared_directory(environ: Mapping[str, str], variable: str, named: str | os.PathLike[str] | None, name: str) -> Path:
    """A folder that a fleet's parts share: the one in ``variable``, else ``named``, else ``name`` in the user's own state.

    It must lie on a file system that every node sees; a home directory usually does.
    """
    if place := environ.get(variable, "").strip() or named:
        return Path(place).expanduser().absolute()
    home = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return Path(home) / "workflow-composer" / name
