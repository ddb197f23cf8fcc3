"""Leaving at once when asked to."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

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


def run_stoppable(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]], told: Callable[[], str]) -> None:
    """Run a coroutine that ends soon after the event it is given is set: by Ctrl-C, by SIGTERM.

    Then ``told`` is said on standard error, and `KeyboardInterrupt` or `Stopped` is raised. Raises what ``work`` raises.
    """
    import asyncio

    asked: list[signal.Signals] = []

    async def whole() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def ask(number: signal.Signals) -> None:
            asked.append(number)
            leave_soon(TERMINATED if number == signal.SIGTERM else INTERRUPTED)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ask, number)
        try:
            await work(stop)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    asyncio.run(whole())
    if asked:
        sys.stderr.write(f"{told()}\n")
        raise Stopped if asked[0] == signal.SIGTERM else KeyboardInterrupt
