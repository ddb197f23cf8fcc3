"""SLURM's commands sbatch, squeue, scontrol and scancel: each has a time limit, and errors quote SLURM's message.

Output is requested in a fixed format and checked field by field, so login messages before it are ignored. Times are
requested as Unix times. Variables by which a user sets options of these commands, or which an enclosing job has set, are
removed: they would hide jobs.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workflow_composer.errors import FleetError
from workflow_composer.fleet.slurm.reasons import ENDED, ENDING, WAITING, ended_words, waiting_words
from workflow_composer.fleet.slurm.sbatch import JobMark, job_name, server_of

LIMIT = 60.0
"""Time limit of a SLURM command in seconds; a busy controller may be slow."""

SETTLE = 10.0
"""Shortest delay of a requeued job in seconds. If its start time has passed when its processes have ended, SLURM defers it
by two minutes, in case its node is faulty.
"""

_FORMAT = "%i|%A|%T|%e|%S|%N|%r|%k|%j"
_ID = re.compile(r"([0-9]+)(?:;[\w.-]+)?")
_JOB = re.compile(r"[0-9]+(?:_(?:[0-9]+|\[[0-9,%:-]+\]?(?:\.\.\.\]?)?))?")
"""A job, the task of an array, or the tasks that are still waiting."""

# The first match counts: SLURM writes "account/partition" for an invalid account.
_REMEDIES = {
    "account": "check slurm.account and slurm.partition in the fleet file; `sacctmgr show assoc user=$USER` lists yours",
    "partition": "check slurm.partition in the fleet file; `sinfo -s` lists partitions",
    "qos": "check slurm.qos in the fleet file; `sacctmgr show qos` lists valid ones",
    "node configuration": "no node matches; check slurm.gpu_type, constraint, cpus_per_task and memory in the fleet file;"
    " `sinfo -o '%P %G %f %c %m'` lists the nodes' resources",
    "feature": "check slurm.constraint in the fleet file; `sinfo -o '%P %f'` lists features",
    "time limit": "check slurm.time in the fleet file; `sinfo -o '%P %l'` lists limits",
    "gres": "check slurm.gpu_type in the fleet file; `sinfo -o '%P %G'` lists GPUs",
    "memory": "check slurm.memory in the fleet file; `sinfo -o '%P %m'` lists nodes' memory",
    "authentication": "munge, by which SLURM identifies users, does not answer on this machine, or its clock is wrong;"
    " administrators start it: `systemctl status munge`, and `munge -n | unmunge` tests it",
    "contact": "the SLURM controller does not respond; check it with `scontrol ping`",
    "configuration source": "this machine has no slurm.conf; set $SLURM_CONF to the cluster's",
    "configuration file": "this machine's slurm.conf is missing or invalid; set $SLURM_CONF to the right one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """A job in SLURM's queue. ``starts`` and ``ends`` are Unix times, None if unknown.

    ``id`` is what SLURM's commands take: ``17``, or ``17_3`` for the task of an array, whose ``number`` is that of
    ``$SLURM_JOB_ID``. ``mark`` says which fleet submitted it for which server; None if its comment is not a fleet's.
    """

    id: str
    name: str
    state: str
    reason: str = ""
    node: str = ""
    starts: float | None = None
    ends: float | None = None
    number: str = ""
    mark: JobMark | None = None

    @property
    def server(self) -> str:
        """The server that the job runs."""
        return self.mark.server if self.mark else server_of(self.name) or ""

    @property
    def pending(self) -> bool:
        """Whether the job waits in the queue."""
        return self.state in WAITING

    @property
    def over(self) -> bool:
        """Whether the job has ended or is ending."""
        return self.state in ENDING

    @property
    def order(self) -> tuple[int, ...]:
        """Sorts jobs by their time of submission."""
        return (int(self.number or re.split(r"[^0-9]", self.id)[0]), *map(int, re.findall(r"_([0-9]+)", self.id)))

    def is_called(self, job_id: str) -> bool:
        """Whether this is the job of that id, in either form."""
        return job_id in (self.id, self.number) and bool(job_id)

    def words(self, now: float | None = None) -> str:
        """A readable status: why the job waits, where it runs, or how it ended."""
        if self.state in ENDED:
            return ended_words(self.state, self.reason)
        if not self.pending:
            return f"{self.state.lower()} on {self.node}" if self.node else self.state.lower()
        held = "" if self.state == "PENDING" else self.state
        said = waiting_words(self.reason or held)
        if self.starts and (seconds := self.starts - (time.time() if now is None else now)) > 0:
            said += f"; expected to start in {_span(seconds)}"
        return said


def _span(seconds: float) -> str:
    """A duration in words.

    >>> _span(40), _span(600), _span(7300)
    ('1 min', '10 min', '2 h')
    """
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 100 else f"{round(minutes / 60)} h"


_FOREIGN = re.compile(r"(?:SLURM|SLURMD|SLURMCTLD|SQUEUE|SBATCH|SALLOC|SRUN|SCANCEL|SCONTROL|SINFO|SACCT|SPRIO)_\w+")
_NEEDED = re.compile(r"SLURM_(?:CONF|CONF_SERVER|JWT|SACK_\w+)")


def for_slurm(environ: Mapping[str, str], keep: Iterable[str] = ()) -> dict[str, str]:
    """Return the environment for SLURM's commands: without their options and without the variables of an enclosing job.

    ``SQUEUE_STATES`` hides jobs, ``SBATCH_WAIT`` makes sbatch wait for their end, and ``SLURM_MEM_PER_CPU`` of an enclosing
    job contradicts the options of the fleet file. ``keep`` names those to keep.
    """
    kept = {n: value for n, value in environ.items() if n in keep or _NEEDED.fullmatch(n) or not _FOREIGN.fullmatch(n)}
    return {**kept, "SLURM_TIME_FORMAT": "%s"}


class Slurm:
    """SLURM's commands, run with ``environ`` as `for_slurm` leaves it.

    Each method raises `FleetError`: no SLURM, a timeout, or SLURM's error.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, *, limit: float = LIMIT, keep: Iterable[str] = ()) -> None:
        self.environ = for_slurm(os.environ if environ is None else environ, tuple(keep))
        self.limit = limit
        self._cluster = ""

    @property
    def cluster(self) -> str:
        """The cluster's name; job ids mean something on their own cluster only."""
        if not self._cluster:
            found = re.search(r"^ClusterName\s*=\s*(\S+)", self._run(["scontrol", "show", "config"]), re.MULTILINE)
            self._cluster = found[1] if found else ""
        return self._cluster

    def submit(self, command: Sequence[str]) -> str:
        """Run an `sbatch_command`; return the job's id, the last line that is one: a site may print numbers before it."""
        for line in reversed(self._run(command).splitlines()):
            if found := _ID.fullmatch(line.strip()):
                return found[1]
        raise FleetError("sbatch accepted the job but printed no job id", hint="`squeue --me` shows it")

    def jobs(self, servers: Iterable[str] | None = None) -> list[SlurmJob]:
        """This user's queued and running jobs of any fleet for servers of these names, or for all, oldest first."""
        wanted = None if servers is None else set(servers)
        found = self._squeue("--me", "--array")
        return [job for job in found if job.server and (wanted is None or job.server in wanted)]

    def job(self, job_id: str) -> SlurmJob | None:
        """Return a job that is queued, running or has ended in the last minutes; None if SLURM does not know the id."""
        try:
            found = self._squeue(f"--jobs={job_id}", "--array", "--states=all")
        except FleetError as error:
            if "invalid job id" in error.message.lower():
                return None
            raise
        return next((job for job in found if job.is_called(job_id)), None)

    def _squeue(self, *options: str) -> list[SlurmJob]:
        lines = self._run(["squeue", "--noheader", f"--format={_FORMAT}", *options]).splitlines()
        return sorted((job for line in lines if (job := read_job(line))), key=lambda job: job.order)

    def requeue(self, job_id: str, delay: float = 0.0, *, without: str = "") -> None:
        """Requeue a running job, to start after ``delay`` seconds, at least `SETTLE`; SLURM then ends its processes.

        ``without``: a node on which it must not start again.
        """
        self._run(["scontrol", "requeue", job_id])
        with contextlib.suppress(FleetError):  # it is in the queue already, only without its pause
            self._run(["scontrol", "update", f"JobId={job_id}", f"StartTime=now+{round(max(delay, SETTLE))}"])
        if without:
            with contextlib.suppress(FleetError):
                self._exclude(job_id, without)

    def _exclude(self, job_id: str, node: str) -> None:
        shown = self._run(["scontrol", "--oneliner", "show", "job", job_id])
        found = re.search(r"\bExcNodeList=(\S+)", shown)
        before = found[1] if found and found[1] != "(null)" else ""
        self._run(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(filter(None, (before, node)))}"])

    def mark(self, job_id: str, mark: JobMark) -> None:
        """Name a job after its server, and write into its comment which fleet it belongs to."""
        self._run(["scontrol", "update", f"JobId={job_id}", f"JobName={job_name(mark.server)}", f"Comment={mark.text}"])

    def cancel(self, jobs: Iterable[SlurmJob], *, now: bool = False) -> None:
        """Cancel jobs: remove waiting ones from the queue; ask running ones to finish their requests and exit.

        ``now``: cancel running ones by plain scancel, which kills them after `KillWait` seconds.
        """
        for job in jobs:
            if job.over:
                continue
            # SIGTERM to the batch shell only: plain scancel also signals vLLM, which then drops its requests.
            gently = [] if now or job.pending else ["--batch", "--signal=TERM"]
            self._run(["scancel", *gently, job.id])

    def hand_over(self, jobs: Iterable[SlurmJob]) -> None:
        """Ask running jobs to queue a successor each, as before their time limit, and to drain when that is ready."""
        for job in jobs:
            self._run(["scancel", "--batch", "--signal=USR1", job.id])

    def address(self, node: str) -> str:
        """The network address that SLURM uses for a node."""
        found = re.search(r"\bNodeAddr=(\S+)", self._run(["scontrol", "--oneliner", "show", "node", node]))
        return found[1] if found else node

    def ping(self) -> None:
        """Ask the controller, or its backup, for a sign of life."""
        try:
            said = self._run(["scontrol", "ping"])
        except FleetError as error:
            if "not found" not in error.message:
                raise error if error.hint else FleetError(error.message, hint=_REMEDIES["contact"]) from None
            self._run(["sinfo", "--noheader", "--format=%P"])
            return
        if not re.search(r"\bUP\b", said):  # with exit code 0, too, in versions of SLURM
            down = " ".join(said.split())[:200] or "scontrol ping prints nothing"
            raise FleetError(f"the SLURM controller does not respond: {down}", hint=_REMEDIES["contact"])

    def _run(self, command: Sequence[str]) -> str:
        try:
            ended = subprocess.run(  # noqa: S603  # a list of arguments, no shell
                command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                env=self.environ,
                timeout=self.limit,
                check=False,
            )
        except FileNotFoundError:
            raise FleetError(
                f"SLURM is not available here: {command[0]} not found",
                hint="run this on a login node of the cluster, or start servers on this machine with `fleet up`",
            ) from None
        except subprocess.TimeoutExpired as late:
            said = _fault(late.stderr.decode(errors="replace") if isinstance(late.stderr, bytes) else "")
            message = f"{command[0]} did not finish within {self.limit:.0f} s" + (f": {said}" if said else "")
            raise FleetError(message, hint=_remedy(said) or _REMEDIES["contact"]) from None
        if ended.returncode:
            said = _fault(ended.stderr) or f"exit code {ended.returncode}"
            raise FleetError(f"{command[0]} failed: {said}", hint=_remedy(said))
        return ended.stdout


def read_job(line: str) -> SlurmJob | None:
    """Parse a line of squeue's output in `_FORMAT`; None if it is something else."""
    fields = line.strip().split("|", 8)
    if len(fields) != 9 or not _JOB.fullmatch(fields[0]) or not re.fullmatch(r"[0-9]+", fields[1]) or not fields[2]:
        return None
    job_id, number, state, ends, starts, node, reason, comment, name = fields
    return SlurmJob(
        id=job_id,
        number=number,
        name=name,
        state=state,
        reason="" if reason == "None" else reason,
        node="" if node.startswith("(") else node,
        starts=_time(starts),
        ends=_time(ends),
        mark=JobMark.read(comment),
    )


def _time(text: str) -> float | None:
    """Parse a Unix time; None for SLURM's various forms of "unknown"."""
    return float(text) if re.fullmatch(r"[0-9]{1,12}", text) else None


def _fault(text: str) -> str:
    """The error line of SLURM's output: the last one, since SLURM prints less specific ones before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error:|fatal:", line)] or lines
    return re.sub(r"^\w+: (?:error|fatal): ", "", errors[-1])[:300] if errors else ""


def _remedy(said: str) -> str:
    return next((remedy for word, remedy in _REMEDIES.items() if word in said.lower()), "")
