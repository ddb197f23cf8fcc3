"""The vLLM process: started through its guard, its output logged, stopped together with its child processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from workflow_composer.errors import FleetError
from workflow_composer.fleet.launch import guard
from workflow_composer.storage.replacing import set_aside

# --------------------------------------------------------------------------------------------------------------------- log
#
# A server's log: bounded in size; writing continues after disk errors.


LARGEST = 50 * 1000 * 1000
"""Size in bytes at which a log is rotated to ``NAME.log.1``."""
TAIL = 64 * 1024
"""Bytes of the end that are kept in memory, so that the cause of a failure is known even if the disk is full."""


class ServerLog:
    """An append-only log. Data that cannot be written is lost; the log notes that as soon as it can be written again."""

    def __init__(self, path: Path, *, largest: int = LARGEST) -> None:
        """Open the log. Raises `FleetError` if it cannot be created."""
        self.path = path
        self._largest = largest
        self._tail = b""
        self._lost = 0
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._set_aside()
            self._file = self._open()
        except OSError as error:
            raise FleetError(f"the log {path} cannot be written: {error.strerror}") from error

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Append output of the server."""
        with self._lock:
            self._tail = (self._tail + data)[-TAIL:]
            self._append(data)

    def say(self, text: str) -> None:
        """Append a line of the supervisor, marked [fleet]."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} [fleet] {text}\n"
        with self._lock:
            self._append(line.encode())

    def _append(self, data: bytes) -> None:
        note = f"[fleet] {self._lost} bytes of this log were lost: it could not be written\n".encode() if self._lost else b""
        try:
            if os.fstat(self._file).st_size > self._largest:
                self._begin_anew()
            written = os.write(self._file, note + data)
        except OSError:
            self._lost += len(data)
            return
        self._lost = max(0, len(note) + len(data) - written) if written >= len(note) else self._lost + len(data)

    def _begin_anew(self) -> None:
        self._set_aside()
        fresh = self._open()
        os.close(self._file)
        self._file = fresh

    def _set_aside(self) -> None:
        if self.path.exists() and self.path.stat().st_size > self._largest:
            set_aside(self.path, f"{self.path.name}.1")

    @property
    def tail(self) -> str:
        """The end of the server's output."""
        with self._lock:
            return self._tail.decode("utf-8", "replace")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1


CHUNK = 1 << 16


class ServerProcess:
    """A command run by a guard. This process copies its output to the log, so that a full disk does not stop it."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], log: ServerLog) -> None:
        """Start it. Raises `FleetError` if the system cannot start it."""
        watched, self._watch = os.pipe()
        reported, report = os.pipe()
        try:
            self._guard = subprocess.Popen(  # noqa: S603  # no shell; the fleet file's command runs as the user
                [sys.executable, "-I", "-S", guard.__file__, str(watched), str(report), *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                cwd=log.path.parent,
                pass_fds=(watched, report),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._watch)
            os.close(reported)
            raise FleetError(f"vLLM's guard cannot be started: {error.strerror}") from error
        finally:
            os.close(watched)
            os.close(report)
        self.pid = self._reported(reported)
        self._pump = threading.Thread(target=self._copy, args=(log,), daemon=True)
        self._pump.start()

    def _reported(self, descriptor: int) -> int:
        with os.fdopen(descriptor, "rb") as report:
            said = report.readline().decode(errors="replace").strip()
        if said.isdigit():
            return int(said)
        self._guard.wait()
        os.close(self._watch)
        if self._guard.stdout is not None:
            self._guard.stdout.close()
        raise FleetError(f"vLLM cannot be started: {said.removeprefix('! ') or 'its guard exited'}")

    def _copy(self, log: ServerLog) -> None:
        output = self._guard.stdout
        assert output is not None, "stdout is a pipe"
        with output, contextlib.suppress(OSError, ValueError):
            while data := os.read(output.fileno(), CHUNK):
                log.write(data)

    def ended(self) -> int | None:
        """The exit code (128 + signal), or None while it runs. Its child processes have ended with it."""
        code = self._guard.poll()
        if code is None:
            return None
        if code < 0:  # the guard itself was killed
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            code = 128 - code
        self._pump.join(timeout=2)
        return code

    def stop(self, patience: float) -> int:
        """Send SIGTERM, and SIGKILL after ``patience`` seconds; return the exit code."""
        self._say(b"T")
        if self._wait(patience) is None:
            self.kill()
        return self.ended() or 0

    def kill(self) -> None:
        """Kill it and its child processes."""
        self._say(b"K")
        if self._wait(10) is None:
            self._guard.kill()
            self._guard.wait()

    def close(self) -> None:
        """Kill it if it still runs, and close the descriptors."""
        if self._guard.poll() is None:
            self.kill()
        self.ended()
        with contextlib.suppress(OSError):
            os.close(self._watch)
        self._watch = -1

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._watch, word)

    def _wait(self, seconds: float) -> int | None:
        ends = time.monotonic() + seconds
        while (code := self.ended()) is None and time.monotonic() < ends:
            time.sleep(0.05)
        return code


def log_path(folder: Path, server: str) -> Path:
    """The path of a server's log."""
    return folder / f"{server}.log"
