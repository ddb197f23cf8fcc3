"""What runs inside a SLURM job: one server, from the node's first free port to its end, and what becomes of it then.

========  ==========================================  =====================================================================
ends by   because                                     then
========  ==========================================  =====================================================================
SIGUSR1   the time limit, or a preemption, is near    a successor is queued; drained when that answers (`handover`); exit 0
SIGTERM   ``fleet down``, scancel, preemption         drained quickly; exit 0
itself    vLLM failed, or could not be started        queued again after a pause, ``max_requeues`` times in a row; exit 1
node      it died                                     SLURM queues the job again; the registry's entry expires by itself
========  ==========================================  =====================================================================
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from workflow_composer.errors import FleetError, WorkflowComposerError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.handover import Handover
from workflow_composer.fleet.sbatch import job_name
from workflow_composer.fleet.slurm import Job, Slurm
from workflow_composer.fleet.submit import one_at_a_time, queued
from workflow_composer.fleet.supervisor import Ended, Supervisor

ALL = "0.0.0.0"  # noqa: S104  # clients are on other nodes
STEADY = 600.0
"""Seconds after which a server that has answered does not count its earlier failures any more."""
LONGEST_PAUSE = 1800.0
"""Seconds that a job waits at most after a failure, unless its first pause is longer."""
PORTS = 200
"""Ports that are tried, from the role's own."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a job's server listens, under which address others reach it, and until when it may run (seconds since 1970)."""

    listen: str
    address: str
    node: str
    port: int
    ends: float | None


class ServerJob:
    """One server's job. ``say`` takes one line for the job's log."""

    def __init__(
        self, fleet: Fleet, server: str, *, environ: Mapping[str, str], slurm: Slurm, say: Callable[[str], None]
    ) -> None:
        self.fleet = fleet
        self.server = server
        self.environ = environ
        self.slurm = slurm
        self.say = say
        self.job_id = environ.get("SLURM_JOB_ID", "")
        if not self.job_id:
            raise FleetError("this is no SLURM job", hint=f"`fleet submit {server}` makes one")

    def run(self) -> int:
        """Run the server to its end; returns the exit code."""
        if not self._take_over():
            self.say(f"{self.server} is not wanted any more")
            return 0
        began = time.monotonic()
        handover: Handover | None = None
        try:
            place = self._place()
            handover = Handover(self.fleet, self.server, job_id=self.job_id, ends=place.ends, slurm=self.slurm, say=self.say)
            ended = self._serve(place, handover)
        except WorkflowComposerError as error:
            ended = Ended("failed", str(error))
        # What follows must happen, although SLURM ends a job's processes as soon as it is queued again.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if ended.reason == "failed":
            return self._failed(ended.detail, lasted=time.monotonic() - began)
        if ended.reason == "expiring":
            self._expired(handover)
        return 0

    def _take_over(self) -> bool:
        """Write down that this job runs the server now; False where it has been taken down meanwhile."""
        job = self._known()
        with one_at_a_time(self.fleet, self.server):
            state = self.fleet.states.get(self.server)
            ours = job is None or job.server == self.server
            if state is not None and not state.wanted and ours:
                return False
            if state is None or state.job_id != self.job_id:
                self.fleet.states.put(queued(self.fleet, self.server, self.job_id))
            self.fleet.states.update(self.server, status="starting", detail="", started=time.time())
        if not ours:
            # The script was given to sbatch by hand; others look for the job by its name.
            self._attempt(lambda: self.slurm.rename(self.job_id, job_name(self.server)))
        return True

    def _place(self) -> Place:
        job = self._known()
        listen = self.fleet.settings.listen or ALL
        node = self.environ.get("SLURMD_NODENAME") or socket.gethostname()
        address = listen
        if listen in (ALL, "::"):
            address = self._attempt(lambda: self.slurm.address(node)) or socket.gethostname()
        port = free_port(self.fleet, self.server, listen)
        return Place(listen=listen, address=address, node=node, port=port, ends=job.ends if job else None)

    def _known(self) -> Job | None:
        return self._attempt(lambda: self.slurm.job(self.job_id))

    def _attempt(self, ask: Callable[[], T]) -> T | None:
        """What SLURM answers; None where it does not, since a server can run without its controller."""
        try:
            return ask()
        except FleetError as error:
            self.say(str(error))
            return None

    def _wanted(self) -> bool:
        state = self.fleet.states.get(self.server)
        return state is None or state.wanted

    def _expired(self, handover: Handover | None) -> None:
        if handover is not None and handover.taken():
            self.say(f"job {handover.successor} goes on")
        elif self._wanted():
            self.say("queued again")
            self._attempt(lambda: self.slurm.requeue(self.job_id))

    def _failed(self, why: str, *, lasted: float) -> int:
        """Queue the job again, unless it has failed too often; the reason is the last line of its log."""
        slurm = self.fleet.settings.slurm
        role, _ = self.fleet.find(self.server)
        state = self.fleet.states.get(self.server)
        failures = failures_after(state.failures if state else 0, lasted=lasted, start_seconds=role.start_seconds)
        if failures > slurm.max_requeues:
            detail = f"{why}; not queued again after {failures} failure{'s'[: failures > 1]} in a row"
        else:
            pause = pause_after(failures, slurm.requeue_pause)
            detail = f"{why}; queued again in {pause:.0f} s ({failures} of {slurm.max_requeues})"
        if state is not None and state.job_id == self.job_id:
            self.fleet.states.update(self.server, status="failed", detail=detail, failures=failures)
        self.say(f"{self.server} failed: {detail}")
        if failures <= slurm.max_requeues and self._wanted():
            self._attempt(lambda: self.slurm.requeue(self.job_id, pause))
        return 1


def failures_after(before: int, *, lasted: float, start_seconds: float) -> int:
    """How often a server has failed in a row, after one more failure.

    One that ran for `STEADY` seconds longer than it may take to start had been well, so the count begins anew.

    >>> failures_after(2, lasted=30, start_seconds=900), failures_after(2, lasted=86400, start_seconds=900)
    (3, 1)
    """
    return 1 if lasted > start_seconds + STEADY else before + 1


def pause_after(failures: int, first: float) -> float:
    """Seconds until the next attempt.

    >>> [pause_after(n, 60) for n in (1, 2, 3, 9)]
    [60, 120, 240, 1800]
    """
    return min(first * 2 ** (failures - 1), max(LONGEST_PAUSE, first))


def free_port(fleet: Fleet, server: str, listen: str) -> int:
    """The server's port, else the next one on this node that is free and that the fleet file gives to no other server.

    Raises `FleetError` where there is none.
    """
    _, own = fleet.find(server)
    others = {port for other in fleet.servers() for port in [fleet.find(other)[1]]}
    for port in range(own, min(own + PORTS, 65536)):
        if (port == own or port not in others) and _is_free(listen, port):
            return port
    raise FleetError(f"no port from {own} on is free on this node", hint=f"another port for {server} in the fleet file")


def _is_free(listen: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen, port))
        except OSError:
            return False
        return True
