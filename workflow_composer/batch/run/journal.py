"""The journal of a batch: every finished row is appended, and a later run goes on where this one stopped.

A process that is killed at any moment loses no row that `RowJournal.append` has returned from, as the system has it by then.
A machine that loses power may lose what was written since the last `RowJournal.sync`.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from workflow_composer.batch.run.lines import head_of, header_line, header_of, record_line, whole_lines
from workflow_composer.batch.run.records import Head, RowRecord
from workflow_composer.errors import InputError, WorkflowComposerError
from workflow_composer.storage.appending import OwnFile

# ----------------------------------------------------------------------------------------------------------------- locking
#
# Files that one run at a time appends to: what to say where one cannot be opened or written.
#
# ``other`` is what a user may name to write elsewhere: "another --output", say.


def open_own(path: Path, *, other: str) -> OwnFile:
    """Open and lock the file. Raises `InputError` where another run holds it, and as `unwritable` says."""
    try:
        return OwnFile.open(path)
    except TimeoutError:
        hint = "wait for it or stop it; then run this again, and it goes on there"
        raise InputError(f"another run is writing to {path}", hint=hint) from None
    except OSError as error:
        raise unwritable(path, error, other=other) from error


def unwritable(path: Path, error: OSError, *, other: str) -> WorkflowComposerError:
    """The error for a file that cannot be written, with the remedy for its cause."""
    odd = (errno.EISDIR, errno.ENOENT, errno.EACCES, errno.EROFS, errno.EINVAL)
    kind = InputError if error.errno in odd else WorkflowComposerError
    hints = {
        errno.EISDIR: f"name {other}, or a file in it",
        errno.EINVAL: f"name {other}",
        errno.ENOENT: "make its folder first",
        errno.ENOLCK: f"name {other} on another file system",
        errno.ENOSYS: f"name {other} on another file system",
        errno.EACCES: f"allow this user to write it, or name {other}",
    }
    again = "make room; then run the same command again, and it goes on where it stopped: nothing is lost"
    return kind(f"cannot write {path}: {error.strerror or error}", hint=hints.get(error.errno or 0, again))


pass  # MERGED

_OPEN, _FAILED, _DONE = 0, 1, 2
_ROWS = "rows"
_SHOWN = 24
_OTHER = "another output folder"


class RowJournal:
    """A file of finished rows, locked for this process from `open` to `close`. A context manager.

    Every row is one ``write`` of one line with a checksum. A last line that was only half written is dropped on opening;
    any other damage is an error. A row with an error is written down too, and is not `is_done`: it is tried again, and the
    later record counts. One byte per row of the data set is kept in memory.
    """

    def __init__(self, file: OwnFile, rows: int) -> None:
        self.path = file.path
        self._file = file
        self._state = bytearray(rows)
        self._size = 0
        self._broken = False

    @classmethod
    def open(
        cls, path: Path, run: Mapping[str, Any], *, rows: int, each: Callable[[Head], None] = lambda head: None
    ) -> Self:
        """Open and lock the file, and read what earlier runs have left; ``each`` is told the head of every record.

        ``run`` (plain data for JSON) and ``rows`` (of the data set) say what the journal is of: digests, settings, version.
        Raises `InputError` where the file is in use, is damaged, is no journal, or is one of something else.
        """
        journal = cls(open_own(path, other=_OTHER), rows)
        try:
            journal._begin({_ROWS: rows, **run}, each)
        except OSError as error:
            journal.close()
            raise unwritable(path, error, other=_OTHER) from error
        except BaseException:
            journal.close()
            raise
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def rows(self) -> int:
        """Rows of the data set."""
        return len(self._state)

    @property
    def done(self) -> int:
        """Rows that have their answer."""
        return self._state.count(_DONE)

    @property
    def failed(self) -> int:
        """Rows whose last record is an error."""
        return self._state.count(_FAILED)

    def is_done(self, row: int) -> bool:
        """Whether the row has its answer."""
        return self._state[row] == _DONE

    def append(self, record: RowRecord) -> None:
        """Write a finished row down.

        Raises `WorkflowComposerError` where there is no room; what was written before stays whole, and no later call
        writes anything. Raises ValueError for a row that is done or none of the data set's.
        """
        if not 0 <= record.row < self.rows or self.is_done(record.row):
            raise ValueError(f"row {record.row} is done already, or is none of {self.rows}")
        if not self._file.is_open or self._broken:
            raise WorkflowComposerError(f"{self.path} is not open any more", hint="run the same command again to go on")
        self._write(record_line(record))
        self._state[record.row] = _DONE if record.error is None else _FAILED

    def sync(self) -> None:
        """Have all that was written put on the disk itself; slow, and safe to call from another thread."""
        if self._file.is_open:
            try:
                self._file.sync()
            except OSError as error:
                raise unwritable(self.path, error, other=_OTHER) from error

    def close(self) -> None:
        """Let others have the file."""
        self._file.close()

    def _begin(self, run: Mapping[str, Any], each: Callable[[Head], None]) -> None:
        with self.path.open("rb") as file:
            lines = whole_lines(file, self.path)
            first = next(lines, None)
            if first is not None:
                _compare(header_of(first, self.path, to_go_on=True), run, self.path)
                self._size = first.end
            for line in lines:
                self._remember(head_of(line), line.number, each)
                self._size = line.end
        self._file.cut(self._size)
        if first is None:
            self._write(header_line(run))
            self._file.sync()

    def _remember(self, head: Head, number: int, each: Callable[[Head], None]) -> None:
        if not 0 <= head.row < self.rows or self.is_done(head.row):
            raise InputError(
                f"{self.path}:{number}: row {head.row} is there before, or is none of {self.rows}",
                hint=f"someone has changed the file; take the line out (sed -i {number}d)",
            )
        self._state[head.row] = _DONE if head.error is None else _FAILED
        each(head)

    def _write(self, line: bytes) -> None:
        try:
            self._file.append(line)
        except OSError as error:
            self._broken = True
            with suppress(OSError):  # what is left of the line is dropped when the file is opened again
                self._file.cut(self._size)
            raise unwritable(self.path, error, other=_OTHER) from error
        self._size += len(line)


def fingerprint(parts: Iterable[str]) -> str:
    """A digest (hex) of texts in their order: of a million rows' routes, for ``run``."""
    total = hashlib.sha256()
    for part in parts:
        text = part.encode(errors="surrogatepass")
        total.update(b"%d:" % len(text) + text)
    return total.hexdigest()


# ------------------------------------------------------------------------------------------------------ what it is of


def _compare(then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    before, after = dict(_flat(then)), dict(_flat(json.loads(json.dumps(now))))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if names:
        told = "; ".join(f"{name} was {_shown(before.get(name))} and is {_shown(after.get(name))}" for name in names)
        raise InputError(
            f"{path} is the journal of another run: {told}",
            hint="name another output folder for this run, or go back to what it was",
        )


def _flat(found: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(found, Mapping) and (found or not name):
        for key, value in found.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, found


def _shown(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN // 2] + "…" + text[-_SHOWN // 4 :]


# ------------------------------------------------------------------------------------------------------------ the file
