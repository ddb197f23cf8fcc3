"""Cancel a server's SLURM jobs: ask them to drain first; if they do not end in time, let SLURM kill them."""

from __future__ import annotations

import time

from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.slurm import Slurm
from workflow_composer.fleet.supervisor import STOPPING

STEP = 1.0
"""Seconds between two polls of the queue."""
SLACK = 30.0
"""Seconds to wait beyond the job's own time limits."""


class Cancelling:
    """A server whose jobs are being cancelled; `poll` says whether they have ended. ``found``: whether it had any."""

    def __init__(self, fleet: Fleet, server: str, slurm: Slurm) -> None:
        """Mark the server as not wanted and signal its jobs. Raises `FleetError`."""
        self.server = server
        self.slurm = slurm
        fleet.states.update(server, wanted=False)
        jobs = [job for job in slurm.jobs([server]) if not job.over]
        slurm.cancel(jobs)
        self.found = bool(jobs)
        longest = max((role.drain_seconds for role in fleet.settings.roles.values()), default=0.0)
        self._urge_at = time.monotonic() + longest + STOPPING + SLACK
        self._looked = 0.0
        if all(job.pending for job in jobs):
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
        jobs = self.slurm.jobs([self.server])
        if jobs and time.monotonic() > self._urge_at:
            self._urge_at = float("inf")
            self.slurm.cancel(jobs, now=True)
        return not jobs
