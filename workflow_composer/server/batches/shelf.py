"""Files and batches on disk: a folder per owner, a record (JSON) and the content of each file, a record of each batch.

All workers share the folders. Nobody but the service's user may read them, since they hold prompts and answers. Records are
replaced whole, and a batch is changed by the worker that runs it only; other workers ask for its end with a marker.
All functions block on the disk: call them from a thread.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from workflow_composer.server.failures import HttpFailure
from workflow_composer.storage.locks import locked
from workflow_composer.storage.replacing import replace_file, replacing

NOBODY = "nobody"
"""The owner of all files if the service has no keys."""
MOST_FILES, MOST_BYTES = 1000, 2**30
"""What one owner may keep: files, and bytes of all of them together, answers included."""
MOST_UNFINISHED = 20
"""Batches of one owner that are not finished."""
MOST_LINES = 50_000
"""Lines of one batch."""
FINISHED = frozenset({"completed", "failed", "expired", "cancelled"})
_DAY = 86_400.0
_FILE, _BATCH = re.compile(r"file-[0-9a-f]{24}(-errors)?"), re.compile(r"batch_[0-9a-f]{24}")
_BLOCK = 2**16
_decode = msgspec.json.decode


@dataclass(slots=True)
class StoredFile:
    """A file's record. Times in epoch seconds, sizes in bytes."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str

    @property
    def shown(self) -> dict[str, Any]:
        """The record as clients see it."""
        own = {name: getattr(self, name) for name in self.__slots__}
        return {**own, "object": "file", "status": "processed", "status_details": None}


@dataclass(slots=True)
class StoredBatch:
    """A batch's record: what clients see of it, and the headers of the request that began it."""

    shown: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The batch's ID."""
        return str(self.shown["id"])

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.shown["status"] in FINISHED


def _missing(what: str, identity: str) -> HttpFailure:
    return HttpFailure(404, f"there is no {what} {identity[:60]!r} of this API key", code="not_found", param="id")


class Shelf:
    """What one owner has: files and batches. ``days`` is how long they are kept."""

    def __init__(self, root: Path, owner: str, *, days: float, clock: Callable[[], float] = time.time) -> None:
        self.owner = owner
        self._files = root / owner / "files"
        self._batches = root / owner / "batches"
        self._active = root / "active"
        self._kept_for = int(days * _DAY)
        self._clock = clock

    # -------------------------------------------------------------------------------------------------------- files

    def add(self, content: memoryview, filename: str, purpose: str, seconds: int | None = None) -> StoredFile:
        """Keep a file, for ``seconds`` or as long as all. Raises `HttpFailure` 403 if there is no room, OSError."""
        self._make()
        with locked(self._files / "room"):
            known = list(self.files())
            size = sum(one.bytes for one in known)
            if len(known) >= MOST_FILES or size + len(content) > MOST_BYTES:
                limit = f"{MOST_FILES} files of {MOST_BYTES >> 20} MiB together"
                raise HttpFailure(403, f"this API key keeps as much as it may ({limit}); delete files", code="storage_full")
            identity = f"file-{secrets.token_hex(12)}"
            with replacing(self.content(identity), mode=0o600) as file:
                for start in range(0, len(content), _BLOCK):
                    file.write(content[start : start + _BLOCK])
            return self.register(identity, filename, purpose, seconds)

    def register(self, identity: str, filename: str, purpose: str, seconds: int | None = None) -> StoredFile:
        """Write the record of a file whose content is there. Raises OSError."""
        now = int(self._clock())
        kept_for = self._kept_for if seconds is None else min(seconds, self._kept_for)
        size = self.content(identity).stat().st_size
        made = StoredFile(identity, size, now, now + kept_for, filename, purpose)
        record = {name: getattr(made, name) for name in StoredFile.__slots__}
        replace_file(self._files / f"{identity}.json", msgspec.json.encode(record), mode=0o600)
        return made

    def files(self) -> Iterator[StoredFile]:
        """Yield the records of all files."""
        yield from self._records(self._files, "file-", lambda data: StoredFile(**data))

    def file(self, identity: str) -> StoredFile:
        """Return a file's record. Raises `HttpFailure` 404."""
        if _FILE.fullmatch(identity) is None:
            raise _missing("file", identity)
        try:
            return StoredFile(**_decode((self._files / f"{identity}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            raise _missing("file", identity) from None

    def content(self, identity: str) -> Path:
        """Return where a file's content is."""
        return self._files / f"{identity}.data"

    def delete(self, identity: str) -> None:
        """Delete a file. Raises `HttpFailure` 404, OSError."""
        self.file(identity)
        (self._files / f"{identity}.json").unlink(missing_ok=True)
        self.content(identity).unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------------ batches

    def begin(self, shown: Mapping[str, Any], headers: Mapping[str, str]) -> StoredBatch:
        """Keep a new batch. Raises `HttpFailure` 429 if too many are unfinished, OSError."""
        self._make()
        with locked(self._batches / "room"):
            if sum(not one.finished for one in self.batches()) >= MOST_UNFINISHED:
                message = f"this API key has {MOST_UNFINISHED} unfinished batches; wait, or cancel one"
                raise HttpFailure(429, message, type="rate_limit_error", code="too_many_batches", retry_after=60.0)
            made = StoredBatch({"id": f"batch_{secrets.token_hex(12)}", **shown}, dict(headers))
            self.save(made)
            replace_file(self._active / f"{self.owner}.{made.id}", b"", mode=0o600)
            return made

    def save(self, batch: StoredBatch) -> None:
        """Replace a batch's record. Raises OSError."""
        data = msgspec.json.encode({"shown": batch.shown, "headers": batch.headers})
        replace_file(self._batches / f"{batch.id}.json", data, mode=0o600)

    def batches(self) -> Iterator[StoredBatch]:
        """Yield the records of all batches."""
        yield from self._records(self._batches, "batch_", lambda data: StoredBatch(**data))

    def batch(self, identity: str) -> StoredBatch:
        """Return a batch's record. Raises `HttpFailure` 404."""
        if _BATCH.fullmatch(identity) is None:
            raise _missing("batch", identity)
        try:
            found = StoredBatch(**_decode((self._batches / f"{identity}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            raise _missing("batch", identity) from None
        if not found.finished and self.is_cancelled(identity):
            found.shown["status"] = "cancelling"
        return found

    def journal(self, identity: str) -> Path:
        """Return where a batch's answers are written as they come."""
        return self._batches / f"{identity}.rows"

    def cancel(self, identity: str) -> None:
        """Ask whoever runs a batch to end it. Raises OSError."""
        replace_file(self._batches / f"{identity}.cancel", str(int(self._clock())), mode=0o600)

    def is_cancelled(self, identity: str) -> bool:
        """Whether a batch's end was asked for."""
        return (self._batches / f"{identity}.cancel").exists()

    def cancelled_at(self, identity: str) -> int | None:
        """Return when a batch's end was asked for; None if it was not."""
        try:
            return int((self._batches / f"{identity}.cancel").read_text())
        except (OSError, ValueError):
            return None

    def end(self, identity: str) -> None:
        """Forget that a batch is unfinished, and its journal, whose answers are in files by now. Raises OSError."""
        (self._active / f"{self.owner}.{identity}").unlink(missing_ok=True)
        self.journal(identity).unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------------ records

    def tidy(self) -> None:
        """Delete what has been kept long enough. Raises OSError."""
        now = self._clock()
        for one in list(self.files()):
            if one.expires_at <= now:
                with suppress(HttpFailure):
                    self.delete(one.id)
        for batch in list(self.batches()):
            if batch.finished and batch.shown["created_at"] + self._kept_for <= now:
                for left in self._batches.glob(f"*{batch.id}.*"):
                    left.unlink(missing_ok=True)

    def _make(self) -> None:
        root = self._active.parent
        root.parent.mkdir(parents=True, exist_ok=True)
        for folder in (root, self._active, root / self.owner, self._files, self._batches):
            folder.mkdir(mode=0o700, exist_ok=True)

    def _records(self, folder: Path, start: str, read: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
        for path in folder.glob(f"{start}*.json"):
            with suppress(OSError, ValueError, TypeError):  # deleted meanwhile, or damaged: it is not there
                yield read(_decode(path.read_bytes()))


def unfinished(root: Path) -> list[tuple[str, str]]:
    """Return the owners and IDs of batches that are not finished, in no order."""
    try:
        names = [path.name for path in (root / "active").iterdir()]
    except FileNotFoundError:
        return []
    pairs = (name.partition(".") for name in names)
    return [(owner, identity) for owner, _, identity in pairs if _BATCH.fullmatch(identity)]


def owners(root: Path) -> list[str]:
    """Return the names of all folders of owners."""
    try:
        return [path.name for path in root.iterdir() if path.is_dir() and path.name != "active"]
    except FileNotFoundError:
        return []
