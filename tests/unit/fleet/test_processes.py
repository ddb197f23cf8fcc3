"""Processes told apart, and ended with what they have started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from workflow_composer.errors import FleetError
from workflow_composer.fleet import processes
from workflow_composer.fleet.file import load_fleet
from workflow_composer.fleet.processes import NodeProcess, descendants, find, stop_supervisor, supervisor
from workflow_composer.fleet.runners import ProcessRunner
from workflow_composer.fleet.slurm import job
from workflow_composer.fleet.slurm.commands import Slurm
from workflow_composer.fleet.state import Look, ServerState

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


@pytest.mark.parametrize(("title", "step"), [("7.batch", "7.batch"), ("7.0", "7.0"), ("7.4294967290", "7.4294967290")])
def test_the_step_of_a_process_is_that_of_its_nearest_slurmstepd(tmp_path, monkeypatch, title, step):
    """Variables are inherited from the job in which another one is submitted; ancestors are not."""
    monkeypatch.setattr(processes, "PROC", tmp_path)
    for pid, parent, command in ((30, 20, "bash"), (20, 10, f"slurmstepd: [{title}]"), (10, 1, "slurmstepd: [6.0]")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b) S {parent} 1 1")
        (tmp_path / str(pid) / "cmdline").write_bytes(command.encode() + b"\0")
    assert processes.slurm_step(30) == step
    assert processes.slurm_step(99) == ""


def test_outside_of_slurm_there_is_no_step():
    assert processes.slurm_step() == ""


def test_a_job_script_that_srun_runs_says_what_to_do(tmp_path, monkeypatch):
    """Signals to the batch script do not reach a step."""
    monkeypatch.setattr(job, "slurm_step", lambda: "7.0")
    file = tmp_path / "fleet.yaml"
    roles = {"coder": {"model": "m", "port": 8002}}
    file.write_text(json.dumps({"registry": "r", "state": "s", "roles": roles}))
    fleet = load_fleet(file, {"HOME": str(tmp_path)})
    environ = {"SLURM_JOB_ID": "7"}
    with pytest.raises(FleetError, match=r"srun runs this as step 7\.0") as caught:
        job.ServerJob(fleet, "coder", environ=environ, slurm=None, say=print)
    assert "fleet submit coder" in caught.value.hint
    monkeypatch.setattr(job, "slurm_step", lambda: "7.batch")
    assert job.ServerJob(fleet, "coder", environ=environ, slurm=None, say=print).job_id == "7"


def test_hosts_are_known_by_their_short_and_full_names_and_a_renamed_one_by_its_processes(start, tmp_path):
    here = os.uname().nodename
    file = tmp_path / "fleet.yaml"
    file.write_text(json.dumps({"registry": "r", "state": "s", "roles": {"coder": {"model": "m", "port": 8002}}}))
    runner = ProcessRunner(load_fleet(file, {"HOME": str(tmp_path)}), here)
    process, _ = start(WILLING)
    for node in (here, f"{here.partition('.')[0]}.cluster.example.org", "the-name-before"):
        state = ServerState(server="coder", role="coder", node=node, pid=process.pid, started=time.time())
        assert runner.look(state) == Look(alive=True), node
    gone = ServerState(server="coder", role="coder", node=f"{here.partition('.')[0]}.cluster", pid=0, started=1.0)
    assert runner.look(gone) == Look(alive=False)
    assert runner.look(replace(gone, node="another")).foreign


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("slurm_load_jobs error: Protocol authentication error", "munge"),
        ("sbatch: error: Batch job submission failed: Protocol authentication error", "munge"),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", "scontrol ping"),
    ],
)
def test_what_slurm_says_without_munge_has_a_remedy(tmp_path, said, remedy):
    program = tmp_path / "squeue"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(FleetError) as caught:
        Slurm({"PATH": f"{tmp_path}:/usr/bin:/bin"}).jobs()
    assert remedy in caught.value.hint
