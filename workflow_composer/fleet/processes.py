"""Processes of this node, identified safely even if process ids are reused."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
SETTLING = 15.0
"""Seconds in which a supervisor that has drained stops its server."""


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """A process: its id and start time in clock ticks since boot. Together they are unique."""

    pid: int
    ticks: int

    @property
    def alive(self) -> bool:
        """Whether it is running or stopped; a zombie is not alive."""
        return find(self.pid) == self

    @property
    def began(self) -> float:
        """Start time as Unix time, accurate to a second."""
        return _boot() + self.ticks / os.sysconf("SC_CLK_TCK")

    def signal(self, number: int) -> None:
        """Send a signal, if it is still the same process."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to its process group, if it is still the same process and leads the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.alive and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return whether it ended within ``seconds``."""
        ends = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > ends:
                return False
            time.sleep(0.05)
        return True


def find(pid: int) -> NodeProcess | None:
    """Return the process with that id; None if it does not run."""
    try:
        words = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if words[0] in "ZX" else NodeProcess(pid, int(words[19]))


def same_host(one: str, other: str) -> bool:
    """Whether two names are of one host: a short one and a full one, in any case.

    >>> same_host("gpu3", "GPU3.cluster.example.org"), same_host("gpu3", "gpu30"), same_host("10.0.0.1", "10.0.0.2")
    (True, False, False)
    """
    one, other = one.lower(), other.lower()
    if one == other or one.replace(".", "").isdecimal() or other.replace(".", "").isdecimal():
        return one == other
    full = "." in one and "." in other
    return not full and one.partition(".")[0] == other.partition(".")[0]


def command_line(pid: int) -> list[str]:
    """A process's arguments; empty if it is gone."""
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
    return []


def slurm_step(pid: int | None = None) -> str:
    """Return the SLURM step in which a process (this one) runs, such as ``7.batch`` or ``7.0`` of srun; empty: none.

    Variables such as ``SLURM_STEP_ID`` say less: jobs inherit them from the job in which they were submitted.
    """
    pid = os.getpid() if pid is None else pid
    while pid > 1:
        if found := re.match(r"slurmstepd: \[(\d+\.\w+)", command_line(pid)[0] if command_line(pid) else ""):
            return found[1]
        try:
            pid = int((PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return ""
    return ""


def supervisor(pid: int, server: str, started: float) -> NodeProcess | None:
    """Return a server's supervisor if ``pid`` still is one: same user, matching command, not started later."""
    process = find(pid) if pid > 0 else None
    if process is None:
        return None
    try:
        mine = (PROC / str(pid)).stat().st_uid == os.getuid()
    except OSError:
        return None
    words = command_line(pid)
    serves = any(words[at : at + 3] == ["fleet", "serve", server] for at in range(len(words) - 2))
    return process if mine and serves and process.began <= started + 5 else None


def descendants(pid: int) -> list[NodeProcess]:
    """The running child processes of this process, direct and indirect."""
    parents: dict[int, list[NodeProcess]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                words = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                if words[0] not in "ZX":
                    parents.setdefault(int(words[1]), []).append(NodeProcess(int(entry.name), int(words[19])))
    found: list[NodeProcess] = []
    waiting = [pid]
    while waiting:
        born = parents.pop(waiting.pop(), [])
        found += born
        waiting += [process.pid for process in born]
    return found


def drain_supervisor(process: NodeProcess, seconds: float) -> None:
    """Ask a supervisor to drain and exit, as `fleet down` does; wait for that, at most ``seconds`` and `SETTLING` more."""
    process.signal(signal.SIGTERM)
    process.wait(seconds + SETTLING)


def stop_supervisor(process: NodeProcess, patience: float = 15.0) -> None:
    """Stop a supervisor and its processes at once: two SIGTERM mean that; after ``patience`` seconds, SIGKILL."""
    family = descendants(process.pid)
    process.signal(signal.SIGCONT)
    process.signal(signal.SIGTERM)
    process.wait(0.5)  # pending signals of the same kind are merged
    process.signal(signal.SIGTERM)
    if not process.wait(patience):
        process.signal(signal.SIGKILL)
    # The guard stops vLLM within seconds, however the supervisor ended.
    ends = time.monotonic() + patience
    while any(one.alive for one in (process, *family)) and time.monotonic() < ends:
        time.sleep(0.05)
    for one in family:
        one.signal_group(signal.SIGKILL)
        one.signal(signal.SIGKILL)


def _boot() -> float:
    for line in (PROC / "stat").read_text(encoding="ascii").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0
