"""The one place in which people's programs run: within limits of time, memory, processes and output, and off the network.

`launcher.py` keeps a program in and ends it; this module gives it what it reads and takes what it writes. Whatever happens,
cancelling included, nothing is left behind: no process and no file.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import site
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_composer.errors import ProgramFault
from workflow_composer.types import EMPTY
from workflow_composer.workflows.definition.model import ProgramLimits
from workflow_composer.workflows.programs.outcome import ProgramOutcome

MOST_PROCESSES = 256
"""Processes that a program may have at a time."""
MOST_OUTPUT = 256 << 20
"""Bytes that a program may write to standard output and standard error; it is ended beyond."""
KEPT_OUTPUT, KEPT_ERRORS = 16 << 20, 64 << 10
"""Bytes of standard output and of standard error that are kept, from the end."""
_PATIENCE = 10.0
"""Seconds after which a launcher that does not end by itself is killed."""
_PIECE = 1 << 16
_LAUNCHER = Path(__file__).with_name("launcher.py")

PASSED_ON = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "SHELL", "TERM"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "JAVA_HOME"),
    *("NODE_PATH", "GOROOT", "R_HOME", "R_LIBS", "R_LIBS_USER", "R_LIBS_SITE", "PERL5LIB", "RUBYLIB", "MODULEPATH"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
)
"""Environment variables that programs get, with those that begin with ``LC_``. A model's code needs no API keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramJob:
    """What to run: arguments, bytes for standard input, and files (text) for its new folder."""

    argv: Sequence[str]
    given: bytes = b""
    files: Mapping[str, str] = field(default_factory=lambda: EMPTY)


async def run(job: ProgramJob, limits: ProgramLimits, folder: Path, private: bool) -> ProgramOutcome:
    """Run a program in a new folder and return how it ended.

    It uses no network if ``private``, or if ``limits`` do not allow one. Raises `ProgramFault` if it cannot be started, or
    cannot be kept off the network. ``folder`` is the workflow's.
    """
    try:
        place = Path(tempfile.mkdtemp(prefix="workflow-"))
        try:
            _write(job.files, place)
            return await _run(job, limits, folder, private, place)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise ProgramFault(f"the program could not be run: {error.strerror or error}") from None


def _write(files: Mapping[str, str], place: Path) -> None:
    (place / "work").mkdir()
    (place / "tmp").mkdir()
    for name, text in files.items():
        path = place / "work" / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ProgramFault(f"the file {name!r} would be outside the program's folder", started=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))


async def _run(job: ProgramJob, limits: ProgramLimits, folder: Path, private: bool, place: Path) -> ProgramOutcome:
    began = time.monotonic()
    told, tell = os.pipe()
    try:
        try:
            process = await _surely(_started(job, limits, folder, private, place, tell))
        finally:
            os.close(tell)
        output, errors = _Tail(KEPT_OUTPUT), _Tail(KEPT_ERRORS)
        try:
            too_much = await _attended(process, job.given, output, errors, limits.seconds)
        except BaseException:
            _signal(process, signal.SIGTERM)
            raise
        finally:
            await _ended(process)
        report = _report(told)
    finally:
        os.close(told)
    ended_by = report.get("ended_by")
    if "error" in report:
        _refuse(report, job, private)
    return ProgramOutcome(
        exit_code=report["status"] if report.get("status") is not None else -9,
        output=output.text(),
        errors=errors.text(),
        seconds=time.monotonic() - began,
        ended_by="output" if too_much else "time" if ended_by == "asked" else ended_by,
        written=output.count,
        shortened=output.count > KEPT_OUTPUT,
    )


async def _surely(start: Coroutine[Any, Any, Process]) -> Process:
    """Start a launcher; if that is cancelled, end it first: not every event loop ends what it has half started."""
    starting = asyncio.ensure_future(start)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with suppress(OSError):
            process = await starting
            _signal(process, signal.SIGTERM)
            await _ended(process)
        raise


async def _started(job: ProgramJob, limits: ProgramLimits, folder: Path, private: bool, place: Path, tell: int) -> Process:
    asked = {
        "argv": list(job.argv),
        "seconds": limits.seconds,
        "memory": limits.memory,
        "processes": MOST_PROCESSES,
        "network": limits.network,
        "private": private,
        "parent": os.getpid(),
        "report": tell,
        "folder": str(place),
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(asked)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=place / "work",
        env=_environment(folder, place),
        pass_fds=(tell,),
        start_new_session=True,  # an interrupt from the terminal must not reach the program: the run decides what it means
    )


def _environment(folder: Path, place: Path) -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith("LC_")}
    path = [str(folder.absolute()), *filter(None, [found.get("PYTHONPATH")])]
    if user := site.getuserbase():
        found["PYTHONUSERBASE"] = user
    return found | {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "utf-8",
        "TMPDIR": str(place / "tmp"),
        "WORKFLOW_FOLDER": str(folder.absolute()),
    }


class _Tail:
    """The end of what a program writes."""

    def __init__(self, most: int) -> None:
        self.count = 0
        self._most = most
        self._kept = bytearray()

    def add(self, data: bytes) -> None:
        self.count += len(data)
        self._kept += data
        if len(self._kept) > 2 * self._most:
            del self._kept[: -self._most]

    def text(self) -> str:
        """Return it as text; what is no UTF-8 is replaced."""
        return bytes(self._kept[-self._most :]).decode("utf-8", "replace")


async def _attended(process: Process, given: bytes, output: _Tail, errors: _Tail, seconds: float) -> bool:
    """Feed the program and read what it writes until it ends; return whether it wrote too much.

    The launcher ends the program at its time limit; this is for a launcher that does not get a processor.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    too_much = asyncio.Event()

    async def read(stream: asyncio.StreamReader, into: _Tail) -> None:
        while data := await stream.read(_PIECE):
            into.add(data)
            if output.count + errors.count > MOST_OUTPUT and not too_much.is_set():
                too_much.set()
                _signal(process, signal.SIGTERM)

    try:
        async with asyncio.timeout(seconds + _PATIENCE), asyncio.TaskGroup() as group:
            group.create_task(read(process.stdout, output))
            group.create_task(read(process.stderr, errors))
            group.create_task(_feed(process.stdin, given))
    except TimeoutError:
        _signal(process, signal.SIGTERM)
    return too_much.is_set()


async def _feed(stream: asyncio.StreamWriter, given: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.write(given)
        await stream.drain()
    stream.close()


async def _ended(process: Process) -> None:
    """Wait for the launcher, which ends the program first; it has been told to, or has closed its output."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await process.wait()
    except BaseException as error:
        _signal(process, signal.SIGKILL)
        if not isinstance(error, TimeoutError):
            raise
        await process.wait()


def _signal(process: Process, number: int) -> None:
    """Send a signal. `Process.terminate` would also collect the process, which asyncio's own watcher waits for."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _report(told: int) -> dict[str, Any]:
    """Return what the launcher says; nothing if it was killed itself."""
    os.set_blocking(told, False)
    with suppress(BlockingIOError, ValueError):
        found: dict[str, Any] = json.loads(os.read(told, _PIECE) or b"{}")
        return found
    return {}


def _refuse(report: Mapping[str, Any], job: ProgramJob, private: bool) -> None:
    if report.get("network"):
        raise ProgramFault(
            f"the program cannot be kept off the network here: {report['error']}",
            hint="allow it the network in the step (trusted: true, and in the profile)"
            if private
            else "allow it the network in the step: limits: {network: any}",
            started=False,
        )
    hint = ""
    if report.get("number") in (8, 13):
        hint = "make the file executable (chmod +x), or name its interpreter first: [python, FILE]"
    raise ProgramFault(f"cannot run {Path(job.argv[0]).name}: {report['error']}", hint=hint, started=False)
