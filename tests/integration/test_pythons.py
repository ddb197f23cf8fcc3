"""The tests on the other Pythons that the package supports, as far as they are here."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.paths import ROOT

PYTHONS = [python for python in os.environ.get("WORKFLOW_COMPOSER_PYTHONS", "").split(":") if python]

pytestmark = [
    pytest.mark.pythons,
    pytest.mark.skipif(not PYTHONS, reason="set WORKFLOW_COMPOSER_PYTHONS to other Pythons, or run .ci/run pythons"),
]

HEART = (
    "tests/unit/test_orchestrator.py",
    "tests/unit/test_generate_many.py",
    "tests/unit/test_notebook.py",
    "tests/unit/test_forked.py",
    "tests/unit/test_markers.py",
    "tests/unit/support",
)
"""What depends most on the interpreter: event loops, threads, forks, dataclasses with slots."""


def said_by_pytest(python, folder, *arguments):
    """Run tests on a Python; return what pytest said, with its last lines first for a report."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=5400
    )
    assert done.returncode == 0, f"{python}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_the_heart_of_the_package_runs_on_every_python(tmp_path):
    """Quickly: a few files that depend on the interpreter."""
    for number, python in enumerate(PYTHONS):
        assert " passed" in said_by_pytest(python, tmp_path / str(number), "-n", "0", *HEART).splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS or [""])
def test_all_unit_tests_run_on_every_python(tmp_path, python):
    """Except those of the project itself, which ask tools, not the package."""
    skipped = [f"--ignore=tests/unit/{name}.py" for name in ("test_quality", "test_house", "test_suites", "test_locked")]
    said = said_by_pytest(python, tmp_path / "run", "-n", "2", "--dist", "loadfile", *skipped, "tests/unit")
    assert " passed" in said.splitlines()[-1]
