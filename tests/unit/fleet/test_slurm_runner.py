"""Servers that run as SLURM jobs, seen through a scripted SLURM."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest

from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import load_fleet
from workflow_composer.fleet.runners import SlurmRunner
from workflow_composer.fleet.slurm.commands import SlurmJob
from workflow_composer.fleet.slurm.sbatch import JobMark
from workflow_composer.fleet.state import ServerState


@dataclass
class ScriptedSlurm:
    """Says what it is told to; notes what is asked of it."""

    queue: list[SlurmJob] = field(default_factory=list)
    fails: str = ""
    asked: int = 0
    cancelled: list[str] = field(default_factory=list)
    now: list[bool] = field(default_factory=list)
    handed_over: list[str] = field(default_factory=list)
    submitted: list[list[str]] = field(default_factory=list)
    cluster: str = "here"

    def jobs(self, servers=None):
        self.asked += 1
        if self.fails:
            raise FleetError(self.fails)
        return [job for job in self.queue if servers is None or job.server in servers]

    def job(self, job_id):
        return next((job for job in self.queue if job.id == job_id), None)

    def cancel(self, jobs, *, now=False):
        self.cancelled += [job.id for job in jobs]
        self.now.append(now)
        self.queue = [job for job in self.queue if job.id not in self.cancelled]

    def hand_over(self, jobs):
        self.handed_over += [job.id for job in jobs]

    def submit(self, command):
        self.submitted.append(command)
        self.queue.append(job("99", "PENDING"))
        return "99"


def job(number, state, reason=""):
    return SlurmJob(id=number, name="wc-coder", state=state, reason=reason, node="gpu1" if state == "RUNNING" else "")


STATE = ServerState(server="coder", role="coder", how="slurm", job_id="7")


@pytest.fixture
def fleet(tmp_path):
    content = {
        "registry": "r",
        "state": "s",
        "logs": str(tmp_path / "logs"),
        "roles": {"coder": {"model": "m", "port": 8002}},
        "python": "/nonexistent/python",
    }
    (tmp_path / "fleet.yaml").write_text(json.dumps(content))
    made = load_fleet(tmp_path / "fleet.yaml", {"HOME": str(tmp_path)})
    made.states.put(STATE)
    return made


def look(fleet, *queue, **options):
    return SlurmRunner(fleet, ScriptedSlurm(list(queue), **options)).look(STATE)


def test_a_running_job_lives_whatever_else_is_queued(fleet):
    """A successor waits while its predecessor drains."""
    assert look(fleet, job("7", "RUNNING"), job("8", "PENDING", "Priority")).alive is True


def test_a_job_in_the_queue_is_left_alone_with_slurms_reason(fleet):
    assert look(fleet, job("7", "PENDING", "Resources")).waiting == "job 7 waits for free resources"
    assert look(fleet, job("7", "CONFIGURING")).waiting
    assert look(fleet, job("7", "COMPLETING")).waiting, "it may be on its way back into the queue"


def test_a_job_that_can_never_start_needs_a_person(fleet):
    found = look(fleet, job("7", "PENDING", "PartitionTimeLimit"))
    assert found.alive is False
    assert found.foreign.startswith("job 7 never starts")


def test_without_a_job_it_does_not_run(fleet):
    assert look(fleet).alive is False
    assert look(fleet, job("7", "FAILED")).alive is False


def test_slurm_that_does_not_answer_is_said(fleet):
    found = look(fleet, fails="squeue did not finish within 60 s")
    assert (found.alive, found.foreign) == (None, "cannot query SLURM: squeue did not finish within 60 s")


def test_one_question_serves_for_all_servers(fleet):
    slurm = ScriptedSlurm([job("7", "RUNNING")])
    runner = SlurmRunner(fleet, slurm)
    for _ in range(4):
        runner.look(STATE)
    assert slurm.asked == 1


def test_a_job_that_hangs_is_cancelled_and_another_is_queued(fleet):
    slurm = ScriptedSlurm([job("7", "RUNNING")])
    SlurmRunner(fleet, slurm).restart(STATE)
    assert slurm.cancelled == ["7"]
    assert len(slurm.submitted) == 1
    assert fleet.states.get("coder").job_id == "99"
    assert fleet.states.get("coder").wanted


def test_a_job_that_is_queued_already_is_not_doubled(fleet):
    slurm = ScriptedSlurm([replace(job("8", "PENDING"), mark=JobMark(fleet.id, "coder", str(fleet.path)))])
    SlurmRunner(fleet, slurm).restart(STATE)
    assert (slurm.cancelled, slurm.submitted) == ([], [])


def test_a_job_that_serves_hands_over_and_is_not_cancelled(fleet):
    """Its successor is queued first; it drains when that is ready."""
    slurm = ScriptedSlurm([job("7", "RUNNING")])
    SlurmRunner(fleet, slurm).restart(STATE, serves=True)
    assert (slurm.handed_over, slurm.cancelled, slurm.submitted) == (["7"], [], [])


def test_a_job_that_serves_drains_where_its_successor_still_waits(fleet):
    """Perhaps for its GPU."""
    successor = replace(job("8", "PENDING", "Resources"), mark=JobMark(fleet.id, "coder", str(fleet.path)))
    slurm = ScriptedSlurm([job("7", "RUNNING"), successor])
    SlurmRunner(fleet, slurm).restart(STATE, serves=True)
    assert (slurm.handed_over, slurm.cancelled, slurm.now) == ([], ["7"], [False])
    assert slurm.submitted == []


def test_a_job_that_hangs_is_not_asked_to_drain(fleet):
    slurm = ScriptedSlurm([job("7", "RUNNING")])
    SlurmRunner(fleet, slurm).restart(STATE)
    assert slurm.now == [True]
