"""SLURM's commands: sbatch, squeue, scontrol, scancel; each with a time limit, and with SLURM's own words where it refuses.

Their output is read by position and checked field by field: a login message before it or a column that is new changes
nothing. Times are asked for in seconds since 1970.
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
from workflow_composer.fleet.sbatch import job_name, server_of

LIMIT = 60.0
"""Seconds that a command of SLURM's may take; a busy controller needs some."""

SETTLE = 10.0
"""Seconds that a job waits at least when it is queued again. Where its start lies in the past once its processes have ended,
SLURM defers it by two minutes, in case that its node is at fault.
"""

_FORMAT = "%i|%j|%T|%e|%S|%N|%r"
_ID = re.compile(r"(\d+)(?:;[\w.-]+)?")

ENDING = frozenset({"COMPLETING", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL"})
"""States of a job that will do no more."""

REASONS = {
    "Resources": "waits until a GPU is free",
    "Priority": "waits behind jobs with a higher priority",
    "BeginTime": "starts again after a pause",
    "Dependency": "waits for another job",
    "JobHeldUser": "is held; `scontrol release` lets it go",
    "JobHeldAdmin": "is held by the administrator",
    "PartitionDown": "waits: its partition is down",
    "PartitionInactive": "waits: its partition is inactive",
    "PartitionTimeLimit": "never starts: slurm.time in the fleet file is longer than the partition allows",
    "PartitionNodeLimit": "never starts: the partition has no node like that",
    "PartitionConfig": "never starts: the partition's limits forbid it",
    "ReqNodeNotAvail": "waits: the nodes it may run on are down or reserved",
    "AssocGrpGRES": "waits: the account has all GPUs that it may have",
    "QOSMaxGRESPerUser": "waits: you have all GPUs that you may have",
    "QOSMaxJobsPerUserLimit": "waits: you have all jobs running that you may have",
    "AssocMaxJobsLimit": "waits: the account has all jobs running that it may have",
    "BadConstraints": "never starts: no node has what it asks for",
    "launch failed requeued held": "is held after a failed launch; `scontrol release` lets it go",
}
"""SLURM's word for why a job waits -> what it means."""

# The first that fits counts: SLURM says "account/partition" of an account.
_REMEDIES = {
    "account": "slurm.account and slurm.partition in the fleet file; `sacctmgr show assoc user=$USER` lists yours",
    "partition": "slurm.partition in the fleet file; `sinfo -s` lists partitions",
    "qos": "slurm.qos in the fleet file; `sacctmgr show qos` lists them",
    "node configuration": "no node has that; look at slurm.gpu_type, constraint, cpus_per_task and memory in the fleet file;"
    " `sinfo -o '%P %G %f %c %m'` lists what there is",
    "feature": "slurm.constraint in the fleet file; `sinfo -o '%P %f'` lists features",
    "time limit": "slurm.time in the fleet file; `sinfo -o '%P %l'` lists limits",
    "gres": "slurm.gpu_type in the fleet file; `sinfo -o '%P %G'` lists GPUs",
    "memory": "slurm.memory in the fleet file; `sinfo -o '%P %m'` lists nodes' memory",
    "contact": "the controller does not answer; `scontrol ping` tells when it does",
    "configuration file": "this machine's slurm.conf is missing or wrong; $SLURM_CONF may name another",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job in SLURM's queue. Times are seconds since 1970; ``ends`` and ``starts`` are None where nobody knows."""

    id: str
    name: str
    state: str
    reason: str = ""
    node: str = ""
    starts: float | None = None
    ends: float | None = None

    @property
    def server(self) -> str:
        """The server that it runs."""
        return server_of(self.name) or ""

    @property
    def pending(self) -> bool:
        """Whether it waits in the queue."""
        return self.state == "PENDING"

    @property
    def over(self) -> bool:
        """Whether it will do no more."""
        return self.state in ENDING

    def words(self, now: float | None = None) -> str:
        """Where it stands, for people: why it waits, or where it runs."""
        if not self.pending:
            return f"{self.state.lower()} on {self.node}" if self.node else self.state.lower()
        said = REASONS.get(self.reason) or next((t for r, t in REASONS.items() if self.reason.startswith(r)), "")
        said = said or f"waits; SLURM says {self.reason!r}"
        if self.starts and (seconds := self.starts - (time.time() if now is None else now)) > 0:
            said += f"; expected to start in {_span(seconds)}"
        return said


def _span(seconds: float) -> str:
    """A span in words, as long as it needs to be.

    >>> _span(40), _span(600), _span(7300)
    ('1 min', '10 min', '2 h')
    """
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 100 else f"{round(minutes / 60)} h"


class Slurm:
    """The commands, run with ``environ``. Every method raises `FleetError`: no SLURM here, no answer, or what SLURM said."""

    def __init__(self, environ: Mapping[str, str] | None = None, *, limit: float = LIMIT) -> None:
        self.environ = {**(os.environ if environ is None else environ), "SLURM_TIME_FORMAT": "%s"}
        self.limit = limit

    def submit(self, command: Sequence[str]) -> str:
        """Queue a job by its `sbatch_command`; returns its id."""
        for line in self._run(command).splitlines():
            if found := _ID.fullmatch(line.strip()):
                return found[1]
        raise FleetError("sbatch accepted the job but printed no job id", hint="`squeue --me` shows it")

    def jobs(self, servers: Iterable[str] | None = None) -> list[Job]:
        """The user's queued and running jobs for these servers, or for all, oldest first."""
        wanted = None if servers is None else {job_name(server) for server in servers}
        user = f"--user={getpass.getuser()}"
        return [job for job in self._squeue(user) if job.server and (wanted is None or job.name in wanted)]

    def job(self, job_id: str) -> Job | None:
        """A job that is queued, running or has ended in the last minutes; None where SLURM knows none of that id."""
        try:
            found = self._squeue(f"--jobs={job_id}", "--states=all")
        except FleetError as error:
            if "invalid job id" in error.message.lower():
                return None
            raise
        return next((job for job in found if job.id == job_id), None)

    def _squeue(self, *options: str) -> list[Job]:
        lines = self._run(["squeue", "--noheader", f"--format={_FORMAT}", *options]).splitlines()
        return sorted((job for line in lines if (job := read_job(line))), key=lambda job: int(job.id))

    def requeue(self, job_id: str, delay: float = 0.0) -> None:
        """Queue a running job again, to start after ``delay`` seconds or `SETTLE`; SLURM then ends its processes."""
        self._run(["scontrol", "requeue", job_id])
        self._run(["scontrol", "update", f"JobId={job_id}", f"StartTime=now+{round(max(delay, SETTLE))}"])

    def rename(self, job_id: str, name: str) -> None:
        """Give a job another name."""
        self._run(["scontrol", "update", f"JobId={job_id}", f"JobName={name}"])

    def cancel(self, jobs: Iterable[Job], *, now: bool = False) -> None:
        """End jobs: one that waits is taken from the queue, one that runs is told to finish its requests and to end.

        ``now``: end running ones by SLURM's own way, which gives them `KillWait` seconds.
        """
        for job in jobs:
            if job.over:
                continue
            # SIGTERM to the batch shell alone: plain scancel would send it to vLLM, too, which then drops its requests.
            gently = [] if now or job.pending else ["--batch", "--signal=TERM"]
            self._run(["scancel", *gently, job.id])

    def address(self, node: str) -> str:
        """The address by which SLURM itself reaches a node."""
        found = re.search(r"\bNodeAddr=(\S+)", self._run(["scontrol", "--oneliner", "show", "node", node]))
        return found[1] if found else node

    def _run(self, command: Sequence[str]) -> str:
        try:
            ended = subprocess.run(  # noqa: S603  # arguments are a list, and no shell reads them
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
                f"there is no SLURM here: {command[0]} is not found",
                hint="run this on a login node of the cluster; `fleet up` starts servers on this machine",
            ) from None
        except subprocess.TimeoutExpired as late:
            said = _fault(late.stderr.decode(errors="replace") if isinstance(late.stderr, bytes) else "")
            message = f"{command[0]} gave no answer within {self.limit:.0f} s" + (f": {said}" if said else "")
            raise FleetError(message, hint=_remedy(said) or _REMEDIES["contact"]) from None
        if ended.returncode:
            said = _fault(ended.stderr) or f"exit code {ended.returncode}"
            raise FleetError(f"{command[0]} refused: {said}", hint=_remedy(said))
        return ended.stdout


def read_job(line: str) -> Job | None:
    """A line of squeue's in the format asked for; None where it is something else."""
    fields = line.strip().split("|", 6)
    if len(fields) != 7 or not fields[0].isdecimal() or not fields[0].isascii() or not fields[2]:
        return None
    number, name, state, ends, starts, node, reason = fields
    node = "" if node.startswith("(") else node
    times = {"starts": _time(starts), "ends": _time(ends)}
    return Job(id=number, name=name, state=state, reason="" if reason == "None" else reason, node=node, **times)


def _time(text: str) -> float | None:
    """Seconds since 1970; None for SLURM's many words for "unknown"."""
    return float(text) if re.fullmatch(r"[0-9]{1,12}", text) else None


def _fault(text: str) -> str:
    """The line that says what was wrong: the last one with an error, since SLURM says the cause of others before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error:|fatal:", line)] or lines
    return re.sub(r"^\w+: (?:error|fatal): ", "", errors[-1])[:300] if errors else ""


def _remedy(said: str) -> str:
    return next((remedy for word, remedy in _REMEDIES.items() if word in said.lower()), "")
