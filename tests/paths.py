"""Where things lie in a checkout."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ROOT / "config" / "strategies"
CHECKPOINTS = ROOT / "workflow_composer" / "checkpoints"
EXAMPLES = ROOT / "examples"

DATA = Path(os.environ.get("WORKFLOW_COMPOSER_DATA", ROOT.parent / "shared" / "data"))
"""Recorded answers of real models; tests that need them are skipped where they are absent."""
