"""A desk per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.workflows.kit import Desk
from tests.paths import ROOT


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    if not (ROOT / "workflow_composer" / "cli" / "workflow" / "run.py").exists():
        pytest.skip("there is no command yet")
    folder = tmp_path / "desk"
    folder.mkdir()
    made = Desk(folder)
    yield made
    made.close()
