"""The lines of a batch: each is a request, ``{"custom_id", "method", "url", "body"}``, checked before any is answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from workflow_composer.errors import InputError
from workflow_composer.server.batches.shelf import MOST_LINES
from workflow_composer.storage.lines import lines

LONGEST_ID = 512
_MOST_TOLD = 50
"""Faults of a file that its batch lists."""


class _LineText(msgspec.Struct):
    custom_id: str
    body: msgspec.Raw
    method: str = "POST"
    url: str = ""


class _Streams(msgspec.Struct):
    stream: Any = None


class BatchLine(NamedTuple):
    """A request: its number, counted from 0, the client's own ID of it, and its body as JSON."""

    number: int
    custom_id: str
    body: bytes


class Faults(NamedTuple):
    """What is wrong with a file, as clients see it, and its number of lines."""

    told: list[dict[str, Any]]
    rows: int


_line, _streams = msgspec.json.Decoder(_LineText).decode, msgspec.json.Decoder(_Streams).decode


def check(path: Path, endpoint: str) -> Faults:
    """Return what is wrong with the lines of a file. Blocks on the disk."""
    told: list[dict[str, Any]] = []
    seen: set[str] = set()
    count = 0
    try:
        for place, text in _filled(path):
            count += 1
            if count > MOST_LINES:
                told.append(_fault("too_many_lines", f"a batch has at most {MOST_LINES} lines", None, place))
                break
            if (found := _wrong(text, endpoint, seen)) is not None:
                told.append(_fault(*found, place))
                if len(told) >= _MOST_TOLD:
                    break
    except InputError as error:
        told.append(_fault("invalid_file", error.message.replace(str(path), "the file")))
    if not count and not told:
        told.append(_fault("empty_file", "the file has no lines"))
    return Faults(told, count)


def read(path: Path) -> Iterator[BatchLine]:
    """Yield the lines of a file that `check` has found right. Raises `InputError`."""
    for number, (_, text) in enumerate(_filled(path)):
        found = _line(text)
        yield BatchLine(number, found.custom_id, bytes(found.body))


def _filled(path: Path) -> Iterator[tuple[int, bytes]]:
    return ((place, text) for place, text in enumerate(lines(path), 1) if not text.isspace())


def _wrong(text: bytes, endpoint: str, seen: set[str]) -> tuple[str, str, str | None] | None:
    """Return code, message and field of a line's fault; None if there is none."""
    try:
        found = _line(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return "invalid_json_line", f"not a request with custom_id, method, url and body: {error}", None
    if not found.custom_id or len(found.custom_id) > LONGEST_ID:
        return "invalid_custom_id", f"custom_id must have 1 to {LONGEST_ID} characters", "custom_id"
    if found.custom_id in seen:
        return "duplicate_custom_id", f"custom_id {found.custom_id[:100]!r} stands in an earlier line", "custom_id"
    seen.add(found.custom_id)
    return _misdirected(found, endpoint)


def _misdirected(found: _LineText, endpoint: str) -> tuple[str, str, str | None] | None:
    if found.method.upper() != "POST":
        return "invalid_method", "method must be POST", "method"
    if found.url != endpoint:
        return "mismatched_url", f"url must be the batch's endpoint, {endpoint}", "url"
    try:
        body = _streams(found.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "invalid_body", "body must be an object", "body"
    return ("unsupported_parameter", "stream is not supported in a batch", "body.stream") if body.stream else None


def _fault(code: str, message: str, param: str | None = None, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}
