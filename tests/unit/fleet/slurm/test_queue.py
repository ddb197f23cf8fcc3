"""Whose a job is, which environment SLURM's commands get, and what a job is given."""

from __future__ import annotations

import json
import time

import pytest

from workflow_composer.backends.replicas.registry import Entry
from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import load_fleet
from workflow_composer.fleet.slurm.commands import Slurm, SlurmJob, for_slurm
from workflow_composer.fleet.slurm.queue import foreign_words, queue_of, refuse_elsewhere
from workflow_composer.fleet.slurm.sbatch import JobMark, exported
from workflow_composer.fleet.slurm.submit import command_for, jobs_after, submit
from workflow_composer.fleet.state import ServerState


class Told:
    """A SLURM with these jobs."""

    def __init__(self, *jobs, cluster="here"):
        self.found = list(jobs)
        self.cluster = cluster
        self.submitted = []

    def jobs(self, servers=None):
        return self.found

    def job(self, job_id):
        return None

    def submit(self, command):
        self.submitted.append(command)
        return "17"


def job(number, comment=None, **fields):
    return SlurmJob(id=str(number), number=str(number), name="wc-coder", state="RUNNING", mark=comment, **fields)


@pytest.fixture
def fleet(tmp_path):
    roles = {"coder": {"model": "m", "port": 8002}}
    folders = {"registry": "r", "state": "s", "logs": str(tmp_path / "logs")}
    (tmp_path / "fleet.yaml").write_text(json.dumps({**folders, "roles": roles, "python": "/no/python"}))
    return load_fleet(tmp_path / "fleet.yaml", {"PATH": "/nonexistent"})


def test_jobs_are_known_by_the_fleet_s_id(fleet):
    mine, other = JobMark(fleet.id, "coder", "/moved.yaml"), JobMark("another", "coder", str(fleet.path))
    found = queue_of(fleet, Told(job(1, mine), job(2, other), job(3)))
    assert [one.id for one in found.mine] == ["1"]
    assert [one.id for one in found.others] == ["2", "3"]


@pytest.mark.parametrize(
    ("fields", "mine"),
    [
        ({"fleet_file": ""}, True),
        ({"fleet_file": "/other/fleet.yaml"}, False),
        ({"job_id": "4"}, False),
        ({"cluster": "elsewhere"}, False),
    ],
)
def test_a_job_without_a_comment_is_the_one_that_the_state_names(fleet, fields, mine):
    """Earlier versions submitted it so; a number of another cluster says nothing."""
    fleet.states.put(ServerState(**{"server": "coder", "role": "coder", "how": "slurm", "job_id": "3", **fields}))
    assert bool(queue_of(fleet, Told(job(3))).mine) is mine


def test_a_job_that_nobody_records_is_named_with_the_command_that_ends_it():
    assert "`scancel --batch --signal=TERM 3` ends it" in foreign_words(job(3))
    assert "/q1/fleet.yaml" in foreign_words(job(3, JobMark("x", "coder", "/q1/fleet.yaml")))


def test_a_job_on_another_cluster_is_left_alone(fleet):
    fleet.states.put(ServerState(server="coder", role="coder", how="slurm", job_id="3", cluster="far"))
    state = fleet.states.get("coder")
    with pytest.raises(FleetError, match="job 3 on the cluster far; this is here"):
        refuse_elsewhere(fleet, state, Told())
    refuse_elsewhere(fleet, state, Told(cluster="far"))
    refuse_elsewhere(fleet, fleet.states.update("coder", wanted=False, status="stopped"), Told())


def test_the_jobs_after_one_are_those_submitted_later():
    """Numbers are compared as numbers; the one that is succeeded does not count."""
    jobs = [job(9), job(10), job(11)]
    assert [one.id for one in jobs_after("10", jobs)] == ["11"]
    assert [one.id for one in jobs_after("10", jobs[2:])] == ["11"]
    assert jobs_after("", jobs) == jobs


def test_slurm_s_commands_get_no_options_by_variables():
    """Nor those of the job in which they run; the cluster's configuration and what the file allows are kept."""
    given = {
        "PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "t", "SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "1",
        "SQUEUE_STATES": "RUNNING", "SBATCH_WAIT": "1", "SBATCH_ACCOUNT": "a", "SCANCEL_USER": "x", "SLURMD_NODENAME": "n",
        "SLURM_TIME_FORMAT": "relative", "SLURMS": "kept",
    }  # fmt: skip
    kept = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "t", "SLURM_TIME_FORMAT": "%s", "SLURMS": "kept"}
    assert for_slurm(given) == kept
    assert for_slurm(given, ["SBATCH_ACCOUNT"]) == {**kept, "SBATCH_ACCOUNT": "a"}


def test_the_file_allows_variables_of_sbatch(fleet):
    fleet.path.write_text(
        fleet.path.read_text().replace('"roles"', '"slurm": {"sbatch_variables": ["SBATCH_ACCOUNT"]}, "roles"')
    )
    environ = {"SBATCH_ACCOUNT": "a", "SBATCH_QOS": "q"}
    assert load_fleet(fleet.path, environ).slurm.environ.keys() == {"SBATCH_ACCOUNT", "SLURM_TIME_FORMAT"}


def test_a_job_gets_registry_state_caches_and_proxies(tmp_path, monkeypatch):
    """Places are absolute. No value of a proxy is written, since it may hold a password, and none that sbatch misreads."""
    monkeypatch.chdir(tmp_path)
    environ = {
        "WORKFLOW_COMPOSER_REGISTRY": "./reg", "WORKFLOW_COMPOSER_FLEET_STATE": "/state", "HF_HOME": "/with,comma",
        "HF_HUB_OFFLINE": "1", "https_proxy": "http://me:secret@proxy:1", "NO_PROXY": "a,b", "OTHER": "x",
    }  # fmt: skip
    assert list(exported(environ)) == [
        f"WORKFLOW_COMPOSER_REGISTRY={tmp_path}/reg", "WORKFLOW_COMPOSER_FLEET_STATE=/state", "HF_HOME", "HF_HUB_OFFLINE=1",
        "https_proxy", "NO_PROXY",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("slurm", "refused"),
    [
        ({"time": "30", "drain_before": 600}, False),
        ({"time": "20", "drain_before": 600}, True),
        ({"time": "24:00:00", "options": ["--time=20"]}, True),
        ({"time": "20", "options": ["-t", "1-0"]}, False),
        ({"time": "UNLIMITED"}, False),
    ],
)
def test_a_job_must_have_the_time_to_start(fleet, slurm, refused):
    """`start_seconds` are 900."""
    tree = json.loads(fleet.path.read_text())
    fleet.path.write_text(json.dumps({**tree, "slurm": slurm}))
    made = load_fleet(fleet.path, fleet.environ)
    if refused:
        with pytest.raises(FleetError, match="start_seconds"):
            command_for(made, "coder")
    else:
        assert command_for(made, "coder")[0] == "sbatch"


@pytest.mark.parametrize(("state", "refused"), [("ready", True), ("starting", True), ("draining", False)])
def test_a_second_model_under_a_role_is_refused_before_it_is_submitted(fleet, state, refused):
    """A server of another fleet in the same registry serves the role; clients would take both for one model."""
    entry = Entry(
        server="coder", role="coder", host="127.0.0.1", port=9000, model="org/other", state=state, job_id="7",
        started=time.time(), updated=0.0, fleet="another", cluster="here", fleet_file="/other/fleet.yaml",
    )  # fmt: skip
    fleet.registry.publish(entry)
    slurm = Told()
    if refused:
        with pytest.raises(FleetError, match=r"already serves org/other by coder at .*/other/fleet\.yaml"):
            submit(fleet, "coder", slurm)
        assert slurm.submitted == []
    else:
        submit(fleet, "coder", slurm)
        assert len(slurm.submitted) == 1


def test_a_job_whose_gpu_is_taken_is_requeued_on_another_node(tmp_path):
    """Nodes that were excluded before stay excluded."""
    script = f"""#!/bin/sh
echo "$*" >> {tmp_path}/called
case "$*" in *"show job"*) echo "JobId=7 ExcNodeList=n1 Partition=x" ;; esac
"""
    (tmp_path / "scontrol").write_text(script)
    (tmp_path / "scontrol").chmod(0o755)
    Slurm({"PATH": f"{tmp_path}:/usr/bin:/bin"}).requeue("7", 30, without="n2")
    called = (tmp_path / "called").read_text().splitlines()
    assert called[0] == "requeue 7"
    assert called[-1] == "update JobId=7 ExcNodeList=n1,n2"
    assert "StartTime=now+30" in called[1]
