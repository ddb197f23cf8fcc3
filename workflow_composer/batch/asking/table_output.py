"""Writing a table: CSV, TSV, JSON lines or Parquet, in constant memory and in the order of its rows.

JSON lines and Parquet keep types. CSV has texts only: null is an empty cell, lists and objects are JSON. A spreadsheet runs
a cell that begins with ``=``, ``+``, ``-`` or ``@`` as a formula, and a model that reads other people's texts can be made to
write one (https://owasp.org/www-community/attacks/CSV_Injection): such a cell of an answer gets a leading apostrophe, unless
it is a number.
"""

from __future__ import annotations

import csv
import io
import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from workflow_composer.batch.datasets.content import arrow_library
from workflow_composer.batch.run.journal import unwritable
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import encoded
from workflow_composer.storage.replacing import replacing

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""The formats that are written."""

OTHER = "another --output"
JOURNAL = ".journal"
"""Suffix of the name of an output's journal, after that of the output."""
_OWNER_ONLY = 0o600  # a table with answers is as private as the answers
_BATCH = 1024
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def journal_beside(output: Path) -> Path:
    """Return the journal of a run: beside its table."""
    return output.with_name(output.name + JOURNAL)


@dataclass(slots=True)
class TableOutput:
    """A table to be written: its ``columns``, and its ``rows``, which are iterated again for every pass.

    ``answers`` are the columns that models have filled with their own words. ``types`` are Arrow types of columns that are
    known beforehand. ``formulas`` counts the cells that got an apostrophe; with ``keep_formulas`` none does.
    """

    columns: Sequence[str]
    rows: Callable[[], Iterable[Mapping[str, Any]]]
    answers: frozenset[str] = frozenset()
    types: Mapping[str, Any] = field(default_factory=dict)
    keep_formulas: bool = False
    formulas: int = 0

    def write(self, path: Path) -> int:
        """Replace the file by the table; return the number of rows. Raises `InputError`, `WorkflowComposerError`."""
        form = suffix_of(path)
        try:
            with replacing(path, mode=None if path.exists() else _OWNER_ONLY) as file:
                if form == ".parquet":
                    return self._parquet(file)
                return (
                    self._lines(file) if form in (".jsonl", ".ndjson") else self._csv(file, "\t" if form == ".tsv" else ",")
                )
        except OSError as error:
            raise unwritable(path, error, other=OTHER) from error

    def _lines(self, file: BinaryIO) -> int:
        count = 0
        for row in self.rows():
            file.write(encoded({name: plain(row[name]) for name in self.columns if name in row}))
            count += 1
        return count

    def _csv(self, file: BinaryIO, delimiter: str) -> int:
        count = 0
        with _text(file) as text:
            writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
            writer.writerow(self.columns)
            for row in self.rows():
                writer.writerow([self._cell(name, row.get(name)) for name in self.columns])
                count += 1
        return count

    def _cell(self, name: str, value: Any) -> str:
        text = cell(value)
        if self.keep_formulas or name not in self.answers or not text.startswith(_FORMULA) or _is_number(text):
            return text
        self.formulas += 1
        return f"'{text}"

    def _parquet(self, file: BinaryIO) -> int:
        pa = arrow_library()
        from pyarrow import parquet

        schema = pa.schema(self._types(pa).items())
        count = 0
        with parquet.ParquetWriter(file, schema) as writer:
            for batch in _batches(self.rows()):
                columns = [self._array(pa, name, schema.field(name).type, batch) for name in self.columns]
                writer.write_batch(pa.record_batch(columns, schema=schema))
                count += len(batch)
        return count

    def _types(self, pa: Any) -> dict[str, Any]:
        """Return the Arrow type of each column: the known one, or the one that holds all its values, or text for JSON."""
        known = {name: self.types[name] for name in self.columns if name in self.types}
        found = dict.fromkeys(self.columns, pa.null())
        for batch in _batches(self.rows()):
            for name in self.columns:
                values = [row.get(name) for row in batch]
                if name in known and not _holds(pa, known[name], values):
                    del known[name]
                found[name] = _joint(pa, found[name], values)
        return {
            name: known.get(name) or (kind if _can_be_written(pa, kind) else pa.string()) for name, kind in found.items()
        }

    @staticmethod
    def _array(pa: Any, name: str, kind: Any, batch: Sequence[Mapping[str, Any]]) -> Any:
        values = [row.get(name) for row in batch]
        if pa.types.is_string(kind):
            values = [value if value is None or isinstance(value, str) else cell(value) for value in values]
            values = [value if value is None else value.encode(errors="backslashreplace").decode() for value in values]
        return pa.array(values, kind)


def types_of(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the Arrow types of Parquet files' columns by name; empty if they differ, or if a file is not Parquet."""
    if any(_begin(path) != b"PAR1" for path in paths):
        return {}
    from pyarrow import parquet

    schemas = [parquet.read_schema(path) for path in paths]
    return {field.name: field.type for field in schemas[0]} if all(map(schemas[0].equals, schemas)) else {}


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def suffix_of(path: Path) -> str:
    """Return the format of a file's name. Raises `InputError` for another one."""
    form = path.suffix.lower()
    if form not in SUFFIXES:
        raise InputError(f"{path} has no known format", hint=f"name the output with one of {', '.join(SUFFIXES)}")
    return form


def cell(value: Any) -> str:
    """Return a value as the text of a CSV cell; null is empty."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    value = plain(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: dates in ISO 8601, decimals as text, bytes in Base64."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


@contextmanager
def _text(file: BinaryIO) -> Iterator[io.TextIOWrapper]:
    """Yield a text file over a binary one, which stays open. Lone surrogates, which UTF-8 cannot encode, are escaped."""
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=False)
    try:
        yield text
        text.flush()
    finally:
        text.detach()


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _joint(pa: Any, kind: Any, values: Sequence[Any]) -> Any:
    """Return the type that holds ``kind`` and all values; text if there is none, such as for 1 and "a"."""
    try:
        new = pa.array(values).type
        fields = [pa.schema([("x", kind)]), pa.schema([("x", new)])]
        return pa.unify_schemas(fields, promote_options="permissive").field("x").type
    except (pa.ArrowException, OverflowError, TypeError, UnicodeEncodeError):
        return pa.string()


def _holds(pa: Any, kind: Any, values: Sequence[Any]) -> bool:
    try:
        pa.array(values, kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return False
    return True


def _can_be_written(pa: Any, kind: Any) -> bool:
    """Whether Parquet has the type; a column of nulls only is text, and objects without fields are JSON."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_can_be_written(pa, kind.field(at).type) for at in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.types.is_null(kind.value_type) is False and _can_be_written(pa, kind.value_type)
    return not pa.types.is_null(kind)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
