"""Ends a server's SLURM jobs: told to finish what they have first, and ended by SLURM where they do not."""

from __future__ import annotations

import time

from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.slurm import Slurm
from workflow_composer.fleet.supervisor import STOPPING

STEP = 1.0
"""Seconds between two looks at the queue."""
SLACK = 30.0
"""Seconds beyond the limits that a job itself keeps."""


class Cancelling:
    """A server whose jobs were told to end; `poll` says whether they have. ``found``: whether there was one."""

    def __init__(self, fleet: Fleet, server: str, slurm: Slurm) -> None:
        """Make it unwanted, and tell its jobs. Raises `FleetError`."""
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
            # Nothing of it runs, so nobody else writes down how it has ended.
            fleet.states.update(server, status="stopped", detail="taken from the queue" if jobs else "its job is gone")

    def poll(self) -> bool:
        """Whether its jobs have ended. Raises `FleetError`."""
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
