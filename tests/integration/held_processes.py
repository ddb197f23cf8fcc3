"""Tests that start each kind of process that the suite starts, tell of it, and wait for ever; `test_suite_ended` ends them.

Nothing here is collected by itself. ``HELD`` names the folder where a test leaves a file once its processes run.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.fake_vllm import make_fake_vllm
from tests.integration.fleet_commands import Fleet, free_ports
from tests.integration.service import Service, echoing, write_profile
from tests.paths import ROOT

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


def stubborn() -> subprocess.Popen[bytes]:
    """A program that heeds no SIGTERM, with a child, each in a session of its own."""
    return subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, start_new_session=True)


def fleet_up(folder: Path) -> None:
    """A server of a fleet; its supervisor is nobody's child, and no fixture ends it."""
    fake = make_fake_vllm(folder / "fake")
    roles = {"a": {"model": "org/a", "port": free_ports(1)[0]}}
    settings = {"python": sys.executable, "roles": roles}
    Fleet(folder, settings, {"PYTHONPATH": f"{fake}:{ROOT}", "HOME": str(folder)}).up()


@pytest.mark.parametrize("number", [1, 2])
async def test_holds_processes(number, tmp_path):
    fleet_up(tmp_path)
    with echoing() as stub, Service(write_profile(tmp_path, "p", stub.url), "--workers", "2"), stubborn() as child:
        child.stdout.readline()
        (Path(os.environ["HELD"]) / f"{number}").touch()
        await asyncio.Event().wait()
