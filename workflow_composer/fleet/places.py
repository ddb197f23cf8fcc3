"""Where a fleet's file and its state may be. Imports nothing heavy: whoever only looks there need not wait."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from workflow_composer.support.places import state_folder

STATE_VARIABLE = "WORKFLOW_COMPOSER_FLEET_STATE"
"""Environment variable: folder of the fleet's state."""
FILE = "fleet.yaml"
WORKING = (Path("config") / FILE, Path(FILE))
"""The fleet file in the working directory: where the first of these is a file."""
STATE = "fleet"
"""The folder of the fleet's state in that of the user's state."""


def own_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Candidate paths of a fleet file that is not the shipped one: in the working directory, and of the user."""
    home = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111  # no error without a home
    return *WORKING, Path(home) / "workflow-composer" / FILE


def usual_state(environ: Mapping[str, str]) -> Path:
    """Return the folder of the state of a fleet whose file names none."""
    named = environ.get(STATE_VARIABLE, "").strip()
    return Path(named).expanduser().absolute() if named else state_folder(environ) / STATE
