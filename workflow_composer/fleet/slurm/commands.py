"""SLURM's commands sbatch, squeue, scontrol and scancel: each has a time limit, and errors quote SLURM's message.

Output is requested in a fixed format and checked field by field, so login messages before it are ignored. Times are
requested as Unix times.
"""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workflow_composer.errors import FleetError
from workflow_composer.fleet.slurm.sbatch import job_name, server_of

LIMIT = 60.0
"""Time limit of a SLURM command in seconds; a busy controller may be slow."""

SETTLE = 10.0
"""Shortest delay of a requeued job in seconds. If its start time has passed when its processes have ended, SLURM defers it
by two minutes, in case its node is faulty.
"""

_FORMAT = "%i|%j|%T|%e|%S|%N|%r"
_ID = re.compile(r"(\d+)(?:;[\w.-]+)?")

ENDING = frozenset({"COMPLETING", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL"})
"""States of a job that has ended or is ending."""

REASONS = {
    "Resources": "waits for free resources",
    "Priority": "waits behind jobs with a higher priority",
    "BeginTime": "restarts after a pause",
    "Dependency": "waits for another job",
    "JobHeldUser": "is held; release it with `scontrol release`",
    "JobHeldAdmin": "is held by the administrator",
    "PartitionDown": "waits: its partition is down",
    "PartitionInactive": "waits: its partition is inactive",
    "PartitionTimeLimit": "never starts: slurm.time in the fleet file is longer than the partition allows",
    "PartitionNodeLimit": "never starts: the partition does not have that many nodes",
    "PartitionConfig": "never starts: the partition's limits forbid it",
    "ReqNodeNotAvail": "waits: the required nodes are down or reserved",
    "AssocGrpGRES": "waits: the account's GPU limit is reached",
    "QOSMaxGRESPerUser": "waits: your GPU limit is reached",
    "QOSMaxJobsPerUserLimit": "waits: your limit of running jobs is reached",
    "AssocMaxJobsLimit": "waits: the account's limit of running jobs is reached",
    "BadConstraints": "never starts: no node has the requested features",
    "launch failed requeued held": "is held after a failed launch; release it with `scontrol release`",
}
"""SLURM's reason code of a waiting job -> its meaning."""

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
    "contact": "the SLURM controller does not respond; check it with `scontrol ping`",
    "configuration source": "this machine has no slurm.conf; set $SLURM_CONF to the cluster's",
    "configuration file": "this machine's slurm.conf is missing or invalid; set $SLURM_CONF to the right one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """A job in SLURM's queue. ``starts`` and ``ends`` are Unix times, None if unknown."""

    id: str
    name: str
    state: str
    reason: str = ""
    node: str = ""
    starts: float | None = None
    ends: float | None = None

    @property
    def server(self) -> str:
        """The server that the job runs."""
        return server_of(self.name) or ""

    @property
    def pending(self) -> bool:
        """Whether the job waits in the queue."""
        return self.state == "PENDING"

    @property
    def over(self) -> bool:
        """Whether the job has ended or is ending."""
        return self.state in ENDING

    def words(self, now: float | None = None) -> str:
        """A readable status: why the job waits, or where it runs."""
        if not self.pending:
            return f"{self.state.lower()} on {self.node}" if self.node else self.state.lower()
        said = REASONS.get(self.reason) or next((t for r, t in REASONS.items() if self.reason.startswith(r)), "")
        said = said or f"waits; SLURM's reason: {self.reason!r}"
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


class Slurm:
    """SLURM's commands, run with ``environ``. Each method raises `FleetError`: no SLURM, a timeout, or SLURM's error."""

    def __init__(self, environ: Mapping[str, str] | None = None, *, limit: float = LIMIT) -> None:
        self.environ = {**(os.environ if environ is None else environ), "SLURM_TIME_FORMAT": "%s"}
        self.limit = limit

    def submit(self, command: Sequence[str]) -> str:
        """Run an `sbatch_command`; return the job's id."""
        for line in self._run(command).splitlines():
            if found := _ID.fullmatch(line.strip()):
                return found[1]
        raise FleetError("sbatch accepted the job but printed no job id", hint="`squeue --me` shows it")

    def jobs(self, servers: Iterable[str] | None = None) -> list[SlurmJob]:
        """The user's queued and running jobs for these servers, or for all, oldest first."""
        wanted = None if servers is None else {job_name(server) for server in servers}
        user = f"--user={getpass.getuser()}"
        return [job for job in self._squeue(user) if job.server and (wanted is None or job.name in wanted)]

    def job(self, job_id: str) -> SlurmJob | None:
        """Return a job that is queued, running or has ended in the last minutes; None if SLURM does not know the id."""
        try:
            found = self._squeue(f"--jobs={job_id}", "--states=all")
        except FleetError as error:
            if "invalid job id" in error.message.lower():
                return None
            raise
        return next((job for job in found if job.id == job_id), None)

    def _squeue(self, *options: str) -> list[SlurmJob]:
        lines = self._run(["squeue", "--noheader", f"--format={_FORMAT}", *options]).splitlines()
        return sorted((job for line in lines if (job := read_job(line))), key=lambda job: int(job.id))

    def requeue(self, job_id: str, delay: float = 0.0) -> None:
        """Requeue a running job, to start after ``delay`` seconds, at least `SETTLE`; SLURM then ends its processes."""
        self._run(["scontrol", "requeue", job_id])
        self._run(["scontrol", "update", f"JobId={job_id}", f"StartTime=now+{round(max(delay, SETTLE))}"])

    def rename(self, job_id: str, name: str) -> None:
        """Rename a job."""
        self._run(["scontrol", "update", f"JobId={job_id}", f"JobName={name}"])

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
    fields = line.strip().split("|", 6)
    if len(fields) != 7 or not fields[0].isdecimal() or not fields[0].isascii() or not fields[2]:
        return None
    number, name, state, ends, starts, node, reason = fields
    node = "" if node.startswith("(") else node
    times = {"starts": _time(starts), "ends": _time(ends)}
    return SlurmJob(id=number, name=name, state=state, reason="" if reason == "None" else reason, node=node, **times)


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
