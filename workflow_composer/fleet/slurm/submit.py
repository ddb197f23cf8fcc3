"""Submit servers as SLURM jobs, at most one per server, and record their state."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workflow_composer.backends.replicas.registry import Entry
from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.launch.preparation import lasting_faults
from workflow_composer.fleet.launch.readiness import refuse_another_model
from workflow_composer.fleet.launch.supervisor import STOPPING
from workflow_composer.fleet.ownership import refuse_foreign
from workflow_composer.fleet.settings import RoleSpec
from workflow_composer.fleet.slurm.commands import LIMIT, Slurm, SlurmJob
from workflow_composer.fleet.slurm.queue import queue_of, refuse_elsewhere
from workflow_composer.fleet.slurm.sbatch import JobMark, asked_time, job_script, sbatch_command, time_limit
from workflow_composer.fleet.state import ServerState
from workflow_composer.storage.locks import WAIT, FileLock, lock_beside

# ----------------------------------------------------------------------------------------------------------------- waiting
#
# Wait for a submitted server and report the status of its job.


POLL = 2.0
"""Seconds between two polls; each one is a query to the SLURM controller."""


def wait_for(fleet: Fleet, submitted: Submitted, slurm: Slurm, say: Callable[[str], None]) -> str:
    """Wait until a submitted server is ready and return its URL; call ``say`` when the status changes.

    Raises `FleetError` if its job ends before that, or fails and is requeued.
    """
    server, job_id, said = submitted.server, submitted.job.id, ""
    while True:
        entry = entry_of(fleet, server, job_id)
        if entry is not None and entry.state == "ready":
            return entry.url
        job = slurm.job(job_id)
        if job is None or job.over or _failed(fleet, server, job_id):
            raise _ended(fleet, server, job_id, job)
        news = f"{server}: job {job_id} {job.words()}" + (f", {entry.state}" if entry else "")
        if news != said:
            say(said := news)
        time.sleep(POLL)


def _failed(fleet: Fleet, server: str, job_id: str) -> bool:
    state = fleet.states.get(server)
    return state is not None and state.job_id == job_id and state.status == "failed"


def _ended(fleet: Fleet, server: str, job_id: str, job: SlurmJob | None) -> FleetError:
    state = fleet.states.get(server)
    why = state.detail if state and state.job_id == job_id and state.status in ("failed", "stopped") else ""
    why = why or (f"SLURM state {job.state.lower()} {job.reason}".rstrip() if job else "SLURM no longer knows it")
    return FleetError(
        f"{server}: job {job_id} ended before it was ready: {why}", hint=f"see {log_of(fleet, server, job_id)}"
    )


# -------------------------------------------------------------------------------------------------------------- cancelling
#
# Cancel a server's SLURM jobs: ask them to drain first; if they do not end in time, let SLURM kill them.


STEP = 1.0
"""Seconds between two polls of the queue."""
SLACK = 30.0
"""Seconds to wait beyond the job's own time limits."""


class Cancelling:
    """A server whose jobs are being cancelled; `poll` says whether they have ended.

    ``found``: whether it had any; ``notes``: a line for each job of another fleet's server of that name.
    """

    def __init__(self, fleet: Fleet, server: str, slurm: Slurm) -> None:
        """Mark the server as not wanted and signal its jobs. Raises `FleetError`."""
        self.fleet = fleet
        self.server = server
        self.slurm = slurm
        state = fleet.states.get(server)
        refuse_elsewhere(fleet, state, slurm)
        if state is not None and fleet.owns(state):
            fleet.states.update(server, wanted=False)
        queue = queue_of(fleet, slurm)
        self.notes = queue.beside(server)
        jobs = queue.of(server)
        slurm.cancel(jobs)
        self.found = bool(jobs)
        longest = max((role.drain_seconds for role in fleet.settings.roles.values()), default=0.0)
        self._urge_at = time.monotonic() + longest + STOPPING + SLACK
        self._looked = 0.0
        if all(job.pending for job in jobs) and state is not None and fleet.owns(state):
            # No job is running, so nothing else records the final state.
            fleet.states.update(
                server, status="stopped", detail="removed from the queue" if jobs else "its job no longer exists"
            )

    def poll(self) -> bool:
        """Whether all jobs have ended. Raises `FleetError`."""
        if not self.found:
            return True
        if time.monotonic() - self._looked < STEP:
            return False
        self._looked = time.monotonic()
        jobs = [job for job in queue_of(self.fleet, self.slurm).mine if job.server == self.server]
        if jobs and time.monotonic() > self._urge_at:
            self._urge_at = float("inf")
            self.slurm.cancel(jobs, now=True)
        return not jobs


SUBMITTING = 2 * LIMIT + WAIT
"""Seconds to wait for another submission of the same server, which runs two SLURM commands and writes the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A server's job. ``new``: submitted now, not already queued."""

    server: str
    job: SlurmJob
    new: bool


def command_for(fleet: Fleet, server: str, *, begin: float = 0.0, without: str = "") -> list[str]:
    """Return the sbatch command for a server, to start in ``begin`` seconds at the earliest, not on the node ``without``.

    Raises `FleetError` for a server that is not in the fleet file, and for a time limit that leaves no time to start.
    """
    role, _ = fleet.find(server)
    slurm = fleet.settings.slurm
    _refuse_short_time(fleet, role)
    return sbatch_command(
        slurm,
        role,
        JobMark(fleet.id, server, str(fleet.path)),
        logs=fleet.logs,
        python=sys.executable,
        script=job_script(),
        environ=fleet.environ,
        begin=begin,
        without=without,
    )


def _refuse_short_time(fleet: Fleet, role: RoleSpec) -> None:
    """Raise `FleetError` if a job would have to hand over before it can be ready: its chain would never serve."""
    slurm = fleet.settings.slurm
    text = asked_time(slurm)
    limit = time_limit(text)
    if limit is None:
        return
    drain, start = slurm.drain_before, role.start_seconds
    if limit <= drain:
        raise FleetError(
            f"{fleet.path}: slurm.time {text!r} ({limit:.0f} s) must exceed drain_before ({drain} s)",
            hint="a job hands over drain_before seconds before its end; raise slurm.time or lower slurm.drain_before",
        )
    if limit - drain < start:
        raise FleetError(
            f"{fleet.path}: slurm.time {text!r} ({limit:.0f} s) leaves {limit - drain:.0f} s before drain_before ({drain}"
            f" s), but role {role.name!r} may take start_seconds ({start:g} s) to start",
            hint="raise slurm.time, or lower slurm.drain_before or the role's start_seconds",
        )


def submit(
    fleet: Fleet, server: str, slurm: Slurm, *, besides: str = "", begin: float = 0.0, without: str = ""
) -> Submitted:
    """Queue a server unless it already has a queued or running job. ``besides`` is the job to be succeeded: it and older
    jobs, which are about to end, do not count. The new job starts in ``begin`` seconds at the earliest, and not on the node
    ``without``.

    Raises `FleetError`: SLURM rejects the job, the server runs outside of SLURM, on another cluster or in another fleet that
    shares the state folder, another server of the role serves another model, or a folder is not writable.
    """
    command = command_for(fleet, server, begin=begin, without=without)
    with one_at_a_time(fleet, server):
        state = fleet.states.get(server)
        refuse_foreign(fleet, server)
        refuse_elsewhere(fleet, state, slurm)
        jobs = queue_of(fleet, slurm).of(server)
        if newer := jobs_after(besides, jobs):
            if state is not None and not state.wanted and not besides:
                raise FleetError(
                    f"{server}: job {newer[0].id} is being stopped",
                    hint="submit it again when `squeue --me` no longer shows it",
                )
            return Submitted(server=server, job=newer[0], new=False)
        _refuse_second(fleet, server)
        if not besides:
            refuse_another_model(fleet, server, fleet.find(server)[0])
            _refuse_lasting(fleet, server)
        _make(fleet.logs)
        job_id = slurm.submit(command)
        if not besides:
            fleet.states.put(queued(fleet, server, job_id, cluster=_cluster(slurm)))
    return Submitted(server=server, job=slurm.job(job_id) or SlurmJob(id=job_id, name="", state="PENDING"), new=True)


def jobs_after(job_id: str, jobs: Sequence[SlurmJob]) -> list[SlurmJob]:
    """The jobs that were submitted after the one of that id; all of them if there is none."""
    base = next((job.order for job in jobs if job.is_called(job_id)), None)
    if base is None:
        base = (int(job_id.partition("_")[0]),) if job_id else ()
    return [job for job in jobs if job.order > base and not job.is_called(job_id)]


def _cluster(slurm: Slurm) -> str:
    """The cluster's name; empty if it cannot be told, which must not lose the state of a job that is queued."""
    try:
        return slurm.cluster
    except FleetError:
        return ""


def queued(fleet: Fleet, server: str, job_id: str, *, cluster: str = "") -> ServerState:
    """The state of a server whose job has been queued; the monitor's restarts are kept."""
    role, port = fleet.find(server)
    known = fleet.states.get(server)
    return ServerState(
        fleet=fleet.id,
        cluster=cluster,
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
    found = (e for e in fleet.registry.entries() if e.server == server and e.job_id == job_id and fleet.owns(e))
    return next(found, None)


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
        if entry.server == server and not entry.job_id and fleet.owns(entry):
            where = f"{entry.node or entry.host}, port {entry.port}"
            raise FleetError(
                f"{server} is already running outside of SLURM: {where}", hint=f"stop it with `fleet down {server}`"
            )


def _refuse_lasting(fleet: Fleet, server: str) -> None:
    if found := lasting_faults(fleet, fleet.find(server)[0]):
        raise FleetError(f"{server} would fail at every start: {'; '.join(found)}", problems=found, lasting=True)


def _make(logs: Path) -> None:
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set `logs` in the fleet file to a writable folder"
        raise FleetError(f"{logs} cannot be created: {error.strerror or error}", hint=hint) from error
