"""Where a fleet keeps what its parts tell each other.

Two folders, both on a file system that every node sees (a home directory usually is): the **registry** says which servers
answer now, and is all that clients read; the **state** says which servers should run, who started them and what has happened
to them, and belongs to whoever runs the fleet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

REGISTRY_VARIABLE = "WORKFLOW_COMPOSER_REGISTRY"
"""Another folder for the registry."""

STATE_VARIABLE = "WORKFLOW_COMPOSER_FLEET_STATE"
"""Another folder for the fleet's state."""


def registry_directory(environ: Mapping[str, str], named: str | os.PathLike[str] | None = None) -> Path:
    """The registry's folder: the environment's, else the one that a file names, else the user's own."""
    return _chosen(environ, REGISTRY_VARIABLE, named, "registry")


def state_directory(environ: Mapping[str, str], named: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the fleet's state: the environment's, else the one that a file names, else the user's own."""
    return _chosen(environ, STATE_VARIABLE, named, "fleet")


def _chosen(environ: Mapping[str, str], variable: str, named: str | os.PathLike[str] | None, name: str) -> Path:
    if place := environ.get(variable, "").strip() or named:
        return Path(place).expanduser().absolute()
    home = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return Path(home) / "workflow-composer" / name
