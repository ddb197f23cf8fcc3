"""Processes told apart, and ended with what they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from workflow_composer.fleet.processes import NodeProcess, descendants, find, stop_supervisor, supervisor

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""
WILLING = """
import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("ready", flush=True)
while len(asked) < 2:
    time.sleep(0.02)
"""


@pytest.fixture
def start():
    """Starts programs whose arguments look like a supervisor's."""
    started = []

    def begin(code, *words):
        command = [sys.executable, "-c", code, *(words or ("fleet", "serve", "coder"))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, process.stdout.readline().strip()

    yield begin
    for process in started:
        process.kill()
        process.stdout.close()
        process.wait()


def test_a_supervisor_is_known_by_number_command_and_age(start):
    process, _ = start(WILLING)
    now = time.time()
    assert supervisor(process.pid, "coder", now) == find(process.pid)
    assert supervisor(process.pid, "math", now) is None
    assert supervisor(process.pid, "coder", now - 3600) is None, "a process that began later got the number since"
    assert supervisor(0, "coder", now) is None
    assert supervisor(os.getpid(), "coder", now) is None


def test_another_program_that_names_the_server_is_no_supervisor(start):
    process, _ = start(WILLING, "fleet", "logs", "coder")
    assert supervisor(process.pid, "coder", time.time()) is None


def test_a_zombie_does_not_live(start):
    process, _ = start("print('x')")
    known = NodeProcess(process.pid, 0)
    ends = time.monotonic() + 60
    while find(process.pid) is not None:
        assert time.monotonic() < ends
    assert not known.alive


def test_when_a_process_began_is_known(start):
    process, _ = start(WILLING)
    assert abs(find(process.pid).began - time.time()) < 30


def test_no_signal_reaches_a_process_that_has_the_number_by_chance(start):
    process, _ = start(WILLING)
    other = NodeProcess(process.pid, find(process.pid).ticks + 1)
    other.signal(signal.SIGKILL)
    other.signal_group(signal.SIGKILL)
    assert process.poll() is None


def test_a_supervisor_that_hears_is_asked_twice(start):
    """The second signal means at once."""
    process, _ = start(WILLING)
    stop_supervisor(find(process.pid), patience=10)
    assert process.wait(60) == 0


def test_a_supervisor_that_hears_nothing_is_killed_with_what_it_started(start):
    process, child = start(STUBBORN)
    assert [one.pid for one in descendants(process.pid)] == [int(child)]
    stop_supervisor(find(process.pid), patience=0.3)
    assert process.wait(60) == -signal.SIGKILL
    ends = time.monotonic() + 60
    while find(int(child)) is not None:
        assert time.monotonic() < ends


def test_a_supervisor_that_is_frozen_is_ended(start):
    process, _ = start(WILLING)
    os.kill(process.pid, signal.SIGSTOP)
    stop_supervisor(find(process.pid), patience=10)
    assert process.wait(60) == 0
