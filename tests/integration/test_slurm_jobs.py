"""Jobs on a real SLURM, with a stand-in for vLLM: submitted, signalled, requeued, cancelled, preempted."""

import json
import os
import signal
import socket
import subprocess
import time

import pytest

from tests.integration.fake_vllm import make_fake_vllm
from tests.integration.slurm_cluster import NODE, SlurmCluster, why_not
from tests.integration.slurm_fleet import SlurmFleet
from tests.paths import ROOT

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]

SCRIPT = ROOT / "scripts" / "llm" / "slurm_vllm_job.sh"


@pytest.fixture(scope="module")
def cluster():
    with SlurmCluster(gpus=2, extra="SlurmctldParameters=preempt_send_user_signal") as made:
        yield made


@pytest.fixture
def fake(tmp_path):
    return make_fake_vllm(tmp_path / "fake")


@pytest.fixture
def fleet(cluster, tmp_path, fake):
    """A fleet with the role `coder`; all jobs are ended behind the test."""
    made = SlurmFleet(cluster, tmp_path, {"PYTHONPATH": str(fake)})
    made.role("coder")
    yield made
    for state in made.fleet.states.all():
        made.fleet.states.update(state.server, wanted=False)
    jobs = [job for job in made.slurm.jobs() if not job.over]
    made.slurm.cancel(jobs, now=True)
    for job in jobs:
        made.until_over(job.id)


def test_a_submitted_server_is_found_where_it_runs_until_it_is_cancelled(fleet):
    """Published with job, node and end; a second submission finds the job; cancelled, it drains and withdraws."""
    job_id = fleet.submit("coder", "--wait")
    (entry,) = fleet.ready("coder")
    job = fleet.job(job_id)
    assert (entry.job_id, entry.host, entry.expires) == (job_id, "127.0.0.1", job.ends)
    assert (job.server, job.state, job.node) == ("coder", "RUNNING", NODE)
    assert fleet.cluster.field(job_id, "TresPerNode") == "gres:gpu:t4:1"
    state = fleet.state("coder")
    assert (state.how, state.wanted, state.status, state.job_id) == ("slurm", True, "ready", job_id)

    again = json.loads(fleet.command("submit", "coder", "--json").stdout)
    assert [(one["new"], one["job"]["id"]) for one in again] == [(False, job_id)]
    assert f"job {job_id} already exists" in fleet.command("submit", "coder").stdout

    assert fleet.command("down", "coder").stdout.split() == ["server", "status", "coder", "stopped"]
    assert fleet.until_over(job_id).state == "COMPLETED"
    assert fleet.cluster.field(job_id, "ExitCode") == "0:0"
    assert fleet.entries("coder") == []
    state = fleet.state("coder")
    assert (state.status, state.wanted) == ("stopped", False)


def test_before_its_end_a_job_hands_over_without_a_gap(fleet, fake):
    """The successor has a port of its own; the old one drains when that answers; at every moment one of them is ready."""
    old = fleet.submit("coder", "--wait")
    port = fleet.ready("coder")[0].port
    (fake / "slow").write_text("4")
    fleet.signal(old, "USR1")
    seen = []

    def over():
        seen.append([entry.job_id for entry in fleet.ready("coder")])
        return fleet.job(old).state == "COMPLETED"

    fleet.until(over, "the old job has handed over")
    (new,) = fleet.ready("coder")
    assert new.job_id != old
    assert new.port != port
    assert all(seen), "there was a moment without a server"
    assert [old] in seen
    state = fleet.state("coder")
    assert (state.job_id, state.status, state.port) == (new.job_id, "ready", new.port)
    assert f"job {new.job_id} is ready at {new.url}" in fleet.log("coder", old)


def test_requests_under_way_are_finished_before_a_job_ends(fleet):
    """It is cancelled in mid-request; the answer arrives, and only then the server ends."""
    import requests

    old = fleet.submit("coder", "--wait")
    (entry,) = fleet.ready("coder")
    with subprocess.Popen(
        ["curl", "-sS", "--max-time", "30", "-d", '{"seconds": 4}', f"{entry.url}/completions"], stdout=subprocess.PIPE
    ) as asking:
        busy = lambda: "running" in (t := requests.get(f"{entry.url[:-3]}/metrics", timeout=5).text) and " 1.0" in t  # noqa: E731
        fleet.until(busy, "the request is under way")
        fleet.slurm.cancel([fleet.job(old)])
        answer, _ = asking.communicate(timeout=60)
    assert json.loads(answer)["choices"][0]["text"] == "42"
    assert fleet.until_over(old).state == "COMPLETED"


def test_where_all_gpus_are_taken_the_old_server_serves_to_the_last(fleet):
    """Its successor waits in the queue meanwhile, and runs when the old job has ended."""
    fleet.settings["slurm"] |= {"time": "1", "drain_before": 10}
    fleet.role("coder", gpus=2, drain_seconds=1, start_seconds=20)
    old = fleet.submit("coder", "--wait")
    fleet.signal(old, "USR1")
    new = fleet.until(lambda: [job for job in fleet.slurm.jobs(["coder"]) if job.id != old], "a successor is queued")[0]
    fleet.until(lambda: fleet.job(new.id).reason == "Resources", "the successor waits for a GPU")
    assert "waits for free resources" in fleet.job(new.id).words()
    assert [entry.job_id for entry in fleet.ready("coder")] == [old]
    assert fleet.until_over(old).state == "COMPLETED"
    assert fleet.until_ready("coder", new.id).job_id == new.id


def test_where_no_second_job_is_accepted_the_same_one_is_queued_again(fleet):
    """The partition's limit was lowered meanwhile: drained at once, queued again, and up under the same id."""
    job_id = fleet.submit("coder", "--wait")
    fleet.cluster.run("scontrol", "update", "PartitionName=t4flex", "MaxTime=1")
    try:
        fleet.signal(job_id, "USR1")
        fleet.until(lambda: fleet.job(job_id).pending, "the job is queued again")
        assert fleet.entries("coder") == []
    finally:
        fleet.cluster.run("scontrol", "update", "PartitionName=t4flex", "MaxTime=INFINITE")
    fleet.until_ready("coder", job_id)
    assert fleet.cluster.field(job_id, "Restarts") == "1"
    assert "no successor can be queued" in fleet.log("coder", job_id)


def test_a_failed_job_is_queued_again_until_it_has_failed_too_often(fleet, fake):
    """Each failure says why in one line; `fleet submit --wait` passes it on."""
    fleet.settings["slurm"]["max_requeues"] = 1
    fleet.write()
    (fake / "fail").touch()
    ended = fleet.command("submit", "coder", "--wait", check=False)
    assert ended.returncode == 1
    assert "ended before it was ready: ValueError: the fake was told to fail" in ended.stderr
    job_id = fleet.state("coder").job_id
    assert fleet.until_over(job_id).state == "FAILED"
    assert fleet.cluster.field(job_id, "Restarts") == "1"
    assert fleet.cluster.field(job_id, "ExitCode") == "1:0"
    state = fleet.state("coder")
    assert (state.status, state.failures) == ("failed", 2)
    assert state.detail == "ValueError: the fake was told to fail; not requeued after 2 failures in a row"
    log = fleet.log("coder", job_id)
    assert "requeued in 10 s (1 of 1)" in log
    assert "Traceback" not in log


def test_a_killed_server_comes_back_in_the_same_job(fleet):
    """SIGKILL vLLM: the job fails, is queued again, and serves."""
    import requests

    job_id = fleet.submit("coder", "--wait")
    (entry,) = fleet.ready("coder")
    pid = requests.post(f"{entry.url}/completions", json={}, timeout=10).json()["pid"]
    os.kill(pid, signal.SIGKILL)
    fleet.until(lambda: fleet.ready("coder") == [], "the dead server is withdrawn")
    again = fleet.until_ready("coder", job_id)
    assert again.started > entry.started
    assert fleet.cluster.field(job_id, "Restarts") == "1"
    assert "killed by SIGKILL" in fleet.log("coder", job_id)


def test_scancel_as_people_type_it_ends_the_job_and_its_entry(fleet):
    """SLURM signals vLLM, too; that is no failure, and nothing is queued again."""
    job_id = fleet.submit("coder", "--wait")
    fleet.cluster.run("scancel", job_id)
    assert fleet.until_over(job_id).state == "CANCELLED"
    assert fleet.entries("coder") == []
    assert fleet.slurm.jobs(["coder"]) == []
    assert fleet.state("coder").status == "stopped"


def test_a_preempted_server_leaves_the_registry_first_and_returns(fleet):
    """A job of a higher partition takes the node: drained within the grace time, its successor runs when that has ended."""
    old = fleet.submit("coder", "--wait")
    other = fleet.cluster.run(
        "sbatch", "--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"
    ).strip()
    fleet.until(lambda: fleet.entries("coder") == [], "the server has withdrawn")
    assert not fleet.job(other).over
    assert fleet.until_over(other).state == "COMPLETED"
    new = fleet.until(lambda: fleet.ready("coder"), "it is back")[0]
    assert new.job_id != old


def test_a_taken_port_is_passed_over_and_so_are_the_other_roles_ports(fleet):
    """On a node that others use, too."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fleet.role("coder", port=port)
        fleet.role("math", port=port + 1)
        fleet.submit("coder", "--wait")
        (entry,) = fleet.ready("coder")
    assert entry.port > port + 1


def test_replicas_are_jobs_of_their_own(fleet):
    fleet.role("coder", replicas=2)
    fleet.command("submit", "--wait")
    assert {entry.server for entry in fleet.fleet.registry.entries("coder") if entry.state == "ready"} == {
        "coder",
        "coder-2",
    }
    assert len({entry.job_id for entry in fleet.fleet.registry.entries("coder")}) == 2


def test_the_script_given_to_sbatch_by_hand_runs_the_role(fleet, tmp_path):
    """With its own defaults: t4flex, a day, one GPU; the job is found by its server's name from then on."""
    job_id = fleet.cluster.run(
        *("sbatch", "--parsable", f"--output={tmp_path}/by-hand.log", f"--chdir={ROOT}", "--export=ALL"),
        *(str(SCRIPT), "coder", f"--fleet={fleet.file}"),
        environ=fleet.environ,
    ).strip()
    fleet.until_ready("coder", job_id)
    fields = {name: fleet.cluster.field(job_id, name) for name in ("JobName", "Partition", "TimeLimit", "TresPerNode")}
    assert fields == {
        "JobName": "wc-coder",
        "Partition": "t4flex",
        "TimeLimit": "1-00:00:00",
        "TresPerNode": "gres:gpu:1",
    }
    assert fleet.state("coder").job_id == job_id


def test_the_script_on_a_login_node_submits_by_the_fleet_file(fleet):
    ended = subprocess.run(
        [str(SCRIPT), "coder", "--fleet", str(fleet.file)],
        capture_output=True, text=True, cwd=ROOT, env=fleet.environ, check=True, timeout=60,
    )  # fmt: skip
    (job,) = fleet.slurm.jobs(["coder"])
    assert ended.stdout.startswith(f"coder: job {job.id} ")
    assert fleet.cluster.field(job.id, "TimeLimit") == "01:00:00"


def test_a_server_that_is_not_wanted_any_more_does_not_start(fleet):
    """`fleet down` came while the job waited in the queue, and SLURM let it go all the same."""
    fleet.settings["slurm"]["options"] = ["--begin=now+3"]
    fleet.write()
    job_id = fleet.submit("coder")
    fleet.fleet.states.update("coder", wanted=False)
    assert fleet.until_over(job_id).state == "COMPLETED"
    assert "coder was stopped in the meantime" in fleet.log("coder", job_id)


def test_what_slurm_refuses_is_one_line_with_a_remedy(fleet):
    fleet.settings["slurm"]["partition"] = "nosuch"
    fleet.write()
    ended = fleet.command("submit", "coder", check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "error: sbatch failed: Batch job submission failed: Invalid partition name specified",
        "hint: check slurm.partition in the fleet file; `sinfo -s` lists partitions",
    ]
    assert fleet.fleet.states.get("coder") is None


def test_a_time_limit_that_leaves_no_time_to_serve_is_refused(fleet):
    fleet.settings["slurm"] |= {"time": "10", "drain_before": 600}
    fleet.write()
    ended = fleet.command("submit", "coder", check=False)
    assert "slurm.time '10' (600 s) must exceed drain_before (600 s)" in ended.stderr
    assert fleet.slurm.jobs() == []


def test_without_slurm_it_is_one_line(fleet, tmp_path):
    ended = fleet.command("submit", "coder", check=False, PATH=str(tmp_path))
    assert ended.stderr.splitlines()[0] == "error: SLURM is not available here: squeue not found"


def test_a_dry_run_prints_a_line_that_works_as_it_stands(fleet):
    """Pasted into a shell, it starts the server."""
    shown = fleet.command("submit", "coder", "--dry-run").stdout
    assert fleet.slurm.jobs() == []
    (fleet.folder / "logs").mkdir()
    job_id = subprocess.run(shown, shell=True, env=fleet.environ, capture_output=True, text=True, check=True).stdout.strip()
    fleet.until_ready("coder", job_id)


def test_a_dead_node_s_entry_is_not_believed(fleet):
    """Everything of the job is killed at once: nobody withdraws the entry, and it expires by itself."""
    job_id = fleet.submit("coder", "--wait")
    (entry,) = fleet.ready("coder")
    fleet.fleet.states.update("coder", wanted=False)
    os.kill(entry.pid, signal.SIGKILL)
    fleet.until_over(job_id)
    assert [e.job_id for e in fleet.fleet.registry.all()] == [job_id]
    assert fleet.fleet.registry.entries(now=time.time() + 45) == []
