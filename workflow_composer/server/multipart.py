"""Multipart bodies (``multipart/form-data``), as clients send files: their parts, and where each begins and ends.

The body is in memory already, within the limit of request bodies; parts are views of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from workflow_composer.server.failures import HttpFailure

KIND = "multipart/form-data"
_MOST_PARTS = 100
_LONGEST_HEAD = 8 * 1024
_BOUNDARY = re.compile(r"""boundary\s*=\s*(?:"([^"]{1,200})"|([^\s;"]{1,200}))""", re.IGNORECASE)
_PARAMETER = re.compile(r""";\s*([\w*-]+)\s*=\s*("(?:[^"\\\r\n]|\\[^\r\n])*"|[^;\s]*)""")
_LONGEST_VALUE = 64 * 1024


class FormPart(NamedTuple):
    """One part: its name, the file's name if it is a file, its content, and where the content stands in the body."""

    name: str
    filename: str | None
    content: memoryview
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FormData:
    """The parts of a body, in their order."""

    parts: tuple[FormPart, ...]

    def file(self, name: str) -> FormPart:
        """Return the one part of this name, which is a file. Raises `HttpFailure`."""
        found = [part for part in self.parts if part.name == name]
        if len(found) != 1 or found[0].filename is None:
            raise HttpFailure(400, f"{name}: must be one file, with its name", param=name)
        return found[0]

    def text(self, name: str) -> str | None:
        """Return the text of a field; None if it is missing. Raises `HttpFailure`."""
        found = [part for part in self.parts if part.name == name]
        if not found:
            return None
        if len(found) > 1 or len(found[0].content) > _LONGEST_VALUE:
            raise HttpFailure(400, f"{name}: must be one short text", param=name)
        try:
            return str(found[0].content, "utf-8")
        except UnicodeDecodeError:
            raise HttpFailure(400, f"{name}: must be UTF-8", param=name) from None


def read(body: bytes | bytearray, headers: Mapping[str, str]) -> FormData:
    """Return the parts of a body. Raises `HttpFailure` 400 or 415."""
    content_type = headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != KIND:
        raise HttpFailure(415, f"the request's content type is not {KIND}", code="unsupported_media_type")
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise HttpFailure(400, f"the content type {KIND} names no boundary")
    mark = b"--" + (found[1] or found[2]).encode("latin-1", "replace")
    parts: list[FormPart] = []
    whole = memoryview(body)
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if at == 1:
        raise _malformed("its first boundary is missing")
    while True:
        at = _line_end(body, at + len(mark))
        if at < 0:
            return FormData(tuple(parts))
        if len(parts) >= _MOST_PARTS:
            raise _malformed(f"it has more than {_MOST_PARTS} parts")
        start = at if body[at : at + 2] == b"\r\n" else body.find(b"\r\n\r\n", at, at + _LONGEST_HEAD) + 2
        if start == 1:
            raise _malformed("the headers of a part do not end")
        name, filename = _named(bytes(body[at:start]))
        start += 2
        end = _next(body, mark, start - 2)
        parts.append(FormPart(name, filename, whole[start:end] if end > start else whole[:0], start, max(start, end)))
        at = end + 2


def _line_end(body: bytes | bytearray, at: int) -> int:
    """Return where the line after a boundary begins; -1 after the last boundary."""
    if body[at : at + 2] == b"--":
        return -1
    end = body.find(b"\r\n", at, at + 200)
    if end < 0 or bytes(body[at:end]).strip(b" \t"):
        raise _malformed("a boundary is not the end of its line")
    return end + 2


def _next(body: bytes | bytearray, mark: bytes, at: int) -> int:
    """Return where the line break before the next boundary stands."""
    while (end := body.find(b"\r\n" + mark, at)) >= 0:
        after = body[end + 2 + len(mark) : end + 4 + len(mark)]
        if after in (b"--", b"\r\n") or after[:1] in (b" ", b"\t"):
            return end
        at = end + 1  # content that only begins like the boundary
    raise _malformed("its last boundary is missing")


def _named(head: bytes) -> tuple[str, str | None]:
    """Return the name of a part, and of its file, by its headers."""
    for line in head.decode("utf-8", "replace").split("\r\n"):
        kind, _, value = line.partition(":")
        if kind.strip().lower() != "content-disposition":
            continue
        found = {name.lower(): _plain(text) for name, text in _PARAMETER.findall(value)}
        if "name" in found:
            extended = found.get("filename*", "").split("'", 2)
            if len(extended) == 3:  # RFC 5987: a character set, a language, the text
                return found["name"], unquote_to_bytes(extended[2]).decode("utf-8", "replace")
            return found["name"], found.get("filename")
    raise _malformed("a part has no name")


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


def _malformed(reason: str) -> HttpFailure:
    return HttpFailure(400, f"the multipart body cannot be read: {reason}")
