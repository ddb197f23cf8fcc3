"""The service with a probe of its event loop: how long each step of the loop keeps the processor from the others.

    python -m tests.integration.probed_service SOCKET -s PROFILE serve ...

runs the command line on asyncio's own loop, whose steps are functions of Python. Who connects to the socket is sent the
steps since the last time, as JSON, the longest first: ``[[seconds of processor time, what ran], ...]``. The time is the
loop's thread's own: neither other threads nor other programs of the machine lengthen a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.integration.service import Service

KEPT = 20
"""The longest steps that are kept."""


class Probe:
    """Measures the steps of the main thread's loop."""

    def __init__(self) -> None:
        self._steps: list[tuple[float, int, str]] = []
        self._count = 0
        self._run = asyncio.events.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            self._timed(handle)

        asyncio.events.Handle._run = timed  # type: ignore[method-assign]

    def _timed(self, handle: asyncio.Handle) -> None:
        began = time.thread_time()
        self._run(handle)
        took = time.thread_time() - began
        if threading.current_thread() is not threading.main_thread():
            return
        self._count += 1
        if len(self._steps) < KEPT or took > self._steps[0][0]:
            keep = heapq.heappush if len(self._steps) < KEPT else heapq.heappushpop
            keep(self._steps, (took, self._count, repr(getattr(handle._callback, "__self__", handle._callback))[:300]))

    def taken(self) -> list[tuple[float, str]]:
        """The steps since the last time, the longest first."""
        steps, self._steps = self._steps, []
        return [(took, what) for took, _, what in sorted(steps, reverse=True)]

    def listen(self, place: str) -> None:
        """Answer at a socket, in a thread."""
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(place)
        listening.listen()

        def answer() -> None:
            while True:
                with listening.accept()[0] as connection:
                    connection.sendall(json.dumps(self.taken()).encode())

        threading.Thread(target=answer, daemon=True).start()


class ProbedService(Service):
    """`Service` with a probe, in a folder of its own."""

    module = "tests.integration.probed_service"

    def __init__(self, strategy: Path, *options: str, **more: object) -> None:
        self._place = str(strategy.parent / "probe")
        self.program = (self.module, self._place)
        super().__init__(strategy, *options, **more)  # type: ignore[arg-type]

    def steps(self) -> list[tuple[float, str]]:
        """The longest steps since the last time: seconds of processor time, and what ran."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(60)
            sock.connect(self._place)
            return [(took, what) for took, what in json.loads(b"".join(_pieces(sock)))]


def _pieces(sock: socket.socket) -> Iterator[bytes]:
    while piece := sock.recv(65536):
        yield piece


if __name__ == "__main__":
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # its steps are not functions of Python
    Probe().listen(sys.argv.pop(1))
    from workflow_composer.cli.main import main

    main()
