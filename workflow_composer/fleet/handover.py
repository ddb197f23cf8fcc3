"""Handover across a job's time limit: queue a successor, and drain the old server when the successor is ready.

With a free GPU in the cluster there is no gap. With a single GPU the successor waits for the old job to end, so the old
server serves until its time is nearly over. If SLURM accepts no second job, this one drains at once and is requeued.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.fleet.file import Fleet, load_fleet
from workflow_composer.fleet.slurm import Slurm
from workflow_composer.fleet.submit import entry_of, submit

MARGIN = 40.0
"""Seconds between the end of draining and the end of the job, to stop vLLM and update the registry."""


class Handover:
    """Call `begin` when the job's time is nearly over; `done` says when the old server has to drain."""

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
        """Queue a successor if the server is still wanted. If SLURM rejects it, report that and give up."""
        state = self.fleet.states.get(self.server)
        if state is not None and not state.wanted:
            return
        try:
            self.successor = submit(self._as_edited(), self.server, self.slurm, besides=self.job_id).job.id
        except WorkflowComposerError as error:
            self.say(f"the time limit is near, and no successor can be queued: {error}")
            return
        self.say(f"the time limit is near; queued job {self.successor} as successor")

    def _as_edited(self) -> Fleet:
        """Read the fleet file again, since it may have changed; if it is invalid, report that and keep the old settings."""
        try:
            return load_fleet(self.fleet.path, self.fleet.environ)
        except WorkflowComposerError as error:
            self.say(f"the fleet file has become invalid, so the successor gets the old settings: {error}")
            return self.fleet

    def done(self) -> bool:
        """Whether to drain now: the successor is ready, there is none, or the time is over."""
        if not self.successor:
            return True
        entry = entry_of(self.fleet, self.server, self.successor)
        if entry is not None and entry.state == "ready":
            self.say(f"job {self.successor} is ready at {entry.url}")
            return True
        if time.time() < self._last:
            return False
        self.say(f"job {self.successor} is not ready yet, but the time is over")
        return True

    def taken(self) -> bool:
        """Whether a successor is queued or running. Raises `FleetError`."""
        job = self.slurm.job(self.successor) if self.successor else None
        return job is not None and not job.over
