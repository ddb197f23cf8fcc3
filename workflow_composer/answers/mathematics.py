"""Equality of formulas by math-verify, in a worker process with a hard limit on the CPU time of each comparison.

Algebra may take forever or exhaust memory (9^{9^{9^9}}) in C code that signals cannot interrupt; and math-verify's own time
limits work only in the main thread, while this package's event loop may run in any thread. One worker process therefore
serves all threads and event loops of this process. One thread owns it: the thread takes comparisons one by one, waits,
kills the worker at the limit, and starts another when needed. The first comparison starts the worker, which takes about a
second and 70 MB.

The worker never outlives this process: it is killed when Python exits, and by the system when this process is killed.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

from workflow_composer.errors import ConfigError

MISSING = "pip install 'workflow-composer[batch]'"
_PROGRAM = Path(__file__).with_name("math_worker.py")
_START_LIMIT = 120.0
_PATIENCE = 8.0
_TICK = 0.02
"""Seconds: twice the resolution of the system's CPU times."""
_ATTEMPTS = 2
_PASSED_ON = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TMPDIR")


def installed() -> bool:
    """Whether math-verify is installed; does not import it."""
    return find_spec("math_verify") is not None


class _Comparison(NamedTuple):
    a: str
    b: str | None
    limit: float
    answer: Future[Any]


class _WorkerGone(Exception):
    """The worker exited, or was killed by another process."""


class MathWorker:
    """The worker process and the thread that owns it; one for all threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[_Comparison] = deque()
        self._wake_read, self._wake_write = os.pipe()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        threading.Thread(target=self._serve, name="math-worker", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """The id of the running worker; None if there is none."""
        process = self._process
        return None if process is None else process.pid

    def submit(self, a: str, b: str, limit: float) -> Future[bool | None]:
        """Compare two formulas; the result is None if that took more than ``limit`` seconds of CPU time, or all memory.

        A comparison whose future is cancelled before its turn is skipped. The future raises `ConfigError` if math-verify
        does not work.
        """
        return self._begin(a, b, limit)

    def value(self, formula: str, limit: float) -> Future[str | bool | None]:
        """Evaluate a constant: numerator/denominator in hexadecimal, ``~`` and 20 digits, or False; None as in `submit`."""
        return self._begin(formula, None, limit)

    def _begin(self, a: str, b: str | None, limit: float) -> Future[Any]:
        answer: Future[Any] = Future()
        self._waiting.append(_Comparison(a, b, limit, answer))
        os.write(self._wake_write, b".")
        return answer

    def close(self) -> None:
        """Kill the worker; no comparison is possible afterwards."""
        with self._lock:
            self._closed = True
            self._stop()

    def forget(self) -> None:
        """Release what belongs to the parent, in a process forked from it."""
        for file in (self._process.stdin, self._process.stdout) if self._process else ():
            if file is not None:
                file.close()
        if self._process is not None:
            self._process.returncode = 0  # only the parent can wait for it
        os.close(self._wake_read)
        os.close(self._wake_write)

    # ------------------------------------------------------------------------------------------ the owning thread

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
                except Exception as error:  # noqa: BLE001  # the future carries it to the caller
                    comparison.answer.set_exception(error)

    def _next(self) -> _Comparison:
        """Wait for the next comparison. Raises `_WorkerGone` if the worker dies meanwhile."""
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

    def _compare(self, comparison: _Comparison) -> bool | str | None:
        question = {"a": comparison.a, "b": comparison.b, "limit": comparison.limit}
        for _ in range(_ATTEMPTS):
            try:
                process = self._running()
                _send(process.stdin, question)
                answer = _receive(process.stdout, comparison.limit, process.pid)
                return answer if answer is None or isinstance(answer, str) else bool(answer)
            except TimeoutError:
                with self._lock:
                    self._stop()
                return None
            except _WorkerGone:
                with self._lock:
                    self._stop()
        return None

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the worker, starting it if needed.

        The system kills the worker when the thread that started it ends, so only the owning thread may call this.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this process is shutting down")
            if self._process is not None:
                return self._process
            self._process = process = subprocess.Popen(  # noqa: S603  # this Python and a file of this package
                [sys.executable, "-P", str(_PROGRAM), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                process_group=0,  # an interrupt from the terminal must not reach the worker
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},  # a parser needs no API keys
            )
        try:
            _send(process.stdin, sys.path)
            hello = _receive(process.stdout, _START_LIMIT)
        except TimeoutError:
            hello = {"error": f"it did not start within {_START_LIMIT:g} s"}
        if "error" in hello:
            with self._lock:
                self._stop()
            raise ConfigError(f"cannot use math-verify: {hello['error']}", hint=MISSING)
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
    """Write one line of JSON. It fits into the pipe even if the worker does not read."""
    assert pipe is not None
    left = json.dumps(value).encode("ascii") + b"\n"
    try:
        while left:
            left = left[pipe.write(left) :]
    except (OSError, ValueError) as error:
        raise _WorkerGone from error


def _receive(pipe: IO[bytes] | None, limit: float, worker: int | None = None) -> Any:
    """Read one line of JSON. Raises `TimeoutError` if none arrives within ``limit`` seconds.

    With a ``worker`` (its process id), the limit is on its CPU time, so that a busy machine does not change the result; the
    wall-clock time may then be up to `_PATIENCE` times the limit.
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
    """Return the CPU time in seconds that a process has used; None if the system does not report it."""
    if process is None:
        return None
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_REMEMBERED = 16384


@dataclass(frozen=True, slots=True)
class Constant:
    """The value of a constant; not ``exact``: rounded to 20 digits."""

    number: Fraction
    exact: bool


class Algebra:
    """Compares and evaluates formulas, each at most once, within ``limit`` seconds of CPU time. Usable from any thread.

    ``timed_out`` counts what was stopped at the limit or when memory ran out; such formulas equal nothing.
    """

    def __init__(self, limit: float) -> None:
        self.timed_out = 0
        self._limit = limit
        self._known: OrderedDict[tuple[str, str | None], Any] = OrderedDict()
        self._lock = threading.Lock()

    async def same(self, a: str, b: str) -> bool:
        """Whether two formulas are equal. Raises `ConfigError` if math-verify does not work."""
        return bool(await self._ask(min(a, b), max(a, b)))

    async def value(self, formula: str) -> Constant | bool:
        """Return the value of a constant; False if it was given up, True for any other formula. Raises as `same` does."""
        found = await self._ask(formula, None)
        if not isinstance(found, str):
            return found is not None
        if found.startswith("~"):
            rounded = found[1:]
            exponent = rounded.partition("e")[2]
            return Constant(Fraction(rounded), exact=False) if abs(int(exponent or 0)) <= _LARGEST_EXPONENT else False
        above, _, below = found.partition("/")
        return Constant(Fraction(int(above, 16), int(below, 16)), exact=True)

    async def _ask(self, a: str, b: str | None) -> Any:
        with self._lock:
            if (a, b) in self._known:
                self._known.move_to_end((a, b))
                return self._known[a, b]
        worker = shared()
        asked: Future[Any] = worker.value(a, self._limit) if b is None else worker.submit(a, b, self._limit)
        found = await asyncio.wrap_future(asked)
        with self._lock:
            self.timed_out += found is None
            self._known[a, b] = found
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found


_LARGEST_EXPONENT = 20_000
_shared: MathWorker | None = None
_shared_lock = threading.Lock()


def shared() -> MathWorker:
    """Return the worker of this process."""
    global _shared  # noqa: PLW0603  # one per process, made on first use
    with _shared_lock:
        if _shared is None:
            _shared = MathWorker()
            atexit.register(_shared.close)
        return _shared


def _after_fork() -> None:
    """Forget the parent's worker: a forked process has copies of its pipes but not the thread, and starts another worker."""
    global _shared, _shared_lock  # noqa: PLW0603  # as above
    _shared_lock = threading.Lock()
    if _shared is not None:
        atexit.unregister(_shared.close)
        _shared.forget()
        _shared = None


os.register_at_fork(after_in_child=_after_fork)
