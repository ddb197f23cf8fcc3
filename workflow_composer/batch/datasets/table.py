"""Opens any table: a path or a name, in any of the formats, with its columns found. The one door to people's files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from workflow_composer.batch.datasets.columns import Columns, Found, Search, listed
from workflow_composer.batch.datasets.content import BODY, RowContent, Taking
from workflow_composer.batch.datasets.delimited import Delimited
from workflow_composer.batch.datasets.formats import Format, JsonLines, first_rows, format_of
from workflow_composer.batch.datasets.locating import Located, locate, near_paths
from workflow_composer.batch.datasets.request_fields import is_batch_line
from workflow_composer.errors import InputError, nearest
from workflow_composer.storage.lines import opened, unreadable

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 1 << 20
_CHANGED = "has changed since the run began"


class TableRow(NamedTuple):
    """A row: its number from 0, its place for messages (file and line, or row), and its columns in the file's order."""

    number: int
    where: str
    values: Mapping[str, Any]


def read_table(
    source: str | Path,
    *,
    columns: Columns | None = None,
    data_dir: Path | None = None,
    split: str | None = None,
    asks: bool = True,
) -> Table:
    """Open a table: a path to a file or folder, a pattern of paths, or a name to be searched for in ``data_dir``.

    ``columns`` names columns; the others are found by their names. ``asks``: some column must hold the question. Raises
    `InputError` if there is no such table, if its first rows are invalid, or if it is unclear which columns are meant.
    """
    return Table(locate(source, data_dir, split), columns or Columns(), asks=asks)


class Table:
    """The rows of a table's files, in order. Every iteration reads the files again, in memory for one row.

    ``name``; ``split`` (None: the only one); ``paths`` in order; ``columns`` with resolved names; ``names`` of all columns;
    ``notes`` on what was guessed; ``digest`` (hex) of the files' names, sizes and modification times at construction.
    Reading raises `InputError` at the first invalid row, and if a file has changed since construction.
    """

    def __init__(self, located: Located, columns: Columns, *, asks: bool = True) -> None:
        self.name = located.name
        self.split = located.split
        self.paths = located.paths
        self._stamps = {path: _stamp(path) for path in self.paths}
        self._formats: dict[Path, Format] = {path: format_of(path) for path in self.paths}
        self.digest = hashlib.sha256(repr([(p.name, *self._stamps[p]) for p in self.paths]).encode()).hexdigest()
        self.names: tuple[str, ...] = ()
        found = self._found(columns, located.known, asks=asks)
        self.taking = Taking(found, self.names)
        self.columns = self.taking.found.columns
        self.notes = tuple(dict.fromkeys(note for path, form in self._formats.items() for note in form.notes(path)))

    def __repr__(self) -> str:
        return f"Table({self.name}{':' + self.split if self.split else ''}, {len(self.paths)} files)"

    @property
    def is_batch(self) -> bool:
        """Whether the rows are requests of the OpenAI Batch API."""
        return self.taking.found.question == BODY

    def describe(self) -> str:
        """Return in one line what is taken from the rows, such as ``question: problem, label: none``."""
        found = self.taking.found
        taken = "OpenAI Batch requests" if self.is_batch else found.describe()
        return "; ".join((taken, *self.notes))

    @property
    def is_typed(self) -> bool:
        """Whether cells have types of their own, as in JSON; those of delimited text do not."""
        return not any(isinstance(form, Delimited) for form in self._formats.values())

    def count(self) -> int:
        """Return the number of rows. Raises `InputError` if a file is damaged."""
        return sum(self._counts)

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(form.count(path) for path, form in self._formats.items())

    def rows(self, start: int = 0, *, every: bool = True, wanted: Callable[[int], bool] | None = None) -> Iterator[TableRow]:
        """Yield the rows in order, beginning at number ``start``; with all columns, or only with those that were found.

        ``wanted`` picks rows by their number.
        """
        names = None if every else self.taking.needed
        first = 0
        for position, (path, form) in enumerate(self._formats.items()):
            if start > first and start >= first + self._counts[position]:
                first += self._counts[position]
                continue
            self._check(path)
            number = max(start, first)
            if wanted is not None and isinstance(form, JsonLines) and len(self.paths) == 1:
                yield from (TableRow(*found) for found in form.picked(path, wanted))
            else:
                for where, values in form.rows(path, number - first, names):
                    if wanted is None or wanted(number):
                        yield TableRow(number, where, values)
                    number += 1
            self._check(path)
            first = number

    def require(self, names: Sequence[str]) -> None:
        """Raise `InputError` if one of these columns is missing."""
        for name in names:
            if name not in self.names:
                hint = nearest(name, self.names) or "choose one of these"
                raise InputError(f"{self.paths[0]}: no column {name!r}; found {listed(self.names)}", hint=hint)

    def asked(self, start: int = 0, *, every: bool = False) -> Iterator[tuple[TableRow, RowContent]]:
        """Yield the rows with what they ask. Raises `InputError` at an invalid row."""
        take = self.taking.take
        for row in self.rows(start, every=every):
            yield row, take(row.values, row.where)

    def arrow_tables(self) -> Iterator[pa.Table]:
        """Yield all rows as Arrow tables with the columns ``question`` and ``label`` (string), quicker than row by row."""
        for path, form in self._formats.items():
            self._check(path)
            yield from form.tables(path, self.taking)
            self._check(path)

    def sha256(self) -> str:
        """Return a SHA-256 digest (hex) of the files' uncompressed bytes and the columns. Reads every file once."""
        total = hashlib.sha256(self.taking.identity.encode())
        for path in self.paths:
            self._check(path)
            of_file = hashlib.sha256()
            with opened(path) as file:
                while block := file.read(_CHUNK):
                    of_file.update(block)
            total.update(of_file.digest())
        return total.hexdigest()

    def check(self) -> None:
        """Raise `InputError` if a file has changed since construction."""
        for path in self.paths:
            self._check(path)

    def _check(self, path: Path) -> None:
        if _stamp(path) != self._stamps[path]:
            raise InputError(f"{path} {_CHANGED}", hint="run the command again")

    def _found(self, wanted: Columns, known: Columns, *, asks: bool) -> Found:
        """Return the columns, found in the first file that has rows; the others must have the question, too."""
        found = None
        for path, form in self._formats.items():
            if (names := form.names(path)) is None:
                continue
            self.names = tuple(dict.fromkeys((*self.names, *names)))
            if found is None:
                sample = first_rows(form, path)
                if sample and all(map(is_batch_line, sample)) and wanted.question is None:
                    return Found(BODY, wanted.label or "", "custom_id")
                found = Search(names, sample, str(path)).find(wanted, known, asks=asks)
                if found.label and not found.choices:
                    found = replace(found, classes=form.classes(path).get(found.label, ()))
            elif found.question and found.question.partition(".")[0] not in names and found.question not in names:
                raise InputError(
                    f"{path}: no column {found.question!r}, unlike {self.paths[0].name}", hint="give one of them"
                )
        if found is None:
            raise InputError(f"{', '.join(map(str, self.paths))} has no rows", hint="check that the file is complete")
        return found


def _stamp(path: Path) -> tuple[int, int]:
    """Return size (bytes) and modification time (ns)."""
    try:
        found = path.stat()
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        if not path.is_file():
            raise InputError(
                f"{path} is not a regular file, but rows must be read twice: once to check them",
                hint="write the rows to a file first",
            )
    except FileNotFoundError as error:
        missing = unreadable(path, error)
        raise InputError(missing.message, hint=near_paths(path, None)) from None
    except OSError as error:
        raise unreadable(path, error) from None
    return found.st_size, found.st_mtime_ns
