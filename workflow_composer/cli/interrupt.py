"""Stopping promptly on Ctrl-C and SIGTERM."""

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
    """The process received SIGTERM; like `KeyboardInterrupt`, it is not an error."""


def leave_soon(code: int, *, seconds: float = _PATIENCE) -> None:
    """End the process with ``code`` after ``seconds`` even if a call is still running, such as in the embedded engine.

    Until then calls are cancelled normally, so that servers are notified and metrics are written.
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
    """Run a coroutine; Ctrl-C and SIGTERM set the event that it is given, on which it must end soon.

    After a signal, print ``told()`` to standard error and raise `KeyboardInterrupt` or `Stopped`. Raises the errors of
    ``work``.
    """
    import asyncio

    asked: list[signal.Signals] = []

    def heard(number: signal.Signals) -> None:
        asked.append(number)
        leave_soon(TERMINATED if number == signal.SIGTERM else INTERRUPTED)

    asyncio.run(_heeding(work, heard))
    if asked:
        sys.stderr.write(f"{told()}\n")
        raise Stopped if asked[0] == signal.SIGTERM else KeyboardInterrupt


def run_finishing(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run a coroutine that ends in its own time after the first Ctrl-C or SIGTERM, which set the event that it is given.

    A second signal ends the process at once. Returns the exit code of the first signal; 0 without one.
    """
    import asyncio

    codes: list[int] = []

    def heard(number: signal.Signals) -> None:
        codes.append(TERMINATED if number == signal.SIGTERM else INTERRUPTED)
        if len(codes) > 1:
            leave_now(codes[0])

    asyncio.run(_heeding(work, heard))
    return codes[0] if codes else 0


async def _heeding(
    work: Callable[[asyncio.Event], Coroutine[Any, Any, None]], heard: Callable[[signal.Signals], None]
) -> None:
    """Await ``work`` with an event that is set, after a call of ``heard``, at every Ctrl-C or SIGTERM."""
    import asyncio

    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def ask(number: signal.Signals) -> None:
        heard(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask, number)
    try:
        await work(stop)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
