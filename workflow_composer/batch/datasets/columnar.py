"""Parquet files and Arrow files (as Hugging Face's `datasets` keeps them): read in batches, only the needed columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.batch.datasets.columns import NUMBER, TEXT
from workflow_composer.batch.datasets.content import Taking, arrow_library, tables_of
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import unreadable

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 1024


class Parquet:
    """Reads row groups one at a time, and only the needed columns."""

    def names(self, path: Path) -> dict[str, str] | None:
        """Return the columns of the schema."""
        with _parquet(path) as file:
            return _types(file.schema_arrow) if file.metadata.num_rows else None

    def count(self, path: Path) -> int:
        """Return the row count of the file's metadata."""
        with _parquet(path) as file:
            return int(file.metadata.num_rows)

    def rows(
        self, path: Path, start: int = 0, names: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the rows with their places; row groups before ``start`` are not read. Places are numbered from 0."""
        with _parquet(path) as file:
            wanted = _wanted(file.schema_arrow, names)
            first = 0
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if start < end:
                    batches = file.iter_batches(_ROWS, row_groups=[group], columns=wanted, use_threads=False)
                    found = enumerate((row for batch in batches for row in _plain_rows(batch)), first)
                    for number, row in islice(found, max(start - first, 0), None):
                        yield f"{path}, row {number}", row
                first = end

    def tables(self, path: Path, taking: Taking) -> Iterator[pa.Table]:
        """Yield Arrow's batches; built row by row if they need the conversions of a row."""
        with _parquet(path) as file:
            types = _types(file.schema_arrow)
            question, label = taking.found.question, taking.found.label
            is_quick = taking.is_plain and types.get(question) == TEXT
            if not is_quick or (label and not _is_exact(file.schema_arrow.field(label).type)):
                yield from tables_of(taking.take(row, where) for where, row in self.rows(path, 0, taking.found.names))
                return
            first = 0
            for batch in file.iter_batches(65_536, columns=[question, *([label] if label else [])]):
                table = plain_table(batch.column(question), batch.column(label) if label else None)
                if table is None:
                    rows = islice(self.rows(path, first, taking.found.names), batch.num_rows)
                    yield from tables_of(taking.take(row, where) for where, row in rows)
                else:
                    yield table
                first += batch.num_rows

    def classes(self, path: Path) -> dict[str, tuple[str, ...]]:
        """Return the classes of `datasets`' ClassLabel columns."""
        with _parquet(path) as file:
            return _classes(file.schema_arrow)

    def notes(self, path: Path) -> Iterator[str]:
        """Yield nothing: nothing was guessed."""
        return iter(())


class Arrow:
    """Reads Arrow's IPC streams and files, batch by batch, from the mapped file."""

    def names(self, path: Path) -> dict[str, str] | None:
        """Return the columns of the schema."""
        with _arrow(path) as (schema, batches):
            return _types(schema) if any(batch.num_rows for batch in batches) else None

    def count(self, path: Path) -> int:
        """Return the number of rows."""
        with _arrow(path) as (_, batches):
            return sum(batch.num_rows for batch in batches)

    def rows(
        self, path: Path, start: int = 0, names: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the rows with their places, numbered from 0."""
        with _arrow(path) as (schema, batches):
            wanted = _wanted(schema, names)
            first = 0
            for batch in batches:
                if start < first + batch.num_rows:
                    own = batch.select([name for name in wanted or schema.names if name in schema.names])
                    skipped = max(start - first, 0)
                    for number, row in enumerate(_plain_rows(own.slice(skipped)), first + skipped):
                        yield f"{path}, row {number}", row
                first += batch.num_rows

    def tables(self, path: Path, taking: Taking) -> Iterator[pa.Table]:
        """Yield tables built row by row."""
        yield from tables_of(taking.take(row, where) for where, row in self.rows(path, 0, taking.found.names))

    def classes(self, path: Path) -> dict[str, tuple[str, ...]]:
        """Return the classes of `datasets`' ClassLabel columns."""
        with _arrow(path) as (schema, _):
            return _classes(schema)

    def notes(self, path: Path) -> Iterator[str]:
        """Yield nothing: nothing was guessed."""
        return iter(())


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


@contextmanager
def _arrow(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Open the file; yield the schema and the batches. Raises `InputError` if it is damaged."""
    pa = arrow_library()
    try:
        with path.open("rb") as plain:
            is_file = plain.read(6) == b"ARROW1"
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            batches = (reader.get_batch(at) for at in range(reader.num_record_batches)) if is_file else iter(reader)
            yield reader.schema, batches
    except pa.ArrowException as error:
        told = str(error).splitlines()[0]
        raise InputError(f"{path} is not an Arrow file or is damaged: {told}", hint="download or write it again") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _wanted(schema: Any, names: Sequence[str] | None) -> list[str] | None:
    """Return the columns to read: those whose names (or parents' names) are given, or all that are not binary."""
    from pyarrow import types

    if names is None:
        binary = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
        return [field.name for field in schema if not any(test(field.type) for test in binary)]
    asked = {name if name in schema.names else name.partition(".")[0] for name in names}
    return [name for name in schema.names if name in asked]


def _plain_rows(batch: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a batch's rows; numbers of single precision have the few digits that they were written with."""
    import pyarrow as pa

    arrays = []
    for array in batch.columns:
        if pa.types.is_float32(array.type) or pa.types.is_float16(array.type):
            import pyarrow.compute as pc

            arrays.append(pc.cast(pc.cast(array, pa.float32()).cast(pa.string()), pa.float64()))
            continue
        arrays.append(array)
    yield from pa.RecordBatch.from_arrays(arrays, names=batch.schema.names).to_pylist()


def plain_table(questions: Any, labels: Any | None) -> pa.Table | None:
    """Return Arrow columns (of texts or integers) as a table; None if a question is missing or blank."""
    import pyarrow as pa
    import pyarrow.compute as pc

    questions = questions.cast(pa.string())
    if pc.any(pc.fill_null(_blank(questions), True)).as_py():
        return None
    if pc.any(pc.starts_with(questions, "[{")).as_py():
        return None  # messages written as texts
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


def _classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of classes that Hugging Face's `datasets` wrote into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: tuple(map(str, held["names"])) for name, held in features.items() if held.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _types(schema: Any) -> dict[str, str]:
    return {field.name: _holds(field.type) for field in schema}


def _holds(found: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(found):
        return _holds(found.value_type)
    if types.is_string(found) or types.is_large_string(found) or types.is_string_view(found):
        return TEXT
    plain = types.is_integer(found) or types.is_floating(found) or types.is_decimal(found)
    return NUMBER if plain or types.is_boolean(found) else str(found)


def _is_exact(found: Any) -> bool:
    """Whether values are texts or integers, which Arrow writes as this program does."""
    from pyarrow import types

    return _holds(found) == TEXT or bool(types.is_integer(found))
