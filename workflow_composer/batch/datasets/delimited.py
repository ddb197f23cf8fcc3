"""CSV and its relatives: fields between commas, semicolons, tabs or bars, as programs and spreadsheets write them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.batch.datasets.columns import TEXT
from workflow_composer.batch.datasets.content import Taking, tables_of
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import LONGEST, lines, opened, unreadable
from workflow_composer.storage.packing import content_name

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = (",", ";", "\t", "|")
"""In order of preference."""

MMLU = ("question", "A", "B", "C", "D", "answer")
"""The columns of MMLU's own files, which have no header."""

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_LOOKED_AT = 20
_OLD_CODING = "cp1252"
_MOST_FOREIGN = 0.3
"""Share of bytes above 127 from which a text is not one of Windows-1252, whose letters are mostly ASCII."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file is written: the delimiter, the columns, and the number of lines before the first row of data."""

    delimiter: str
    names: tuple[str, ...] = ()
    skipped: int = 0
    has_header: bool = True
    spaced: bool = False
    quoted: bool = True


class Delimited:
    """Reads RFC 4180 with any of the `DELIMITERS`; a field may span lines. Values are texts."""

    def names(self, path: Path) -> dict[str, str] | None:
        """Return the header's names; every column is text. None if there are no rows."""
        layout = layout_of(path)
        return dict.fromkeys(layout.names, TEXT) if next(self.rows(path), None) else None

    def count(self, path: Path) -> int:
        """Return the number of records without the header."""
        return sum(1 for _ in _data(path, layout_of(path)))

    def rows(
        self, path: Path, start: int = 0, names: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the rows with their places; every record is parsed, because any may span lines."""
        layout = layout_of(path)
        for number, record in islice(_data(path, layout), start, None):
            yield f"{path}:{number}", dict(zip(layout.names, record, strict=False))

    def tables(self, path: Path, taking: Taking) -> Iterator[pa.Table]:
        """Yield tables built row by row."""
        yield from tables_of(taking.take(row, where) for where, row in self.rows(path))

    def classes(self, path: Path) -> dict[str, tuple[str, ...]]:
        """Return nothing: values are texts."""
        return {}

    def notes(self, path: Path) -> Iterator[str]:
        """Yield what was guessed about the file. Raises `InputError` if its encoding is unknown."""
        layout = layout_of(path)
        if layout.delimiter != ("\t" if _is_tabbed(path) else ","):
            yield f"fields are separated by {_NAMES.get(layout.delimiter, repr(layout.delimiter))}s"
        if not layout.has_header:
            yield f"no header; columns are {', '.join(MMLU)}"
        if (found := _first_foreign(path)) is not None:
            number, line = found
            yield (
                f"not UTF-8, read as Windows-1252; line {number}: {line.strip()[:80]!r} (if that looks wrong, "
                "convert the file: iconv -f CODING -t UTF-8)"
            )


# ------------------------------------------------------------------------------------------------------------ the layout


def layout_of(path: Path) -> Layout:
    """Return how a file is written, from its name and its first records. Raises `InputError` if they are not valid."""
    try:
        found = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    return _layout(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _layout(path: Path, size: int, changed: int) -> Layout:
    first = next((text for text in _texts(path) if not text.isspace()), "")
    if first[:4].lower() == "sep=" and len(first.rstrip("\r\n")) == 5:  # for Excel, which shows no such line
        return _headed(path, Layout(first[4], skipped=1))
    if _is_tabbed(path):
        return _headed(path, Layout("\t", quoted=not _quotes_are_text(path)))
    found = [_headed(path, Layout(delimiter)) for delimiter in DELIMITERS if delimiter in first]
    if not found:
        return _headed(path, Layout(","))
    return max(found, key=lambda layout: (_fits(path, layout), len(layout.names)))


def _quotes_are_text(path: Path) -> bool:
    """Whether fields between tabs begin with quotes that do not enclose them, and every line is a record."""
    tabs, unpaired = None, False
    for text in _texts(path):
        line = text.rstrip("\r\n")
        if not line:
            continue
        tabs = line.count("\t") if tabs is None else tabs
        if line.count("\t") != tabs:
            return False
        if '"' in line and not unpaired:
            unpaired = any(field.startswith('"') and not _QUOTED.fullmatch(field) for field in line.split("\t"))
    return unpaired


def _is_tabbed(path: Path) -> bool:
    return content_name(path).lower().endswith((".tsv", ".tab"))


def _headed(path: Path, layout: Layout) -> Layout:
    """Return the layout with its names, unique and none of them empty."""
    try:
        header, data = _beginning(path, layout)
    except InputError:
        text = next(islice(_texts(path), layout.skipped, None), "")
        if not text.count(layout.delimiter):
            raise
        return replace(layout, names=_unique(next(csv.reader([text], delimiter=layout.delimiter))))
    if any(field.startswith(" ") for field in header) or any(field.startswith(' "') for row in data for field in row):
        layout = replace(layout, spaced=True)
        header, data = _beginning(path, layout)
    letters = set(MMLU[1:-1])
    if all(len(row) == len(MMLU) and row[-1] in letters for row in (header, *data)):
        return replace(layout, names=MMLU, has_header=False)
    return replace(layout, names=_unique(header))


def _beginning(path: Path, layout: Layout) -> tuple[list[str], list[list[str]]]:
    """Return the header and the first records."""
    found = [record for _, record in islice(_records(path, layout), _LOOKED_AT + 1)]
    return (found[0], found[1:]) if found else ([], [])


def _unique(header: Iterable[str]) -> tuple[str, ...]:
    """Return names that are unique and not empty: ``answer``, ``answer.1``; ``column 3``."""
    seen: Counter[str] = Counter()
    found: list[str] = []
    for number, raw in enumerate(header, 1):
        name = raw.strip() or f"column {number}"
        found.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return tuple(found)


def _fits(path: Path, layout: Layout) -> bool:
    """Whether the first records have as many fields as the header, and more than one."""
    try:
        return len(layout.names) > 1 and bool(list(islice(_data(path, layout), _LOOKED_AT)) or True)
    except InputError:
        return False


# ----------------------------------------------------------------------------------------------------------- the records
#
# Every fault raises an `InputError` that names the file and the line.


def _data(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of rows, each with the number of its first line.

    Skips rows of empty fields, which spreadsheets append. Raises `InputError` for a record with more or fewer fields than
    the header.
    """
    width = len(layout.names)
    for number, record in islice(_records(path, layout), layout.has_header, None):
        if len(record) > width and not any(record[width:]):
            del record[width:]
        if len(record) != width:
            what = f"{len(record)} field{'s' * (len(record) != 1)}, but the header has {width}"
            sign = _NAMES.get(layout.delimiter, repr(layout.delimiter))
            raise InputError(f"{path}:{number}: {what}", hint=f"quote a field that holds a {sign} or a line break")
        if any(record):
            yield number, record


def _records(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Yield the records, the header first; blank lines are skipped. Raises `InputError` for invalid CSV."""
    csv.field_size_limit(LONGEST)  # replaces the csv module's process-wide limit of 128 KiB
    texts = islice(_texts(path), layout.skipped, None)
    if layout.quoted:
        reader = csv.reader(texts, strict=True, delimiter=layout.delimiter, skipinitialspace=layout.spaced)
    else:
        reader = csv.reader(texts, delimiter=layout.delimiter, quoting=csv.QUOTE_NONE)
    while True:
        number = reader.line_num + 1 + layout.skipped
        try:
            record = next(reader, None)
        except csv.Error as error:
            hint = "double a quote within a quoted field; quote a field with a line break or a comma"
            raise InputError(f"{path}:{number}: not valid CSV: {error}", hint=hint) from None
        if record is None:
            return
        if record:
            yield number, record


def _texts(path: Path) -> Iterator[str]:
    """Yield the lines as texts: UTF-8, or else Windows-1252."""
    return (_decoded(line, path, number) for number, line in enumerate(_lines(path), 1))


def _lines(path: Path) -> Iterator[bytes]:
    r"""Yield the lines; a file whose lines end in ``\r`` only, as old programs on the Mac write it, has some too."""
    with opened(path) as file:
        begin = file.read(1 << 16)
    if b"\n" in begin or b"\r" not in begin:
        yield from lines(path)
        return
    for line in lines(path):
        yield from (part + b"\n" for part in line.rstrip(b"\r\n").split(b"\r"))


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        try:
            return line.decode(_OLD_CODING)
        except UnicodeDecodeError as error:
            byte = f"byte {error.start + 1} of the line is {line[error.start]:#04x}"
            raise _unknown_coding(f"{path}:{number}", byte) from None


def _unknown_coding(where: str, why: str) -> InputError:
    return InputError(
        f"{where}: neither UTF-8 nor Windows-1252: {why}", hint="convert the file, for example: iconv -f GB18030 -t UTF-8"
    )


def _first_foreign(path: Path) -> tuple[int, str] | None:
    """Return the first line that is not UTF-8, with its number. Raises `InputError` if no Latin script is plausible."""
    found, size, foreign = None, 0, 0
    for number, line in enumerate(_lines(path), 1):
        if line.isascii():
            continue
        try:
            line.decode()
        except UnicodeDecodeError:
            found = found or (number, _decoded(line, path, number))
            size += len(line)
            foreign += sum(byte > 127 for byte in line)
    if found and foreign > _MOST_FOREIGN * size:
        raise _unknown_coding(f"{path}:{found[0]}", "most of its characters are not ASCII")
    return found
