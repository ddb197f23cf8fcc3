"""Equality of formulas, by math-verify, in a process of its own, with a hard limit on the processor time of each comparison.

Algebra may take forever or all memory (9^{9^{9^9}}), inside C code that no signal interrupts; and this package's event loop
may run in any thread, where math-verify's own time limits do not work. So one worker process serves all threads and event
loops of this process. A thread of ours owns it: takes comparisons one by one, waits, kills the worker at the limit, and
starts another when one is needed. The first comparison starts it, which takes about a second; it holds 70 MB.

It never outlives this process: it is killed when Python exits, and by the system when this process is killed.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

from workflow_composer.errors import ConfigError

MISSING = "pip install 'workflow-composer[batch]'"
_PROGRAM = Path(__file__).with_name("math_worker.py")
_START_LIMIT = 120.0
_PATIENCE = 8.0
_TICK = 0.02
"""Seconds: twice the grain of what the system tells of processor time."""
_ATTEMPTS = 2
_PASSED_ON = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TMPDIR")


def installed() -> bool:
    """Whether math-verify is there; it is not imported."""
    return find_spec("math_verify") is not None


class _Comparison(NamedTuple):
    a: str
    b: str
    limit: float
    answer: Future[bool | None]


class _WorkerGone(Exception):
    """The worker died by itself, or by someone else's hand."""


class MathWorker:
    """The worker process and the thread that owns it; one for all threads of a process. See `compare`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[_Comparison] = deque()
        self._wake_read, self._wake_write = os.pipe()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        threading.Thread(target=self._serve, name="math-worker", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """The process now running, if any."""
        process = self._process
        return None if process is None else process.pid

    def submit(self, a: str, b: str, limit: float) -> Future[bool | None]:
        """Whether two formulas are equal; None where that took more than ``limit`` seconds of processor time, or all memory.

        A comparison whose future is cancelled before its turn is not made. The future raises `ConfigError` where math-verify
        does not work.
        """
        answer: Future[bool | None] = Future()
        self._waiting.append(_Comparison(a, b, limit, answer))
        os.write(self._wake_write, b".")
        return answer

    def close(self) -> None:
        """Kill the worker and leave no trace of it; nothing can be compared any more."""
        with self._lock:
            self._closed = True
            self._stop()

    def forget(self) -> None:
        """Let go of what belongs to the parent, in a process that was forked from it."""
        for file in (self._process.stdin, self._process.stdout) if self._process else ():
            if file is not None:
                file.close()
        if self._process is not None:
            self._process.returncode = 0  # it is the parent's to wait for
        os.close(self._wake_read)
        os.close(self._wake_write)

    # ------------------------------------------------------------------------------------------ the thread's own part

    def _serve(self) -> None:
        while not self._closed:
            try:
                comparison = self._next()
            except _WorkerGone:
                with self._lock:
                    self._stop()
                continue
            if comparison.answer.set_running_or_notify_cancel():
                try:
                    comparison.answer.set_result(self._compare(comparison))
                except Exception as error:  # noqa: BLE001  # whoever asked gets it
                    comparison.answer.set_exception(error)

    def _next(self) -> _Comparison:
        """The comparison that has waited longest. A worker that dies meanwhile is noticed, so that it is buried."""
        while not self._waiting:
            poll = select.poll()
            poll.register(self._wake_read, select.POLLIN)
            if self._process is not None and self._process.stdout is not None:
                poll.register(self._process.stdout, select.POLLIN)
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            else:
                raise _WorkerGone
        return self._waiting.popleft()

    def _compare(self, comparison: _Comparison) -> bool | None:
        question = {"a": comparison.a, "b": comparison.b, "limit": comparison.limit}
        for _ in range(_ATTEMPTS):
            try:
                process = self._running()
                _send(process.stdin, question)
                answer = _receive(process.stdout, comparison.limit, process.pid)
                return None if answer is None else bool(answer)
            except TimeoutError:
                with self._lock:
                    self._stop()
                return None
            except _WorkerGone:
                with self._lock:
                    self._stop()
        return None

    def _running(self) -> subprocess.Popen[bytes]:
        """The worker, started if need be.

        The thread that starts it is the one whose end the system takes for the parent's, so this is done by ours alone.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this process is about to end")
            if self._process is not None:
                return self._process
            self._process = process = subprocess.Popen(  # noqa: S603  # this Python and a file of this package
                [sys.executable, "-P", str(_PROGRAM), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                process_group=0,  # an interrupt from the terminal is not for the worker
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},  # no keys for a parser
            )
        try:
            _send(process.stdin, sys.path)
            hello = _receive(process.stdout, _START_LIMIT)
        except TimeoutError:
            hello = {"error": f"it did not start within {_START_LIMIT:g} s"}
        if "error" in hello:
            with self._lock:
                self._stop()
            raise ConfigError(f"math-verify cannot be used: {hello['error']}", hint=MISSING)
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for file in (process.stdin, process.stdout):
            if file is not None:
                file.close()


def _send(pipe: IO[bytes] | None, value: Any) -> None:
    """One line of JSON. It fits into the pipe, whatever the worker does meanwhile."""
    assert pipe is not None
    left = json.dumps(value).encode("ascii") + b"\n"
    try:
        while left:
            left = left[pipe.write(left) :]
    except (OSError, ValueError) as error:
        raise _WorkerGone from error


def _receive(pipe: IO[bytes] | None, limit: float, worker: int | None = None) -> Any:
    """One line of JSON; `TimeoutError` where none comes in time.

    With a ``worker`` (its process id) the limit is on its processor time, so that a busy machine changes no comparison; on
    the clock it may then take `_PATIENCE` times as long.
    """
    assert pipe is not None
    began, used = time.monotonic(), _processor_time(worker)
    line, wait = b"", limit
    while not line.endswith(b"\n"):
        try:
            poll = select.poll()
            poll.register(pipe, select.POLLIN)
            ready = poll.poll(max(0.0, wait) * 1000)
            part = os.read(pipe.fileno(), 65536) if ready else b""
        except (OSError, ValueError) as error:
            raise _WorkerGone from error
        if ready and not part:
            raise _WorkerGone
        line += part
        now = _processor_time(worker)
        left = limit - (time.monotonic() - began if used is None or now is None else now - used)
        wait = min(left, _PATIENCE * limit - (time.monotonic() - began))
        if not ready and wait <= _TICK:
            raise TimeoutError
    return json.loads(line)


def _processor_time(process: int | None) -> float | None:
    """Seconds of processor time that a process has used; None where the system does not tell."""
    if process is None:
        return None
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_shared: MathWorker | None = None
_shared_lock = threading.Lock()


def shared() -> MathWorker:
    """This process's worker."""
    global _shared  # noqa: PLW0603  # there is one per process, whoever asks first
    with _shared_lock:
        if _shared is None:
            _shared = MathWorker()
            atexit.register(_shared.close)
        return _shared


def _after_fork() -> None:
    """A forked process has a copy of the worker's pipes but not of the thread: it starts a worker of its own if need be."""
    global _shared, _shared_lock  # noqa: PLW0603  # as above
    _shared_lock = threading.Lock()
    if _shared is not None:
        atexit.unregister(_shared.close)
        _shared.forget()
        _shared = None


os.register_at_fork(after_in_child=_after_fork)
