"""Wait for a submitted server and report the status of its job."""

from __future__ import annotations

import time
from collections.abc import Callable

from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.slurm import Job, Slurm
from workflow_composer.fleet.submit import Submitted, entry_of, log_of

STEP = 2.0
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
        time.sleep(STEP)


def _failed(fleet: Fleet, server: str, job_id: str) -> bool:
    state = fleet.states.get(server)
    return state is not None and state.job_id == job_id and state.status == "failed"


def _ended(fleet: Fleet, server: str, job_id: str, job: Job | None) -> FleetError:
    state = fleet.states.get(server)
    why = state.detail if state and state.job_id == job_id and state.status in ("failed", "stopped") else ""
    why = why or (f"SLURM state {job.state.lower()} {job.reason}".rstrip() if job else "SLURM no longer knows it")
    return FleetError(
        f"{server}: job {job_id} ended before it was ready: {why}", hint=f"see {log_of(fleet, server, job_id)}"
    )
