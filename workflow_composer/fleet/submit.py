"""Submit servers as SLURM jobs, at most one per server, and record their state."""

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
"""Seconds to wait for another submission of the same server, which runs two SLURM commands and writes the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A server's job. ``new``: submitted now, not already queued."""

    server: str
    job: Job
    new: bool


def command_for(fleet: Fleet, server: str) -> list[str]:
    """Return the sbatch command for a server. Raises `FleetError` for a server that is not in the fleet file, and for a time
    limit that leaves no time to serve.
    """
    role, _ = fleet.find(server)
    slurm = fleet.settings.slurm
    limit = time_limit(slurm.time)
    if limit is not None and limit <= slurm.drain_before:
        raise FleetError(
            f"{fleet.path}: slurm.time {slurm.time!r} ({limit:.0f} s) must exceed drain_before ({slurm.drain_before} s)",
            hint="a job hands over drain_before seconds before its end; raise slurm.time or lower slurm.drain_before",
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
    """Queue a server unless it already has a queued or running job. ``besides`` is the job to be succeeded: it and older
    jobs, which are about to end, do not count.

    Raises `FleetError`: SLURM rejects the job, the server runs outside of SLURM, or a folder is not writable.
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
    """The state of a server whose job has been queued; the monitor's restarts are kept."""
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
    """The path of a job's output."""
    return fleet.logs / f"{server}-slurm-{job_id}.log"


def entry_of(fleet: Fleet, server: str, job_id: str) -> Entry | None:
    """The registry entry of a server's job; None if it has none."""
    return next((e for e in fleet.registry.entries() if e.server == server and e.job_id == job_id), None)


@contextmanager
def one_at_a_time(fleet: Fleet, server: str, *, wait: float = SUBMITTING) -> Iterator[None]:
    """Lock the submission of a server, so that two submitters (a user and the monitor) do not both queue a job, and a job
    that starts at once finds its state. Raises `FleetError`, also if another submitter holds the lock for ``wait`` seconds.
    """
    path = fleet.states.directory / f"{server}.submit"
    lock = FileLock(lock_beside(path))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.take(wait)
    except TimeoutError as error:
        hint = "check with `squeue --me` whether its job is queued by now"
        raise FleetError(f"another process is submitting {server}: {error.strerror}", hint=hint) from error
    except OSError as error:
        hint = "it must be a folder that you own, with free space; set `state` in the fleet file to another"
        raise FleetError(f"the fleet's state {path} cannot be written: {error.strerror or error}", hint=hint) from error
    with lock:
        yield


def _refuse_second(fleet: Fleet, server: str) -> None:
    for entry in fleet.registry.entries():
        if entry.server == server and not entry.job_id:
            where = f"{entry.node or entry.host}, port {entry.port}"
            raise FleetError(
                f"{server} is already running outside of SLURM: {where}", hint=f"stop it with `fleet down {server}`"
            )


def _make(logs: Path) -> None:
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set `logs` in the fleet file to a writable folder"
        raise FleetError(f"{logs} cannot be created: {error.strerror or error}", hint=hint) from error
