"""Data sets: found by the name they have on the hub, read row by row in constant memory.

Names are written with ``_`` for ``/`` (``openai_gsm8k``); ``NAME:SPLIT`` asks for a split. Where files are looked for, and
which columns are read, is told in ``docs/datasets.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_composer.batch.columns import Columns
from workflow_composer.batch.finding import Found, look_for
from workflow_composer.batch.formats import BATCH
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import opened, unreadable
from workflow_composer.values import quick

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 1 << 20


@quick
@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number in the data set from 0, its id (the number where the data have none), question and label."""

    row: int
    id: str
    question: str
    label: str | None


def find(name: str, data_dir: Path, split: str | None = None, *, columns: Columns | None = None) -> DataSet:
    """The data set ``name`` (or ``NAME:SPLIT``) among the files of a folder.

    ``columns`` names those that are not to be found by their usual names. Raises `InputError` that lists the file names
    looked for where there is none, and for whatever is wrong with the first rows.
    """
    name, _, named = name.partition(":")
    if split and named and split != named:
        raise InputError(f"{name}:{named} and the split {split!r} contradict each other", hint="name the split once")
    return DataSet(look_for(name, data_dir, split or named or None), columns or Columns())


class DataSet:
    """Files that hold the rows of a data set, one after the other. Every iteration reads them anew.

    ``name`` and ``split`` (None: the only one there is); ``paths`` in order; ``columns`` as settled; ``digest`` (hex) of the
    files' names, sizes and times of change when this was made. Reading raises `InputError` at the first fault, and where a
    file is no longer the one that the digest was made of.
    """

    def __init__(self, found: Found, columns: Columns) -> None:
        self.name = found.name
        self.split = found.split
        self.paths = found.paths
        self._format = found.format
        self._stamps = {path: _stamp(path) for path in self.paths}
        self.digest = hashlib.sha256(repr([(p.name, *self._stamps[p]) for p in self.paths]).encode()).hexdigest()
        self.columns = self._settled(columns, found.known)

    def __repr__(self) -> str:
        return f"DataSet({self.name}{':' + self.split if self.split else ''}, {len(self.paths)} files)"

    def count(self) -> int:
        """How many rows there are. Raises `InputError` where there is none."""
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(self._counts)

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(self._format.count(path) for path in self.paths)

    def rows(self, start: int = 0) -> Iterator[Row]:
        """Rows in order, from number ``start`` on."""
        first = 0
        for position, path in enumerate(self.paths):
            if start > first and start >= first + self._counts[position]:
                first += self._counts[position]
                continue
            self._check(path)
            number = max(start, first)
            for key, question, label in self._format.rows(path, self.columns, number - first):
                yield Row(number, str(number) if key is None else key, question, label)
                number += 1
            self._check(path)
            first = number

    def chunks(self, size: int = BATCH) -> Iterator[pa.Table]:
        """The same rows as tables of at most ``size`` rows with the columns ``question`` and ``label`` (string).

        A label is null where a row has none. Raises `ConfigError` where pyarrow is not installed.
        """
        for path in self.paths:
            self._check(path)
            for table in self._format.tables(path, self.columns):
                for first in range(0, table.num_rows, size):
                    yield table.slice(first, size)
            self._check(path)

    def sha256(self) -> str:
        """A digest (hex) of what the rows are: the files' bytes, unpacked, and the columns. It reads every file once."""
        total = hashlib.sha256(repr(self.columns).encode())
        for path in self.paths:
            self._check(path)
            of_file = hashlib.sha256()
            with opened(path) as file:
                while block := file.read(_CHUNK):
                    of_file.update(block)
            total.update(of_file.digest())
        return total.hexdigest()

    def check(self) -> None:
        """Raise `InputError` where a file has changed since this was made."""
        for path in self.paths:
            self._check(path)

    def _check(self, path: Path) -> None:
        if _stamp(path) != self._stamps[path]:
            raise InputError(f"{path} has changed since the run was planned", hint="start the run again")

    def _settled(self, wanted: Columns, known: Columns) -> Columns:
        """The names of the columns; the files after the first must have the same."""
        settled = None
        for path in self.paths:
            if (names := self._format.names(path)) is not None:
                settled = (settled or wanted).among(names, str(path), known)
        if settled is None:
            raise InputError(f"{', '.join(map(str, self.paths))}: no rows", hint="is the file complete?")
        return settled


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change (ns)."""
    try:
        found = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    return found.st_size, found.st_mtime_ns
