"""How service goes on across a job's time limit: a successor is queued first, and the old server drains when that is ready.

On a cluster with a free GPU there is no gap. With a single GPU the successor waits for the old job's end, so the old server
serves until its time is nearly over. Where SLURM accepts no second job, this one drains at once and is queued again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.slurm import Slurm
from workflow_composer.fleet.submit import entry_of, submit

MARGIN = 30.0
"""Seconds between the end of draining and the end of the job: vLLM must stop, the registry must be told."""

STEP = 1.0
"""Seconds between two looks for the successor."""


class Handover:
    """Call it in turns once the job is expiring: it says whether the server is to drain now. It never blocks."""

    def __init__(
        self,
        fleet: Fleet,
        server: str,
        *,
        job_id: str,
        ends: float | None,
        slurm: Slurm,
        say: Callable[[str], None],
    ) -> None:
        self.fleet = fleet
        self.server = server
        self.job_id = job_id
        self.ends = ends
        self.slurm = slurm
        self.say = say
        self.successor = ""
        self._drain = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self) -> bool:
        """Whether the server is to take no new work and to end when it has finished what it has."""
        if self._thread is None:
            # SLURM's commands may take longer than an entry of the registry is believed without a beat.
            self._thread = threading.Thread(target=self._run, name="handover", daemon=True)
            self._thread.start()
        return self._drain.is_set()

    def taken(self) -> bool:
        """Whether a successor is queued or runs."""
        try:
            job = self.slurm.job(self.successor) if self.successor else None
        except WorkflowComposerError:
            return bool(self.successor)
        return job is not None and not job.over

    def _run(self) -> None:
        try:
            self._hand_over()
        finally:
            self._drain.set()

    def _hand_over(self) -> None:
        state = self.fleet.states.get(self.server)
        if state is not None and not state.wanted:
            return
        try:
            # A preempted job ends earlier than it was to.
            job = self.slurm.job(self.job_id)
            self.ends = job.ends if job and job.ends else self.ends
            self.successor = submit(self.fleet, self.server, self.slurm, besides=self.job_id).job.id
        except WorkflowComposerError as error:
            self.say(f"no successor can be queued, so this job drains and is queued again: {error}")
            return
        role, _ = self.fleet.find(self.server)
        last = (self.ends or time.time()) - role.drain_seconds - MARGIN
        self.say(f"the job ends soon; its successor is job {self.successor}")
        while time.time() < last:
            entry = entry_of(self.fleet, self.server, self.successor)
            if entry is not None and entry.state == "ready":
                self.say(f"job {self.successor} answers at {entry.url}")
                return
            time.sleep(STEP)
        self.say(f"job {self.successor} does not answer yet, and the time is over")
