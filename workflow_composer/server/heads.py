"""The head of an HTTP answer, as bytes; and what a request's target and headers may be."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

_STATUS: dict[int, str] = {status: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_LONGEST_VALUE = 1024
_second: tuple[int, str] = (0, "")


class BadTarget(ValueError):
    """The request's target is none that a server of one's own resources can have."""


def head(
    status: int,
    content_type: str,
    headers: Iterable[tuple[str, str]],
    *,
    length: int | None,
    close: bool,
    chunked: bool = False,
) -> bytes:
    """Status line and headers, with the empty line. ``length`` None: the body's end is told in another way."""
    lines = [_STATUS[status], "date: ", _date(), "\r\ncontent-type: ", content_type, "\r\n"]
    if length is not None:
        lines.append(f"content-length: {length}\r\n")
    elif chunked:
        lines.append("transfer-encoding: chunked\r\n")
    if close:
        lines.append("connection: close\r\n")
    for name, value in headers:
        lines += (name, ": ", value if value.isprintable() and value.isascii() else _harmless(value), "\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("ascii")


def _harmless(value: str) -> str:
    """A value that comes from elsewhere (a model's name, say), without what could end the header."""
    return value.encode("ascii", "backslashreplace").decode("ascii").translate(_CONTROLS)[:_LONGEST_VALUE]


_CONTROLS = dict.fromkeys((*range(32), 127), "?")


def _date() -> str:
    """Now, as HTTP writes it; made once a second."""
    global _second  # noqa: PLW0603  # a pair, replaced by one assignment
    now = int(time.time())
    second, text = _second
    if second != now:
        text = formatdate(now, usegmt=True)
        _second = (now, text)
    return text


def head_without_upgrade(method: bytes, target: bytes, version: str, headers: Mapping[str, str]) -> bytes:
    """The head of a request that offers to speak another protocol, without the offer, which a server may ignore."""
    lines = [f"{method.decode('latin-1')} {target.decode('latin-1')} HTTP/{version}"]
    for name, value in headers.items():
        if name == "connection":
            value = ", ".join(one for one in value.split(",") if one.strip().lower() != "upgrade")  # noqa: PLW2901  # less
        if name != "upgrade":
            lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def path_and_query(target: bytes) -> tuple[str, str]:
    """The decoded path and the raw query of a request's target. Raises `BadTarget`."""
    if not target.startswith(b"/"):
        scheme, found, rest = target.partition(b"://")
        if target == b"*":
            return "*", ""
        if not found or scheme.lower() not in {b"http", b"https"}:
            raise BadTarget("the target is no path")
        target = b"/" + rest.partition(b"/")[2]
    path, _, query = target.partition(b"?")
    try:
        if b"%" in path:
            path = unquote_to_bytes(path)
            if b"\0" in path:
                raise BadTarget("the path holds a null byte")
            return path.decode("utf-8"), query.decode("ascii")
        return path.decode("ascii"), query.decode("ascii")
    except UnicodeDecodeError:
        raise BadTarget("the target is no text") from None
