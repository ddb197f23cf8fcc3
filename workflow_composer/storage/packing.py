"""Compressed files, recognised by their first bytes: gzip, bzip2, xz, Zstandard, and ZIP archives of one file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from workflow_composer.errors import ConfigError, InputError
from workflow_composer.support.installing import install_command

_STREAMS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda file: _Zstandard(file),  # noqa: PLW0108  # the class is defined below,
}
_ZIP = b"PK\x03\x04"
_FOREIGN = {
    b"\xd0\xcf\x11\xe0": ("an Excel workbook (.xls)", "save it as CSV UTF-8"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it first: 7z x"),
    b"Rar!": ("a RAR archive", "unpack it first: unrar x"),
    b"%PDF": ("a PDF document", "give the table that it was made from"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the data", "fetch the data: git lfs pull"),
    b"<!DOCTYPE": ("a web page", "download the file itself: on the hub, resolve instead of blob in its address"),
    b"<!doctype": ("a web page", "download the file itself: on the hub, resolve instead of blob in its address"),
    b"<html": ("a web page", "download the file itself: on the hub, resolve instead of blob in its address"),
}
MARKS = (*_STREAMS, _ZIP, *_FOREIGN)
"""The first bytes of files that are not plain text."""

ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Endings of the names of compressed files."""

DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile)
"""What reading a damaged compressed file raises."""


def content_name(path: Path) -> str:
    """Return a file's name without the ending of its compression; of a ZIP archive of one file, that file's name."""
    name = path.name
    for end in ENDINGS:
        if name.lower().endswith(end):
            name = name[: -len(end)]
            if end == ".zip" and not PurePosixPath(name).suffix:
                return _name_in_zip(path) or name
    return name


def _name_in_zip(path: Path) -> str | None:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = _tables_in(archive)
    except (OSError, zipfile.BadZipFile):
        return None  # reading it raises the error
    return PurePosixPath(members[0].filename).name if len(members) == 1 else None


def refuse_foreign(begin: bytes, path: Path) -> None:
    """Raise `InputError` if the first bytes of a file are those of a kind that is no table."""
    for mark, (what, remedy) in _FOREIGN.items():
        if begin.startswith(mark):
            raise InputError(f"{path} is {what}", hint=remedy)


@contextmanager
def unpacked(plain: Any, path: Path) -> Iterator[Any]:
    """Yield the decompressed bytes of an open file. Raises `InputError` for a kind of file that is no table.

    Reading may raise an error of `DAMAGED`.
    """
    begin = plain.peek(64)[:64]
    refuse_foreign(begin, path)
    if begin.startswith(_ZIP):
        with zipfile.ZipFile(plain) as archive, archive.open(_only_table(archive, path)) as member:
            yield io.BufferedReader(member)
        return
    for mark, opener in _STREAMS.items():
        if begin.startswith(mark):
            with opener(plain) as stream, io.BufferedReader(stream) as buffered:
                yield buffered
            return
    yield plain


def _tables_in(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the members that may be tables: no folders, and no files that systems and authors add."""

    def is_table(name: str) -> bool:
        parts = PurePosixPath(name).parts
        return "__MACOSX" not in parts and not parts[-1].startswith((".", "README", "LICENSE"))

    return [member for member in archive.infolist() if not member.is_dir() and is_table(member.filename)]


def _only_table(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    names = archive.namelist()
    if "[Content_Types].xml" in names or "mimetype" in names:
        raise InputError(f"{path} is a workbook or document, not a table in text form", hint="save it as CSV UTF-8")
    members = _tables_in(archive)
    if len(members) != 1:
        listed = ", ".join(member.filename for member in members[:8]) or "no table"
        raise InputError(
            f"{path} is a ZIP archive with {len(members)} files, not one: {listed}",
            hint=f"unpack it (unzip {path.name}) and give one of its files",
        )
    if members[0].flag_bits & 1:
        raise InputError(f"{path} is a ZIP archive with a password", hint=f"unpack it first: unzip {path.name}")
    return members[0]


class _Zstandard(io.RawIOBase):
    """Decompresses Zstandard with Arrow's library. Raises `ConfigError` if it is not installed."""

    def __init__(self, file: Any) -> None:
        try:
            import pyarrow as pa
        except ImportError:
            raise ConfigError(
                "a file compressed with Zstandard needs pyarrow, which is not installed",
                hint=f"{install_command('batch')}; or decompress the file first: zstd -d",
            ) from None
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._stream.read(len(buffer))
        except (OSError, ValueError) as error:
            raise EOFError(str(error)) from None
        buffer[: len(found)] = found
        return len(found)
