r"""Reads and writes lines of JSON; the only module that splits files into lines.

Only ``\n`` ends a line; U+2028, U+0085 and form feeds do not. Files may be compressed (gzip, bzip2, xz, Zstandard, or a ZIP
archive of one file, detected by their first bytes, not their names), may have a byte order mark, and may be in UTF-16, as
spreadsheets and PowerShell write it. The lines returned are always plain UTF-8.
"""

from __future__ import annotations

import codecs
import functools
import io
import json
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from workflow_composer.errors import InputError
from workflow_composer.storage import packing

LONGEST = 64 << 20
"""Maximum length of a line in bytes; a longer one is not a row of a data set, and memory must stay bounded."""

_BLOCK = 1 << 24
_NEAR = 1 << 16
_UTF8_MARK = codecs.BOM_UTF8
_UTF16_MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_UNMARKED = {(False, True, False, True): "utf-16-le", (True, False, True, False): "utf-16-be"}
"""UTF-16 without a mark: where the first two characters, which are ASCII, have their zero bytes."""
_FORM = 'one JSON object per line, for example {"question": "What is 2 + 2?", "answer": "4"}'


# ------------------------------------------------------------------------------------------------------------- writing


def encoded(value: Any) -> bytes:
    """Encode a value as a line of JSON; NaN and infinities become null. Text is escaped only if UTF-8 cannot encode it."""
    try:
        return _encode(value).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate: JSON can escape it, UTF-8 cannot encode it
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except ValueError:
        return encoded(json.loads(json.dumps(value), parse_constant=lambda _: None))


def encoded_fast(value: Any) -> bytes:
    """Encode a value as `encoded` does, in a tenth of the time; some numbers are written otherwise (1e-6 for 1e-06).

    For lines of which no digest is made.
    """
    try:
        return _fast_encoder()(value) + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError):  # numbers of other types, lone surrogates
        return encoded(value)


@functools.cache
def _fast_encoder() -> Callable[[Any], bytes]:
    from msgspec.json import Encoder

    return Encoder().encode


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


# ------------------------------------------------------------------------------------------------------------- reading


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file as decompressed UTF-8 without a byte order mark. Raises `InputError`, also while reading."""
    try:
        with path.open("rb") as plain, packing.unpacked(plain, path) as file:
            yield _in_utf8(file, path)
    except packing.DAMAGED as error:
        raise InputError(f"{path} is damaged: {error}", hint="download it again, or run `gzip -t` to check it") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _in_utf8(file: Any, path: Path) -> BinaryIO:
    begin = file.peek(4)[:4]
    if begin.startswith(_UTF8_MARK):
        file.read(len(_UTF8_MARK))
    if len(begin) == 4 and (coding := _UNMARKED.get((begin[0] == 0, begin[1] == 0, begin[2] == 0, begin[3] == 0))):
        return io.BufferedReader(_Recoded(file, coding, path), 1 << 16)
    for mark, coding in _UTF16_MARKS.items():
        if begin.startswith(mark) and begin != codecs.BOM_UTF32_LE:
            file.read(len(mark))
            return io.BufferedReader(_Recoded(file, coding, path), 1 << 16)
    return cast(BinaryIO, file)


class _Recoded(io.RawIOBase):
    """Converts a file in another encoding to UTF-8."""

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
                why = f"invalid {self._coding}: {error.reason}"
                raise InputError(f"{self._path} is damaged: {why}", hint="save it again as UTF-8") from None
            if not block and not text:
                return 0
            self._rest = text.encode("utf-8", "surrogatepass")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the error for a file that the system cannot open or read."""
    hints: dict[type[OSError], str] = {
        FileNotFoundError: "check the path",
        IsADirectoryError: "it is a folder; give the path of a file",
        PermissionError: "grant this user read access: chmod u+r",
    }
    return InputError(f"cannot read {path}: {error.strerror or error}", hint=hints.get(type(error), ""))


def lines(path: Path) -> Iterator[bytes]:
    """Yield the lines with their line ends. Raises `InputError`, also for a line longer than `LONGEST`."""
    with opened(path) as file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise InputError(f"{path}:{number}: the line is longer than {LONGEST >> 20} MiB", hint=f"write {_FORM}")
            yield line


def lines_after(path: Path, is_before: Callable[[bytes], bool | None], *, most: int | None = None) -> Iterator[bytes]:
    """Yield the lines of an ordered file from the last one before a point on; reads a few of the earlier ones only.

    ``is_before`` says whether a line lies before that point; None: the line does not say. ``most``: the bytes of the end
    beyond which nothing is yielded. Raises `InputError`.
    """
    try:
        with seekable(path) as file:
            first, end = 0, file.seek(0, io.SEEK_END)
            size = end
            while end - first > _NEAR:
                middle = (first + end) // 2
                file.seek(middle)
                file.readline(LONGEST)  # the rest of a line
                at, before = file.tell(), None
                while at < end and (before := is_before(file.readline(LONGEST))) is None:
                    at = file.tell()
                first, end = (at, end) if before else (first, middle)
            file.seek(first)
            if most is not None and size - first > most:
                file.seek(size - most)
                file.readline(LONGEST)
            while line := file.readline(LONGEST):
                yield line
    except OSError as error:
        raise unreadable(path, error) from None


def blocks(path: Path) -> Iterator[bytes]:
    """Yield the same bytes as `lines` in blocks of whole lines."""
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
    """Open the same bytes as a seekable file: the file itself, or a temporary copy deleted on close.

    Raises `InputError`, or FileNotFoundError if the file does not exist.
    """
    plain = path.open("rb")
    begin = plain.peek(64)[:64]
    if not begin.startswith((*packing.MARKS, _UTF8_MARK, *_UTF16_MARKS)):
        return plain
    plain.close()
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    try:
        with opened(path) as file:
            shutil.copyfileobj(file, copy)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return cast(BinaryIO, copy)


def spooled(values: Iterable[Any]) -> BinaryIO:
    """Return a seekable temporary file with a line of JSON for each value; it is deleted on close."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    try:
        file.writelines(map(encoded, values))
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return cast(BinaryIO, file)


class Spool:
    """JSON values by their numbers, in a temporary file that is deleted on close; eight bytes of memory a value.

    A later value of the same number counts. A context manager.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self._offsets = array("Q")
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, number: int, value: Any) -> None:
        """Keep a value. Raises OSError."""
        line = encoded_fast(value)
        self._file.seek(self._end)
        self._file.write(line)
        if number >= len(self._offsets):
            self._offsets.extend([0] * (number + 1 - len(self._offsets)))
        self._offsets[number] = self._end + 1
        self._end += len(line)

    def has(self, number: int) -> bool:
        """Whether a number has a value."""
        return number < len(self._offsets) and self._offsets[number] > 0

    def get(self, number: int) -> Any:
        """Return the value of a number; None if it has none. Raises OSError."""
        if not self.has(number):
            return None
        self._file.seek(self._offsets[number] - 1)
        return json.loads(self._file.readline())

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


def objects(path: Path, *, form: str = _FORM) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the line numbers and JSON objects of a file, skipping blank lines.

    Raises `InputError`; ``form`` describes the expected lines.
    """
    for number, line in enumerate(lines(path), 1):
        if not line.isspace():
            yield number, parsed(line, f"{path}:{number}", form=form)


def decoded(line: bytes, where: str) -> str:
    """Decode a line. Raises `InputError` if it is not UTF-8.

    Surrogate pairs encoded separately (CESU-8, as Java and MySQL write) are combined.
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


class WrittenNumber(float):
    """A decimal number of a JSON text that keeps its writing, such as ``1.10``."""

    __slots__ = ("written",)
    written: str

    def __new__(cls, written: str) -> Self:
        """Read the number."""
        found = super().__new__(cls, written)
        found.written = written
        return found

    def __str__(self) -> str:
        return self.written


def parsed(line: bytes, where: str, *, form: str = _FORM, number: Callable[[str], float] | None = None) -> Mapping[str, Any]:
    """Parse the JSON object of a line; ``number`` reads decimals. Raises `InputError` if it is not one."""
    hint = "turn an array into lines with: jq -c '.[]'" if line.lstrip().startswith(b"[") else f"write {form}"
    try:
        found = json.loads(decoded(line, where), parse_float=number)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg} at column {error.colno}", hint=hint) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{where}: not valid JSON: {error}", hint=hint) from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected an object, found {kind(found)}", hint=hint)
    return found


def kind(value: Any) -> str:
    """Name the type of a JSON value, for messages."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a text" if value.strip() else "empty"
    if isinstance(value, (int, float)):
        return "a number"
    return "an object" if isinstance(value, Mapping) else "a list"
