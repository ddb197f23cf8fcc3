"""64-bit hash keys of contexts and of a gate's weights; numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Tokens = NDArray[np.int64]

NO_TOKEN = -1
"""Placeholder before the first token of a sequence."""

_START = 0xD1B54A32D192ED03
"""Nonzero initial state: from zero, a context that ends in token 0 would have the same key as the context without it."""
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_LONG, _MIDDLE, _SHORT = np.uint64(32), np.uint64(29), np.uint64(27)


def mixed(keys: Keys) -> Keys:
    """Mix bits: each input bit changes about half of the output bits (the finalizer of splitmix64, Steele et al. 2014)."""
    found = keys ^ (keys >> _LONG)
    found *= _FIRST
    found ^= found >> _MIDDLE
    found *= _SECOND
    found ^= found >> _SHORT
    return found


def _states(columns: Sequence[Tokens], gate: int) -> Iterator[Keys]:
    """Yield the states of the last token, the last two and so on, before `mixed`; one array, changed at each step."""
    state = np.full(len(columns[0]), np.uint64(_START ^ (gate & 0xFFFFFFFFFFFFFFFF)), np.uint64)
    for column in columns:
        state ^= column.view(np.uint64) if column.dtype == np.int64 else column.astype(np.int64).view(np.uint64)
        state *= _STEP
        state ^= state >> _LONG
        yield state


def suffix_keys(columns: Sequence[Tokens], gate: int = 0) -> Iterator[Keys]:
    """Yield the keys of the last token, the last two, the last three and so on, each computed from the one before.

    ``columns`` holds the tokens *newest first*, one array [n] per position; ``gate`` is the gate's `weights_key`, so that
    routes of different gates have different keys. Two different contexts of any length collide with a probability of about
    2 ** -64.
    """
    return map(mixed, _states(columns, gate))


def suffix_key_rows(columns: Sequence[Tokens]) -> Keys:
    """Return `suffix_keys` without a gate as one array [width, n]: faster for few tokens, but all in memory."""
    found = np.empty((len(columns), len(columns[0])), np.uint64)
    for row, state in zip(found, _states(columns, 0), strict=True):
        row[:] = state
    return mixed(found)


def context_keys(columns: Sequence[Tokens], gate: int = 0) -> Keys:
    """Return the key of the whole context, the last of `suffix_keys`.

    >>> newest, before = np.array([7, 7, 8]), np.array([3, 4, 3])
    >>> len(set(context_keys([newest, before]).tolist()))
    3
    """
    *_, state = _states(columns, gate)
    return mixed(state)


def columns_of(tokens: Tokens, width: int, before: Sequence[int] = ()) -> list[Tokens]:
    """Return the contexts of consecutive tokens [n] as columns, newest first: views, not copies.

    ``before`` are the previous tokens; `NO_TOKEN` replaces missing ones.
    """
    earlier = list(before)[-(width - 1) :] if width > 1 else []
    lead = [NO_TOKEN] * (width - 1 - len(earlier)) + earlier
    line = np.concatenate([np.asarray(lead, np.int64), np.asarray(tokens, np.int64)])
    return [line[width - 1 - back : len(line) - back] for back in range(width)]


def columns_in(tokens: Tokens, width: int, sequences: NDArray[np.int64]) -> list[Tokens]:
    """Return the contexts as `suffix_columns` does, but within the sequences numbered by ``sequences`` [n]."""
    columns = columns_of(tokens, width)
    starts = np.flatnonzero(np.r_[True, sequences[1:] != sequences[:-1]])
    age = np.arange(len(tokens)) - np.repeat(starts, np.diff(np.r_[starts, len(tokens)]))
    return [np.where(age >= back, column, NO_TOKEN) for back, column in enumerate(columns)]


def weights_key(*arrays: NDArray[np.generic]) -> int:
    """Return a 64-bit hash of these values (BLAKE2b of dtype, shape and bytes). Never 0, which means "no gate"."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return int.from_bytes(digest.digest(), "little") or 1
