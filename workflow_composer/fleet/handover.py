"""How service goes on across a job's time limit: a successor is queued first, and the old server drains when that is ready.

On a cluster with a free GPU there is no gap. With a single GPU the successor waits for the old job's end, so the old server
serves until its time is nearly over. Where SLURM accepts no second job, this one drains at once and is queued again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.fleet.file import Fleet, load_fleet
from workflow_composer.fleet.slurm import Slurm
from workflow_composer.fleet.submit import entry_of, submit

MARGIN = 40.0
"""Seconds between the end of draining and the end of the job: vLLM must stop, the registry must be told."""


class Handover:
    """`begin` it once the job's time is nearly over; `done` says when the old server is to drain."""

    def __init__(
        self, fleet: Fleet, server: str, *, job_id: str, ends: float | None, slurm: Slurm, say: Callable[[str], None]
    ) -> None:
        self.fleet = fleet
        self.server = server
        self.job_id = job_id
        self.slurm = slurm
        self.say = say
        self.successor = ""
        self._last = 0.0 if ends is None else ends - fleet.find(server)[0].drain_seconds - MARGIN

    def begin(self) -> None:
        """Queue a successor, if the server is wanted any more. What SLURM refuses is said, and ends the matter."""
        state = self.fleet.states.get(self.server)
        if state is not None and not state.wanted:
            return
        try:
            self.successor = submit(self._as_edited(), self.server, self.slurm, besides=self.job_id).job.id
        except WorkflowComposerError as error:
            self.say(f"the time is nearly over, and no successor can be queued: {error}")
            return
        self.say(f"the time is nearly over; job {self.successor} is to take over")

    def _as_edited(self) -> Fleet:
        """The fleet by its file as it is now: a day has passed. One that has become invalid is said, and not followed."""
        try:
            return load_fleet(self.fleet.path, self.fleet.environ)
        except WorkflowComposerError as error:
            self.say(f"the fleet file cannot be read any more, so the successor gets the old settings: {error}")
            return self.fleet

    def done(self) -> bool:
        """Whether nothing is left to wait for: the successor answers, or there is none, or there is no more time."""
        if not self.successor:
            return True
        entry = entry_of(self.fleet, self.server, self.successor)
        if entry is not None and entry.state == "ready":
            self.say(f"job {self.successor} answers at {entry.url}")
            return True
        if time.time() < self._last:
            return False
        self.say(f"job {self.successor} does not answer yet, and the time is over")
        return True

    def taken(self) -> bool:
        """Whether a successor is queued or runs. Raises `FleetError`."""
        job = self.slurm.job(self.successor) if self.successor else None
        return job is not None and not job.over
