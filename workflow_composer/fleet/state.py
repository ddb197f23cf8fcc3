"""What a fleet remembers of each of its servers: whether it should run, who runs it, and how it ended.

One JSON file per server. `fleet up`, `fleet down` and `fleet submit` say what is wanted, the process that runs the server
says how it goes, the monitor starts again what is wanted and does not answer. All of them change a file under its lock.
Clients read the registry instead (`backends.registry`): the state belongs to whoever runs the fleet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from workflow_composer.backends.registry import ROLE, shared_directory
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.storage.locks import WAIT, FileLock
from workflow_composer.storage.replacing import replace_file
from workflow_composer.storage.saved import read_saved, saved

How = Literal["process", "slurm"]
Status = Literal["starting", "ready", "draining", "stopped", "failed"]

STATE_VARIABLE = "WORKFLOW_COMPOSER_FLEET_STATE"
"""Another folder for the fleet's state."""


def state_directory(environ: Mapping[str, str], named: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the fleet's state: the environment's, else the one that a file names, else the user's own."""
    return shared_directory(environ, STATE_VARIABLE, named, "fleet")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """One server of the fleet. Times are seconds since 1970.

    ``wanted``: it should run, so the monitor starts it again. ``pid`` is the process that looks after it on ``node``
    (`supervisor`), ``job_id`` its SLURM job. ``detail`` says in one line why it failed or stopped. ``options`` are further
    vLLM options, ``fleet_file`` where its role stands: both are needed to start it again. ``restarts`` are the monitor's,
    ``failures`` those in a row of its SLURM job.
    """

    server: str
    role: str
    how: How = "process"
    wanted: bool = True
    status: Status = "starting"
    detail: str = ""
    node: str = ""
    pid: int = 0
    job_id: str = ""
    port: int = 0
    log: str = ""
    fleet_file: str = ""
    options: tuple[str, ...] = ()
    started: float = 0.0
    restarts: tuple[float, ...] = ()
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What runs a server. ``alive``: None where that cannot be seen from here.

    ``waiting`` says why it is left alone for now (its job is in the queue), ``foreign`` why it cannot be started again.
    """

    alive: bool | None = None
    waiting: str = ""
    foreign: str = ""


class StateStore:
    """The states in a folder. Raises `WorkflowComposerError` where it cannot be written to, and where another process holds
    a state's lock for ``wait`` seconds.
    """

    def __init__(self, directory: Path, *, wait: float = WAIT) -> None:
        self.directory = directory
        self._wait = wait

    def all(self) -> list[ServerState]:
        """Every server's state, by name."""
        if not self.directory.is_dir():
            return []
        found = (self.get(path.stem) for path in sorted(self.directory.glob("*.json")))
        return [state for state in found if state is not None]

    def get(self, server: str) -> ServerState | None:
        """A server's state; None where there is none that can be read."""
        with contextlib.suppress(OSError, ValueError):
            return read_saved(ServerState, self._path(server).read_bytes())
        return None

    def put(self, state: ServerState) -> ServerState:
        """Write a state whole."""
        with self._lock(state.server):
            self._write(state)
        return state

    def update(self, server: str, **changes: Any) -> ServerState | None:
        """Change some fields, under the file's lock; None where there is no such server."""
        with self._lock(server):
            state = self.get(server)
            if state is None:
                return None
            state = replace(state, **changes)
            self._write(state)
            return state

    def forgive(self, server: str) -> None:
        """Forget the monitor's restarts of a server: a person who starts it has looked."""
        state = self.get(server)
        if state is not None and state.restarts:
            self.update(server, restarts=())

    def _write(self, state: ServerState) -> None:
        with self._explained():
            replace_file(self._path(state.server), saved(state), mode=0o644)

    def _path(self, server: str) -> Path:
        if not ROLE.fullmatch(server):
            raise ValueError(f"not a server's name: {server!r}")
        return self.directory / f"{server}.json"

    @contextlib.contextmanager
    def _lock(self, server: str) -> Iterator[None]:
        lock = FileLock(self._path(server).with_suffix(".lock"))
        with self._explained():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.take(self._wait)
        with lock:
            yield

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WorkflowComposerError(
                f"the fleet's state in {self.directory} cannot be written: {error.strerror or error}",
                hint=remedy(
                    error, "it must be a folder of your own with space left; the fleet file's `state` names another"
                ),
            ) from error


def remedy(error: OSError, otherwise: str) -> str:
    """What to do where one of the fleet's files cannot be written: its lock is held for too long, or something else."""
    if isinstance(error, TimeoutError):
        return "it is held for milliseconds: whoever holds it for seconds was suspended, or hangs on its file system"
    return otherwise
