"""The shipped job script on a real SLURM, with real vLLM servers, while a client asks in a loop."""

import asyncio
import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.shipped_profile import t4_hybrid
from tests.integration.slurm_cluster import SlurmCluster, why_not
from tests.integration.slurm_fleet import SlurmFleet
from tests.integration.stub_server import StubServer
from tests.integration.vllm_server import VARIABLE, vllm_python
from workflow_composer import ModelOrchestrator
from workflow_composer.metrics.sink import MemorySink

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(vllm_python() is None, reason=f"{VARIABLE} names no Python with vLLM"),
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]

QUESTION = "Anna has 12 pens. Then she finds 7 more. How many pens does Anna have now?"
KEYS = {"DEEPSEEK_API_KEY": "not-a-real-key", "ANTHROPIC_API_KEY": "not-a-real-key"}
START = 400.0
"""Seconds that vLLM may take to answer on a machine that does other things, too."""


@pytest.fixture
def fleet(tmp_path):
    """A role on a SLURM of its own."""
    with SlurmCluster(gpus=2) as cluster:
        made = SlurmFleet(cluster, tmp_path, {"PYTHONPATH": ""})
        made.settings["python"] = vllm_python()
        made.role(
            "coder",
            max_model_len=512,
            arguments=["--max-num-seqs=16"],
            environment={"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"},
        )
        yield made
        made.fleet.states.update("coder", wanted=False)


@pytest.fixture
def cloud():
    with StubServer() as stub:
        yield stub


@pytest.fixture
def profile(tmp_path, cloud):
    """`t4_hybrid` as it is shipped: its coder is the registry's alone, and its two cloud addresses are the stand-in's."""
    text = t4_hybrid(cloud.url)
    text, coders = re.subn(r"^  coder: .*localhost.*$", "  coder: registry:coder", text, flags=re.MULTILINE)
    assert coders == 1
    path = tmp_path / "t4_hybrid.yaml"
    path.write_text(text)
    return path


class Client:
    """Asks the same question over and over; remembers when each was asked and what became of it."""

    def __init__(self, orchestrator: ModelOrchestrator) -> None:
        self.orchestrator = orchestrator
        self.answers: list[tuple[float, bool]] = []
        self.failures: list[BaseException] = []

    async def run(self) -> None:
        while True:
            asked = time.time()
            try:
                response = await self.orchestrator.agenerate(QUESTION, task_type="code_generation", timeout=120)
            except Exception as error:
                self.failures.append(error)
            else:
                self.answers.append((asked, bool(response.decision.local)))
            # vLLM spins for a second after each request, and a server that starts beside it needs the processor, too.
            await asyncio.sleep(2.0)

    def local(self, since: float, until: float = float("inf")) -> list[bool]:
        """For each answer to a request of that span, whether it came from an own server."""
        return [local for asked, local in self.answers if since <= asked < until]

    async def until(self, local: bool, since: float, limit: float) -> None:
        """Wait for an answer from an own server, or from elsewhere."""
        ends = time.time() + limit
        while local not in self.local(since):
            assert time.time() < ends, f"no answer with local={local} within {limit} s"
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def asking(profile: Path, environ: dict[str, str]):
    async with ModelOrchestrator(profile, metrics=MemorySink(), environ=environ) as orchestrator:
        client = Client(orchestrator)
        task = asyncio.ensure_future(client.run())
        try:
            yield client
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_service_goes_on_across_time_limits_and_deaths(fleet, profile, cloud):
    """Submitted, discovered and used; handed over at the time limit; killed, replaced, cancelled: no failure."""
    environ = {**KEYS, "WORKFLOW_COMPOSER_REGISTRY": str(fleet.fleet.registry.directory)}

    # Submitted, and used from the command line under the profile.
    first = await asyncio.to_thread(fleet.submit, "coder")
    await asyncio.to_thread(fleet.until_ready, "coder", first, START)
    assert "####" in await asyncio.to_thread(_generate, profile, environ)
    assert not cloud.requests

    async with asking(profile, environ) as client:
        began = time.time()
        # The time limit, brought near by now, since vLLM's start takes too differently long: SLURM signals, a successor
        # starts beside the old server, which drains when that answers.
        fleet.cluster.run("scontrol", "update", f"JobId={first}", f"TimeLimit={_minutes(fleet.job(first))}")
        second = (await asyncio.to_thread(fleet.until, lambda: _others(fleet, first), "a successor is queued", 200))[0].id
        entry = await asyncio.to_thread(fleet.until_ready, "coder", second, START)
        assert (await asyncio.to_thread(fleet.until_over, first, 60)).state == "COMPLETED"
        handed_over = time.time()
        await client.until(True, handed_over, 60)
        assert [e.job_id for e in fleet.ready("coder")] == [second]
        assert all(client.local(began)), "the cloud answered, although a server was up all the time"
        assert len(client.local(began, handed_over)) > 10

        # A server that is killed: the profile's fallback answers until its job is up again.
        killed = time.time()
        os.kill(_vllm(entry.port), signal.SIGKILL)
        await client.until(False, killed, 60)
        again = await asyncio.to_thread(fleet.until_ready, "coder", second, START)
        assert again.started > killed
        returned = time.time()
        await client.until(True, returned, 60)
        assert fleet.cluster.field(second, "Restarts") == "1"

        # A job that is cancelled: the fallback again.
        fleet.cluster.run("scancel", second)
        await asyncio.to_thread(fleet.until_over, second, 60)
        await client.until(False, time.time(), 60)
        assert fleet.entries("coder") == []
    assert client.failures == []


def _generate(profile, environ):
    """What a user gets who asks under the profile on the command line."""
    command = ["-s", str(profile), "generate", "--task", "code_generation", QUESTION]
    ended = subprocess.run(
        [sys.executable, "-m", "workflow_composer", *command],
        capture_output=True, text=True, env=os.environ | environ, cwd=profile.parent, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def _minutes(job):
    """The time limit that ends a job within ten to eleven minutes: the signal comes ten minutes before the end."""
    return math.ceil((time.time() - job.starts) / 60) + 10


def _others(fleet, job_id):
    return [job for job in fleet.slurm.jobs(["coder"]) if job.id != job_id]


def _vllm(port: int) -> int:
    """The process that listens on a port."""
    found = subprocess.run(["ss", "-Hltnp", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"pid=(\d+)", found)
    assert match, f"nothing listens on port {port}"
    return int(match[1])
