"""Where a user's programs keep their state, and where logs go that nobody has asked to be elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

STRATEGY_VARIABLE = "BIOPIPELINES_STRATEGY"
"""Environment variable that names the profile."""
_OURS = "workflow-composer"
_BEFORE = Path("logs")
"""The folder, in the working directory, of earlier versions' logs."""


def state_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of the user's state: ``$XDG_STATE_HOME/workflow-composer``, by default in ``~/.local/state``."""
    home = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return Path(home) / _OURS


def log_file(environ: Mapping[str, str], name: str, folder: str | Path | None = None) -> Path:
    """Return the path of the log ``name``: in ``folder`` if one is given, else in `state_folder`.

    A log that stands in ``logs/`` of the working directory, where earlier versions began it, goes on there.
    """
    if folder is not None:
        return Path(folder).expanduser() / name
    begun = _BEFORE / name
    return begun if begun.is_file() else state_folder(environ) / name
