"""Limits of HTTP requests, what their first lines say, and bodies that clients have compressed (``Content-Encoding``)."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from workflow_composer.server.failures import ENCODINGS, UNKNOWN_ENCODING, HttpFailure
from workflow_composer.support.large_json import LARGE, apart


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of a request. Sizes in bytes, times in seconds; a body gets one more second for every ``pace`` bytes.

    ``unfinished`` limits the bodies of all connections together that are not complete yet; one body may always be.
    """

    head: int = 64 * 1024
    fields: int = 100
    target: int = 8 * 1024
    body: int = 32 * 2**20
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    unfinished: int = 32 * 2**20
    pace: int = 64 * 1024
    idle_seconds: float = 75.0
    stuck_seconds: float = 60.0


class BadTarget(ValueError):
    """An invalid request target."""


def head_without_upgrade(method: bytes, target: bytes, version: str, headers: Mapping[str, str]) -> bytes:
    """Return the request headers without the Upgrade offer, which a server may ignore."""
    lines = [f"{method.decode('latin-1')} {target.decode('latin-1')} HTTP/{version}"]
    for name, value in headers.items():
        if name == "connection":
            value = ", ".join(one for one in value.split(",") if one.strip().lower() != "upgrade")  # noqa: PLW2901  # less
        if name != "upgrade":
            lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@functools.lru_cache(maxsize=256)
def path_and_query(target: bytes) -> tuple[str, str]:
    """Return the decoded path and the raw query of a request target. Raises `BadTarget`."""
    if not target.startswith(b"/"):
        scheme, found, rest = target.partition(b"://")
        if target == b"*":
            return "*", ""
        if not found or scheme.lower() not in {b"http", b"https"}:
            raise BadTarget("the request target is not a path")
        target = b"/" + rest.partition(b"/")[2]
    path, _, query = target.partition(b"?")
    try:
        if b"%" in path:
            path = unquote_to_bytes(path)
            if b"\0" in path:
                raise BadTarget("the path contains a null byte")
            return path.decode("utf-8"), query.decode("ascii")
        return path.decode("ascii"), query.decode("ascii")
    except UnicodeDecodeError:
        raise BadTarget("the request target is not valid text") from None


# ------------------------------------------------------------------------------------------- bodies that are compressed

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_STEP = 64 * 1024
_RATIO, _SMALL = 100, 2**20
"""A body may unpack to this many times its size, and to this many bytes in any case: text is never packed more tightly, and
a small body must not take much memory.
"""


async def unpacked(body: bytes | bytearray, encoding: str, longest: int) -> bytes | bytearray:
    """Return a body as it was before it was compressed. Raises `HttpFailure` 400, 413 or 415.

    ``encoding`` is the header: names in the order in which they were applied.
    """
    names = [name.strip().lower() for name in encoding.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    for name in names:
        if name not in _WINDOWS:
            message = f"the content encoding {name[:40]!r} is not supported; send {ENCODINGS}, or the body as it is"
            raise HttpFailure(415, message, code=UNKNOWN_ENCODING)
    if len(names) > 2:
        raise HttpFailure(415, "the body is compressed more than twice", code=UNKNOWN_ENCODING)
    for name in reversed(names):
        most = min(longest, max(_SMALL, _RATIO * len(body)))
        if len(body) > LARGE // 8:  # text may be eight times as long
            body = await apart(_inflated, body, name, most)
        else:
            body = _inflated(body, name, most)
    return body


def _inflated(body: bytes | bytearray, name: str, most: int) -> bytearray:
    window = _WINDOWS[name]
    if name == "deflate" and (body[0] & 0x0F != 8 or int.from_bytes(body[:2], "big") % 31):
        window = -zlib.MAX_WBITS  # some clients leave out zlib's header
    inflater = zlib.decompressobj(window)
    found = bytearray()
    try:
        data: bytes | bytearray = body
        while data and not inflater.eof:
            found += inflater.decompress(data, _STEP)
            data = inflater.unconsumed_tail
            if len(found) > most:
                raise HttpFailure(413, f"the unpacked request body is larger than {most} bytes")
    except zlib.error as error:
        raise HttpFailure(400, f"the request body is not {name}: {error}") from None
    if not inflater.eof:
        raise HttpFailure(400, f"the request body is not {name}: it ends too early")
    return found
