"""Where the rows of an earlier run stand now: a row is known by its content, not by its place.

A data set may grow, and its rows may change their order, between two runs. Each kept row then gets its new place. Rows with
the same content are interchangeable, because their prompts are the same.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflow_composer.answers.form import as_data

NO_KEY = 0

Keys = tuple[int, ...]
"""The numbers by which one row may be known."""


@dataclass(frozen=True, slots=True)
class Moves:
    """New places of kept rows by old ones; rows that stay are absent.

    ``lost`` are the old places of kept rows that are not among the rows of the data set; their new places are beyond them.
    """

    places: Mapping[int, int]
    lost: tuple[int, ...] = ()


def number_of(key: str) -> int:
    """Return the number of a hex digest; never `NO_KEY`."""
    return int(key, 16) or 1


def content_key(*content: Any) -> str:
    """Return a digest (16 hex digits) of JSON-serializable content, in which mappings have no order.

    >>> content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}), content_key("a", "b") == content_key("ab")
    (True, False)
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=as_data)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def moves(kept: Sequence[int], rows: Iterable[Keys]) -> Moves:
    """Return where kept rows stand now. ``kept[place]`` is a row's key, `NO_KEY` where none is kept; ``rows`` are today's.

    Uses memory for the rows that have moved only, however many rows there are.
    """
    stays = bytearray(len(kept))
    free: list[tuple[int, Keys]] = []
    wanted: set[int] | None = None
    total = 0
    for place, keys in enumerate(rows):
        total = place + 1
        if place < len(kept):
            if kept[place] != NO_KEY and kept[place] in keys:
                stays[place] = 1
            else:
                free.append((place, keys))
            continue
        if wanted is None:
            wanted = {kept[at] for at in _moved(kept, stays)}
        if wanted and not wanted.isdisjoint(keys):
            free.append((place, keys))
    return _placed(kept, _moved(kept, stays), free, total)


def _moved(kept: Sequence[int], stays: Sequence[int]) -> list[int]:
    return [place for place, key in enumerate(kept) if key != NO_KEY and not stays[place]]


def _placed(kept: Sequence[int], moved: Sequence[int], free: Sequence[tuple[int, Keys]], total: int) -> Moves:
    if not moved:
        return Moves({})
    wanted = {kept[place] for place in moved}
    open_places: dict[int, array[int]] = {}
    for place, keys in reversed(free):
        for key in keys:
            if key in wanted:
                open_places.setdefault(key, array("Q")).append(place)
    places: dict[int, int] = {}
    lost: list[int] = []
    taken: set[int] = set()
    beyond = max(total, len(kept))
    for old in moved:
        left = open_places.get(kept[old], array("Q"))
        while left and left[-1] in taken:
            left.pop()
        if left:
            places[old] = left.pop()
            taken.add(places[old])
        else:
            lost.append(old)
    used = {*places.values()}
    for old in lost:
        if old < total or old in used:
            places[old] = beyond
            beyond += 1
    return Moves(places, tuple(lost))
