"""Large JSON is decoded in a thread that lets the event loop take its turns.

Decoders written in C hold the interpreter's lock until they are done, also in a thread. Here only strings are read in C; the
interpreter switches between any two values. One thread decodes one text after another, so that the event loop has one
competitor at most.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from json import scanner
from typing import Any, TypeVar

T = TypeVar("T")

LARGE = 2**17
"""Bytes from which on a text is large: less takes some milliseconds, whatever it is."""
MOST_VALUES = 2_000_000
"""Values in a large text, which takes about a hundred times their number in bytes of memory."""


def decode(data: bytes) -> Any:
    """Decode JSON as a strict decoder does, between whose values other threads run. Raises ValueError, RecursionError."""
    values = 0
    for start in range(0, len(data), LARGE):
        piece = data[start : start + LARGE]
        values += piece.count(b",") + piece.count(b"[") + piece.count(b"{")
        if values > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES} values")
    return _decoder().decode(data.decode("utf-8"))


async def apart(read: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Return ``read(*arguments)``, called in the thread for large texts."""
    return await asyncio.get_running_loop().run_in_executor(_thread(), functools.partial(read, *arguments, **named))


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@functools.cache
def _decoder() -> json.JSONDecoder:
    decoder = json.JSONDecoder(parse_constant=_refused)
    decoder.scan_once = scanner.py_make_scanner(decoder)  # type: ignore[attr-defined]  # the one written in Python
    return decoder


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="large JSON")
