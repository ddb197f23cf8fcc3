"""How much text a value of JSON holds, without writing it. Apart from `large_json`, because every request may need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def characters(value: Any) -> int:
    """Return the number of characters of all texts in a value of JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(characters, value.values()))
    return sum(map(characters, value)) if isinstance(value, (list, tuple)) else 0
