r"""Lines of JSON, written and read: the only place that knows what a line of a file is.

A line ends at ``\n`` and nowhere else: U+2028, U+0085 and a form feed inside a text end nothing. Files come packed (gzip,
bzip2, xz; seen by their first bytes, not by their names), with a byte order mark, or in UTF-16, as spreadsheets and
PowerShell write it; all that is gone from the lines that are read here, which are UTF-8.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from workflow_composer.errors import InputError

LONGEST = 64 << 20
"""Bytes. A line beyond this is no row of a data set, and would not stay in bounded memory."""

_BLOCK = 1 << 24
_PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
_FOREIGN = {b"\x28\xb5\x2f\xfd": ("Zstandard", "zstd -d"), b"PK\x03\x04": ("a ZIP archive", "unzip")}
_UTF8_MARK = codecs.BOM_UTF8
_UTF16_MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
_FORM = 'one JSON object per line, for example {"question": "What is 2 + 2?", "answer": "4"}'


# ------------------------------------------------------------------------------------------------------------- writing


def encoded(value: Any) -> bytes:
    """A value as a line of JSON, readable where its text can be encoded; NaN and infinities become null."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair: JSON can say it, UTF-8 cannot
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except ValueError:
        return encoded(json.loads(json.dumps(value), parse_constant=lambda _: None))


# ------------------------------------------------------------------------------------------------------------- reading


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked, in UTF-8 and without a byte order mark. Raises `InputError`, also while reading."""
    try:
        with path.open("rb") as plain, _unpacked(plain, path) as file:
            yield _in_utf8(file, path)
    except _DAMAGED as error:
        raise InputError(f"{path} is damaged: {error}", hint="fetch it again, or see with `gzip -t` what is wrong") from None
    except OSError as error:
        raise unreadable(path, error) from None


@contextmanager
def _unpacked(plain: Any, path: Path) -> Iterator[Any]:
    begin = plain.peek(8)[:8]
    for mark, (what, command) in _FOREIGN.items():
        if begin.startswith(mark):
            raise InputError(f"{path} is {what}", hint=f"unpack it first: {command} {path.name}")
    for mark, opener in _PACKED.items():
        if begin.startswith(mark):
            with opener(plain) as unpacked, io.BufferedReader(unpacked) as buffered:
                yield buffered
            return
    yield plain


def _in_utf8(file: Any, path: Path) -> BinaryIO:
    begin = file.peek(4)[:4]
    if begin.startswith(_UTF8_MARK):
        file.read(len(_UTF8_MARK))
    for mark, coding in _UTF16_MARKS.items():
        if begin.startswith(mark) and begin != codecs.BOM_UTF32_LE:
            file.read(len(mark))
            return io.BufferedReader(_Recoded(file, coding, path), 1 << 16)
    return cast(BinaryIO, file)


class _Recoded(io.RawIOBase):
    """A file of another encoding, as UTF-8."""

    def __init__(self, file: BinaryIO, coding: str, path: Path) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder(coding)("surrogatepass").decode
        self._coding = coding.upper()
        self._path = path
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = self._file.read(1 << 16)
            try:
                text = self._decode(block, final=not block)
            except UnicodeDecodeError as error:
                why = f"it begins as {self._coding} and goes on otherwise: {error.reason}"
                raise InputError(f"{self._path} is damaged: {why}", hint="write it anew, in UTF-8") from None
            if not block and not text:
                return 0
            self._rest = text.encode("utf-8", "surrogatepass")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def unreadable(path: Path, error: OSError) -> InputError:
    """What to say where the system refuses a file."""
    hints: dict[type[OSError], str] = {
        FileNotFoundError: "is the path right?",
        IsADirectoryError: "it is a folder; move it, or put the rows into a file of that name",
        PermissionError: "allow this user to read it: chmod u+r",
    }
    return InputError(f"cannot read {path}: {error.strerror or error}", hint=hints.get(type(error), ""))


def lines(path: Path) -> Iterator[bytes]:
    """Lines with their ends. Raises `InputError`, also where one is longer than `LONGEST`."""
    with opened(path) as file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise InputError(f"{path}:{number}: the line is longer than {LONGEST >> 20} MiB", hint=f"write {_FORM}")
            yield line


def blocks(path: Path) -> Iterator[bytes]:
    """The same bytes as `lines`, many whole lines at a time."""
    with opened(path) as file:
        rest = b""
        while block := file.read(_BLOCK):
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


def seekable(path: Path) -> BinaryIO:
    """The same bytes, open for reading at any place: the file itself, else a copy that vanishes when it is closed.

    Raises `InputError`, and FileNotFoundError where there is no file.
    """
    plain = path.open("rb")
    begin = plain.peek(8)[:8]
    if not begin.startswith((*_PACKED, *_FOREIGN, _UTF8_MARK, *_UTF16_MARKS)):
        return plain
    plain.close()
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # closed by whoever reads it
    try:
        with opened(path) as file:
            shutil.copyfileobj(file, copy)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return cast(BinaryIO, copy)


def objects(path: Path, *, form: str = _FORM) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The JSON objects of a file and the numbers of their lines; blank lines hold none.

    Raises `InputError`; ``form`` says what lines should look like.
    """
    for number, line in enumerate(lines(path), 1):
        if not line.isspace():
            yield number, parsed(line, f"{path}:{number}", form=form)


def decoded(line: bytes, where: str) -> str:
    """The line as text. Raises `InputError` where it is not UTF-8.

    Surrogate pairs that were encoded one by one, as Java and MySQL do, are the characters that they stand for.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        try:
            halves = line.decode("utf-8", "surrogatepass")
            return halves.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        except UnicodeDecodeError:
            raise InputError(
                f"{where}: not UTF-8: byte {error.start + 1} of the line is {line[error.start]:#04x}",
                hint="convert the file, for example with: iconv -f LATIN1 -t UTF-8",
            ) from None


def parsed(line: bytes, where: str, *, form: str = _FORM) -> Mapping[str, Any]:
    """The JSON object of a line. Raises `InputError` where it holds none."""
    hint = "turn an array into lines with: jq -c '.[]'" if line.lstrip().startswith(b"[") else f"write {form}"
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
