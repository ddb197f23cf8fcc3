"""Equality of formulas by math-verify, in a worker process with a hard limit on the CPU time of each comparison.

Algebra may take forever or exhaust memory (9^{9^{9^9}}) in C code that signals cannot interrupt; and math-verify's own time
limits work only in the main thread, while this package's event loop may run in any thread. One worker process therefore
serves all threads and event loops of this process. One thread owns it: the thread takes comparisons one by one, waits,
kills the worker at the limit, and starts another when needed. The first comparison starts the worker, which takes about a
second and 70 MB.

Answers that strangers may have chosen (`Patience`: votes of the service) must not keep those of others waiting. A question
whose comparisons have taken `SLICE` seconds goes on in a second worker, where such questions take turns, and ends when its
whole time is used up. The first worker then has a spare one, so that a comparison killed there delays nobody.

The worker never outlives this process: it is killed when Python exits, and by the system when this process is killed.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from workflow_composer.errors import ConfigError, OutOfResources
from workflow_composer.support.installing import install_command
from workflow_composer.support.scarcity import lacking

if TYPE_CHECKING:
    from workflow_composer.answers.form import Patience

_PROGRAM = Path(__file__).with_name("math_worker.py")
_START_LIMIT = 120.0
_PATIENCE = 8.0
SLICE = 0.5
"""Seconds of CPU time after which the comparisons of a question with `Patience` go on in the second worker."""
_TICK = 0.02
"""Seconds: twice the resolution of the system's CPU times."""
_ATTEMPTS = 2
_PASSED_ON = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TMPDIR")


def installed() -> bool:
    """Whether math-verify is installed; does not import it."""
    return find_spec("math_verify") is not None


class Compared(Future[Any]):
    """The answer of a comparison. ``seconds`` is the CPU time that it took, also if it was stopped."""

    seconds = 0.0


class _Comparison(NamedTuple):
    a: str
    b: str | None
    limit: float
    answer: Compared


class _WorkerGone(Exception):
    """The worker exited, or was killed by another process."""


class MathWorker:
    """The worker process and the thread that owns it; one for all threads of a process.

    With ``keeps_spare``, a second process is started after the first comparison, to replace the worker at once.
    """

    def __init__(self) -> None:
        self.keeps_spare = False
        self._spare: subprocess.Popen[bytes] | None = None
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

    def submit(self, a: str, b: str, limit: float) -> Compared:
        """Compare two formulas; the result is None if that took more than ``limit`` seconds of CPU time, or all memory.

        A comparison whose future is cancelled before its turn is skipped. The future raises `ConfigError` if math-verify
        does not work.
        """
        return self._begin(a, b, limit)

    def value(self, formula: str, limit: float) -> Compared:
        """Evaluate a constant: numerator/denominator in hexadecimal, ``~`` and 20 digits, or False; None as in `submit`."""
        return self._begin(formula, None, limit)

    def _begin(self, a: str, b: str | None, limit: float) -> Compared:
        answer = Compared()
        self._waiting.append(_Comparison(a, b, limit, answer))
        os.write(self._wake_write, b".")
        return answer

    def close(self) -> None:
        """Kill the worker; no comparison is possible afterwards."""
        with self._lock:
            self._closed = True
            self._stop()
            if self._spare is not None:
                _end(self._spare)

    def forget(self) -> None:
        """Release what belongs to the parent, in a process forked from it."""
        for process in filter(None, (self._process, self._spare)):
            for file in filter(None, (process.stdin, process.stdout)):
                file.close()
            process.returncode = 0  # only the parent can wait for it
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
            if self.keeps_spare:
                self._prepare()

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
                before = _processor_time(process.pid)
                _send(process.stdin, question)
                answer = _receive(process.stdout, comparison.limit, process.pid)
                comparison.answer.seconds += (_processor_time(process.pid) or 0.0) - (before or 0.0)
                return answer if answer is None or isinstance(answer, str) else bool(answer)
            except TimeoutError:
                comparison.answer.seconds += comparison.limit
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
            self._process = process = self._spare or _started()
            self._spare = None
        try:
            hello = _receive(process.stdout, _START_LIMIT)
        except TimeoutError:
            hello = {"error": f"it did not start within {_START_LIMIT:g} s"}
        if "error" in hello:
            with self._lock:
                self._stop()
            raise ConfigError(f"cannot use math-verify: {hello['error']}", hint=install_command("batch"))
        return process

    def _prepare(self) -> None:
        """Start a spare worker; it loads its libraries while the other one works."""
        with self._lock:
            if self._spare is None and not self._closed:
                with suppress(OutOfResources):  # the next comparison may have more
                    self._spare = _started()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _end(process)


def _started() -> subprocess.Popen[bytes]:
    """Start a worker process. Raises `OutOfResources`."""
    try:
        process = subprocess.Popen(  # noqa: S603  # this Python and a file of this package
            [sys.executable, "-P", str(_PROGRAM), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,  # an interrupt from the terminal must not reach the worker
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},  # a parser needs no API keys
        )
    except OSError as error:
        reason = lacking(error) or error.strerror or str(error)
        raise OutOfResources(f"formulas cannot be compared: {reason}", hint="free memory or file descriptors") from None
    with suppress(_WorkerGone):  # whoever uses it will find out
        _send(process.stdin, sys.path)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for file in filter(None, (process.stdin, process.stdout)):
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

    async def same(self, a: str, b: str, patience: Patience | None = None) -> bool:
        """Whether two formulas are equal. Raises `ConfigError` if math-verify does not work."""
        return bool(await self._ask(min(a, b), max(a, b), patience))

    async def value(self, formula: str, patience: Patience | None = None) -> Constant | bool:
        """Return the value of a constant; False if it was given up, True for any other formula. Raises as `same` does."""
        found = await self._ask(formula, None, patience)
        if not isinstance(found, str):
            return found is not None
        if found.startswith("~"):
            rounded = found[1:]
            exponent = rounded.partition("e")[2]
            return Constant(Fraction(rounded), exact=False) if abs(int(exponent or 0)) <= _LARGEST_EXPONENT else False
        above, _, below = found.partition("/")
        return Constant(Fraction(int(above, 16), int(below, 16)), exact=True)

    async def _ask(self, a: str, b: str | None, patience: Patience | None) -> Any:
        with self._lock:
            if (a, b) in self._known:
                self._known.move_to_end((a, b))
                return self._known[a, b]
        if patience is None:
            found, is_final = (await _answered(shared(), a, b, self._limit))[0], True
        else:
            found, is_final = await self._in_turn(a, b, patience)
        with self._lock:
            self.timed_out += found is None
            if is_final:
                self._known[a, b] = found
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    async def _in_turn(self, a: str, b: str | None, patience: Patience) -> tuple[Any, bool]:
        """Return the answer within the question's time, and whether another question would get the same."""
        try:
            if patience.used < SLICE:
                worker = shared()
                worker.keeps_spare = True
                limit = min(SLICE, self._limit)
                found = await self._taken(worker, a, b, limit, patience)
                if found is not None or self._limit <= SLICE:
                    return found, True
            limit = min(self._limit, patience.seconds - patience.used)
            if limit <= 0.0:
                return None, False
            found = await self._taken(shared("slow"), a, b, limit, patience)
        except TimeoutError:  # the question's own time is up, which says nothing of the formulas
            return None, False
        return found, found is not None or limit >= self._limit

    async def _taken(self, worker: MathWorker, a: str, b: str | None, limit: float, patience: Patience) -> Any:
        """Return the worker's answer and count its time. Raises `TimeoutError` at the end of the question's own time.

        A comparison that waits for its turn is then withdrawn, and one under way ends soon: its limit is no longer either.
        """
        if (left := patience.left) <= 0.0:
            raise TimeoutError
        async with asyncio.timeout(None if math.isinf(left) else left):
            found, seconds = await _answered(worker, a, b, min(limit, left))
        patience.used += seconds
        if found is None and left < limit:
            raise TimeoutError
        return found


async def _answered(worker: MathWorker, a: str, b: str | None, limit: float) -> tuple[Any, float]:
    """Return the worker's answer, and the CPU time that it took."""
    asked = worker.value(a, limit) if b is None else worker.submit(a, b, limit)
    return await asyncio.wrap_future(asked), asked.seconds


_LARGEST_EXPONENT = 20_000
_shared: dict[str, MathWorker] = {}
_shared_lock = threading.Lock()


def shared(lane: Literal["usual", "slow"] = "usual") -> MathWorker:
    """Return the worker of this process for this lane; made on first use."""
    with _shared_lock:
        worker = _shared.get(lane)
        if worker is None:
            worker = _shared[lane] = MathWorker()
            atexit.register(worker.close)
        return worker


def _after_fork() -> None:
    """Forget the parent's worker: a forked process has copies of its pipes but not the thread, and starts another worker."""
    global _shared_lock  # noqa: PLW0603  # another thread may have held it
    _shared_lock = threading.Lock()
    for worker in _shared.values():
        atexit.unregister(worker.close)
        worker.forget()
    _shared.clear()


os.register_at_fork(after_in_child=_after_fork)
