"""Large JSON is decoded and encoded in a thread that lets the event loop take its turns.

Decoders and encoders written in C hold the interpreter's lock until they are done, also in a thread. Here C reads and writes
a piece of a string at most; the interpreter switches between any two of them. One thread takes one text after another, so
that the event loop has one competitor at most.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from json import scanner
from json.decoder import scanstring  # type: ignore[attr-defined]  # in C
from typing import Any, TypeVar

T = TypeVar("T")

LARGE = 2**17
"""Bytes from which on a text is large: less takes some milliseconds, whatever it is."""
PIECE = 2**16
"""Bytes or characters that are read or written at once."""
MOST_VALUES = 2_000_000
"""Values in a large text, which takes about a hundred times their number in bytes of memory."""


def decode(data: bytes | bytearray) -> Any:
    """Decode JSON as a strict decoder does, between whose values other threads run. Raises ValueError, RecursionError."""
    values = 0
    for start in range(0, len(data), LARGE):
        piece = data[start : start + LARGE]
        values += piece.count(b",") + piece.count(b"[") + piece.count(b"{")
        if values > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES} values")
    return _decoder().decode(data.decode("utf-8"))


def pieces(value: Any, encode: Callable[[Any], bytes]) -> tuple[bytes, ...]:
    """Encode as JSON, in pieces of about `PIECE` bytes; ``encode`` writes single values. Raises as it does."""
    found: list[bytes] = []
    piece = bytearray()
    for part in _written(value, encode):
        piece += part
        if len(piece) >= PIECE:
            found.append(bytes(piece))
            piece.clear()
    return (*found, bytes(piece))


def _written(value: Any, encode: Callable[[Any], bytes]) -> Iterator[bytes]:
    if isinstance(value, str) and len(value) > PIECE:
        yield b'"'
        for start in range(0, len(value), PIECE):
            yield encode(value[start : start + PIECE])[1:-1]
        yield b'"'
    elif isinstance(value, Mapping):
        for number, (key, inner) in enumerate(value.items()):
            yield b",%b:" % encode(str(key)) if number else b"{%b:" % encode(str(key))
            yield from _written(inner, encode)
        yield b"}" if value else b"{}"
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield b"," if number else b"["
            yield from _written(inner, encode)
        yield b"]" if value else b"[]"
    else:
        yield b"null" if value is None else encode(value)


async def apart(read: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Return ``read(*arguments)``, called in the thread for large texts."""
    return await asyncio.get_running_loop().run_in_executor(_thread(), functools.partial(read, *arguments, **named))


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@functools.cache
def _decoder() -> json.JSONDecoder:
    decoder = json.JSONDecoder(parse_constant=_refused)
    decoder.parse_string = _string  # type: ignore[attr-defined]  # in pieces
    decoder.scan_once = scanner.py_make_scanner(decoder)  # type: ignore[attr-defined]  # the one written in Python
    return decoder


_UP_TO_QUOTE = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


def _string(text: str, start: int, strict: bool = True) -> tuple[str, int]:
    """Read a string from the character after its quote, in pieces; return it and where it ends. Raises ValueError."""
    parts: list[str] = []
    while True:
        end = start + PIECE
        quote = text.find('"', start, end)
        if quote >= 0 and _is_escaped(text, start, quote):
            found = _UP_TO_QUOTE.match(text, start, end)
            quote = found.end() if found is not None and text[found.end() : found.end() + 1] == '"' else -1
        if quote >= 0 or end >= len(text):
            rest, end = scanstring(text, start, strict)
            return ("".join((*parts, rest)) if parts else rest), end
        end = _between_escapes(text, start, end - _is_escaped(text, start, end))
        try:
            parts.append(scanstring(text[start:end] + '"', 0, strict)[0])
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, text, start + error.pos) from None
        start = end


def _is_escaped(text: str, start: int, at: int) -> bool:
    """Whether a character follows an odd number of backslashes, counted from ``start``."""
    before = text[start:at]
    return bool((len(before) - len(before.rstrip("\\"))) % 2)


def _between_escapes(text: str, start: int, end: int) -> int:
    """Return ``end``, or less if an escape by number, or a pair of them, would be cut in two there."""
    at = _escape_before(text, start, end)
    if at > start and end - at < 6:  # it is not complete
        at, end = _escape_before(text, start, at), at
    is_first_of_two = at > start and end - at == 6 and text[at + 2] in "dD" and text[at + 3] in "89abAB"
    return at if is_first_of_two else end


def _escape_before(text: str, start: int, end: int) -> int:
    """Return where an escape by number begins that reaches up to ``end`` at least; ``start`` if there is none."""
    at = text.rfind("\\u", max(start + 1, end - 6), end)
    return at if at > start and not _is_escaped(text, start, at) else start


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="large JSON")
