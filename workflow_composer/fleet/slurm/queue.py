"""Which of a user's jobs are this fleet's. Jobs are known by the fleet's id in their comment, never by their name.

A job without such a comment, as earlier versions submitted it, is this fleet's if the fleet's state names it. All other jobs
are left alone; a line says whose they are and how to end them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workflow_composer.errors import FleetError

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.slurm.commands import Slurm, SlurmJob
    from workflow_composer.fleet.state import ServerState


@dataclass(frozen=True, slots=True)
class Queue:
    """This user's jobs, oldest first: those of the fleet, and those of others."""

    mine: list[SlurmJob] = field(default_factory=list)
    others: list[SlurmJob] = field(default_factory=list)

    def of(self, server: str) -> list[SlurmJob]:
        """The fleet's jobs of a server that have not ended and are not ending."""
        return [job for job in self.mine if job.server == server and not job.over]

    def beside(self, server: str) -> list[str]:
        """A line for each job of another fleet for a server of the same name."""
        return [foreign_words(job) for job in self.others if job.server == server and not job.over]


def queue_of(fleet: Fleet, slurm: Slurm) -> Queue:
    """Ask SLURM for this user's jobs. Raises `FleetError`."""
    known = fleet.id
    found = Queue()
    for job in slurm.jobs():
        mine = job.mark.fleet == known if job.mark else is_recorded(fleet, job, slurm)
        (found.mine if mine else found.others).append(job)
    return found


def is_recorded(fleet: Fleet, job: SlurmJob, slurm: Slurm) -> bool:
    """Whether the fleet's state names this job, which has no mark: an earlier version has submitted it."""
    state = fleet.states.get(job.server)
    return state is not None and job.is_called(state.job_id) and fleet.owns(state) and not elsewhere(state, slurm)


def foreign_words(job: SlurmJob) -> str:
    """Say in one line whose job this is."""
    if job.mark:
        return f"job {job.id} belongs to the fleet of {job.mark.file}: left alone"
    # Plain scancel signals vLLM, too, which then drops its requests.
    how = f"scancel {job.id}" if job.pending else f"scancel --batch --signal=TERM {job.id}"
    return f"job {job.id} ({job.name}) is recorded by no fleet, as after an update: left alone; `{how}` ends it"


def elsewhere(state: ServerState, slurm: Slurm) -> bool:
    """Whether the state's job is on another cluster than the one in reach."""
    return bool(state.job_id and state.cluster and slurm.cluster) and state.cluster != slurm.cluster


def refuse_elsewhere(fleet: Fleet, state: ServerState | None, slurm: Slurm) -> None:
    """Raise `FleetError` if the server has a job on another cluster, which cannot be seen from here."""
    if state is None or state.how != "slurm" or not fleet.owns(state) or not elsewhere(state, slurm):
        return
    serves = any(e.server == state.server and e.job_id == state.job_id and fleet.owns(e) for e in fleet.registry.entries())
    if state.wanted or serves:
        raise FleetError(
            f"{state.server} has job {state.job_id} on the cluster {state.cluster}; this is {slurm.cluster}: left alone",
            hint=f"run `fleet down {state.server}` there; if that cluster is gone, remove"
            f" {fleet.states.directory / f'{state.server}.json'}",
        )
