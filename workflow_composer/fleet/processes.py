"""Processes of this node, told apart from others that have got their number since."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its number, and when it began, in clock ticks since the machine's start. Together they are unique."""

    pid: int
    ticks: int

    @property
    def alive(self) -> bool:
        """Whether it still runs, or is stopped; a zombie does not run."""
        return find(self.pid) == self

    @property
    def began(self) -> float:
        """Seconds since 1970, to within a second."""
        return _boot() + self.ticks / os.sysconf("SC_CLK_TCK")

    def signal(self, number: int) -> None:
        """Send it a signal, if it still is the one."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Send its process group a signal, if it still is the one and leads the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.alive and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """Whether it ends within ``seconds``."""
        ends = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > ends:
                return False
            time.sleep(0.05)
        return True


def find(pid: int) -> Process | None:
    """The process of that number; None where none runs."""
    try:
        words = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if words[0] in "ZX" else Process(pid, int(words[19]))


def command_line(pid: int) -> list[str]:
    """A process's arguments; empty where it is gone."""
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
    return []


def supervisor(pid: int, server: str, started: float) -> Process | None:
    """The process that looks after a server, if that number is still its: one of ours, with that command, not younger."""
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


def descendants(pid: int) -> list[Process]:
    """The processes that this one has started, directly or not, and that still run."""
    parents: dict[int, list[Process]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                words = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                if words[0] not in "ZX":
                    parents.setdefault(int(words[1]), []).append(Process(int(entry.name), int(words[19])))
    found: list[Process] = []
    waiting = [pid]
    while waiting:
        born = parents.pop(waiting.pop(), [])
        found += born
        waiting += [process.pid for process in born]
    return found


def stop_supervisor(process: Process, patience: float = 15.0) -> None:
    """End a server's supervisor and all that it has started, at once: asked twice, which means that; killed if need be."""
    family = descendants(process.pid)
    process.signal(signal.SIGCONT)
    process.signal(signal.SIGTERM)
    process.wait(0.5)  # two signals of a kind that are pending are one
    process.signal(signal.SIGTERM)
    if not process.wait(patience):
        process.signal(signal.SIGKILL)
    # Its guard ends vLLM within seconds, however the supervisor has ended.
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
