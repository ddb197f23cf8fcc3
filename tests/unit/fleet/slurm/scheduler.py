"""A SLURM in memory, which reads the command lines of the real one's commands; tests move its jobs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from workflow_composer.backends.replicas.registry import Entry
from workflow_composer.errors import FleetError
from workflow_composer.fleet.slurm.commands import Slurm
from workflow_composer.fleet.slurm.job import ServerJob
from workflow_composer.fleet.slurm.sbatch import JobMark


@dataclass
class Job:
    """One job. ``process``: what runs in it; ``asked``: it was signalled to stop; ``broken``: it does not answer."""

    id: str
    name: str
    comment: str
    state: str = "PENDING"
    process: ServerJob | None = None
    entry: Entry | None = None
    asked: bool = False
    broken: bool = False

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in ("COMPLETED", "CANCELLED", "FAILED")

    @property
    def mark(self) -> JobMark | None:
        """Whose it is."""
        return JobMark.read(self.comment)

    @property
    def serves(self) -> bool:
        """Whether clients are sent to it and answered."""
        return self.state == "RUNNING" and self.entry is not None and self.entry.state == "ready" and not self.broken

    @property
    def line(self) -> str:
        """As squeue shows it."""
        return f"{self.id}|{self.id}|{self.state}|N/A|N/A|node|None|{self.comment}|{self.name}"


@dataclass
class Scheduler:
    """The jobs of one user. ``requeues``: whether the site lets users requeue. ``faults``: promises that were broken."""

    jobs: dict[str, Job] = field(default_factory=dict)
    requeues: bool = True
    faults: list[str] = field(default_factory=list)
    ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def add(self, name: str, comment: str) -> Job:
        """Queue a job."""
        job = Job(str(next(self.ids)), name, comment)
        self.jobs[job.id] = job
        return job

    def live(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in self.jobs.values() if not job.over]


class FleetSlurm(Slurm):
    """SLURM's commands as one fleet runs them."""

    def __init__(self, scheduler: Scheduler, fleet: str) -> None:
        super().__init__({})
        self.scheduler = scheduler
        self.fleet = fleet

    def _run(self, command: Sequence[str]) -> str:
        programs = {"sbatch": self.queue, "squeue": self.list, "scontrol": self.control, "scancel": self.end}
        return programs[command[0]](command[1:])

    def queue(self, words: Sequence[str]) -> str:
        """``sbatch``."""
        options = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
        return self.scheduler.add(options["job-name"], options["comment"]).id + "\n"

    def list(self, words: Sequence[str]) -> str:
        """``squeue``, of all jobs or of one."""
        wanted = [word.partition("=")[2] for word in words if word.startswith("--jobs=")]
        jobs = [job for job in self.scheduler.jobs.values() if (job.id in wanted if wanted else not job.over)]
        return "\n".join(job.line for job in jobs)

    def control(self, words: Sequence[str]) -> str:
        """``scontrol``: show config, requeue, update."""
        if words[:2] == ["show", "config"]:
            return "ClusterName = here\n"
        if words[0] == "requeue":
            if not self.scheduler.requeues:
                raise FleetError("scontrol failed: Requested operation is presently disabled for job 1")
            self.own(words[1], "requeued").state = "PENDING"
        options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        if "Comment" in options:
            self.scheduler.jobs[options["JobId"]].comment = options["Comment"]
        return ""

    def end(self, words: Sequence[str]) -> str:
        """``scancel``: a signal to the batch shell, or the end."""
        job = self.own(words[-1], "ended")
        if "--batch" in words:
            job.asked = True
            return ""
        if job.serves:
            self.scheduler.faults.append(f"job {job.id} was ended without a drain while it serves")
        job.state = "CANCELLED"
        return ""

    def own(self, job_id: str, done: str) -> Job:
        """The job, of which something is ``done``."""
        job = self.scheduler.jobs[job_id]
        if job.mark is None or job.mark.fleet != self.fleet:
            self.scheduler.faults.append(f"{self.fleet} has {done} job {job_id}, which belongs to {job.mark}")
        return job
