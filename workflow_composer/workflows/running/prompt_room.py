"""How long a prompt may be: what certainly does not fit is not sent, and texts are put together as far as they fit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from workflow_composer.backends.pricing import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from workflow_composer.plan import Plan

_WORDS = re.compile(r"\w+|[^\w\s]")
T = TypeVar("T")


def fewest_tokens(text: str) -> int:
    """Return fewer tokens than any usual model needs for a text: its words and signs; for one long word, an eighth of it.

    >>> fewest_tokens("to be, or not"), fewest_tokens("a" * 80)
    (5, 10)
    """
    return max(len(_WORDS.findall(text)), len(text) // 8)


def probable_tokens(text: str) -> int:
    """Return the tokens that a text probably has; the same for the same text, whatever has been seen before."""
    return max(len(_WORDS.findall(text)), math.ceil(len(text) / CHARACTERS_PER_TOKEN))


def too_long_for(text: str, room: int | None) -> str | None:
    """Return that a prompt cannot fit, with both figures; None: it may."""
    if room is None or (tokens := fewest_tokens(text)) <= room:
        return None
    return f"the prompt has {tokens:,} tokens or more, and {room:,} fit"


def room_in(plan: Plan, answer: int | None) -> int | None:
    """Return the tokens that a prompt may have at the plan's most spacious model, beside an answer of so many tokens.

    None: a model's length is unknown.
    """
    lengths = [one.context_length for tier in plan.tiers for member in tier.members for one in member.candidates]
    known = [length for length in lengths if length is not None]
    return max(known) - (answer or 0) if known and len(known) == len(lengths) else None


def parts_of(items: Sequence[T], fits: Callable[[Sequence[T]], bool]) -> list[Sequence[T]]:
    """Divide items in their order into the longest parts that fit, the same each time; an item alone is a part anyway.

    >>> parts_of([1, 1, 1, 5, 1], lambda part: sum(part) <= 2)
    [[1, 1], [1], [5], [1]]
    """
    found: list[Sequence[T]] = []
    start = 0
    while start < len(items):
        length = _longest(items, start, fits)
        found.append(items[start : start + length])
        start += length
    return found


def _longest(items: Sequence[T], start: int, fits: Callable[[Sequence[T]], bool]) -> int:
    """Return how many items from ``start`` fit, at least 1: by doubling, then by halving the distance."""
    left = len(items) - start
    good, bad = 1, left + 1
    while good < left and good * 2 < bad:
        if fits(items[start : start + good * 2]):
            good *= 2
        else:
            bad = good * 2
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(items[start : start + middle]):
            good = middle
        else:
            bad = middle
    return good
