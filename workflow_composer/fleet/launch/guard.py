"""Guard process between supervisor and vLLM: no vLLM process outlives the supervisor, however the supervisor ends.

A separate program: ``python guard.py WATCH REPORT COMMAND...``. It starts the command in a new process group and writes its
process id to the descriptor REPORT. From WATCH it reads ``T`` (send SIGTERM) and ``K`` (kill the group); end of file on
WATCH, which means that the supervisor is gone, counts as ``T`` and, `LAST` seconds later, ``K``. When the command has ended,
the guard kills the rest of its group and returns the command's exit code (128 + signal).

PR_SET_PDEATHSIG is not enough: it reaches one process only, and vLLM's engine is another one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

LAST = 5.0
"""Seconds between ``T`` and ``K`` after the supervisor is gone."""
_TICK = 0.1


def main(arguments: Sequence[str]) -> int:
    """Start the command, guard it and return its exit code."""
    watch, report, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _pass_over)  # unlike SIG_IGN, a handler is not inherited by the command
    os.set_inheritable(watch, False)
    os.set_inheritable(report, False)
    try:
        child = subprocess.Popen(command, start_new_session=True)  # noqa: S603  # no shell; the supervisor passes the command
    except OSError as error:
        os.write(report, f"! {error.strerror}\n".encode())
        return 127
    os.write(report, f"{child.pid}\n".encode())
    os.close(report)
    _look_after(child.pid, watch)
    # The child is not reaped yet, so its process id cannot have been reused.
    _group(child.pid, signal.SIGKILL)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Ignore the signal: only the supervisor ends the guard."""


def _look_after(pid: int, watch: int) -> None:
    """Forward the supervisor's commands until the child has ended."""
    kill_at, watched = float("inf"), [watch]
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > kill_at:
            _group(pid, signal.SIGKILL)
        ready, _, _ = select.select(watched, [], [], _TICK)
        if not ready:
            continue
        said = os.read(watch, 16)
        if b"K" in said:
            _group(pid, signal.SIGKILL)
        elif b"T" in said or not said:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if not said:
            watched, kill_at = [], time.monotonic() + LAST


def _group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
