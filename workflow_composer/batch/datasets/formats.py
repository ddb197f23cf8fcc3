"""The formats of tables: which one a file has, and JSON lines. Counting rows, streaming them, reading them as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workflow_composer.batch.datasets.columnar import Arrow, Parquet, plain_table
from workflow_composer.batch.datasets.columns import TEXT
from workflow_composer.batch.datasets.content import Taking, arrow_library, tables_of
from workflow_composer.batch.datasets.delimited import Delimited
from workflow_composer.batch.datasets.documents import JsonDocument
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import LONGEST, WrittenNumber, blocks, lines, opened, parsed
from workflow_composer.storage.packing import ENDINGS, content_name, refuse_foreign

if TYPE_CHECKING:
    import pyarrow as pa

LOOK_AHEAD = 64
"""Rows that determine the columns."""


class Format(Protocol):
    """Reads one file format. All methods raise an `InputError` that names the file and the line or row."""

    def names(self, path: Path) -> dict[str, str] | None:
        """Return the columns, each with its type (text, number, or another); None if the file has no rows."""
        ...

    def count(self, path: Path) -> int:
        """Return the number of rows, if possible without reading them."""
        ...

    def rows(
        self, path: Path, start: int = 0, names: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the rows beginning at number ``start`` with their places; ``names`` are the columns that are needed."""
        ...

    def tables(self, path: Path, taking: Taking) -> Iterator[pa.Table]:
        """Yield all rows as tables with the columns question and label (string)."""
        ...

    def classes(self, path: Path) -> dict[str, tuple[str, ...]]:
        """Return the names of the classes that the numbers of a column stand for, by column."""
        ...

    def notes(self, path: Path) -> Iterator[str]:
        """Yield what was guessed about the file, for the person who gave it."""
        ...


def first_rows(form: Format, path: Path) -> list[Mapping[str, Any]]:
    """Return the rows that determine the columns, up to an invalid one, which reading will raise; the first raises here."""
    found: list[Mapping[str, Any]] = []
    rows = form.rows(path)
    try:
        while len(found) < LOOK_AHEAD:
            found.append(next(rows)[1])
    except StopIteration:
        pass
    except InputError:
        if not found:
            raise
    return found


class ParsedLine(dict[str, Any]):
    """A row of JSON lines, with the line that it was read from, without blanks around it."""

    __slots__ = ("line",)
    line: bytes


class JsonLines:
    """One JSON object per line; blank lines are skipped."""

    def names(self, path: Path) -> dict[str, str] | None:
        """Return the union over the first rows, because some may lack a label. Types are checked row by row."""
        names: dict[str, str] = {}
        for row in first_rows(self, path):
            names.update(dict.fromkeys(row, TEXT))
        return names or None

    def count(self, path: Path) -> int:
        """Return the number of lines that are not blank."""
        return sum(1 for line in lines(path) if not line.isspace())

    def rows(
        self, path: Path, start: int = 0, names: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the rows; those before ``start`` are not parsed."""
        for _, where, row in self.picked(path, lambda index: index >= start):
            yield where, row

    def picked(self, path: Path, wanted: Callable[[int], bool]) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        """Yield numbers, places and rows of those that are wanted; the others are not parsed."""
        for index, (number, line) in enumerate(_filled(lines(path))):
            if wanted(index):
                where = f"{path}:{number}"
                row = ParsedLine(parsed(line, where, number=WrittenNumber))
                row.line = line.strip()
                yield index, where, row

    def tables(self, path: Path, taking: Taking) -> Iterator[pa.Table]:
        """Yield tables parsed by Arrow in blocks; blocks that it cannot read exactly as `rows` does are read row by row."""
        arrow = _ArrowJson(taking) if taking.is_plain else None
        number = 1
        for block in blocks(path):
            table = arrow.read(block) if arrow else None
            if table is not None:
                yield table
            else:
                numbered = _filled(BytesIO(block), number)
                rows = ((f"{path}:{n}", parsed(line, f"{path}:{n}", number=WrittenNumber)) for n, line in numbered)
                yield from tables_of(taking.take(row, where) for where, row in rows)
            number += block.count(b"\n")

    def classes(self, path: Path) -> dict[str, tuple[str, ...]]:
        """Return nothing: JSON has no named classes."""
        return {}

    def notes(self, path: Path) -> Iterator[str]:
        """Yield nothing: nothing was guessed."""
        return iter(())


class _ArrowJson:
    """Parses blocks of JSON lines with Arrow: twice as fast as the standard library on one core, and multithreaded."""

    def __init__(self, taking: Taking) -> None:
        self._pa = arrow_library()
        self._question, self._label = taking.found.question, taking.found.label
        self._kinds = [self._pa.string(), self._pa.int64()] if self._label else [self._pa.string()]

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

        fields = [(self._question, self._pa.string())]
        if self._label:
            fields.append((self._label, self._kinds[0]))
        parse = json.ParseOptions(explicit_schema=self._pa.schema(fields), unexpected_field_behavior="ignore")
        return json.read_json(
            self._pa.BufferReader(block), read_options=json.ReadOptions(block_size=1 << 22), parse_options=parse
        )

    def _taken(self, table: pa.Table, block: bytes) -> pa.Table | None:
        one_a_line = table.num_rows == block.count(b"\n") + (not block.endswith(b"\n"))
        return plain_table(table.column(0), table.column(1) if self._label else None) if one_a_line else None


def _filled(numbered: Iterable[bytes], first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers."""
    return ((number, line) for number, line in enumerate(numbered, first) if not line.isspace())


# ---------------------------------------------------------------------------------------------------- the format of a file

_LINES, _DELIMITED, _DOCUMENT = JsonLines(), Delimited(), JsonDocument()
_PARQUET, _ARROW = Parquet(), Arrow()

TEXTS = (".jsonl", ".json", ".csv", ".tsv")
"""Endings of the names of tables in text form, in search order; each may be followed by one of a compression."""

SUFFIXES = (*(end + packed for end in TEXTS for packed in ("", *ENDINGS)), ".parquet", ".arrow")
"""Endings of the names of data sets' files, in search order."""

_OTHER_TEXTS = (".ndjson", ".tab", ".txt", ".psv", ".geojson", ".jsonlines")
_MAGIC: dict[bytes, Format] = {b"PAR1": _PARQUET, b"ARROW1": _ARROW, b"\xff\xff\xff\xff": _ARROW}


def is_table(name: str) -> bool:
    """Whether a file of this name is a table, as far as its ending tells."""
    lower = name.lower()
    for packed in ENDINGS:
        lower = lower.removesuffix(packed)
    return lower.endswith((*TEXTS, *_OTHER_TEXTS, ".parquet", ".arrow", ".pq")) or lower != name.lower()


def format_of(path: Path) -> Format:
    """Return the format of a file, from its first bytes and its name. Raises `InputError` if it cannot be read."""
    name = content_name(path).lower()
    try:
        with path.open("rb") as file:
            begin = file.read(64)
    except OSError:
        begin = b""  # reading it raises the error
    refuse_foreign(begin, path)
    for mark, form in _MAGIC.items():
        if begin.startswith(mark):
            return form
    if name.endswith((".parquet", ".pq")):
        return _PARQUET
    if name.endswith(".arrow"):
        return _ARROW
    if name.endswith((".csv", ".tsv", ".tab", ".psv")):
        return _DELIMITED
    return _of_content(path, name)


def _of_content(path: Path, name: str) -> Format:
    """Return the format of a text by how it begins: an array, objects, or fields between delimiters."""
    has_lines = name.endswith((".jsonl", ".ndjson", ".jsonlines"))
    first, is_only = _beginning(path)
    if not first.startswith((b"{", b"[")):
        return _LINES if has_lines or name.endswith(".json") else _DELIMITED
    if first.startswith(b"["):
        return _DOCUMENT if first[1:].lstrip().startswith(b"{") or not has_lines else _LINES
    if has_lines:
        return _LINES
    if len(first) > LONGEST:
        return _DOCUMENT
    try:
        parsed(first, str(path))
    except InputError:
        return _LINES if first.endswith(b"}") else _DOCUMENT  # a faulty line, or an object over several
    return _DOCUMENT if is_only else _LINES


def _beginning(path: Path) -> tuple[bytes, bool]:
    """Return the first line that is not blank, and whether it is the only one. A bracket alone has the next line with it."""
    with opened(path) as file:
        first = b""
        while line := file.readline(LONGEST + 1):
            first += line.strip()
            if first and first != b"[":
                break
        return first, not any(block.strip() for block in iter(lambda: file.read(1 << 12), b""))
