"""Names of a package that are imported at first use (PEP 562), so that importing the package stays cheap."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def lift(package: str, homes: Mapping[str, str], name: str) -> Any:
    """Return the attribute for a package's ``__getattr__``; ``homes`` maps each public name to its submodule.

    Raises `AttributeError` for any other name.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(f"{package}.{homes[name]}"), name)
