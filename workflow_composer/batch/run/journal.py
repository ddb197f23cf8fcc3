"""The journal of a batch: every finished row is appended, and a later run resumes where this one stopped.

A killed process loses no row for which `RowJournal.append` has returned: the operating system has it by then. A power loss
may lose the rows written since the last `RowJournal.sync`.
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
# Errors of files that one run at a time appends to.
#
# ``other`` names the option to change in hints, such as "another --output".


def open_own(path: Path, *, other: str) -> OwnFile:
    """Open and lock the file. Raises `InputError` if another run holds the lock, else the error of `unwritable`."""
    try:
        return OwnFile.open(path)
    except TimeoutError:
        hint = "wait for that run or stop it; then run the same command again to resume"
        raise InputError(f"another run is writing to {path}", hint=hint) from None
    except OSError as error:
        raise unwritable(path, error, other=other) from error


def unwritable(path: Path, error: OSError, *, other: str) -> WorkflowComposerError:
    """Return the error for a file that cannot be written, with a hint for its cause."""
    odd = (errno.EISDIR, errno.ENOENT, errno.EACCES, errno.EROFS, errno.EINVAL)
    kind = InputError if error.errno in odd else WorkflowComposerError
    hints = {
        errno.EISDIR: f"choose {other}, or a file in this folder",
        errno.EINVAL: f"choose {other}",
        errno.ENOENT: "create its folder first",
        errno.ENOLCK: f"choose {other} on another file system",
        errno.ENOSYS: f"choose {other} on another file system",
        errno.EACCES: f"give this user write permission, or choose {other}",
    }
    again = "free disk space; then run the same command again: it resumes, and no finished row is lost"
    return kind(f"cannot write {path}: {error.strerror or error}", hint=hints.get(error.errno or 0, again))


_OPEN, _FAILED, _DONE = 0, 1, 2
_ROWS = "rows"
_SHOWN = 24
_OTHER = "another output folder"


class RowJournal:
    """A file of finished rows, locked for this process from `open` to `close`. A context manager.

    Every row is one ``write`` of one line with a checksum. An incomplete last line is dropped on opening; any other damage
    is an error. Failed rows are written too, but are not `is_done`: they are tried again, and the later record counts.
    Keeps one byte per row of the data set in memory.
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
        """Open and lock the file and read its records; call ``each`` with the head of every record.

        ``run`` (JSON-serializable digests, settings, version) and ``rows`` (of the data set) identify the run. Raises
        `InputError` if the file is locked by another run, is damaged, is not a journal, or is the journal of another run.
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
        """The number of rows of the data set."""
        return len(self._state)

    @property
    def done(self) -> int:
        """The number of answered rows."""
        return self._state.count(_DONE)

    @property
    def failed(self) -> int:
        """The number of rows whose last record is an error."""
        return self._state.count(_FAILED)

    def is_done(self, row: int) -> bool:
        """Whether the row is answered."""
        return self._state[row] == _DONE

    def append(self, record: RowRecord) -> None:
        """Append a finished row.

        Raises `WorkflowComposerError` if the disk is full; earlier lines stay intact, and later calls raise as well. Raises
        ValueError for a row that is answered already or is not in the data set.
        """
        if not 0 <= record.row < self.rows or self.is_done(record.row):
            raise ValueError(f"row {record.row} is answered already or is not in 0..{self.rows - 1}")
        if not self._file.is_open or self._broken:
            raise WorkflowComposerError(f"{self.path} is closed", hint="run the same command again to resume")
        self._write(record_line(record))
        self._state[record.row] = _DONE if record.error is None else _FAILED

    def sync(self) -> None:
        """Flush all written lines to disk (fsync); slow, but safe to call from another thread."""
        if self._file.is_open:
            try:
                self._file.sync()
            except OSError as error:
                raise unwritable(self.path, error, other=_OTHER) from error

    def close(self) -> None:
        """Close the file and release the lock."""
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
                f"{self.path}:{number}: row {head.row} is a duplicate or is not in 0..{self.rows - 1}",
                hint=f"the file was edited; delete the line (sed -i {number}d)",
            )
        self._state[head.row] = _DONE if head.error is None else _FAILED
        each(head)

    def _write(self, line: bytes) -> None:
        try:
            self._file.append(line)
        except OSError as error:
            self._broken = True
            with suppress(OSError):  # otherwise the incomplete line is dropped on the next opening
                self._file.cut(self._size)
            raise unwritable(self.path, error, other=_OTHER) from error
        self._size += len(line)


def fingerprint(parts: Iterable[str]) -> str:
    """Return a SHA-256 digest (hex) of the texts in order, such as the routes of all rows for ``run``."""
    total = hashlib.sha256()
    for part in parts:
        text = part.encode(errors="surrogatepass")
        total.update(b"%d:" % len(text) + text)
    return total.hexdigest()


# -------------------------------------------------------------------------------------------------- identity of a run


def _compare(then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    before, after = dict(_flat(then)), dict(_flat(json.loads(json.dumps(now))))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if names:
        told = "; ".join(f"{name} was {_shown(before.get(name))} and is {_shown(after.get(name))}" for name in names)
        raise InputError(
            f"{path} is the journal of another run: {told}",
            hint="choose another output folder for this run, or restore the earlier settings",
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
