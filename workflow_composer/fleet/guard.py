"""Stands between the supervisor and vLLM, so that none of vLLM's processes outlives the supervisor, however that ends.

Run as a program of its own: ``python guard.py WATCH REPORT COMMAND...``. It starts the command in a process group of its
own and writes its process id to the descriptor REPORT. From WATCH it reads ``T`` (end it politely) and ``K`` (end the group
at once); the end of WATCH, which comes with the supervisor's own end, means ``T`` and soon ``K``. Once the command has
ended, whatever is left of its group is ended too, and the guard returns the command's exit code (128 + signal).

The kernel's own means, PR_SET_PDEATHSIG, reaches one process and is lost on vLLM's engine, which is another.
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
"""Seconds between ``T`` and ``K`` once the supervisor is gone."""
_TICK = 0.1


def main(arguments: Sequence[str]) -> int:
    """Start the command and look after it; its exit code."""
    watch, report, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _pass_over)  # unlike SIG_IGN, this is not inherited by the command
    os.set_inheritable(watch, False)
    os.set_inheritable(report, False)
    try:
        child = subprocess.Popen(command, start_new_session=True)  # noqa: S603  # no shell; as the supervisor says
    except OSError as error:
        os.write(report, f"! {error.strerror}\n".encode())
        return 127
    os.write(report, f"{child.pid}\n".encode())
    os.close(report)
    _look_after(child.pid, watch)
    # The child is not yet reaped, so that its number is still its own.
    _group(child.pid, signal.SIGKILL)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _pass_over(number: int, frame: FrameType | None) -> None:
    """What a signal to the guard does: its end is the supervisor's to decide."""


def _look_after(pid: int, watch: int) -> None:
    """Pass on what the supervisor says until the child has ended."""
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
