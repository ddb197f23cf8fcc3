"""The suite itself, ended while its tests run servers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.fleet_commands import until
from tests.paths import ROOT
from workflow_composer.fleet.processes import NodeProcess, command_line, descendants, find

HELD = Path(__file__).with_name("held_processes.py")


def of_run(folder: Path) -> list[NodeProcess]:
    """The processes whose environment names the run's folder, whoever their parent is."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            named = f"{folder}/".encode() in (entry / "environ").read_bytes()
        except OSError:
            continue
        if named and (process := find(int(entry.name))) is not None:
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ended_by_sigterm_the_suite_leaves_no_process(workers, tmp_path):
    """Services with workers, a fleet's detached supervisor, programs that heed no SIGTERM: in each of pytest's workers."""
    held, run = tmp_path / "held", tmp_path / "run"
    held.mkdir()
    started: set[NodeProcess] = set()
    options = [f"-n{workers}", f"--basetemp={run}", "-pno:cacheprovider", "-q"]
    with (tmp_path / "log").open("wb") as log:
        suite = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, HELD],
            cwd=ROOT,
            env=os.environ | {"HELD": str(held), "PYTEST_ADDOPTS": ""},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(lambda: suite.poll() is not None or len(list(held.iterdir())) == max(workers, 1), "the start", seconds=240.0)
        started = {*descendants(suite.pid), *of_run(run)}
        suite.terminate()
        suite.wait(120)
        said = (tmp_path / "log").read_text()
        left = [command_line(process.pid) for process in {*started, *of_run(run)} if process.alive]
    finally:
        for process in {*started, *descendants(suite.pid), *of_run(run)}:
            process.signal(9)
        suite.kill()
        suite.wait()
    assert len(started) > 6 * max(workers, 1), said
    assert left == [], said
    assert suite.returncode == pytest.ExitCode.INTERRUPTED, said
