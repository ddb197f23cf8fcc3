"""Who changes the fleet's files is alone with them, and who waits for that is told by whom it is kept."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from tests.unit.storage.stranger import Stranger
from workflow_composer.errors import FleetError, WorkflowComposerError
from workflow_composer.fleet.file import load_fleet
from workflow_composer.fleet.launch.gpu_leases import Claims
from workflow_composer.fleet.launch.hardware import Gpu
from workflow_composer.fleet.launch.supervisor_lock import Holder, Holding
from workflow_composer.fleet.monitor.history import CheckRecord, History
from workflow_composer.fleet.monitor.incident_store import MonitorFiles
from workflow_composer.fleet.slurm.commands import Slurm
from workflow_composer.fleet.slurm.job import ServerJob
from workflow_composer.fleet.slurm.submit import one_at_a_time
from workflow_composer.fleet.state import ServerState, StateStore
from workflow_composer.storage.locks import FileLock, lock_beside

TAKE = """
import sys; from pathlib import Path; from workflow_composer.fleet.monitor.history import History, CheckRecord
from workflow_composer.fleet.launch.supervisor_lock import Holding
print(Holding(Path(sys.argv[1]), "coder").take(), flush=True); sys.stdin.read()
"""
TURN = """
import sys; from pathlib import Path; from workflow_composer.fleet.slurm.job import ServerJob
from workflow_composer.fleet.monitor.incident_store import MonitorFiles
with MonitorFiles(Path(sys.argv[1])).turn() as mine: print(mine)
"""
WAIT = 0.05
BOUND = 5.0
"""Seconds within which a wait of `WAIT` has ended on a busy machine."""


def said_by(code, folder):
    """What another process prints."""
    done = subprocess.run([sys.executable, "-c", code, folder], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def fleet(tmp_path):
    (tmp_path / "fleet.yaml").write_text("state: state\nregistry: registry\nroles:\n  coder: {model: m, port: 8002}\n")
    return load_fleet(tmp_path / "fleet.yaml", {})


def test_to_ask_who_holds_a_server_frees_it_in_no_process_the_holders_own_included(tmp_path):
    """A process loses its lock on a file when it closes any descriptor of it: so none is opened to ask."""
    mine, other = Holding(tmp_path, "coder"), Holding(tmp_path, "coder")
    me = Holder(os.getpid(), os.uname().nodename)
    mine.take()
    assert [mine.holder(), other.holder(), other.take(), mine.take()] == [me] * 4
    assert said_by(TAKE, tmp_path) == str(me)
    other.release()
    assert said_by(TAKE, tmp_path) == str(me)
    mine.release()
    assert said_by(TAKE, tmp_path) == "None"


def test_a_child_that_is_forked_does_not_hold_its_parents_server(tmp_path):
    """What a supervisor starts may outlive it, and must keep no other from taking the server."""
    fork = TAKE.replace("sys.stdin", "import os; os.fork() or print('forked', flush=True); sys.stdin")
    command = [sys.executable, "-c", fork, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert [parent.stdout.readline(), parent.stdout.readline()] == [b"None\n", b"forked\n"]
        parent.kill()
        parent.wait(60)
        holding = Holding(tmp_path, "coder")
        assert (holding.holder(), holding.take()) == (None, None)
        holding.release()


def test_what_a_killed_process_has_left_names_nobody_else(tmp_path):
    """Its file is there still; who takes the server puts its own in that place, or none where the disk is full."""
    (tmp_path / "coder.run").write_text('[1, "elsewhere"]')
    first, second = Holding(tmp_path, "coder"), Holding(tmp_path, "coder")
    assert first.holder() is None
    assert first.take() is None
    assert second.take() == Holder(os.getpid(), os.uname().nodename)
    (tmp_path / "coder.run").unlink()
    assert second.take() == Holder(0, "")
    first.release()


@pytest.mark.parametrize("text", ["", "[]", "[true, 5]", '["1", "node"]', '[-1, "node"]', '[0, "node"]', "[1"])
def test_a_holder_that_is_not_well_named_is_unknown(tmp_path, text):
    """Its number would be sent a signal: those below 1 are groups of processes."""
    holding = Holding(tmp_path, "coder")
    holding.take()
    (tmp_path / "coder.run").write_text(text)
    assert holding.holder() == Holder(0, "")
    holding.release()


def test_of_two_monitors_in_threads_one_has_its_turn(tmp_path):
    """The other's attempt ends at once, and ends no turn for other processes."""
    files, found = MonitorFiles(tmp_path), []

    def other():
        with files.turn() as mine:
            found.append(mine)

    with files.turn() as mine:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
        assert (mine, found) == (True, [False])
        assert said_by(TURN, tmp_path) == "False"
    assert said_by(TURN, tmp_path) == "True"


def test_threads_that_claim_gpus_together_get_one_each(tmp_path):
    """Whichever comes first; none loses the claim of another."""
    found, chosen = [Gpu(index, "T4", 75, 16, 16, f"GPU-{index}") for index in range(8)], []
    together = threading.Barrier(8)

    def claim(server):
        together.wait(60)
        (gpu,) = Claims(tmp_path, "node", wait=60.0).take(server, found, 1, lambda gpu: gpu.total)
        chosen.append(gpu.index)

    threads = [threading.Thread(target=claim, args=(f"s{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(chosen) == list(range(8))


def refused(kind, act, stranger):
    """The error of what a stranger's lock forbids; it came in time, and names the stranger."""
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        act()
    assert time.monotonic() - began < BOUND
    assert f"process {stranger.process.pid} holds the lock" in str(caught.value)
    return caught.value


def test_a_strangers_lock_on_a_state_is_waited_for_and_told(tmp_path):
    """Nothing is changed then, and reading needs no lock."""
    states = StateStore(tmp_path, wait=WAIT)
    before = states.put(ServerState(server="coder", role="coder"))
    with Stranger(tmp_path / "coder.lock") as stranger:
        error = refused(WorkflowComposerError, lambda: states.update("coder", wanted=False), stranger)
        assert "suspended" in error.hint
        assert states.get("coder") == before
        states.put(ServerState(server="math", role="math"))
    assert not states.update("coder", wanted=False).wanted


def test_a_strangers_lock_on_the_claims_is_waited_for_and_told(tmp_path):
    """A server that is not started says why."""
    claims = Claims(tmp_path, "node", wait=WAIT)
    with Stranger(lock_beside(tmp_path / "node.gpus")) as stranger:
        error = refused(FleetError, lambda: claims.take("a", [], 0, lambda gpu: 0.0), stranger)
    assert "node.gpus cannot be written" in error.message
    assert "suspended" in error.hint


def test_a_submission_that_takes_too_long_is_told_to_the_next(fleet):
    """Two would queue two jobs."""
    fleet.states.put(ServerState(server="coder", role="coder"))

    def submit():
        with one_at_a_time(fleet, "coder", wait=WAIT):
            pytest.fail("it did not wait")

    with Stranger(lock_beside(fleet.states.directory / "coder.submit")) as stranger:
        error = refused(FleetError, submit, stranger)
    assert "another process is submitting coder" in error.message
    assert "squeue" in error.hint


def test_a_history_whose_lock_is_held_gets_nothing(tmp_path):
    """The round goes on without it, by what stands in `Monitor`."""
    kept = History(tmp_path / "h.jsonl", days=1, wait=WAIT)
    with Stranger(lock_beside(kept.path)) as stranger:
        refused(OSError, lambda: kept.add([CheckRecord(time=1.0, server="a", outcome="up")]), stranger)
    assert list(kept.records()) == []


def test_a_job_that_cannot_write_down_that_it_runs_is_queued_again(fleet, tmp_path):
    """It has waited for hours in the queue; whoever is in its way may be gone in a minute."""
    for name, text in {"squeue": f"cat {tmp_path}/queue", "scontrol": f'echo "$*" >> {tmp_path}/asked'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "queue").write_text("7|wc-coder|RUNNING|1|1|node|None\n")
    fleet.states.directory.write_text("no folder")
    said = []
    slurm = Slurm({"PATH": f"{tmp_path}:/usr/bin:/bin"})
    code = ServerJob(fleet, "coder", environ={"SLURM_JOB_ID": "7"}, slurm=slurm, say=said.append).run()
    assert code == 1
    assert "cannot be written" in said[0]
    assert "requeue 7" in (tmp_path / "asked").read_text()


def test_nothing_but_locks_opens_a_lock_file(fleet, tmp_path):
    """States are listed and read while another thread changes one: it stays alone."""
    fleet.states.put(ServerState(server="coder", role="coder"))
    with FileLock(fleet.states.directory / "coder.lock").take():
        assert [state.server for state in fleet.states.all()] == ["coder"]
        probe = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        command = [sys.executable, "-c", probe, fleet.states.directory / "coder.lock"]
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0
