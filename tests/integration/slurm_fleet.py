"""A fleet on the tests' own SLURM: its file, its commands, and waiting for what should happen."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml

from tests.integration.slurm_cluster import SlurmCluster
from tests.paths import CHECKPOINTS, ROOT
from workflow_composer.backends.replicas.registry import Entry
from workflow_composer.fleet.file import Fleet, load_fleet
from workflow_composer.fleet.slurm.commands import Slurm, SlurmJob
from workflow_composer.fleet.state import ServerState

T = TypeVar("T")
LIMIT = 120.0


class SlurmFleet:
    """One fleet file in a folder of its own, with its registry, state and logs there."""

    def __init__(self, cluster: SlurmCluster, folder: Path, environ: dict[str, str], **slurm: object) -> None:
        self.cluster = cluster
        self.folder = folder
        self.file = folder / "fleet.yaml"
        self.environ = {**os.environ, **cluster.environ, **environ, "PYTHONUNBUFFERED": "1"}
        # Jobs run this checkout, whatever is installed.
        self.environ["PYTHONPATH"] = ":".join(filter(None, (str(ROOT), environ.get("PYTHONPATH", ""))))
        for name in ("WORKFLOW_COMPOSER_REGISTRY", "WORKFLOW_COMPOSER_FLEET_STATE"):
            self.environ.pop(name, None)
        self.settings = {
            "registry": "registry",
            "state": "state",
            "logs": str(folder / "logs"),
            "listen": "127.0.0.1",
            "roles": {},
            "slurm": {"gpu_type": "t4", "cpus_per_task": 1, "memory": None, "time": "60", "requeue_pause": 1, **slurm},
        }

    def role(self, name: str, **settings: object) -> None:
        """Add a role that serves the `small` checkpoint on the CPU, and write the file."""
        role = {"model": str(CHECKPOINTS / "small"), "served_name": "small", "device": "cpu", "port": free_port()}
        self.settings["roles"][name] = {**role, "drain_seconds": 5, **settings}
        self.write()

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.settings))

    @property
    def fleet(self) -> Fleet:
        return load_fleet(self.file, self.environ)

    @property
    def slurm(self) -> Slurm:
        return Slurm(self.environ)

    def command(self, *arguments: str, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run ``workflow_composer fleet ...`` with this fleet's file."""
        ended = subprocess.run(
            [sys.executable, "-m", "workflow_composer", "fleet", *arguments, "--fleet", str(self.file)],
            capture_output=True,
            text=True,
            env=self.environ | environ,
            cwd=ROOT,
            timeout=120,
            check=False,
        )
        if check:
            assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended

    def submit(self, *arguments: str) -> str:
        """Submit; the (first) job's id."""
        return json.loads(self.command("submit", *arguments, "--json").stdout)[0]["job"]["id"]

    def entries(self, server: str) -> list[Entry]:
        return [entry for entry in self.fleet.registry.entries() if entry.server == server]

    def ready(self, server: str) -> list[Entry]:
        return [entry for entry in self.entries(server) if entry.state == "ready"]

    def state(self, server: str) -> ServerState:
        state = self.fleet.states.get(server)
        assert state is not None
        return state

    def job(self, job_id: str) -> SlurmJob:
        job = self.slurm.job(job_id)
        assert job is not None, f"SLURM does not know job {job_id}"
        return job

    def until(self, what: Callable[[], T], text: str, limit: float = LIMIT) -> T:
        """Wait until something is true; fails with the jobs' logs where it does not become so in time."""
        ends = time.monotonic() + limit
        while not (found := what()):
            assert time.monotonic() < ends, f"{text}: not within {limit} s\n{self.story()}"
            time.sleep(0.1)  # a poll, not a guess
        return found

    def until_ready(self, server: str, job_id: str, limit: float = LIMIT) -> Entry:
        """Wait until a job's server answers, by the registry."""
        found = lambda: [entry for entry in self.ready(server) if entry.job_id == job_id]  # noqa: E731
        return self.until(found, f"{server} is ready in job {job_id}", limit)[0]

    def until_over(self, job_id: str, limit: float = LIMIT) -> SlurmJob:
        """Wait until a job has ended and all is cleared up behind it."""
        done = lambda: (job := self.job(job_id)).over and job.state != "COMPLETING" and job  # noqa: E731
        return self.until(done, f"job {job_id} is over", limit)

    def signal(self, job_id: str, name: str) -> None:
        """What SLURM does for `--signal=B:...`."""
        self.cluster.run("scancel", "--batch", f"--signal={name}", job_id)

    def story(self) -> str:
        """The logs of the jobs and of the cluster, and its queue."""
        logs = [f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted((self.folder / "logs").glob("*.log"))]
        return "\n".join([*logs, self.cluster.run("squeue", "--states=all"), self.cluster.logs()])

    def log(self, server: str, job_id: str) -> str:
        """What a job has said."""
        return (self.folder / "logs" / f"{server}-slurm-{job_id}.log").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
