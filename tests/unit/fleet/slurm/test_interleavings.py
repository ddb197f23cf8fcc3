"""Whatever commands, jobs, crashes and edits come in which order: the promises of a fleet on SLURM hold.

Never two jobs that serve as one server, except while one hands over to the other; never another fleet's job ended; never a
server ended without a drain while it serves.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.fleet.slurm.scheduler import FleetSlurm, Job, Scheduler
from workflow_composer.backends.replicas.registry import Entry
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.fleet.file import Fleet, load_fleet
from workflow_composer.fleet.launch.supervisor import Ended
from workflow_composer.fleet.rebuild import rebuild
from workflow_composer.fleet.runners import SlurmRunner
from workflow_composer.fleet.slurm.job import ServerJob
from workflow_composer.fleet.slurm.submit import Cancelling, submit

ROLES = "roles:\n  coder: {model: m, port: 8002, replicas: 2, start_seconds: 20}\n"
SERVERS = st.sampled_from(("coder", "coder", "coder", "coder-2"))
FLEETS = st.sampled_from(("one", "two", "beside"))
NUMBERS = st.integers(0, 5)


class Interleavings(RuleBasedStateMachine):
    """``one`` and ``two`` have folders of their own and one registry; ``beside`` shares the state folder of ``one``."""

    @initialize(requeues=st.booleans())
    def begin(self, requeues: bool) -> None:
        """Three servers are queued."""
        self.make(requeues=requeues)
        for name, server in (("one", "coder"), ("one", "coder-2"), ("two", "coder")):
            self.submit(name, server)

    def make(self, *, requeues: bool) -> None:
        self.place = Path(tempfile.mkdtemp())
        self.scheduler = Scheduler(requeues=requeues)
        for name, state in (("one", "one"), ("two", "two"), ("beside", "one")):
            (self.place / name).mkdir()
            self.write(name, state)
        self.slurms = {name: FleetSlurm(self.scheduler, self.fleet(name).id) for name in ("one", "two", "beside")}

    def write(self, name: str, state: str, more: str = "") -> None:
        folders = f"registry: {self.place}/registry\nstate: {self.place}/{state}/state\nlogs: {self.place}/logs\n"
        keys = f"{folders}python: /no/python\n"
        (self.place / name / "fleet.yaml").write_text(f"{keys}{more}{ROLES}")

    def fleet(self, name: str) -> Fleet:
        return load_fleet(self.place / name / "fleet.yaml", {"PATH": "/nonexistent"})

    def teardown(self) -> None:
        if hasattr(self, "place"):
            shutil.rmtree(self.place, ignore_errors=True)

    def name_of(self, job: Job) -> str:
        assert job.mark is not None
        return Path(job.mark.file).parent.name

    def pick(self, number: int, **fields: object) -> Job | None:
        found = [job for job in self.scheduler.live() if all(getattr(job, key) == value for key, value in fields.items())]
        return found[number % len(found)] if found else None

    # ---------------------------------------------------------------------------------------------------- what people do

    @rule(name=FLEETS, server=SERVERS)
    def submit(self, name: str, server: str) -> None:
        with contextlib.suppress(WorkflowComposerError):
            submit(self.fleet(name), server, self.slurms[name])

    @rule(name=FLEETS, server=SERVERS)
    def down(self, name: str, server: str) -> None:
        with contextlib.suppress(WorkflowComposerError):
            Cancelling(self.fleet(name), server, self.slurms[name])

    @rule(number=NUMBERS)
    def down_of_a_job(self, number: int) -> None:
        """Its own fleet's command, which mostly is for a server that there is."""
        if job := self.pick(number):
            assert job.mark is not None
            self.down(self.name_of(job), job.mark.server)

    @rule(number=NUMBERS)
    def monitor_of_a_job(self, number: int) -> None:
        """A round for a server that there is."""
        if job := self.pick(number):
            assert job.mark is not None
            self.monitor(self.name_of(job), job.mark.server)

    @rule(name=FLEETS, server=SERVERS)
    def monitor(self, name: str, server: str) -> None:
        """A round for one server: it is restarted if its job is gone or does not answer."""
        fleet = self.fleet(name)
        state = fleet.states.get(server)
        if state is None or not fleet.owns(state) or not state.wanted:
            return
        runner = SlurmRunner(fleet, self.slurms[name])
        look = runner.look(state)
        jobs = [job for job in self.scheduler.live() if job.id == state.job_id]
        if look.waiting or look.foreign or (look.alive and not any(job.broken for job in jobs)):
            return
        with contextlib.suppress(WorkflowComposerError):
            runner.restart(state)

    @rule(name=FLEETS, limit=st.sampled_from(("24:00:00", "12:00:00", "1")))
    def edit(self, name: str, limit: str) -> None:
        self.write(name, {"beside": "one"}.get(name, name), f"slurm: {{time: '{limit}', max_requeues: 2}}\n")

    @rule(name=st.sampled_from(("one", "two")))
    def lose_state(self, name: str) -> None:
        """The folder is deleted while all jobs of its fleet are registered, and the next command rebuilds it."""
        entries = self.fleet(name).registry.entries()
        sharing = ("one", "beside") if name == "one" else ("two",)
        live = {self.name_of(job) for job in self.scheduler.live()} & set(sharing)
        registered = {other for other in sharing if any(e.fleet == self.slurms[other].fleet for e in entries)}
        if len(live) == 1 and live == registered:
            (other,) = live
            waiting = [job for job in self.scheduler.live() if self.name_of(job) == other and job.entry is None]
            if not waiting:
                shutil.rmtree(self.place / name / "state")
                rebuild(self.fleet(other))
                self.slurms = {n: FleetSlurm(self.scheduler, self.fleet(n).id) for n in self.slurms}

    # ------------------------------------------------------------------------------------------------------ what SLURM does

    @rule(number=NUMBERS)
    def start(self, number: int) -> None:
        job = self.pick(number, state="PENDING")
        if job is None:
            return
        assert job.mark is not None
        name, environ = self.name_of(job), {"SLURM_JOB_ID": job.id}
        job.state, job.asked, job.broken = "RUNNING", False, False
        job.process = ServerJob(
            self.fleet(name), job.mark.server, environ=environ, slurm=self.slurms[name], say=lambda line: None
        )
        try:
            takes = job.process._take_over()
        except WorkflowComposerError:
            job.state = "FAILED"
            return
        if not takes:
            self.finish(job)
            return
        job.process._supervisor = SimpleNamespace(was_ready=False)
        self.publish(job, "starting")

    @rule(number=NUMBERS)
    def become_ready(self, number: int) -> None:
        job = self.pick(number, state="RUNNING")
        if job is not None and job.entry is not None and job.entry.state == "starting" and not job.asked:
            assert job.process is not None
            job.process._supervisor.was_ready = True
            self.publish(job, "ready")

    @rule(number=NUMBERS)
    def serve(self, number: int) -> None:
        """A job starts and soon is ready, as nearly all do: most of the promises are about servers that serve."""
        waiting = self.pick(number, state="PENDING")
        if waiting is None:
            self.become_ready(number)
            return
        self.start([job for job in self.scheduler.live() if job.state == "PENDING"].index(waiting))
        running = [job for job in self.scheduler.live() if job.state == "RUNNING"]
        if waiting in running:
            self.become_ready(running.index(waiting))

    @rule(number=NUMBERS)
    def serve_soon(self, number: int) -> None:
        """As before: twice as likely as the faults."""
        self.serve(number)

    @rule(number=NUMBERS)
    def near_the_end(self, number: int) -> None:
        """SIGUSR1."""
        job = self.pick(number, state="RUNNING", asked=False)
        if job is not None and job.process is not None and job.process.handover is None:
            job.process.handover = job.process._begin_handover(time.time() + 900)

    @rule(number=NUMBERS)
    def time_is_over(self, number: int) -> None:
        job = self.pick(number, state="RUNNING", asked=False)
        if job is not None and job.process is not None and job.process.handover is not None:
            with self.signals():
                self.withdraw(job)
                failed = job.process._expired()
            self.left(job, "FAILED" if failed else "COMPLETED")

    @rule(number=NUMBERS)
    def fail(self, number: int) -> None:
        job = self.pick(number, state="RUNNING", asked=False)
        if job is not None and job.process is not None:
            with self.signals():
                self.withdraw(job)
                job.process._failed(Ended("failed", "it failed"), lasted=1.0)
            self.left(job, "FAILED")

    @rule(number=NUMBERS)
    def hang(self, number: int) -> None:
        job = self.pick(number, state="RUNNING", asked=False)
        if job is not None:
            job.broken = True

    @rule(number=NUMBERS)
    def crash(self, number: int) -> None:
        """The node is gone, and its entry expires; SLURM requeues the job."""
        job = self.pick(number, state="RUNNING")
        if job is not None:
            self.withdraw(job)
            job.state, job.process, job.asked = "PENDING", None, False

    @rule(number=NUMBERS)
    def drained(self, number: int) -> None:
        """A job that was asked to stop has done so."""
        job = self.pick(number, state="RUNNING", asked=True)
        if job is not None:
            self.finish(job)

    # -------------------------------------------------------------------------------------------------------------- promises

    @invariant()
    def promises(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.jobs_look()
        assert not self.scheduler.faults, self.scheduler.faults
        by_server: dict[tuple[str, str], list[Job]] = {}
        for job in self.scheduler.live():
            assert job.mark is not None
            by_server.setdefault((job.mark.fleet, job.mark.server), []).append(job)
        for (fleet, server), jobs in by_server.items():
            staying = [job for job in jobs if job.serves and not job.asked and not self.hands_over(job)]
            assert len(staying) <= 1, f"{fleet} serves {server} twice: {[job.id for job in staying]}"
            wanted = [job for job in jobs if not job.asked]
            assert len(wanted) <= 2, f"{fleet} has more jobs for {server} than a job and its successor: {wanted}"

    def jobs_look(self) -> None:
        """What each job does by itself within seconds: it drains when its successor is ready."""
        for job in self.scheduler.live():
            process = job.process
            if process is None or job.state != "RUNNING" or job.asked:
                continue
            if process.handover is not None and process.handover.successor and process.handover.done():
                with self.signals():
                    self.withdraw(job)
                    process._expired()
                self.left(job, "COMPLETED")
            elif process.handover is None and process._is_succeeded():
                self.finish(job)

    def hands_over(self, job: Job) -> bool:
        return job.process is not None and job.process.handover is not None

    # ---------------------------------------------------------------------------------------------------------------- tools

    @contextlib.contextmanager
    def signals(self):
        """A job ignores SIGTERM before it requeues itself; this process must not go on doing so."""
        before = signal.getsignal(signal.SIGTERM)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def left(self, job: Job, state: str) -> None:
        """The job's process has exited; SLURM may have requeued the job."""
        job.process = None
        if job.state == "RUNNING":
            job.state = state

    def finish(self, job: Job) -> None:
        self.withdraw(job)
        if job.process is not None and job.asked:
            fleet, server = job.process.fleet, job.process.server
            state = fleet.states.get(server)
            if state is not None and state.job_id == job.id:
                fleet.states.update(server, status="stopped")
        job.process, job.state = None, "COMPLETED"

    def publish(self, job: Job, state: str) -> None:
        assert job.process is not None
        assert job.mark is not None
        fleet = job.process.fleet
        entry = Entry(
            server=job.mark.server,
            role="coder",
            host="127.0.0.1",
            port=9000 + int(job.id),
            model="m",
            state=state,  # type: ignore[arg-type]  # one of the two
            job_id=job.id,
            started=time.time(),
            updated=0.0,
            fleet=fleet.id,
            cluster="here",
            fleet_file=str(fleet.path),
        )
        job.entry = fleet.registry.publish(entry)
        fleet.states.update(job.mark.server, status=state)

    def withdraw(self, job: Job) -> None:
        if job.entry is not None:
            self.fleet("one").registry.withdraw(job.entry)
            job.entry = None


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # each step writes files: shrinking would take minutes
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture
def machine():
    """A machine that a test moves by hand."""
    made = Interleavings()
    made.make(requeues=True)
    yield made
    made.teardown()


def handing_over(machine: Interleavings) -> tuple[Job, Job]:
    """A job whose node crashes when its successor is in the queue."""
    machine.submit("one", "coder")
    machine.start(0)
    machine.become_ready(0)
    machine.near_the_end(0)
    old, new = machine.scheduler.live()
    return old, new


def test_a_requeued_job_that_serves_again_gives_way_to_its_successor(machine):
    """It came back before the successor had started."""
    old, new = handing_over(machine)
    machine.crash(0)
    machine.start(0)
    machine.become_ready(0)
    assert (old.serves, new.state) == (True, "PENDING")
    machine.start(0)
    machine.become_ready(1)
    machine.promises()
    assert (old.state, new.serves) == ("COMPLETED", True)


def test_a_requeued_job_finds_that_its_successor_has_taken_over(machine):
    """It ends at once instead of serving a second time."""
    old, new = handing_over(machine)
    machine.start(0)
    machine.crash(0)
    machine.start(0)
    assert (old.state, new.state) == ("COMPLETED", "RUNNING")
    machine.become_ready(0)
    machine.promises()
    assert new.serves


def test_a_job_that_starts_removes_the_requeued_one_before_it_from_the_queue(machine):
    old, new = handing_over(machine)
    machine.crash(0)
    machine.start(1)
    assert (old.state, new.state) == ("CANCELLED", "RUNNING")
