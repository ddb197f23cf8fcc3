"""JSON lines, CSV and Parquet: counting rows, streaming them, and reading them as tables."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workflow_composer.batch.datasets.columns import NUMBER, TEXT, Columns, Fields, id_of, label_of, question_of
from workflow_composer.errors import ConfigError, InputError
from workflow_composer.storage.lines import LONGEST, blocks, decoded, lines, parsed, unreadable

if TYPE_CHECKING:
    import pyarrow as pa


# ----------------------------------------------------------------------------------------------------------------- reading
#
# Reading CSV files record by record: every fault raises an `InputError` that names the file and the line.


def records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV file (RFC 4180; the first is the header), each with the number of its first line.

    Skips blank lines. Raises `InputError` for invalid CSV, such as an unclosed quote, and for a record with more or fewer
    fields than the header.
    """
    csv.field_size_limit(LONGEST)  # replaces the csv module's process-wide limit of 128 KiB
    reader = csv.reader((decoded(line, f"{path}:{n}") for n, line in enumerate(lines(path), 1)), strict=True)
    width = 0
    while True:
        number = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            hint = "double a quote within a quoted field; quote a field with a line break or a comma"
            raise InputError(f"{path}:{number}: not valid CSV: {error}", hint=hint) from None
        if record is None:
            return
        if not record:
            continue
        width = width or len(record)
        if len(record) != width:
            raise InputError(
                f"{path}:{number}: {len(record)} fields, but the header has {width}",
                hint="quote a field that holds a comma or a line break",
            )
        yield number, record


BATCH = 65_536
"""Rows of a table that is built row by row."""

_LOOK_AHEAD = 64


class Format(Protocol):
    """Reads one file format. All methods raise an `InputError` that names the file and the line or row."""

    def names(self, path: Path) -> dict[str, str] | None:
        """Return the columns, each with its type (text, number, or another); None if the file has no rows."""
        ...

    def count(self, path: Path) -> int:
        """Return the number of rows, if possible without reading them."""
        ...

    def rows(self, path: Path, columns: Columns, start: int) -> Iterator[Fields]:
        """Yield the rows beginning at number ``start``, in constant memory."""
        ...

    def tables(self, path: Path, columns: Columns) -> Iterator[pa.Table]:
        """Yield all rows as tables with the columns question and label (string)."""
        ...


class JsonLines:
    """One JSON object per line; blank lines are skipped."""

    def names(self, path: Path) -> dict[str, str] | None:
        """Return the union over the first rows, because some may lack a label. Types are checked row by row."""
        names: dict[str, str] = {}
        for number, line in islice(_filled(lines(path)), _LOOK_AHEAD):
            names.update(dict.fromkeys(parsed(line, f"{path}:{number}"), TEXT))
        return names or None

    def count(self, path: Path) -> int:
        """Return the number of lines that are not blank."""
        return sum(1 for line in lines(path) if not line.isspace())

    def rows(self, path: Path, columns: Columns, start: int) -> Iterator[Fields]:
        """Yield the rows; those before ``start`` are not parsed."""
        for number, line in islice(_filled(lines(path)), start, None):
            where = f"{path}:{number}"
            yield columns.fields(parsed(line, where), where)

    def tables(self, path: Path, columns: Columns) -> Iterator[pa.Table]:
        """Yield tables parsed by Arrow in blocks; blocks that it cannot read exactly as `rows` does are read row by row."""
        arrow = _ArrowJson(columns)
        number = 1
        for block in blocks(path):
            table = arrow.read(block)
            if table is not None:
                yield table
            else:
                whole = _filled(BytesIO(block), number)
                yield from tables_of(columns.fields(parsed(line, f"{path}:{n}"), f"{path}:{n}") for n, line in whole)
            number += block.count(b"\n")


class _ArrowJson:
    """Parses blocks of JSON lines with Arrow: twice as fast as the standard library on one core, and multithreaded."""

    def __init__(self, columns: Columns) -> None:
        self._pa = arrow_library()
        self._columns = columns
        self._kinds = [self._pa.string(), self._pa.int64()] if columns.label else [self._pa.string()]

    def read(self, block: bytes) -> pa.Table | None:
        """Return the block's rows; None if they must be read one by one."""
        try:
            block.isascii() or block.decode()  # Arrow does not validate UTF-8
        except UnicodeDecodeError:
            return None
        while self._kinds:
            try:
                return self._taken(self._parse(block), block)
            except self._pa.ArrowInvalid:
                self._kinds = self._kinds[1:]  # labels that are not texts may be integers, in all blocks alike
        return None

    def _parse(self, block: bytes) -> pa.Table:
        from pyarrow import json

        fields = [(self._columns.question, self._pa.string())]
        if self._columns.label:
            fields.append((self._columns.label, self._kinds[0]))
        parse = json.ParseOptions(explicit_schema=self._pa.schema(fields), unexpected_field_behavior="ignore")
        return json.read_json(
            self._pa.BufferReader(block), read_options=json.ReadOptions(block_size=1 << 22), parse_options=parse
        )

    def _taken(self, table: pa.Table, block: bytes) -> pa.Table | None:
        one_a_line = table.num_rows == block.count(b"\n") + (not block.endswith(b"\n"))
        return _table(table.column(0), table.column(1) if self._columns.label else None) if one_a_line else None


class Csv:
    """RFC 4180 with a header; a field may span lines."""

    def names(self, path: Path) -> dict[str, str] | None:
        """Return the header's names; every column is text."""
        found = list(islice(records(path), 2))
        return dict.fromkeys(found[0][1], TEXT) if len(found) == 2 else None

    def count(self, path: Path) -> int:
        """Return the number of records without the header."""
        return max(sum(1 for _ in records(path)) - 1, 0)

    def rows(self, path: Path, columns: Columns, start: int) -> Iterator[Fields]:
        """Yield the rows; every record is parsed, because any may span lines."""
        every = records(path)
        _, header = next(every)
        names = (columns.question, columns.label, columns.id)
        question, label, key = (header.index(name) if name else None for name in names)
        assert question is not None
        for number, record in islice(every, start, None):
            where = f"{path}:{number}"
            yield (
                None if key is None else id_of(record[key]),
                question_of(record[question], header[question], where),
                None if label is None else label_of(record[label], header[label], where),
            )

    def tables(self, path: Path, columns: Columns) -> Iterator[pa.Table]:
        """Yield tables built row by row."""
        yield from tables_of(self.rows(path, columns, 0))


class Parquet:
    """Reads row groups one at a time, and only the needed columns."""

    def names(self, path: Path) -> dict[str, str] | None:
        """Return the columns of the schema."""
        with _parquet(path) as file:
            return {field.name: _holds(field.type) for field in file.schema_arrow} if file.metadata.num_rows else None

    def count(self, path: Path) -> int:
        """Return the row count of the file's metadata."""
        with _parquet(path) as file:
            return int(file.metadata.num_rows)

    def rows(self, path: Path, columns: Columns, start: int) -> Iterator[Fields]:
        """Yield the rows; row groups before ``start`` are not read. Errors name the row number, from 0."""
        names = list(dict.fromkeys(name for name in (columns.question, columns.label, columns.id) if name))
        with _parquet(path) as file:
            first = 0
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if start < end:
                    batches = file.iter_batches(1024, row_groups=[group], columns=names, use_threads=False)
                    found = enumerate((row for batch in batches for row in batch.to_pylist()), first)
                    for number, row in islice(found, max(start - first, 0), None):
                        yield columns.fields(row, f"{path}, row {number}")
                first = end

    def tables(self, path: Path, columns: Columns) -> Iterator[pa.Table]:
        """Yield Arrow's batches; built row by row if labels need the conversion of `rows`."""
        with _parquet(path) as file:
            names = [name for name in (columns.question, columns.label) if name]
            if (
                columns.label
                and _holds(label := file.schema_arrow.field(columns.label).type) != TEXT
                and not _is_whole(label)
            ):
                yield from tables_of(self.rows(path, columns, 0))
                return
            first = 0
            for batch in file.iter_batches(BATCH, columns=names):
                table = _table(batch.column(0), batch.column(1) if columns.label else None)
                if table is None:
                    for _ in islice(self.rows(path, columns, first), batch.num_rows):
                        pass  # raises at the row without a question
                else:
                    yield table
                first += batch.num_rows


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """Open the file. Raises `InputError` if it is damaged, on opening or while reading."""
    pa = arrow_library()
    from pyarrow.parquet import ParquetFile

    try:
        with path.open("rb") as plain, ParquetFile(plain) as file:
            yield file
    except pa.ArrowException as error:
        told = str(error).splitlines()[0]
        raise InputError(f"{path} is not a Parquet file or is damaged: {told}", hint="download or write it again") from None
    except OSError as error:
        raise unreadable(path, error) from None


def tables_of(rows: Iterable[Fields]) -> Iterator[pa.Table]:
    """Yield rows as tables of `BATCH` rows with the columns question and label."""
    pa = arrow_library()
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        questions, labels = [row[1] for row in batch], [row[2] for row in batch]
        yield pa.table({"question": pa.array(questions, pa.string()), "label": pa.array(labels, pa.string())})


def arrow_library() -> Any:
    """Return the module pyarrow. Raises `ConfigError` if it is not installed."""
    try:
        import pyarrow as pa
    except ImportError:
        raise ConfigError(
            "Parquet data sets, plans and result files need pyarrow, which is not installed",
            hint="pip install 'workflow-composer[batch]'",
        ) from None
    return pa


def _table(questions: Any, labels: Any | None) -> pa.Table | None:
    """Return Arrow columns (of texts or integers) as a table; None if a question is missing or blank."""
    import pyarrow as pa
    import pyarrow.compute as pc

    questions = questions.cast(pa.string())
    if pc.any(pc.fill_null(_blank(questions), True)).as_py():
        return None
    labels = pa.nulls(len(questions), pa.string()) if labels is None else labels.cast(pa.string())
    blank = _blank(labels)
    if pc.any(blank).as_py():
        labels = pc.if_else(blank, pa.scalar(None, pa.string()), labels)
    return pa.table({"question": questions, "label": labels})


def _blank(texts: Any) -> Any:
    """Return a mask of texts that are empty or white space. Reads complete texts only if a first character is white."""
    import pyarrow.compute as pc

    first = pc.utf8_trim_whitespace(pc.utf8_slice_codeunits(texts, 0, 1))
    doubtful = pc.equal(pc.binary_length(first), 0)
    if not pc.any(doubtful).as_py():
        return doubtful
    return pc.equal(pc.binary_length(pc.utf8_trim_whitespace(texts)), 0)


def _holds(found: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(found):
        return _holds(found.value_type)
    if types.is_string(found) or types.is_large_string(found) or types.is_string_view(found):
        return TEXT
    plain = types.is_integer(found) or types.is_floating(found) or types.is_decimal(found)
    return NUMBER if plain or types.is_boolean(found) else str(found)


def _is_whole(found: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(found))


def _filled(numbered: Iterable[bytes], first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers."""
    return ((number, line) for number, line in enumerate(numbered, first) if not line.isspace())


FORMATS: dict[str, Format] = {".jsonl": JsonLines(), ".jsonl.gz": JsonLines(), ".csv": Csv(), ".parquet": Parquet()}
"""Formats by file suffix, in search order."""
