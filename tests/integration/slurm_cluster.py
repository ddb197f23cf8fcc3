"""A real SLURM for tests: one node on loopback, with a munge of its own; everything in one temporary folder.

Free ports and private sockets keep it apart from other clusters on the machine, those that a killed test run left behind
among them. Its daemons are children of the test's process, die with it, and are ended by their pids alone.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

NODE = "t4node"
TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "scancel", "setpriv")
START_LIMIT = 60.0

_CONF = """\
ClusterName=wctest
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={munge}/socket
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
# The node has what is written below, whatever the machine has.
SlurmdParameters=config_overrides
# Everything that has an interval is quick: a test waits for it.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,requeue_delay=0
InactiveLimit=0
EnforcePartLimits=ALL
KillWait={kill_wait}
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=30
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
{extra}
NodeName={node} NodeAddr=127.0.0.1 NodeHostname={host} Port={node_port} CPUs={cpus} RealMemory=64000 Gres=gpu:t4:{gpus}
PartitionName=t4flex Nodes={node} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime={grace}
PartitionName=urgent Nodes={node} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why no cluster can be started here; None where it can."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"SLURM is not installed here ({missing[0]} is missing; Debian: slurm-wlm munge)"
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    with contextlib.suppress(KeyError):
        pwd.getpwnam("munge")
        return None
    return "there is no user munge"


class SlurmCluster:
    """One cluster of one node with ``gpus`` GPUs that exist in the books only. Use it as a context manager."""

    def __init__(self, *, gpus: int = 2, cpus: int = 8, kill_wait: int = 15, grace: int = 30, extra: str = "") -> None:
        self.place = Path(tempfile.mkdtemp(prefix="wc-slurm-", dir="/tmp"))  # sockets' paths are limited to 107 characters
        self.place.chmod(0o755)
        self.conf = self.place / "slurm.conf"
        self._settings = {"gpus": gpus, "cpus": cpus, "kill_wait": kill_wait, "grace": grace, "extra": extra}
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def environ(self) -> dict[str, str]:
        """What commands need to reach this cluster, besides the process's own environment."""
        return {"SLURM_CONF": str(self.conf)}

    def __enter__(self) -> SlurmCluster:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        munge = self.place / "munge"
        munge.mkdir(mode=0o755)
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        for path in (munge, munge / "key"):
            shutil.chown(path, "munge", "munge")
        for name in ("state", "spool"):
            (self.place / name).mkdir(mode=0o755)
        controller_port, node_port = _free_ports(2)
        ports = {"controller_port": controller_port, "node_port": node_port}
        names = {"place": self.place, "munge": munge, "host": socket.gethostname().split(".")[0], "node": NODE}
        self.conf.write_text(_CONF.format(**names, **ports, **self._settings))
        # SLURM counts a GPU by its device; any file will do where no device is confined to a job.
        gpus = [self.place / f"gpu{number}" for number in range(self._settings["gpus"])]
        for gpu in gpus:
            gpu.touch()
        lines = ["AutoDetect=off", *(f"Name=gpu Type=t4 File={gpu}" for gpu in gpus)]
        (self.place / "gres.conf").write_text("\n".join(lines) + "\n")
        as_munge = ["--reuid=munge", "--regid=munge", "--clear-groups"]
        files = [f"--{what}-file={munge}/{what}" for what in ("key", "pid", "log", "seed")]
        self._daemon(["munged", "--foreground", "--force", f"--socket={munge}/socket", *files], as_munge)
        self._until((munge / "socket").exists, "munged")
        self._daemon(["slurmctld", "-D", "-i", "-f", str(self.conf)])
        self._daemon(["slurmd", "-D", "-N", NODE, "-f", str(self.conf)])
        self._until(lambda: "idle" in self.run("sinfo", "-h", "-N", "-p", "t4flex", "-o", "%T", check=False), "the node")

    def _daemon(self, command: list[str], options: list[str] | None = None) -> None:
        log = (self.place / f"{command[0]}.out").open("ab")
        with log:
            self._daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig=KILL", *(options or []), "--", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | self.environ,
                    cwd=self.place,
                    start_new_session=True,
                )
            )

    def _until(self, happened, what: str) -> None:
        ends = time.monotonic() + START_LIMIT
        while not happened():
            dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if dead or time.monotonic() > ends:
                logs = "\n".join(f"{log.name}:\n{log.read_text()[-1500:]}" for log in sorted(self.place.glob("*.[lo]*")))
                raise RuntimeError(f"{what} did not come up; ended: {dead}\n{logs}")
            time.sleep(0.1)  # a poll, not a guess

    def run(self, *command: str, check: bool = True, environ: dict[str, str] | None = None) -> str:
        """What a command of SLURM's prints. Raises where it fails, with what it said."""
        ended = subprocess.run(
            command, capture_output=True, text=True, env=(environ or os.environ) | self.environ, timeout=30, check=False
        )
        if check and ended.returncode:
            raise RuntimeError(f"{command} failed ({ended.returncode}): {ended.stderr.strip()}")
        return ended.stdout

    def field(self, job: str, name: str) -> str:
        """A field of a job, as `scontrol show job` names it; empty where the job is not known."""
        for word in self.run("scontrol", "--oneliner", "show", "job", job, check=False).split():
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
        return ""

    def logs(self) -> str:
        """The ends of the daemons' logs, for a failed test."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in sorted(self.place.glob("slurm*.log")))

    def stop(self) -> None:
        """End all jobs, then the daemons, and remove the folder."""
        if len(self._daemons) == 3:
            self._end_jobs()
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        self._kill_steps()
        shutil.rmtree(self.place, ignore_errors=True)

    def _kill_steps(self) -> None:
        """A job's slurmstepd is a daemon of its own, which waits for the controller; slurmd's log is open in it."""
        log = self.place / "slurmd.log"
        for file in Path("/proc").glob("[0-9]*/fd/[0-9]"):
            with contextlib.suppress(OSError):
                if file.readlink() == log:
                    os.kill(int(file.parts[2]), signal.SIGKILL)

    def _end_jobs(self) -> None:
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            jobs = self.run("squeue", "-h", "-o", "%i").split()
            if jobs:
                self.run("scancel", *jobs, check=False)
            ends = time.monotonic() + 30
            while self.run("squeue", "-h", "-o", "%i").split() and time.monotonic() < ends:
                time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
