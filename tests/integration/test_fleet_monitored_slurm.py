"""The monitor over jobs of a real SLURM, with a stand-in for vLLM: what hangs is replaced, what waits is left alone."""

import json
import os
import signal

import pytest

from tests.integration.fake_vllm import make_fake_vllm
from tests.integration.fleet_commands import alerting, alerts
from tests.integration.slurm_cluster import SlurmCluster, why_not
from tests.integration.slurm_fleet import SlurmFleet

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]


@pytest.fixture(scope="module")
def cluster():
    with SlurmCluster(gpus=1) as made:
        yield made


@pytest.fixture
def fleet(cluster, tmp_path):
    """A fleet of two roles on a cluster of one GPU; all jobs are ended behind the test."""
    made = SlurmFleet(cluster, tmp_path, {"PYTHONPATH": str(make_fake_vllm(tmp_path / "fake"))})
    made.settings["monitor"] = {"answer_seconds": 5.0, "backoff": 1.0, "alerts": {"command": alerting(tmp_path)}}
    made.role("coder")
    made.role("math")
    yield made
    for state in made.fleet.states.all():
        made.fleet.states.update(state.server, wanted=False)
    jobs = [job for job in made.slurm.jobs() if not job.over]
    made.slurm.cancel(jobs, now=True)
    for job in jobs:
        made.until_over(job.id)


def test_a_job_that_hangs_is_cancelled_and_submitted_again_and_one_that_waits_is_left_alone(fleet):
    """SIGSTOP in the job: its port stays open. The one GPU is taken, so that the other server's job waits."""
    import requests

    first = fleet.submit("coder", "--wait")
    waiting = fleet.submit("math")
    (entry,) = fleet.ready("coder")
    seen = {one["server"]: one["seen"] for one in json.loads(fleet.command("monitor", "--json").stdout)["servers"]}
    assert seen == {"coder": "up", "math": "waiting"}
    lines = {line["server"]: line for line in json.loads(fleet.command("status", "--json").stdout)}
    assert (lines["coder"]["job_id"], lines["math"]["state"]) == (first, "queued")
    assert f"job {waiting} waits" in lines["math"]["reason"]

    fleet.slurm.cancel([fleet.job(waiting)])
    pid = requests.post(f"{entry.url}/completions", json={}, timeout=10).json()["pid"]
    os.kill(pid, signal.SIGSTOP)
    fleet.fleet.states.update("math", wanted=False)
    found = fleet.command("monitor", check=False)
    assert found.returncode == 1
    assert f"port {entry.port} is open, but no response within 5 s: it hangs" in found.stderr
    assert fleet.until_over(first).state == "CANCELLED"
    second = fleet.state("coder").job_id
    assert second != first
    fleet.until_ready("coder", second)
    assert fleet.command("monitor").returncode == 0
    assert alerts(fleet.folder) == [("coder", "down"), ("coder", "recovered")]
    assert [job.id for job in fleet.slurm.jobs() if not job.over] == [second]
