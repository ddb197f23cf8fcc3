"""Reading data files line by line: every fault becomes an `InputError` that names the file and the line."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from workflow_composer.errors import InputError

LONGEST = 64 << 20
"""Bytes. A line beyond this is no row of a data set, and would not stay in bounded memory."""

_BLOCK = 1 << 24
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_CODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_FORM = 'one JSON object per line, for example {"question": "What is 2 + 2?", "answer": "4"}'


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where it is gzip whatever its name. Raises `InputError`, also for faults while reading."""
    try:
        with path.open("rb") as plain:
            if plain.peek(2)[:2] == _GZIP:
                with closing(gzip.open(plain, "rb")) as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield plain
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged: {error}", hint="fetch it again, or see with `gzip -t` what is wrong") from None
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> InputError:
    """What to say where the system refuses a file."""
    hints: dict[type[OSError], str] = {
        FileNotFoundError: "is the path right?",
        IsADirectoryError: "it is a folder; move it, or put the rows into a file of that name",
        PermissionError: "allow this user to read it: chmod u+r",
    }
    return InputError(f"cannot read {path}: {error.strerror or error}", hint=hints.get(type(error), ""))


def lines(path: Path) -> Iterator[bytes]:
    """Lines with their ends, without a byte order mark. Raises `InputError`, also where one is longer than `LONGEST`."""
    with opened(path) as file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise InputError(f"{path}:{number}: the line is longer than {LONGEST >> 20} MiB", hint=f"write {_FORM}")
            yield line.removeprefix(_BOM) if number == 1 else line


def blocks(path: Path) -> Iterator[bytes]:
    """The same bytes as `lines`, many whole lines at a time."""
    with opened(path) as file:
        rest, first = b"", True
        while block := file.read(_BLOCK):
            if first:
                block, first = block.removeprefix(_BOM), False
            cut = block.rfind(b"\n") + 1
            if cut:
                yield rest + block[:cut]
                rest = block[cut:]
            else:
                rest += block
            if len(rest) > LONGEST:
                raise InputError(f"{path}: a line is longer than {LONGEST >> 20} MiB", hint=f"write {_FORM}")
        if rest:
            yield rest


def decoded(line: bytes, where: str) -> str:
    """The line as text. Raises `InputError` where it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        coding = _CODINGS.get(line[:2], "LATIN1")
        raise InputError(
            f"{where}: not UTF-8: byte {error.start + 1} of the line is {line[error.start]:#04x}",
            hint=f"convert the file, for example with: iconv -f {coding} -t UTF-8",
        ) from None


def parsed(line: bytes, where: str) -> Mapping[str, Any]:
    """The JSON object of a line. Raises `InputError` where it holds none."""
    hint = "turn an array into lines with: jq -c '.[]'" if line.lstrip().startswith(b"[") else f"write {_FORM}"
    try:
        found = json.loads(decoded(line, where))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg} at column {error.colno}", hint=hint) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{where}: not valid JSON: {error}", hint=hint) from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: this is {kind(found)}, not an object", hint=hint)
    return found


def kind(value: Any) -> str:
    """What a JSON value is, for a message."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a text" if value.strip() else "empty"
    if isinstance(value, (int, float)):
        return "a number"
    return "an object" if isinstance(value, Mapping) else "a list"


def records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file (RFC 4180; the first is the header), each with the number of its first line.

    Blank lines are left out. Raises `InputError`, also for a quote that is never closed and for a record with more or
    fewer fields than the header.
    """
    csv.field_size_limit(LONGEST)  # the csv module's own limit, 128 KiB, is one for the whole process
    reader = csv.reader((decoded(line, f"{path}:{n}") for n, line in enumerate(lines(path), 1)), strict=True)
    width = 0
    while True:
        number = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            hint = "a quote within a quoted field is written twice; a field with a line break or a comma is quoted"
            raise InputError(f"{path}:{number}: not valid CSV: {error}", hint=hint) from None
        if record is None:
            return
        if not record:
            continue
        width = width or len(record)
        if len(record) != width:
            raise InputError(
                f"{path}:{number}: {len(record)} fields, and the header has {width}",
                hint="quote a field that holds a comma or a line break",
            )
        yield number, record
