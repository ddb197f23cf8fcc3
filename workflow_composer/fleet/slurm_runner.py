"""Runner of SLURM jobs: lets the monitor check and restart servers on SLURM."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from workflow_composer.errors import FleetError
from workflow_composer.fleet.slurm import Job, Slurm
from workflow_composer.fleet.state import Look, ServerState
from workflow_composer.fleet.submit import submit

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet

FRESH = 5.0
"""Seconds for which one squeue result is reused for all servers, to spare the controller."""
ENDING = 90.0
"""Seconds within which a cancelled job must end; SLURM's KillWait is 30 by default."""


class SlurmRunner:
    """Jobs of this user. One query to SLURM serves all servers of a round."""

    def __init__(self, fleet: Fleet, slurm: Slurm) -> None:
        self._fleet = fleet
        self._slurm = slurm
        self._guard = threading.Lock()
        self._jobs: list[Job] = []
        self._asked = float("-inf")

    def look(self, state: ServerState) -> Look:
        """Check whether a job of the server runs; a job that is queued or completing is left alone."""
        try:
            jobs = [job for job in self._all() if job.server == state.server]
        except FleetError as error:
            return Look(foreign=f"cannot query SLURM: {error.message}")
        if any(job.state == "RUNNING" for job in jobs):
            return Look(alive=True)
        for job in jobs:
            words = f"job {job.id} {job.words()}"
            if job.pending and job.words().startswith("never starts"):
                return Look(alive=False, foreign=words)
            if not job.over or job.state == "COMPLETING":  # a completing job may be requeued
                return Look(waiting=words)
        return Look(alive=False)

    def _all(self) -> list[Job]:
        with self._guard:
            if time.monotonic() - self._asked > FRESH:
                self._jobs = self._slurm.jobs()
                self._asked = time.monotonic()
            return self._jobs

    def restart(self, state: ServerState) -> None:
        """Cancel the server's running job, wait for its end and queue another one, unless one is already queued."""
        now = self._fleet.states.get(state.server)
        if now is None or not now.wanted:
            raise FleetError("it was stopped on purpose in the meantime")
        for job in self._slurm.jobs([state.server]):
            if job.state == "RUNNING":
                self._slurm.cancel([job], now=True)  # its supervisor takes this for a stop on purpose
                self._await_end(job)
        submit(self._fleet, state.server, self._slurm)
        self._asked = float("-inf")

    def _await_end(self, job: Job) -> None:
        ends = time.monotonic() + ENDING
        while (found := self._slurm.job(job.id)) and (not found.over or found.state == "COMPLETING"):
            if time.monotonic() > ends:
                raise FleetError(f"job {job.id} did not end within {ENDING:.0f} s after it was cancelled")
            time.sleep(0.5)
