"""Queues servers as SLURM jobs: never two for one server, and what is wanted is written down."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workflow_composer.backends.registry import Entry
from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.sbatch import job_script, sbatch_command, time_limit
from workflow_composer.fleet.slurm import LIMIT, Job, Slurm
from workflow_composer.fleet.state import ServerState
from workflow_composer.storage.locks import WAIT, FileLock, lock_beside

SUBMITTING = 2 * LIMIT + WAIT
"""Seconds that another submission of a server is waited for: it asks SLURM twice, and writes down what came of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A server's job: ``new``, or one that was in the queue already."""

    server: str
    job: Job
    new: bool


def command_for(fleet: Fleet, server: str) -> list[str]:
    """The sbatch command for a server. Raises `FleetError` for a server that the fleet file does not know, and for a time
    limit that leaves no time to serve.
    """
    role, _ = fleet.find(server)
    slurm = fleet.settings.slurm
    limit = time_limit(slurm.time)
    if limit is not None and limit <= slurm.drain_before:
        raise FleetError(
            f"{fleet.path}: slurm.time {slurm.time!r} is {limit:.0f} s, and drain_before is {slurm.drain_before} s of them",
            hint="a job hands over drain_before seconds before its end: give it more time, or a smaller drain_before",
        )
    return sbatch_command(
        slurm,
        role,
        server,
        fleet_file=fleet.path,
        logs=fleet.logs,
        python=sys.executable,
        script=job_script(),
    )


def submit(fleet: Fleet, server: str, slurm: Slurm, *, besides: str = "") -> Submitted:
    """Queue a server, unless a job for it is queued or runs. ``besides`` is the job that is to be succeeded: it does not
    count, nor does one before it, which has its own end near.

    Raises `FleetError`: what SLURM refuses, a server that runs outside of SLURM, a folder that cannot be written.
    """
    command = command_for(fleet, server)
    with one_at_a_time(fleet, server):
        for job in slurm.jobs([server]):
            if not job.over and int(job.id) > int(besides or 0):
                return Submitted(server=server, job=job, new=False)
        _refuse_second(fleet, server)
        _make(fleet.logs)
        job_id = slurm.submit(command)
        if not besides:
            fleet.states.put(queued(fleet, server, job_id))
    return Submitted(server=server, job=slurm.job(job_id) or Job(id=job_id, name="", state="PENDING"), new=True)


def queued(fleet: Fleet, server: str, job_id: str) -> ServerState:
    """The state of a server whose job has been queued; its restarts by the monitor are kept."""
    role, port = fleet.find(server)
    known = fleet.states.get(server)
    return ServerState(
        server=server,
        role=role.name,
        how="slurm",
        job_id=job_id,
        port=port,
        detail="queued",
        log=str(log_of(fleet, server, job_id)),
        fleet_file=str(fleet.path),
        options=known.options if known else (),
        started=time.time(),
        restarts=known.restarts if known else (),
    )


def log_of(fleet: Fleet, server: str, job_id: str) -> Path:
    """Where a job's output goes."""
    return fleet.logs / f"{server}-slurm-{job_id}.log"


def entry_of(fleet: Fleet, server: str, job_id: str) -> Entry | None:
    """What a job has published."""
    return next((e for e in fleet.registry.entries() if e.server == server and e.job_id == job_id), None)


@contextmanager
def one_at_a_time(fleet: Fleet, server: str, *, wait: float = SUBMITTING) -> Iterator[None]:
    """Keep two that submit the same server (a person and the monitor, say) from both finding no job, and a job that starts
    at once from finding no word of its submission. Raises `FleetError`, also where another takes ``wait`` seconds for it.
    """
    path = fleet.states.directory / f"{server}.submit"
    lock = FileLock(lock_beside(path))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.take(wait)
    except TimeoutError as error:
        hint = "`squeue --me` shows whether its job is queued by now"
        raise FleetError(f"{server} is being submitted by another: {error.strerror}", hint=hint) from error
    except OSError as error:
        hint = "it must be a folder of your own with space left; the fleet file's `state` names another"
        raise FleetError(f"the fleet's state {path} cannot be written: {error.strerror or error}", hint=hint) from error
    with lock:
        yield


def _refuse_second(fleet: Fleet, server: str) -> None:
    for entry in fleet.registry.entries():
        if entry.server == server and not entry.job_id:
            where = f"{entry.node or entry.host}, port {entry.port}"
            raise FleetError(f"{server} runs outside of SLURM already: {where}", hint=f"`fleet down {server}` stops it")


def _make(logs: Path) -> None:
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "the fleet file's `logs` names the folder of the logs"
        raise FleetError(f"{logs} cannot be made: {error.strerror or error}", hint=hint) from error
