"""Suggestions of the nearest valid name, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return ``did you mean 'x'?`` with the closest known name, after ``prefix``; empty if none is close."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"{prefix}did you mean {found[0]!r}?" if found else ""
