"""The nearest valid name, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """``did you mean 'x'?`` for the known name most like ``name``, behind ``prefix``; empty where none is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"{prefix}did you mean {found[0]!r}?" if found else ""
