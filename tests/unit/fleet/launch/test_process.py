"""vLLM behind its guard: nothing of it outlives the supervisor, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.fleet.conftest import alive, until
from workflow_composer.errors import FleetError
from workflow_composer.fleet.launch.process import ServerLog, ServerProcess

FAMILY = """
import os, signal, subprocess, sys, time
{first}
child = subprocess.Popen([sys.executable, "-c", {second!r}])
print(os.getpid(), child.pid, flush=True)
{last}
"""
SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"


def family(first="", last="time.sleep(300)"):
    """A program with a child that heeds no SIGTERM, as vLLM's engine that hangs would not."""
    return [sys.executable, "-c", FAMILY.format(first=first, second=SLEEP, last=last)]


@pytest.fixture
def log(tmp_path):
    found = ServerLog(tmp_path / "s.log")
    yield found
    found.close()


@pytest.fixture
def start(log):
    """Starts programs; ends what a failed test leaves."""
    started = []

    def start(argv):
        started.append(ServerProcess(argv, os.environ, log))
        return started[-1]

    yield start
    for process in started:
        process.close()


def members(log):
    """The numbers that a family has printed."""
    return until(lambda: [int(word) for word in log.tail.split("\n")[0].split()], "the family tells its numbers")


def test_output_comes_to_the_log_and_the_exit_code_back(start, log):
    process = start(
        [sys.executable, "-c", "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(7)"]
    )

    assert until(process.ended, "its end") == 7
    assert log.tail.splitlines() == ["out", "err"]


def test_an_end_by_a_signal_is_told_as_128_and_its_number(start):
    process = start([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])

    assert until(process.ended, "its end") == 137


def test_stopping_ends_the_program_and_its_children(start, log):
    process = start(family())
    pids = members(log)

    process.stop(20)

    assert not [pid for pid in pids if alive(pid)]


def test_what_heeds_no_sigterm_is_killed_after_its_patience(start, log):
    process = start(family(first="signal.signal(signal.SIGTERM, signal.SIG_IGN)"))
    pids = members(log)

    assert process.stop(0.5) == 137
    assert not [pid for pid in pids if alive(pid)]


def test_a_program_that_is_frozen_is_killed_too(start, log):
    process = start(family())
    pids = members(log)
    os.killpg(process.pid, signal.SIGSTOP)

    process.stop(0.5)

    assert not [pid for pid in pids if alive(pid)]


def test_children_of_a_program_that_ends_by_itself_end_with_it(start, log):
    process = start(family(last="sys.exit(3)"))
    pids = members(log)

    assert until(process.ended, "its end") == 3
    assert not [pid for pid in pids if alive(pid)]


def test_the_guard_outlives_signals_that_are_not_its_own_and_the_program_heeds_them(start, log):
    process = start(family())
    members(log)
    guard = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(guard, number)

    assert process.ended() is None
    os.kill(process.pid, signal.SIGTERM)
    assert until(process.ended, "its end") == 143


def test_where_the_guard_itself_is_killed_the_program_is_ended_by_the_supervisor(start, log):
    process = start(family())
    pids = members(log)
    guard = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])

    os.kill(guard, signal.SIGKILL)

    assert until(process.ended, "its end") == 137
    until(lambda: not [pid for pid in pids if alive(pid)], "the end of the family")


@pytest.mark.parametrize("first", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_nothing_is_left_of_a_supervisor_that_is_killed(tmp_path, first):
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from workflow_composer.fleet.launch.process import ServerLog, ServerProcess\n"
        "log = ServerLog(Path(sys.argv[1])); ServerProcess(sys.argv[2:], os.environ, log)\n"
        "while True: time.sleep(1)\n"
    )
    path = tmp_path / "s.log"
    with subprocess.Popen([sys.executable, "-c", program, str(path), *family(first)]) as supervisor:
        pids = until(lambda: path.exists() and [int(w) for w in path.read_text().split()], "the family tells its numbers")
        assert all(alive(pid) for pid in pids)

        supervisor.kill()

    until(lambda: not [pid for pid in pids if alive(pid)], "the end of the family")


def test_a_program_that_is_not_there_is_one_line(start):
    with pytest.raises(FleetError, match="vLLM cannot be started: No such file or directory"):
        start(["/nix/python"])
