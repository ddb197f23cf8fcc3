"""Runners of servers (a process on this node, or a SLURM job): check whether one is alive, and restart it."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Protocol

from workflow_composer.errors import FleetError, WorkflowComposerError
from workflow_composer.fleet.processes import command_line, drain_supervisor, same_host, stop_supervisor, supervisor
from workflow_composer.fleet.slurm.commands import Slurm, SlurmJob
from workflow_composer.fleet.slurm.queue import elsewhere, queue_of
from workflow_composer.fleet.slurm.reasons import NEVER
from workflow_composer.fleet.slurm.submit import submit
from workflow_composer.fleet.state import Look, ServerState

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.launch.local import Starting
    from workflow_composer.fleet.state import How


# ------------------------------------------------------------------------------------------------------------ slurm runner
#
# Runner of SLURM jobs: lets the monitor check and restart servers on SLURM.


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
        self._jobs: list[SlurmJob] = []
        self._asked = float("-inf")

    def look(self, state: ServerState) -> Look:
        """Check whether a job of the server runs; a job that is queued or completing is left alone."""
        try:
            if elsewhere(state, self._slurm):
                return Look(foreign=f"job {state.job_id} is on the cluster {state.cluster}; this is {self._slurm.cluster}")
            jobs = [job for job in self._all() if job.server == state.server]
        except WorkflowComposerError as error:
            return Look(foreign=f"cannot query SLURM: {error.message}")
        if any(job.state == "RUNNING" for job in jobs):
            return Look(alive=True)
        for job in jobs:
            words = f"job {job.id} {job.words()}"
            if job.pending and job.words().startswith(NEVER):
                return Look(alive=False, foreign=words)
            if not job.over or job.state == "COMPLETING":  # a completing job may be requeued
                return Look(waiting=words)
        hopeless = "a restart would not help" if state.status == "failed" and state.lasting else ""
        return Look(alive=False, foreign=hopeless, ended=self._ended(state))

    def _ended(self, state: ServerState) -> str:
        """How SLURM says that the job has ended; empty if the job said so itself, or SLURM has forgotten it."""
        if not state.job_id or state.status in ("failed", "stopped"):
            return ""
        try:
            job = self._slurm.job(state.job_id)
        except FleetError:
            return ""
        return f"job {job.id} has ended: {job.words()}" if job else ""

    def _all(self) -> list[SlurmJob]:
        with self._guard:
            if time.monotonic() - self._asked > FRESH:
                self._jobs = queue_of(self._fleet, self._slurm).mine
                self._asked = time.monotonic()
            return self._jobs

    def restart(self, state: ServerState, *, serves: bool = False) -> None:
        """Replace the server's running job by another one, unless one is already queued.

        A job that ``serves`` hands over first: it queues its successor and drains when that is ready. If the successor still
        waits at the next restart, perhaps for this job's GPU, it drains at once. Other jobs are cancelled.
        """
        now = self._fleet.states.get(state.server)
        if now is None or not now.wanted:
            raise FleetError("it was stopped on purpose in the meantime")
        jobs = queue_of(self._fleet, self._slurm).of(state.server)
        running = [job for job in jobs if job.state == "RUNNING"]
        self._asked = float("-inf")
        if serves and running:
            if len(jobs) > len(running):
                self._slurm.cancel(running)
            else:
                self._slurm.hand_over(running)
            return
        for job in running:
            self._slurm.cancel([job], now=True)  # its supervisor takes this for a stop on purpose
            self._await_end(job)
        submit(self._fleet, state.server, self._slurm)

    def _await_end(self, job: SlurmJob) -> None:
        ends = time.monotonic() + ENDING
        while (found := self._slurm.job(job.id)) and (not found.over or found.state == "COMPLETING"):
            if time.monotonic() > ends:
                raise FleetError(f"job {job.id} did not end within {ENDING:.0f} s after it was cancelled")
            time.sleep(0.5)


PREFLIGHT = 60.0
"""Seconds to wait for a restart to pass its preflight checks; later rounds wait for the rest of the startup."""
_TICK = 0.2


class Runner(Protocol):
    """A way to run servers: local processes, or SLURM jobs."""

    def look(self, state: ServerState) -> Look:
        """Check whether the server's runner is alive."""
        ...

    def restart(self, state: ServerState, *, serves: bool = False) -> None:
        """Stop what is left of the server and start it again; do not wait until it is ready.

        ``serves``: it still answers, so that its requests get the time to finish.

        Raises `WorkflowComposerError` with the reason if it cannot be started.
        """
        ...


class ProcessRunner:
    """Supervisors on this node."""

    def __init__(self, fleet: Fleet, node: str) -> None:
        self._fleet = fleet
        self._node = node
        self._started: dict[str, Starting] = {}

    def look(self, state: ServerState) -> Look:
        """Check whether the supervisor recorded in the state is alive."""
        alive = supervisor(state.pid, state.server, state.started) is not None
        if not alive and state.node and not same_host(state.node, self._node):
            foreign = f"it runs on node {state.node}; only a monitor on that node can restart it"
            return Look(foreign=foreign)
        return Look(alive=alive)  # on a host that was renamed, too

    def restart(self, state: ServerState, *, serves: bool = False) -> None:
        """Kill the supervisor and its vLLM, then start another one, unless the server was stopped in the meantime."""
        from workflow_composer.fleet.launch.local import Starting

        server = state.server
        if process := supervisor(state.pid, server, state.started):
            resigns = "--keep-wanted" not in command_line(process.pid)
            if serves:
                drain_supervisor(process, self._drain_seconds(state))
            stop_supervisor(process)
            if resigns:  # a supervisor started by hand takes the signal for a stop on purpose
                self._fleet.states.update(server, wanted=True)
        now = self._fleet.states.get(server)
        if now is None or not now.wanted:
            raise FleetError("it was stopped on purpose in the meantime")
        begun = time.time()
        # Kept, so that a later poll reaps the child; otherwise it would stay a zombie.
        starting = self._started[server] = Starting(self._fleet, server, options=state.options, port=state.port or None)
        while not self._under_way(starting, begun) and starting.seconds < PREFLIGHT:
            time.sleep(_TICK)

    def _drain_seconds(self, state: ServerState) -> float:
        spec = self._fleet.settings.roles.get(state.role)
        return spec.drain_seconds if spec else 0.0

    def _under_way(self, starting: Starting, begun: float) -> bool:
        """Whether vLLM has been started. Raises `FleetError` if it cannot be, such as for a port in use."""
        state = self._fleet.states.get(starting.server)
        return starting.poll() is not None or (state is not None and state.started >= begun)


def node_name() -> str:
    """The host name of this machine."""
    return os.uname().nodename


def runners(fleet: Fleet) -> dict[How, Runner]:
    """Return the runners by kind: local processes, and SLURM jobs."""
    return {"process": ProcessRunner(fleet, node_name()), "slurm": SlurmRunner(fleet, fleet.slurm)}
