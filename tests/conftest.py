"""Ended by SIGTERM, the suite leaves no process: its fixtures end theirs, as after Ctrl-C, and what is left is killed.

Python's own answer to SIGTERM ends a process without a word, and the servers that its tests have started live on. Here it is
turned into SIGINT, which pytest and asyncio unwind, in pytest-xdist's workers as well. What no fixture knows of any more, a
test's child in a session of its own or a daemon whose starter is gone, is found by the kernel's record of parents and by
the name of the run's temporary folder in its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

GRACE = 5.0
"""Seconds for fixtures; then the processes that they wait for are killed."""

PATIENCE = 60.0
"""Seconds after which the suite ends without its fixtures. pytest-xdist itself gives its workers ten."""

PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Run:
    """This process's part in the suite."""

    pid: int = field(default_factory=os.getpid)
    folder: str = ""
    workers: list[Any] = field(default_factory=list)
    """xdist's, in its controller, which runs no tests."""


run = Run()


def pytest_configure() -> None:
    """While tests are collected, and in xdist's controller."""
    heed_sigterm()


def pytest_runtest_setup() -> None:
    """Before each test: the one before may have set the handler back."""
    heed_sigterm()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready(node: Any) -> None:
    """A worker is there."""
    run.workers.append(node)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Wait for the workers' own ends before xdist cuts them short."""
    ends = time.monotonic() + GRACE + PATIENCE
    for node in run.workers:
        with contextlib.suppress(EOFError, node.channel.RemoteError, node.channel.TimeoutError):
            node.channel.waitclose(max(0.0, ends - time.monotonic()))


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The first fixture to be set up, and the last to be torn down."""
    run.folder = os.environ["PYTEST_RUN_FOLDER"] = f"{tmp_path_factory.getbasetemp()}/"
    os.environ["XDG_STATE_HOME"] = f"{run.folder}state"  # the metrics and registries of the person who runs it stay theirs
    yield
    if request.session.exitstatus == pytest.ExitCode.INTERRUPTED:
        kill_what_is_left()


def heed_sigterm() -> None:
    """Turn SIGTERM into SIGINT, once. Ctrl-C works in the tests, too, if a script has started them with `&`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    if os.getpid() != run.pid:  # a fork: nothing there is to be unwound
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: None)  # one is enough; SIG_IGN would be inherited
    for pid in _children() if run.workers else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if not run.workers:
        threading.Thread(target=_insist, daemon=True).start()
    if signal.getsignal(signal.SIGINT) in {signal.SIG_IGN, signal.SIG_DFL}:  # ignored in what a script starts with `&`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def _insist() -> None:
    """A fixture may wait for a process that heeds nothing, and a test may swallow the interruption."""
    time.sleep(GRACE)
    kill_what_is_left()
    time.sleep(PATIENCE)
    kill_what_is_left()
    os._exit(pytest.ExitCode.INTERRUPTED)


def kill_what_is_left() -> None:
    """Kill this process's descendants, and those whose environment names the run's folder."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans become this process's children
    ends = time.monotonic() + GRACE
    while (left := _children() | _strays()) and time.monotonic() < ends:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        time.sleep(0.01)


def _children() -> set[int]:
    return {int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}


def _strays() -> set[int]:
    found = set()
    for place in Path("/proc").glob("[0-9]*/environ") if run.folder else ():
        with contextlib.suppress(OSError):
            if run.folder.encode() in place.read_bytes():
                found.add(int(place.parent.name))
    return found - {run.pid}
