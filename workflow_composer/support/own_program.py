"""This package run in other processes, and what Python may import from the working directory.

A file in the working directory must not take the place of a library: others may have filled the folder. Only functions that
a profile names are looked up there, after everything else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

FUNCTION_PATH: list[str] = []
"""Folders in which the modules of functions are looked up after Python's path, and nothing else is: the working directory,
which `__main__` takes off the path of ``python -m``.
"""

_PACKAGE = Path(__file__).parents[1]
_START = """
import importlib, importlib.util, pathlib, sys
package = pathlib.Path(sys.argv.pop(1))
found = importlib.util.find_spec(package.name)
if found is None or found.origin != str(package / "__init__.py"):
    sys.path.insert(0, str(package.parent))
importlib.import_module(sys.argv.pop(1)).main()
"""
"""Calls ``main`` of a module of the package that this process runs, wherever it lies."""


def own_command(module: str, arguments: Iterable[str] = ()) -> list[str]:
    """Return the command that calls a module's ``main()`` in another process, without the working directory on its path."""
    return [sys.executable, "-P", "-c", _START, str(_PACKAGE), module, *arguments]


def sees_functions_here() -> bool:
    """Whether functions that a profile names are looked up in the working directory."""
    return not {"", str(Path.cwd())}.isdisjoint((*sys.path, *FUNCTION_PATH))
