"""Leaving at once when asked to."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""
TERMINATED = 143
"""Exit code after SIGTERM: 128 + SIGTERM."""

_PATIENCE = 1.5


class Stopped(BaseException):
    """The process was asked to end (SIGTERM); like `KeyboardInterrupt`, no error."""


def leave_soon(code: int, *, seconds: float = _PATIENCE) -> None:
    """End the process with ``code`` after ``seconds``, whatever still runs: an engine may be deep in an answer.

    Until then calls are cancelled politely, so that servers hear of it and metrics are written.
    """
    timer = threading.Timer(seconds, leave_now, (code,))
    timer.daemon = True
    timer.start()


def leave_now(code: int) -> None:
    """End the process without waiting for threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
