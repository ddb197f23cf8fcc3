"""Limits of HTTP requests, and what their first lines say."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes


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
