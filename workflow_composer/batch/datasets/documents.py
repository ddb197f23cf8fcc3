"""JSON documents: an array of objects, an object with one list of them, or an object of columns; read piece by piece."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from workflow_composer.batch.datasets.columns import QUESTIONS, TEXT, plain
from workflow_composer.batch.datasets.content import Taking, tables_of
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import LONGEST, WrittenNumber, kind, opened

if TYPE_CHECKING:
    import pyarrow as pa

Placed = tuple[str, Mapping[str, Any]]
"""A row's place and its content."""

_LISTS = ("data", "rows", "examples", "instances", "questions", "items", "records", "samples")
"""Names of the list of rows that are believed without a look at the rest of the object."""

_CHATS = ("messages", "conversations", "conversation", "prompt", "turns")
"""Lists of objects that are part of one row."""

_HINT = "write one JSON object per line, or an array of objects"
_LOOK_AHEAD = 64
_BLOCK = 1 << 16


class JsonDocument:
    """Reads rows from one JSON value, in memory for one row; the columns of an object of columns are read whole."""

    def names(self, path: Path) -> dict[str, str] | None:
        """Return the union over the first rows. Types are checked row by row."""
        names: dict[str, str] = {}
        for _, row in islice(self.rows(path), _LOOK_AHEAD):
            names.update(dict.fromkeys(row, TEXT))
        return names or None

    def count(self, path: Path) -> int:
        """Return the number of rows; reads the whole file."""
        return sum(1 for _ in self.rows(path))

    def rows(self, path: Path, start: int = 0, names: Sequence[str] | None = None) -> Iterator[Placed]:
        """Yield the rows with their places."""
        shape = _shape_of(path)
        with opened(path) as file:
            scanner = _Scanner(file, path)
            yield from islice(_rows(scanner, shape, path), start, None)

    def tables(self, path: Path, taking: Taking) -> Iterator[pa.Table]:
        """Yield tables built row by row."""
        yield from tables_of(taking.take(row, where) for where, row in self.rows(path))

    def classes(self, path: Path) -> dict[str, tuple[str, ...]]:
        """Return nothing: JSON has no named classes."""
        return {}

    def notes(self, path: Path) -> Iterator[str]:
        """Yield the name of the list that holds the rows, if the document is an object."""
        shape = _shape_of(path)
        if shape.way == "list":
            yield f"rows: the list {shape.key!r}"


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a document holds its rows: an ``array``, objects one ``after`` the other, or an object: ``list``, ``columns``, ...

    ``key`` names the list.
    """

    way: str
    key: str = ""


# ----------------------------------------------------------------------------------------------------------------- rows


def _rows(scanner: _Scanner, shape: _Shape, path: Path) -> Iterator[Placed]:
    if shape.way == "array":
        yield from map(_unwrapped, scanner.elements())
    elif shape.way == "after":
        while scanner.peek():
            where = scanner.where
            yield where, _object(scanner.value(), where)
    elif shape.way == "list":
        for key in scanner.members():
            if key == shape.key:
                yield from map(_unwrapped, scanner.elements())
                return
            scanner.value()
    else:
        yield from _of_object(scanner.value(), shape.way, path)


def _unwrapped(placed: tuple[str, Any]) -> Placed:
    """Return an element as a row; the data sets' server of Hugging Face puts rows into objects."""
    where, value = placed
    row = _object(value, where)
    if "row_idx" in row and isinstance(row.get("row"), dict):
        return where, row["row"]
    return where, row


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {kind(value)}", hint=_HINT)
    return value


def _of_object(value: Mapping[str, Any], way: str, path: Path) -> Iterator[Placed]:
    """Yield the rows of an object that is held in memory."""
    if way == "one":
        yield f"{path}:1", value
    elif way == "split":  # as pandas writes it with orient="split"
        for number, record in enumerate(value["data"]):
            yield f"{path}, row {number}", dict(zip(value["columns"], record, strict=False))
    elif way == "index":
        for number, (key, row) in enumerate(value.items()):
            yield f"{path}, row {number}", {"id": key, **row}
    else:
        columns = {name: list(held.values()) if isinstance(held, dict) else held for name, held in value.items()}
        for number, record in enumerate(zip(*columns.values(), strict=True)):
            yield f"{path}, row {number}", dict(zip(columns, record, strict=True))


# ------------------------------------------------------------------------------------------------------------ the shape


def _shape_of(path: Path) -> _Shape:
    """Return how a document holds its rows. Reads it, up to a list whose name tells. Raises `InputError`."""
    with opened(path) as file:
        scanner = _Scanner(file, path)
        first = scanner.peek()
        if first == "[":
            return _Shape("array")
        if first != "{":
            return _Shape("after")  # reading it raises the error
        lists: list[str] = []
        kinds: dict[str, str] = {}
        for key in scanner.members():
            kinds[key] = _kind_of_member(scanner)
            if kinds[key] == "objects" and key not in _CHATS:
                if key.lower() in _LISTS:
                    return _Shape("list", key)
                lists.append(key)
        if scanner.peek():
            return _Shape("after")
        return _shape(lists, kinds, path)


def _kind_of_member(scanner: _Scanner) -> str:
    """Read a member's value; return what it is: objects, lists, a list (with its length), an object (likewise), or other."""
    if scanner.peek() != "[":
        value = scanner.value()
        if not isinstance(value, dict):
            return "text" if isinstance(value, str) else "other"
        if value and all(isinstance(each, dict) for each in value.values()):
            return "object of objects"
        digits = all(key.isdigit() for key in value)
        return f"column {len(value)}" if value and digits else "object"
    length, found = 0, "list"
    for _, value in scanner.elements():
        found = "objects" if isinstance(value, dict) else "lists" if isinstance(value, list) else "list"
        length += 1
    return found if found in ("objects", "lists") else f"column {length}"


def _shape(lists: list[str], kinds: Mapping[str, str], path: Path) -> _Shape:
    questions = {name for group in QUESTIONS for name in group}
    if any(held == "text" and plain(name) in questions for name, held in kinds.items()):
        return _Shape("one")
    if len(lists) > 1:
        raise InputError(
            f"{path}: several lists could be the rows: {', '.join(map(repr, lists))}",
            hint=f"keep one: jq '.[{json.dumps(lists[0])}]' {path.name}",
        )
    if lists:
        return _Shape("list", lists[0])
    held = set(kinds.values())
    if {"columns", "data"} <= set(kinds) and kinds["data"] == "lists":
        return _Shape("split")
    if len(held) == 1 and next(iter(held)).startswith("column "):
        return _Shape("columns")
    if held and held <= {"object", "object of objects"} and len(kinds) > 1:
        return _Shape("index")
    return _Shape("one")


# ------------------------------------------------------------------------------------------------------------- scanning


class _Scanner:
    """Reads JSON values from a file one after the other, in memory for one of them. Raises `InputError` with the line."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogatepass").decode
        self._decode = json.JSONDecoder(parse_float=WrittenNumber).raw_decode
        self._text = ""
        self._at = 0
        self._line = 1
        self._is_whole = False

    @property
    def where(self) -> str:
        """The place of the next value: file and line."""
        self.peek()
        return f"{self._path}:{self._line + self._text.count(chr(10), 0, self._at)}"

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._more(_BLOCK):
                return ""

    def value(self) -> Any:
        """Read a value."""
        self.peek()
        size = _BLOCK
        while True:
            try:
                found, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                begun = error.msg.startswith(("Unterminated string", "Invalid control"))
                if self._is_whole or (not begun and error.pos < len(self._text) - 16):
                    raise self._fault(f"not valid JSON: {error.msg}", error.pos) from None
            except (RecursionError, ValueError) as error:
                raise self._fault(f"not valid JSON: {error}", self._at) from None
            else:
                if end < len(self._text) or self._is_whole:  # a number at the end may go on
                    self._at = end
                    return found
            if len(self._text) - self._at > LONGEST:
                raise self._fault(f"a value is longer than {LONGEST >> 20} MiB", self._at)
            self._more(size)
            size *= 2

    def elements(self) -> Iterator[tuple[str, Any]]:
        """Read an array; yield its elements with their places."""
        self._expect("[")
        if self._took("]"):
            return
        while True:
            where = self.where
            yield where, self.value()
            if not self._took(","):
                self._expect("]")
                return

    def members(self) -> Iterator[str]:
        """Read an object; yield its keys. The caller reads each value before the next key."""
        self._expect("{")
        if self._took("}"):
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self._fault("not valid JSON: expected a key", self._at)
            self._expect(":")
            yield key
            if not self._took(","):
                self._expect("}")
                return

    def _took(self, sign: str) -> bool:
        if self.peek() != sign:
            return False
        self._at += 1
        return True

    def _expect(self, sign: str) -> None:
        if not self._took(sign):
            what = (
                f"expected {sign!r}, found {self._text[self._at : self._at + 1]!r}" if self.peek() else "the file is cut off"
            )
            raise self._fault(f"not valid JSON: {what}", self._at)

    def _more(self, size: int) -> bool:
        """Read on; forget what was read before the position. Return whether there was more."""
        if self._is_whole:
            return False
        block = self._file.read(size)
        try:
            text = self._utf8(block, final=not block)
        except UnicodeDecodeError as error:
            raise self._fault(f"not UTF-8: {error.object[error.start]:#04x}", len(self._text)) from None
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + text, 0
        self._is_whole = not block
        return bool(block)

    def _fault(self, what: str, at: int) -> InputError:
        return InputError(f"{self._path}:{self._line + self._text.count(chr(10), 0, at)}: {what}", hint=_HINT)
