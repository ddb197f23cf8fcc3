"""The journal of a batch: every finished row is appended, and a later run resumes where this one stopped.

A killed process loses no row for which `RowJournal.append` has returned: the operating system has it by then. A power loss
may lose the rows written since the last `RowJournal.sync`.
"""

from __future__ import annotations

import errno
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from workflow_composer.batch.keeping.identity import Served, differences
from workflow_composer.batch.keeping.places import NO_KEY, Keys, Moves, moves, number_of
from workflow_composer.batch.run.lines import (
    Line,
    has_keys,
    head_of,
    header_line,
    header_of,
    moved,
    record_line,
    record_of,
    whole_lines,
)
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
_OTHER = "another output folder"
_CONTENT = 16
"""Digits of a row's key that identify its content; the others identify its label."""


@dataclass(frozen=True, slots=True)
class RowKeys:
    """The keys of a data set's rows, in order: `row_key`, or "" for a row of another shard. ``each`` returns them anew.

    ``whole``: they are all rows of the data set, so that an answered row that is not among them was removed or edited.
    ``before`` is the identity in the form of earlier versions, whose journals know rows by their place.
    """

    each: Callable[[], Iterable[str]]
    whole: bool = True
    before: Mapping[str, Any] | None = None


def row_key(content: str, label: str | None) -> str:
    """Return a row's key: the digest of what its answer depends on, and a digest of its label."""
    tag = "" if label is None else hashlib.blake2b(label.encode(errors="surrogatepass"), digest_size=2).hexdigest()
    return content[:_CONTENT] + tag


class RowJournal:
    """A file of finished rows, locked for this process from `open` to `close`. A context manager.

    Every row is one ``write`` of one line with a checksum. An incomplete last line is dropped on opening; any other damage
    is an error. Failed rows are written too, but are not `is_done`: they are tried again, and the later record counts.
    Keeps one byte per row of the data set in memory, and with ``keys`` ten more while it opens.
    """

    def __init__(self, file: OwnFile, rows: int) -> None:
        self.path = file.path
        self._file = file
        self._rows = rows
        self._state = bytearray(rows)
        self._size = 0
        self._broken = False
        self._served = Served(file.path, other=_OTHER)

    @classmethod
    def open(
        cls,
        path: Path,
        run: Mapping[str, Any],
        *,
        rows: int,
        each: Callable[[Head], None] = lambda head: None,
        keys: RowKeys | None = None,
    ) -> Self:
        """Open and lock the file and read its records; call ``each`` with the head of every record.

        ``run`` (JSON-serializable digests, settings, version) identifies the run, and so does ``rows``, the size of the data
        set, unless there are ``keys``: rows are then known by their content, and records get their rows' new places. Raises
        `InputError` if the file is locked by another run, is damaged, is not a journal, or is the journal of another run.
        """
        journal = cls(open_own(path, other=_OTHER), rows)
        try:
            journal._begin(run, each, keys)
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
        return self._rows

    @property
    def done(self) -> int:
        """The number of answered rows."""
        return self._state[: self._rows].count(_DONE)

    @property
    def failed(self) -> int:
        """The number of rows whose last record is an error."""
        return self._state[: self._rows].count(_FAILED)

    def is_done(self, row: int) -> bool:
        """Whether the row is answered."""
        return self._state[row] == _DONE

    def append(self, record: RowRecord) -> None:
        """Append a finished row.

        Raises `WorkflowComposerError` if the disk is full; earlier lines stay intact, and later calls raise as well. Raises
        `InputError` if a server reports another model than in earlier runs, ValueError for a row that is answered already or
        is not in the data set.
        """
        if not 0 <= record.row < self.rows or self.is_done(record.row):
            raise ValueError(f"row {record.row} is answered already or is not in 0..{self.rows - 1}")
        if not self._file.is_open or self._broken:
            raise WorkflowComposerError(f"{self.path} is closed", hint="run the same command again to resume")
        self._served.check(record.served)
        self._write(record_line(record))
        self._state[record.row] = _DONE if record.error is None else _FAILED

    def adopt(self, path: Path, run: Mapping[str, Any], wanted: dict[str, list[int]]) -> Iterator[Head]:
        """Copy the answers of wanted rows (key: row numbers) from another journal of the same run; yield their heads.

        Rows are removed from ``wanted`` as they are found. Raises `InputError` if it is the journal of another run.
        """
        with path.open("rb") as file:
            for line in whole_lines(file, path):
                if line.number == 1:
                    then = dict(header_of(line, path, to_go_on=True))
                    del then[_ROWS]
                    _compare(then, run, path)
                    continue
                head = head_of(line)
                rows = wanted.get(head.key)
                if rows and head.error is None:
                    record = replace(record_of(line.text), row=rows.pop(0))
                    self._served.remember(head.served)
                    self.append(record)
                    yield record.head

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

    def _begin(self, run: Mapping[str, Any], each: Callable[[Head], None], keys: RowKeys | None) -> None:
        first = self._first()
        if first is None:
            self._file.cut(0)
            self._write(header_line({_ROWS: self._rows, **run}))
            self._file.sync()
            return
        then = dict(header_of(first, self.path, to_go_on=True))
        by_content = keys is not None and has_keys(first)
        if by_content:
            del then[_ROWS]
        elif keys is not None and keys.before is not None:
            run = {_ROWS: self._rows, **keys.before}
        else:
            run = {_ROWS: self._rows, **run}
        _compare(then, run, self.path)
        if by_content:
            assert keys is not None
            self._arrange(keys)
        with self.path.open("rb") as file:
            for line in whole_lines(file, self.path):
                if line.number > 1:
                    self._remember(head_of(line), line.number, each, beyond=by_content)
                self._size = line.end
        self._file.cut(self._size)

    def _first(self) -> Line | None:
        with self.path.open("rb") as file:
            return next(whole_lines(file, self.path), None)

    def _arrange(self, keys: RowKeys) -> None:
        """Give every record its row's place in today's data set. Raises `InputError` if rows or labels have changed."""
        kept, tags, now = array("Q"), array("l"), array("l")
        for line in self._records():
            head = head_of(line)
            if head.row >= len(kept):
                more = head.row + 1 - len(kept)
                kept.extend([NO_KEY] * more)
                tags.extend([_NO_LABEL] * more)
            kept[head.row], tags[head.row] = number_of(head.key[:_CONTENT]), _tag(head.key)
        if not kept:
            return

        def rows() -> Iterator[Keys]:
            for key in keys.each():
                now.append(_tag(key))
                yield (number_of(key[:_CONTENT]),) if key else ()

        found = moves(kept, rows())
        self._refuse_changes(found, tags, now, whole=keys.whole)
        if found.places:
            self._move(found)

    def _records(self) -> Iterator[Line]:
        with self.path.open("rb") as file:
            lines = whole_lines(file, self.path)
            next(lines, None)
            yield from lines

    def _refuse_changes(self, found: Moves, tags: array[int], now: array[int], *, whole: bool) -> None:
        if found.lost and whole:
            raise InputError(
                f"{self.path} has answers to {len(found.lost)} rows that the data set no longer has, the first to row "
                f"{found.lost[0]}: the rows, or their routes, have changed",
                hint=f"choose {_OTHER} for the changed rows, or restore them",
            )
        lost = set(found.lost)
        for old, tag in enumerate(tags):
            place = found.places.get(old, old)
            if tag != _NO_LABEL and old not in lost and place < len(now) and now[place] != tag:
                raise InputError(
                    f"{self.path}: the label of row {place} has changed since the row was answered",
                    hint=f"restore the label, or choose {_OTHER}",
                )

    def _move(self, found: Moves) -> None:
        with self._file.rewriting() as copy, self.path.open("rb") as file:
            for line in whole_lines(file, self.path):
                place = None if line.number == 1 else found.places.get(head_of(line).row)
                copy.write(line.text if place is None else moved(line, place))

    def _remember(self, head: Head, number: int, each: Callable[[Head], None], *, beyond: bool) -> None:
        if beyond and head.row >= len(self._state):
            self._state.extend(bytes(head.row + 1 - len(self._state)))
        if not 0 <= head.row < len(self._state) or self._state[head.row] == _DONE:
            raise InputError(
                f"{self.path}:{number}: row {head.row} is a duplicate or is not in 0..{self.rows - 1}",
                hint=f"the file was edited; delete the line (sed -i {number}d)",
            )
        self._state[head.row] = _DONE if head.error is None else _FAILED
        self._served.remember(head.served)
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


_NO_LABEL = -1


def _tag(key: str) -> int:
    """Return the number of a key's label; -1 without a label."""
    return int(key[_CONTENT:], 16) if len(key) > _CONTENT else _NO_LABEL


def _compare(then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    if told := differences(then, now):
        raise InputError(
            f"{path} is the journal of another run: {'; '.join(told)}",
            hint="choose another output folder for this run, or restore the earlier settings",
        )


def fingerprint(parts: Iterable[str]) -> str:
    """Return a SHA-256 digest (hex) of the texts in order, such as the routes of all rows for ``run``."""
    total = hashlib.sha256()
    for part in parts:
        text = part.encode(errors="surrogatepass")
        total.update(b"%d:" % len(text) + text)
    return total.hexdigest()
