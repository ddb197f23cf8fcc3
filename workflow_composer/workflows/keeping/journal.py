"""The journal of a run of a workflow: every answer is appended before it is used, and a later run finds it again.

A killed process loses no answer for which `WorkflowJournal.append` has returned; a power loss may lose those since the last
`WorkflowJournal.sync`. Each line carries a checksum: a torn or damaged one costs itself only. Lines are never changed.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Self

from workflow_composer.batch.run.journal import open_own, unwritable
from workflow_composer.errors import InputError
from workflow_composer.storage.appending import OwnFile
from workflow_composer.storage.lines import encoded, encoded_fast
from workflow_composer.types import EMPTY
from workflow_composer.workflows.keeping.answers import KeptAnswer, StepQuestion
from workflow_composer.workflows.keeping.index import EntryIndex

FORMAT = 1
_VERSION = version("workflow-composer")
_OTHER = "another --output"
_RUN_ROW = "0" * 16
"""The row of what belongs to no row, such as a step of the run."""

ANSWER, SHARED, FAILED, REPLY, NOTE = "answer", "shared", "failed", "reply", "note"
"""Kinds of entries: an answer; one that equal questions of other rows may use; a failure; what a question has got while it
has no answer; what a run says about itself.
"""

_HEADER = re.compile(rb'\{"workflow_journal":(\d+)[,}]')
_SUM = re.compile(
    rb'\{"sum":"([0-9a-f]{8})"(,"row":"([0-9a-f]{16})","kind":"(\w+)","digest":"([0-9a-f]*)","cost":([0-9.e+-]+),)'
)


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A line: ``offset`` (bytes) tells its age, ``fields`` are its JSON data."""

    offset: int
    fields: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Where it was asked."""
        return str(self.fields.get("place", ""))

    @property
    def digest(self) -> str:
        """The question's digest."""
        return str(self.fields["digest"])

    @property
    def answer(self) -> KeptAnswer:
        """What it keeps."""
        return KeptAnswer(value=self.fields.get("value"), facts=self.fields.get("facts") or EMPTY)


@dataclass(slots=True)
class JournalCounts:
    """What a journal had when it was opened: ``unreadable`` lines, entries, and dollars ``spent`` by all its runs."""

    unreadable: int = 0
    answers: int = 0
    failures: int = 0
    spent: float = 0.0
    by_kind: dict[str, int] = field(default_factory=dict)


class WorkflowJournal:
    """Answers and failures of a run, locked for this process from `open` to `close`. A context manager; for one thread.

    ``began`` is the size of the file when it was opened: entries from there on are of this run.
    """

    def __init__(self, file: OwnFile) -> None:
        self.path = file.path
        self.counts = JournalCounts()
        self.began = 0
        self.notes: list[JournalEntry] = []
        self._file = file
        self._index = EntryIndex()
        self._size = 0
        self._reading: BinaryIO | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open, lock and read the file; create it with mode 0600.

        Raises `InputError` if another run has it open, if it is no workflow's journal or one of a newer version (it is then
        left as it is), `WorkflowComposerError` if it cannot be written.
        """
        journal = cls(open_own(path, other=_OTHER))
        try:
            journal._begin()
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

    def __len__(self) -> int:
        return len(self._index)

    def append(self, kind: str, question: StepQuestion | None, *, cost: float = 0.0, **fields: Any) -> int:
        """Write an entry; return its offset. Raises `WorkflowComposerError` if the disk is full; nothing is written then."""
        row = question.row if question is not None and question.row else _RUN_ROW
        digest = "" if question is None else question.digest
        if question is not None:
            fields = {"place": question.place, "parts": dict(question.parts), **fields}
        return self._write([entry_line(row, kind, digest, cost, fields)], row, kind, digest)

    def append_replies(self, question: StepQuestion, entries: Sequence[tuple[str, float, Mapping[str, Any]]]) -> None:
        """Write what a question has got, as place, dollars and fields: all in one piece, so that a kill parts none."""
        row, digest = question.row or _RUN_ROW, question.digest
        lines = [entry_line(row, REPLY, digest, cost, {"place": place, **fields}) for place, cost, fields in entries]
        self._write(lines, row, REPLY, digest)

    def _write(self, lines: Sequence[bytes], row: str, kind: str, digest: str) -> int:
        """Append lines; return the offset of the first."""
        first = self._size
        try:
            self._file.append(b"".join(lines))
        except OSError as error:
            raise unwritable(self.path, error, other=_OTHER) from error
        for line in lines:
            self._remember(row, kind, digest, self._size)
            self._size += len(line)
        return first

    def entries(self, row: str) -> list[JournalEntry]:
        """Return the entries of a row ("": of the run), the oldest first."""
        return [self._read(offset) for offset in self._index.offsets(_number(row or _RUN_ROW))]

    def shared(self, digest: str) -> JournalEntry | None:
        """Return the newest answer to a question of any row that may be shared."""
        offsets = self._index.offsets(_shared_number(digest))
        found = [entry for offset in offsets[-4:] if (entry := self._read(offset)).digest == digest]
        return found[-1] if found else None

    def replies(self, row: str, digest: str) -> list[JournalEntry]:
        """Return what a question of a row ("": of the run) has got before it had an answer, the oldest first."""
        row = row or _RUN_ROW
        found = map(self._read, self._index.offsets(_reply_number(row, digest)))
        return [entry for entry in found if entry.digest == digest and entry.fields["row"] == row]

    def sync(self) -> None:
        """Flush all entries to disk; slow, but safe to call from another thread."""
        if self._file.is_open:
            try:
                self._file.sync()
            except OSError as error:
                raise unwritable(self.path, error, other=_OTHER) from error

    def close(self) -> None:
        """Close the file and release the lock."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None
        self._file.close()

    def _begin(self) -> None:
        size = self._file.size
        if not size:
            line = encoded({"workflow_journal": FORMAT, "made_by": _VERSION})
            self._file.append(line)
            self._file.sync()
            self._size = self.began = len(line)
            return
        with self.path.open("rb") as file:
            check_header(file.readline(), self.path)
            file.seek(0)
            self._index_all(file)
            file.seek(size - 1)
            torn = file.read(1) != b"\n"
        if torn:
            self._file.append(b"\n")  # the next entry must begin a line of its own
        self._size = self.began = self._file.size

    def _index_all(self, file: BinaryIO) -> None:
        counts = self.counts

        def bad(number: int, line: bytes) -> None:
            counts.unreadable += number > 0 or _HEADER.match(line) is None

        for offset, found, _ in readable_lines(file, bad):
            kind = found[4].decode()
            counts.by_kind[kind] = counts.by_kind.get(kind, 0) + 1
            counts.spent += float(found[6])
            self._remember(found[3].decode(), kind, found[5].decode(), offset)
            if kind == NOTE:
                self.notes.append(self._read(offset))
        counts.answers = counts.by_kind.get(ANSWER, 0) + counts.by_kind.get(SHARED, 0)
        counts.failures = counts.by_kind.get(FAILED, 0)
        if not self._index and counts.unreadable and not _is_ours(self.path):
            raise InputError(f"{self.path} is not the journal of a workflow", hint=f"choose {_OTHER}, or move the file")

    def _remember(self, row: str, kind: str, digest: str, offset: int) -> None:
        if kind == NOTE:
            return
        self._index.add(_reply_number(row, digest) if kind == REPLY else _number(row), offset)
        if kind == SHARED:
            self._index.add(_shared_number(digest), offset)

    def _read(self, offset: int) -> JournalEntry:
        if self._reading is None:
            self._reading = self.path.open("rb")
        self._reading.seek(offset)
        return JournalEntry(offset, json.loads(self._reading.readline()))


def entry_line(row: str, kind: str, digest: str, cost: float, fields: Mapping[str, Any]) -> bytes:
    """Return the line of an entry, with its checksum."""
    rest = encoded_fast(fields)[1:]  # without the opening brace
    said = f',"row":"{row}","kind":"{kind}","digest":"{digest}","cost":{max(cost, 0.0):.12g},'.encode() + rest
    return b'{"sum":"%08x"' % zlib.crc32(said[:-1]) + said


def readable_lines(
    file: BinaryIO, bad: Callable[[int, bytes], None] = lambda number, line: None
) -> Iterator[tuple[int, re.Match[bytes], bytes]]:
    """Yield offset, fields and text of every line that is whole; ``bad`` gets the number (from 0) and text of the others."""
    offset, match, crc = 0, _SUM.match, zlib.crc32
    for number, line in enumerate(file):
        found = match(line)
        if found is not None and int(found[1], 16) == crc(line[17:-1] if line[-1:] == b"\n" else line[17:]):
            yield offset, found, line
        else:
            bad(number, line)
        offset += len(line)


def journal_entries(path: Path) -> Iterator[JournalEntry]:
    """Yield all readable entries of a journal in the order of writing, also while a run writes to it."""
    with path.open("rb") as file:
        for offset, _, line in readable_lines(file):
            yield JournalEntry(offset, json.loads(line))


def check_header(line: bytes, path: Path) -> None:
    """Raise `InputError` if the first line of a journal says that a newer version wrote it."""
    found = _HEADER.match(line)
    if found is not None and int(found[1]) > FORMAT:
        raise InputError(
            f"{path} was written in format {int(found[1])}, and this version ({_VERSION}) reads format {FORMAT}",
            hint=f"use the newer version of workflow-composer, or choose {_OTHER}",
        )


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return _HEADER.match(file.readline()) is not None


def _number(row: str) -> int:
    return int(row, 16) or 1


def _reply_number(row: str, digest: str) -> int:
    return int(row, 16) ^ int(digest[:16] or "0", 16) ^ 0x3C3C3C3C3C3C3C3C or 1


def _shared_number(digest: str) -> int:
    return int(digest[-16:], 16) ^ 0x5A5A5A5A5A5A5A5A or 1
