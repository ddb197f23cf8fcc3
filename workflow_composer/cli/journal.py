"""The output file of a batch: rows are appended as they are answered, and a later run goes on where this one stopped."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from workflow_composer.batch.locking import open_own, unwritable
from workflow_composer.cli.rows import Row
from workflow_composer.errors import InputError
from workflow_composer.storage.appending import OwnFile
from workflow_composer.storage.lines import encoded

OTHER = "another --output"

_BEGIN = b'{"index":'
_NO_KEY = 0
_MOST_ROWS = 1 << 28
"""Two gigabytes of keys: no index beyond this is believed."""


class Journal:
    """An output file, locked for this process from `open` to `close`.

    Opening reads what an earlier run has left. Rows with errors are dropped, to be tried again; so is a last line that was
    only half written. Anything else that is no row of such a file is an error, so that no other file is ever overwritten.
    Each row is one ``write``: a process that is killed loses the rows in flight and none besides.
    """

    def __init__(self, file: OwnFile) -> None:
        self.path = file.path
        self._file = file
        self._keys = array("Q")
        self.dropped = 0

    @classmethod
    def open(cls, path: Path, *, source: Path, each: Callable[[Mapping[str, Any]], None]) -> Self:
        """Open and lock the file; ``each`` is told every row that stays.

        Raises `InputError` where it is the input itself (``source``), is in use, or holds something else.
        """
        path = Path(os.path.realpath(path))
        if path.exists() and source.exists() and path.samefile(source):
            raise InputError(f"{path} is both input and output", hint="name another --output")
        journal = cls(open_own(path, other=OTHER))
        try:
            journal._read(each)
        except OSError as error:
            journal.close()
            raise unwritable(path, error, other=OTHER) from error
        except BaseException:
            journal.close()
            raise
        return journal

    def close(self) -> None:
        """Let others have the file."""
        self._file.close()

    def is_done(self, row: Row) -> bool:
        """Whether the row has its answer. Raises `InputError` where the answer is to another row or other options."""
        key = self._keys[row.index] if row.index < len(self._keys) else _NO_KEY
        if key == _NO_KEY:
            return False
        if key != _number(row.key):
            raise InputError(
                f"{self.path} answers another row {row.index} than the one in line {row.line} of the input: "
                "the input or the options (task, model, system, temperature, ...) have changed since",
                hint="name another --output for the new run",
            )
        return True

    @property
    def rows(self) -> int:
        """One more than the highest index that is answered."""
        return len(self._keys)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a row. Raises `WorkflowComposerError` where there is no room; what was written before stays whole."""
        try:
            self._file.append(encoded(record))
        except OSError as error:
            raise unwritable(self.path, error, other=OTHER) from error

    # ------------------------------------------------------------------------------------------- what was there before

    def _read(self, each: Callable[[Mapping[str, Any]], None]) -> None:
        for _, record in self._records():
            if record is None:
                self.dropped += 1
            else:
                self._remember(record)
                each(record)
        if self.dropped:
            self._rewrite()

    def _records(self) -> Iterator[tuple[bytes, Mapping[str, Any] | None]]:
        """Lines and what they hold; None for those to drop."""
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                record = _record(line)
                if record is None:
                    if next(lines, None) is not None or not _half_written(line):
                        raise InputError(
                            f"{self.path}:{number}: this is no row that `generate` wrote",
                            hint="name another --output, or take the line out",
                        )
                    yield line, None
                    return
                yield line, None if "error" in record or self._has(record["index"]) else record

    def _has(self, index: int) -> bool:
        return index < len(self._keys) and self._keys[index] != _NO_KEY

    def _remember(self, record: Mapping[str, Any]) -> None:
        index = record["index"]
        if index >= len(self._keys):
            self._keys.extend([_NO_KEY] * (index + 1 - len(self._keys)))
        self._keys[index] = _number(record["key"])

    def _rewrite(self) -> None:
        """Put a file without the dropped lines in the place of this one, all at once."""
        self._keys = array("Q")
        with self._file.rewriting() as copy:
            for line, record in self._records():
                if record is not None:
                    self._remember(record)
                    copy.write(line)


def _record(line: bytes) -> Mapping[str, Any] | None:
    """The row that a line holds; None where it is not one."""
    if not line.startswith(_BEGIN) or not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
        index, key = found["index"], found["key"]
        whole = isinstance(index, int) and 0 <= index < _MOST_ROWS and _number(key) != _NO_KEY
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if whole else None


def _half_written(line: bytes) -> bool:
    """Whether a last line is what a crash leaves: a row without its end, or the zeros of a block that never came."""
    return (_BEGIN.startswith(line[: len(_BEGIN)]) and not line.endswith(b"\n")) or not line.strip(b"\0\n")


def _number(key: str) -> int:
    return int(key, 16) or 1
