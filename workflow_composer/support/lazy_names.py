"""Names that a package offers and imports when they are first used (PEP 562), so that importing it costs next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def lift(package: str, homes: Mapping[str, str], name: str) -> Any:
    """What a package's ``__getattr__`` returns: ``homes`` maps each name that it offers to the module below it that has
    it.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(f"{package}.{homes[name]}"), name)
