"""The process inside a SLURM job: run one server, and hand over, requeue or stop when it ends.

========  ==========================================  =====================================================================
ends by   because                                     then, and the exit code
========  ==========================================  =====================================================================
SIGUSR1   the time limit, or a preemption, is near    queue a successor; drain when that is ready (`handover`); 0
SIGTERM   ``fleet down``, scancel, preemption         drain and stop; 0
itself    vLLM failed, or could not be started        requeue after a pause, ``max_requeues`` times in a row, or submit
                                                      another job where requeuing is forbidden; 1
itself    a fault that stays, as an unknown option    nothing; 1
node      the node failed                             SLURM requeues the job; the registry entry expires
========  ==========================================  =====================================================================
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import FrameType
from typing import TypeVar

from workflow_composer.errors import FleetError, WorkflowComposerError
from workflow_composer.fleet.file import Fleet, load_fleet
from workflow_composer.fleet.launch.preflight import try_to_listen
from workflow_composer.fleet.launch.supervisor import Ended, ListenPlace, ServerSupervisor, failure
from workflow_composer.fleet.ownership import refuse_foreign
from workflow_composer.fleet.processes import slurm_step
from workflow_composer.fleet.slurm.commands import SETTLE, Slurm, SlurmJob
from workflow_composer.fleet.slurm.queue import queue_of
from workflow_composer.fleet.slurm.sbatch import JobMark
from workflow_composer.fleet.slurm.submit import entry_of, jobs_after, one_at_a_time, queued, submit
from workflow_composer.fleet.state import ServerState

# ---------------------------------------------------------------------------------------------------------------- handover
#
# Handover across a job's time limit: queue a successor, and drain the old server when the successor is ready.
#
# With a free GPU in the cluster there is no gap. With a single GPU the successor waits for the old job to end, so the old
# server serves until its time is nearly over. If SLURM accepts no second job, this one drains at once and is requeued.


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


ALL = "0.0.0.0"  # noqa: S104  # clients are on other nodes
STEADY = 600.0
"""Seconds of uptime after which earlier failures no longer count."""
LONGEST_PAUSE = 1800.0
"""Longest pause after a failure in seconds, unless the first pause is longer."""
PORTS = 200
"""Number of ports to try, starting with the role's own."""
REFRESH = 300.0
"""Seconds between two queries of the job's end: an administrator may extend its time."""
SUCCESSION = 5.0
"""Seconds between two looks whether another job has taken over."""
TICK = 0.25

T = TypeVar("T")


class ServerJob:
    """One server's SLURM job. ``say`` writes one line to the job's log."""

    def __init__(
        self, fleet: Fleet, server: str, *, environ: Mapping[str, str], slurm: Slurm, say: Callable[[str], None]
    ) -> None:
        """Raises `FleetError` outside of a job, or for a server that is not in the fleet file."""
        self.fleet = fleet
        self.server = server
        self.role, _ = fleet.find(server)
        self.environ = environ
        self.slurm = slurm
        self.say = say
        self.handover: Handover | None = None
        self._expiring = False
        self._supervisor: ServerSupervisor | None = None
        self._stopped = 0
        self.job_id = environ.get("SLURM_JOB_ID", "")
        if not self.job_id:
            raise FleetError("not running in a SLURM job", hint=f"submit one with `fleet submit {server}`")
        if (step := slurm_step()).rpartition(".")[2].isdecimal():
            raise FleetError(
                f"{server}: srun runs this as step {step}, which neither SLURM's signals before the time limit nor"
                " `fleet down` reach, and of which several tasks would be several servers",
                hint=f"start the script by sbatch, without srun, or use `fleet submit {server}`",
            )

    def run(self) -> int:
        """Run the server until it ends; return the exit code."""
        began = time.monotonic()
        with self._signals():
            try:
                if not self._take_over():
                    return 0
                ended = self._supervise(self._place())
            except WorkflowComposerError as error:
                ended = failure(error)
            if ended.reason == "failed" and not self._stopped:
                return self._failed(ended, lasted=time.monotonic() - began)
            if self._expiring and not self._stopped:
                return self._expired()
            return 0

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def expiring(number: int, frame: FrameType | None) -> None:
            self._expiring = True

        def stop(number: int, frame: FrameType | None) -> None:
            self._stopped += 1
            if self._supervisor is not None:
                self._supervisor.ask("stopped")

        wanted = {signal.SIGUSR1: expiring, signal.SIGTERM: stop, signal.SIGINT: stop}
        before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _supervise(self, place: ListenPlace) -> Ended:
        """Run the supervisor in its own thread, so that its heartbeat continues while SLURM commands take their time."""
        state = self.fleet.states.get(self.server)
        supervisor = ServerSupervisor(
            self.fleet,
            self.server,
            self.role,
            place,
            options=state.options if state else (),
            wanted=self._wanted(),
            resigns=False,
            say=self.say,
        )
        ended: list[Ended] = []

        def run() -> None:
            try:
                ended.append(supervisor.run())
            except WorkflowComposerError as error:
                ended.append(failure(error))

        thread = threading.Thread(target=run, name=self.server)
        thread.start()
        self._supervisor = supervisor
        if self._stopped:
            supervisor.ask("stopped")
        self._watch(supervisor, thread)
        return ended[0] if ended else Ended("failed", "its supervisor crashed; see the traceback above")

    def _watch(self, supervisor: ServerSupervisor, thread: threading.Thread) -> None:
        """Hand over when the time limit is near, and keep the published end of the job up to date."""
        asked, drains = time.monotonic(), False
        looked = asked
        while thread.is_alive():
            thread.join(TICK)
            if self.handover is None and not drains and time.monotonic() - looked > SUCCESSION:
                looked = time.monotonic()
                if drains := self._is_succeeded():
                    supervisor.ask("stopped")
            if self._is_expiring(supervisor) and self.handover is None and not self._stopped:
                self._refresh(supervisor)
                self.handover = self._begin_handover(supervisor.place.expires)
            if self.handover is not None and not drains and self.handover.done():
                drains = True
                supervisor.ask("expiring")
            if time.monotonic() - asked > REFRESH:
                asked = time.monotonic()
                self._refresh(supervisor)

    def _is_succeeded(self) -> bool:
        """Whether another job of this server is ready: this one was requeued while its successor was in the queue."""
        state = self.fleet.states.get(self.server)
        if state is None or state.job_id in ("", self.job_id) or not self.fleet.owns(state):
            return False
        entry = entry_of(self.fleet, self.server, state.job_id)
        return entry is not None and entry.state == "ready"

    def _is_expiring(self, supervisor: ServerSupervisor) -> bool:
        """Whether the time limit is near, by signal or by clock: a signal before the handlers are installed is lost."""
        ends = supervisor.place.expires
        late = ends is not None and time.time() > ends - self.fleet.settings.slurm.drain_before
        self._expiring = self._expiring or late
        return self._expiring

    def _refresh(self, supervisor: ServerSupervisor) -> None:
        job = self._known()
        if job is not None and job.ends:
            supervisor.place = replace(supervisor.place, expires=job.ends)

    def _begin_handover(self, ends: float | None) -> Handover:
        """Queue a successor, unless this chain of jobs has come to its end too often before a server was ready."""
        handover = Handover(self.fleet, self.server, job_id=self.job_id, ends=ends, slurm=self.slurm, say=self.say)
        if self._was_ready() or self._count_unready() <= self.fleet.settings.slurm.max_requeues:
            handover.begin()
        return handover

    def _was_ready(self) -> bool:
        return self._supervisor is not None and self._supervisor.was_ready

    def _count_unready(self) -> int:
        """Count a job whose time is nearly over before it was ready as a failure; return the failures in a row."""
        state = self.fleet.states.get(self.server)
        failures = (state.failures if state else 0) + 1
        self.fleet.states.update(self.server, failures=failures)
        return failures

    def _take_over(self) -> bool:
        """Record that this job runs the server now; return False if it was stopped in the meantime."""
        job = self._known()
        mark = JobMark(self.fleet.id, self.server, str(self.fleet.path))
        with one_at_a_time(self.fleet, self.server):
            refuse_foreign(self.fleet, self.server)
            state = self.fleet.states.get(self.server)
            by_hand = job is not None and job.mark is None and (state is None or not job.is_called(state.job_id))
            if state is not None and not state.wanted and not by_hand:
                self.say(f"{self.server} was stopped in the meantime; nothing to do")
                return False
            if newer := self._newer(state, by_hand=by_hand):
                self.say(f"job {newer} runs {self.server} by now; nothing to do")
                return False
            if state is None or state.job_id != self.job_id:
                failures = state.failures if state and not by_hand else 0  # of the chain of jobs
                cluster = self._cluster()
                self.fleet.states.put(
                    replace(queued(self.fleet, self.server, self.job_id, cluster=cluster), failures=failures)
                )
            self.fleet.states.update(self.server, status="starting", detail="", started=time.time(), fleet=self.fleet.id)
            self._attempt(self._cancel_older)
        if job is not None and job.mark != mark:
            # Submitted by hand or by an earlier version; other commands find the job by its comment.
            self._attempt(lambda: self.slurm.mark(self.job_id, mark))
        return True

    def _newer(self, state: ServerState | None, *, by_hand: bool) -> str:
        """The job that runs this one's server by now: SLURM requeues a job whose node fails while it hands over.

        If this job was submitted ``by_hand``, any other job of the server counts.
        """
        if state is None or not state.job_id or state.job_id == self.job_id:
            return ""
        queue = self._attempt(lambda: queue_of(self.fleet, self.slurm))
        jobs = [job for job in queue.of(self.server) if not job.is_called(self.job_id)] if queue else []
        later = jobs if by_hand else [job for job in jobs_after(self.job_id, jobs) if job.is_called(state.job_id)]
        return later[0].id if later else ""

    def _cancel_older(self) -> None:
        """Remove older jobs of the server from the queue: SLURM has requeued them, and this one has taken over."""
        jobs = queue_of(self.fleet, self.slurm).of(self.server)
        later = jobs_after(self.job_id, jobs)
        older = [job for job in jobs if job not in later and not job.is_called(self.job_id)]
        self.slurm.cancel([job for job in older if job.pending])

    def _cluster(self) -> str:
        return self.environ.get("SLURM_CLUSTER_NAME", "") or self._attempt(lambda: self.slurm.cluster) or ""

    def _place(self) -> ListenPlace:
        job = self._known()
        listen = self.fleet.settings.listen or ALL
        host = listen
        if listen in (ALL, "::"):
            host = self._attempt(lambda: self.slurm.address(self._node)) or os.uname().nodename
        port = free_port(self.fleet, self.server, listen)
        return ListenPlace(
            port=port,
            listen=listen,
            host=host,
            job_id=self.job_id,
            expires=job.ends if job else None,
            cluster=self._cluster(),
        )

    def _known(self) -> SlurmJob | None:
        return self._attempt(lambda: self.slurm.job(self.job_id))

    def _attempt(self, ask: Callable[[], T]) -> T | None:
        """Return SLURM's answer; on an error log it and return None, since a server can run without the controller."""
        try:
            return ask()
        except FleetError as error:
            self.say(str(error))
            return None

    def _wanted(self) -> bool:
        state = self.fleet.states.get(self.server)
        return state is None or state.wanted

    def _expired(self) -> int:
        """The time is over: leave the server to the successor, or requeue this job. Return the exit code."""
        handover = self.handover
        state = self.fleet.states.get(self.server)
        if handover is not None and self._attempt(handover.taken):
            self.say(f"job {handover.successor} has taken over")
            return 0
        failures = state.failures if state else 0
        if not self._was_ready() and failures > self.fleet.settings.slurm.max_requeues:
            why = "its time limit was reached before it was ready"
            self._record(f"{why}; not requeued after {_times(failures)} in a row", failures)
            return 1
        if self._wanted():
            self.say("requeuing this job")
            if not (again := self._again(0.0)):
                self._record("its time limit was reached, and it could not be requeued", failures)
                return 1
            self.say(again)
        return 0

    def _again(self, delay: float, *, elsewhere: bool = False) -> str:
        """Requeue this job, or where the site forbids that, queue another in its place; say what was done, empty if nothing.

        ``elsewhere``: not on this node.
        """
        # SLURM terminates the processes of a requeued job, including the scontrol that requests it; scontrol inherits the
        # ignored signal and so finishes.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pause, node = max(SETTLE, delay), self._node if elsewhere else ""
        on = f", not on {node}" if node else ""
        try:
            self.slurm.requeue(self.job_id, delay, without=node)
        except FleetError as refused:
            self.say(f"this job cannot be requeued: {refused.message}")
        else:
            return f"requeued in {pause:.0f} s{on}"
        submitted = self._attempt(
            lambda: submit(self.fleet, self.server, self.slurm, besides=self.job_id, begin=pause, without=node)
        )
        if submitted is None:
            return ""
        self.fleet.states.update(self.server, job_id=submitted.job.number or submitted.job.id)
        return f"job {submitted.job.id} starts in {pause:.0f} s in its place{on}"

    @property
    def _node(self) -> str:
        return self.environ.get("SLURMD_NODENAME") or os.uname().nodename

    def _failed(self, ended: Ended, *, lasted: float) -> int:
        """Requeue the job unless it would fail again or has failed too often; the last line of its log gives the reason."""
        slurm = self.fleet.settings.slurm
        state = self.fleet.states.get(self.server)
        failures = failures_after(state.failures if state else 0, lasted=lasted, start_seconds=self.role.start_seconds)
        pause = max(SETTLE, pause_after(failures, slurm.requeue_pause))
        again = ""
        if ended.lasting:
            then = "not requeued, since it would fail again"
        elif failures > slurm.max_requeues:
            then = f"not requeued after {_times(failures)} in a row"
        elif not self._wanted():
            then = "not requeued: it was stopped"
        else:
            self._record(f"{ended.detail}; to be requeued", failures)  # SLURM may kill this process from here on
            again = self._again(pause, elsewhere=ended.elsewhere)
            then = f"{again} ({failures} of {slurm.max_requeues})" if again else "it could not be requeued"
        self._record(f"{ended.detail}; {then}", failures, lasting=ended.lasting)
        return 1

    def _record(self, detail: str, failures: int, *, lasting: bool = False) -> None:
        """Write the failure to the state, unless that belongs to another job, and to the log."""
        state = self.fleet.states.get(self.server)
        if state is not None and (state.job_id == self.job_id or state.status == "failed"):
            self.fleet.states.update(self.server, status="failed", detail=detail, failures=failures, lasting=lasting)
        self.say(f"{self.server} failed: {detail}")


def _times(failures: int) -> str:
    return f"{failures} failure{'s'[: failures > 1]}"


def failures_after(before: int, *, lasted: float, start_seconds: float) -> int:
    """Return the number of failures in a row, including the one just now.

    If the server ran `STEADY` seconds longer than its startup may take, it had been up, and the count restarts at 1.

    >>> failures_after(2, lasted=30, start_seconds=900), failures_after(2, lasted=86400, start_seconds=900)
    (3, 1)
    """
    return 1 if lasted > start_seconds + STEADY else before + 1


def pause_after(failures: int, first: float) -> float:
    """Return the seconds to wait before the next start.

    >>> [pause_after(n, 60) for n in (1, 2, 3, 9)]
    [60.0, 120.0, 240.0, 1800.0]
    """
    return min(first * 2.0 ** (failures - 1), max(LONGEST_PAUSE, first))


def free_port(fleet: Fleet, server: str, listen: str) -> int:
    """Return the server's port, or the next port that is free on this node and not assigned to another server.

    Raises `FleetError` if there is none.
    """
    _, own = fleet.find(server)
    others = {port for other in fleet.servers() for port in [fleet.find(other)[1]]}
    for port in range(own, min(own + PORTS, 65536)):
        if (port == own or port not in others) and _is_free(listen, port):
            return port
    raise FleetError(
        f"no free port on this node (searched from {own} upwards)", hint=f"set another port for {server} in the fleet file"
    )


def _is_free(listen: str, port: int) -> bool:
    try:
        try_to_listen(listen, port)
    except OSError:
        return False
    return True
