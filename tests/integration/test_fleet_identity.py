"""Fleets that share a SLURM: none ends another's job or starts a server twice, whatever environment and site do to them."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.integration.commanded_vllm import command, make_commanded_vllm
from tests.integration.fleet_rig import Nodes, copy_of, make
from tests.integration.slurm_cluster import why_not
from workflow_composer import ModelOrchestrator
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.metrics.sink import MemorySink

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]


@pytest.fixture(scope="module")
def cluster():
    with Nodes() as made:
        yield made


@pytest.fixture
def fake(tmp_path):
    return make_commanded_vllm(tmp_path / "fake")


@pytest.fixture
def fleets(cluster, tmp_path, fake):
    """Makes fleets in folders of their own; all jobs are ended behind the test."""
    made = []

    def one(name, role="coder", **settings):
        made.append(make(cluster, tmp_path / name, fake, role, **settings))
        return made[-1]

    yield one
    for fleet in made:
        for state in fleet.fleet.states.all():
            fleet.fleet.states.update(state.server, wanted=False)
    cluster.run("scontrol", "update", "PartitionName=t4flex", "State=UP")
    cluster._end_jobs()


@pytest.fixture
def held(cluster):
    """Nothing starts."""
    cluster.run("scontrol", "update", "PartitionName=t4flex", "State=DOWN")


def running(cluster):
    """The ids of the jobs that have not ended."""
    return cluster.run("squeue", "-h", "-o", "%i").split()


def test_one_fleet_does_not_end_the_job_of_another(cluster, fleets):
    """Two projects of one user have a role of the same name."""
    second = fleets("q2")
    second.submit("coder", "--wait")
    second.command("down", "coder")
    first = fleets("q1")
    job_id = first.submit("coder", "--wait")

    ended = json.loads(second.command("down", "coder", "--json").stdout)

    assert [(one["status"], one["detail"].partition(";")[0]) for one in ended] == [("stopped", "not running")]
    assert f"job {job_id}" in ended[0]["detail"]
    assert str(first.file) in ended[0]["detail"]
    assert first.job(job_id).state == "RUNNING"
    own = second.submit("coder", "--wait")
    assert own != job_id
    assert {first.job(job_id).state, first.job(own).state} == {"RUNNING"}
    marks = [first.job(one).mark for one in (job_id, own)]
    assert [mark.file for mark in marks] == [str(first.file), str(second.file)]
    assert len({mark.fleet for mark in marks}) == 2


def test_fleets_that_share_a_state_folder_refuse_each_other_s_servers(fleets, held):
    """In one line that names the other file, at once."""
    first = fleets("q1")
    job_id = first.submit("coder")
    second = copy_of(first, first.folder.parent / "q2", state=str(first.folder / "state"))
    begun = time.monotonic()
    second.command("submit", "coder", "--dry-run")
    control = time.monotonic() - begun

    begun = time.monotonic()
    ended = second.command("submit", "coder", check=False)

    assert ended.returncode == 1
    assert str(first.file) in ended.stderr.splitlines()[0]
    assert time.monotonic() - begun < 2 + 3 * control, "it waits for nothing: the control only reads the file"
    down = second.command("down", "coder")
    assert f"job {job_id}" in down.stdout
    assert not first.job(job_id).over
    assert first.state("coder").wanted


@pytest.mark.parametrize(
    "variables",
    [
        {"SQUEUE_STATES": "RUNNING"},
        {"SQUEUE_PARTITION": "urgent"},
        {"SQUEUE_FORMAT": "%u", "SQUEUE_FORMAT2": "jobid"},
        {"SQUEUE_SORT": "-i", "SQUEUE_USERS": "nobody", "SQUEUE_NAMES": "x"},
        {"LOGNAME": "nobody", "USER": "nobody", "LNAME": "nobody", "USERNAME": "nobody"},
        {"SLURM_CLUSTERS": "elsewhere", "SQUEUE_CLUSTERS": "elsewhere", "SBATCH_CLUSTERS": "elsewhere"},
        {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "1T", "SLURM_NNODES": "7", "SBATCH_HOLD": "1", "SBATCH_PARTITION": "x"},
    ],
    ids=lambda variables: "-".join(variables)[:40],
)
def test_no_variable_of_slurm_makes_a_second_job(cluster, fleets, held, variables):
    fleet = fleets("a3", "b")
    job_id = fleet.submit("b")
    again = json.loads(fleet.command("submit", "b", "--json", **variables).stdout)
    assert [(one["new"], one["job"]["id"]) for one in again] == [(False, job_id)]
    assert running(cluster) == [job_id]


def test_a_job_gets_what_its_submitter_has_whatever_sbatch_is_told(fleets, tmp_path):
    """`SBATCH_EXPORT=NONE` of a site's profile; registry and state of the environment are those of the job, too."""
    fleet = fleets("a10", "d")
    named = {"WORKFLOW_COMPOSER_REGISTRY": str(tmp_path / "reg"), "WORKFLOW_COMPOSER_FLEET_STATE": str(tmp_path / "st")}
    ended = fleet.command("submit", "d", "--wait", SBATCH_EXPORT="NONE", SBATCH_GET_USER_ENV="1", **named)
    assert ended.stdout.splitlines()[-1].startswith("d: http://")
    assert [path.suffix for path in (tmp_path / "reg").iterdir()] == [".json"]
    fleet.command("down", "d", **named)


def test_sbatch_does_not_wait_for_the_end_of_the_job(fleets, held):
    """`SBATCH_WAIT` would keep `fleet submit` until the server ends."""
    fleet = fleets("b8", "e")
    job_id = fleet.submit("e")
    fleet.command("down", "e")
    again = json.loads(fleet.command("submit", "e", "--json", SBATCH_WAIT="1").stdout)
    assert again[0]["new"]
    assert again[0]["job"]["id"] != job_id
    assert fleet.state("e").job_id == again[0]["job"]["id"]


def test_a_time_that_ends_before_a_start_is_refused_before_submission(cluster, fleets):
    """Its jobs would hand over again and again, and none would serve."""
    fleet = fleets("a8", drain_before=30, time="1")
    fleet.role("coder", start_seconds=900)
    ended = fleet.command("submit", "coder", check=False)
    assert ended.returncode == 1
    assert "may take start_seconds (900 s) to start" in ended.stderr
    assert running(cluster) == []


def test_a_chain_of_jobs_that_are_never_ready_is_capped(cluster, fleets, fake):
    """The partition's jobs end earlier than the file says: each counts as a failure, and the last says so."""
    fleet = fleets("chain", max_requeues=1)
    command(fake, slow=600)
    first = fleet.submit("coder")
    fleet.until(lambda: fleet.entries("coder"), "it starts")
    fleet.signal(first, "USR1")
    second = fleet.until(lambda: [job for job in running(cluster) if job != first], "a successor is queued")[0]
    fleet.cluster.run("scancel", "--batch", "--signal=TERM", first)
    fleet.until_over(first)
    fleet.until(lambda: [entry for entry in fleet.entries("coder") if entry.job_id == second], "the successor starts")
    fleet.signal(second, "USR1")
    fleet.until(lambda: fleet.job(second).over, "the successor has ended")
    state = fleet.until(lambda: (s := fleet.state("coder")).status == "failed" and s, "the chain has failed")
    assert state.failures == 2
    assert "before it was ready; not requeued after 2 failures in a row" in state.detail
    assert running(cluster) == []


def test_where_requeuing_is_forbidden_a_fresh_job_takes_its_place(cluster, fleets, fake, tmp_path):
    """Under the same cap; the state says only what is so."""
    real = shutil.which("scontrol")
    shim = tmp_path / "bin"
    shim.mkdir()
    (shim / "scontrol").write_text(
        f'#!/bin/sh\n[ "$1" = requeue ] && {{ echo "Requested operation is presently disabled for job $2" >&2; exit 1; }}\n'
        f'exec {real} "$@"\n'
    )
    (shim / "scontrol").chmod(0o755)
    fleet = fleets("a12b", max_requeues=1)
    fleet.environ["PATH"] = f"{shim}:{fleet.environ['PATH']}"
    command(fake, fail="ValueError: the fake was told to fail")
    first = fleet.submit("coder")
    second = fleet.until(lambda: [job for job in running(cluster) if job != first], "a fresh job is queued")[0]
    state = fleet.until(
        lambda: (s := fleet.state("coder")).job_id == second and "in its place" in s.detail and s, "it says so"
    )
    assert "requeued in" not in state.detail
    assert fleet.until_over(second).state == "FAILED"
    state = fleet.until(lambda: (s := fleet.state("coder")).failures == 2 and s, "the cap holds")
    assert "not requeued after 2 failures in a row" in state.detail
    assert (state.status, running(cluster)) == ("failed", [])


def test_a_fault_that_stays_ends_the_job_once(fleets, fake):
    """An option that vLLM does not know."""
    fleet = fleets("b6")
    command(fake, fail="api_server.py: error: unrecognized arguments: --disable-log-requests", code=2)
    job_id = fleet.submit("coder")
    assert fleet.until_over(job_id).state == "FAILED"
    assert fleet.cluster.field(job_id, "Restarts") == "0"
    state = fleet.state("coder")
    assert (state.status, state.lasting) == ("failed", True)
    assert "unrecognized arguments: --disable-log-requests" in state.detail
    assert "not requeued, since it would fail again" in state.detail


def test_a_model_that_is_not_there_and_cannot_be_fetched_is_refused(cluster, fleets, tmp_path):
    fleet = fleets("b6b")
    fleet.role("coder", model="acme/no-such-model")
    (tmp_path / "hf").mkdir()
    ended = fleet.command("submit", "coder", check=False, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert ended.returncode == 1
    assert "fleet fetch coder" in ended.stderr
    assert running(cluster) == []


def test_a_key_that_is_not_set_is_told_before_submission(cluster, fleets):
    fleet = fleets("c6")
    fleet.role("coder", api_key_env="MYKEY", start_seconds=20)
    ended = fleet.command("submit", "coder", check=False)
    assert ended.returncode == 1
    assert "environment variable MYKEY is not set" in ended.stderr
    assert running(cluster) == []
    assert fleet.command("submit", "coder", "--wait", MYKEY="secret").returncode == 0


def test_a_job_that_could_not_be_launched_says_so(cluster, fleets):
    """Its log's folder is gone when it starts: SLURM's state and reason are all there is."""
    fleet = fleets("c2", options=["--hold"])
    work = fleet.folder / "work"
    work.mkdir()
    fleet.settings["logs"] = "logs"
    fleet.write()
    line = [sys.executable, "-m", "workflow_composer", "fleet", "submit", "coder", "--json", "--fleet", str(fleet.file)]
    done = subprocess.run(
        line, cwd=work, env=fleet.environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    job_id = json.loads(done.stdout)[0]["job"]["id"]
    work.rename(fleet.folder / "moved")
    cluster.run("scontrol", "release", job_id)
    gone = lambda: (job := fleet.job(job_id)).over or "launch" in job.reason.lower()  # noqa: E731
    fleet.until(gone, "SLURM gives up")
    reason = json.loads(fleet.command("status", "coder", "--json").stdout)[0]["reason"]
    assert "launch" in reason.lower()
    logs = fleet.command("logs", "coder", check=False)
    assert logs.returncode == 1
    assert "launch" in logs.stderr.lower()


def test_a_job_of_an_earlier_version_is_known_by_the_state_or_named(cluster, fleets, held):
    """It has a name and no comment. One that no state records is named with the command that ends it."""
    fleet = fleets("old")
    job_id = fleet.submit("coder")
    cluster.run("scontrol", "update", f"JobId={job_id}", "Comment=")
    assert fleet.job(job_id).mark is None
    assert json.loads(fleet.command("submit", "coder", "--json").stdout)[0]["new"] is False
    stray = cluster.run("sbatch", "--parsable", "--job-name=wc-coder", "--output=/dev/null", "--wrap=sleep 600").strip()
    said = fleet.command("down", "coder").stdout
    assert f"`scancel {stray}` ends it" in said
    assert fleet.job(job_id).state == "CANCELLED"
    assert fleet.job(stray).pending


def test_tasks_of_arrays_are_read(cluster, fleets, held):
    """Also those that wait together."""
    fleet = fleets("array")
    mark = f"--comment=workflow-composer fleet={fleet.fleet.id} server=coder file={fleet.file}"
    array = cluster.run("sbatch", "--parsable", "--array=1-3", mark, "--output=/dev/null", "--wrap=sleep 600").strip()
    found = fleet.slurm.jobs(["coder"])
    assert [job.id for job in found] == [f"{array}_{task}" for task in (1, 2, 3)]
    fleet.slurm.cancel(found[1:2])
    assert [job.id for job in fleet.slurm.jobs(["coder"])] == [f"{array}_1", f"{array}_3"]


def test_a_deleted_state_folder_loses_no_job(cluster, fleets, held):
    """A job that waits is found again by its comment, one that serves by its registry entry."""
    fleet = fleets("c8")
    job_id = fleet.submit("coder")
    known = fleet.fleet.id
    shutil.rmtree(fleet.folder / "state")
    again = json.loads(fleet.command("submit", "coder", "--json").stdout)
    assert [(one["new"], one["job"]["id"]) for one in again] == [(False, job_id)]
    assert fleet.fleet.id == known
    cluster.run("scontrol", "update", "PartitionName=t4flex", "State=UP")
    fleet.until_ready("coder", job_id)
    shutil.rmtree(fleet.folder / "state")
    fleet.command("down")
    assert fleet.until_over(job_id).state == "COMPLETED"


def test_a_second_cluster_on_the_same_home_gets_no_second_job(cluster, fleets, held):
    """The job is named with its cluster and left alone; there it is found."""
    fleet = fleets("two")
    job_id = fleet.submit("coder")
    with Nodes(("m1",), name="wcother") as other:
        here = fleet.environ["SLURM_CONF"]
        for arguments in (("submit", "coder"), ("down", "coder")):
            ended = fleet.command(*arguments, check=False, SLURM_CONF=str(other.conf))
            assert ended.returncode == 1, ended.stdout + ended.stderr
            assert f"job {job_id} on the cluster wctest" in ended.stdout + ended.stderr
        assert other.run("squeue", "-h") == ""
        seen = json.loads(fleet.command("status", "--json", SLURM_CONF=str(other.conf)).stdout)[0]
        assert "wctest" in seen["reason"]
    assert fleet.state("coder").wanted
    assert fleet.command("down", "coder", SLURM_CONF=here).returncode == 0
    assert fleet.job(job_id).state == "CANCELLED"


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_server_returns_on_another_node_when_its_own_crashes(cluster, fleets, replicas, record_property):
    """The node's daemon and all processes of the job are gone at once; SLURM requeues it, and one server is left.

    Clients lose nothing once it is back; where another replica serves, nothing but what the lost server was answering.
    """
    fleet = fleets("k3", replicas=replicas, options=["--exclusive"])
    names = ["coder", "coder-2"][:replicas]
    job_id, *_ = [fleet.submit(name, "--wait") for name in names]
    entry = next(e for e in fleet.ready("coder") if e.job_id == job_id)
    node = fleet.job(job_id).node
    daemon = cluster.slurmd(node)
    with Asking(fleet.folder / "registry", "coder") as asking:
        fleet.until(lambda: asking.answered, "clients are answered")
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            crashed = time.time()
            for pid in _family(job_id):
                os.kill(pid, signal.SIGKILL)
            cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=crashed")
            again = fleet.until(
                lambda: [e for e in fleet.ready("coder") if e.job_id == job_id and e.started > entry.started],
                "it returns",
                180,
            )
            back = time.time()
            assert fleet.job(again[0].job_id).node != node
            served = len(asking.answered)
            fleet.until(lambda: len(asking.answered) >= served + 10, "clients are answered again")
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
            cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    record_property("seconds until it was back", back - crashed)
    record_property("lost, by seconds after the crash", [round(at - crashed, 1) for at in asking.lost])
    assert all(at < back + SEEN for at in asking.lost), (back - crashed, [at - crashed for at in asking.lost])
    if replicas == 2:
        assert len(asking.lost) <= 1, [at - crashed for at in asking.lost]


SEEN = 2.0
"""Seconds after which clients have read the registry again."""


class Asking(threading.Thread):
    """A client that asks one short question after the other by the registry; ``lost`` and ``answered`` are times."""

    def __init__(self, registry: Path, role: str) -> None:
        super().__init__(daemon=True)
        self.config = StrategyConfig(
            profile_name="p",
            vllm_endpoints={"a": f"registry:{role}"},
            registry=str(registry),
            allow_cloud=False,
            task_routing={"*": "a"},
            retries={"attempts": 1},
        )
        self.over = threading.Event()
        self.answered: list[float] = []
        self.lost: list[float] = []

    def __enter__(self) -> Asking:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join(60)
        assert not self.is_alive()

    def run(self) -> None:
        asyncio.run(self.ask())

    async def ask(self) -> None:
        async with ModelOrchestrator(self.config, metrics=MemorySink(), environ={}) as models:
            while not self.over.is_set():
                begun = time.time()
                try:
                    await models.agenerate("Who is there?")
                except WorkflowComposerError:
                    self.lost.append(begun)
                else:
                    self.answered.append(begun)
                await asyncio.sleep(0.25)


def _family(job_id: str) -> list[int]:
    """The processes of a job on this machine, its steps among them."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environ = (place / "environ").read_bytes().split(b"\0")
            words = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if f"SLURM_JOB_ID={job_id}".encode() in environ or f"slurmstepd: [{job_id}." in words.decode(errors="replace"):
            found.append(int(place.name))
    return [pid for pid in found if pid != os.getpid()]


def test_a_dry_run_needs_no_quoting(fleets, tmp_path):
    """Paths with spaces are in the comment and in the command."""
    fleet = fleets("with space")
    words = shlex.split(fleet.command("submit", "coder", "--dry-run").stdout)
    assert (
        f"--comment=workflow-composer fleet={fleet.fleet.id} server=coder file={str(fleet.file).replace(' ', '%20')}"
        in words
    )
