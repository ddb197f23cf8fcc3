"""The fleet's state of each server: whether it should run, which process or job runs it, and how it ended.

One JSON file per server. `fleet up`, `fleet down` and `fleet submit` set whether it is wanted, its supervisor records the
status, and the monitor restarts wanted servers that do not respond. All of them change a file under its lock.
Clients read the registry instead (`backends.registry`); the state is for those who operate the fleet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from workflow_composer.backends.replicas.registry import ROLE, shared_directory
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.fleet.places import STATE, STATE_VARIABLE
from workflow_composer.storage.locks import WAIT, FileLock
from workflow_composer.storage.replacing import replace_file
from workflow_composer.storage.saved import read_saved, saved

How = Literal["process", "slurm"]
Status = Literal["starting", "ready", "draining", "stopped", "failed"]


def state_directory(environ: Mapping[str, str], named: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the fleet's state: from the environment, else from the fleet file, else the user's default."""
    return shared_directory(environ, STATE_VARIABLE, named, STATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """One server of the fleet. Times are Unix times.

    ``wanted``: it should run, so the monitor restarts it. ``pid`` is its supervisor on ``node``, ``job_id`` its SLURM job.
    ``detail`` says in one line why it failed or stopped. ``options`` are additional vLLM options, ``fleet_file`` defines its
    role; a restart needs both. ``restarts``: times of the monitor's restarts; ``failures``: failures of its SLURM job in a
    row. ``fleet`` is the fleet's id, ``cluster`` the SLURM cluster of ``job_id``; ``model``, ``task`` and ``api_key_env``
    are those with which it was started: the fleet file may have been edited. All are empty in states of earlier versions.
    ``lasting``: it failed by a fault that a restart does not cure.
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
    fleet: str = ""
    cluster: str = ""
    lasting: bool = False
    model: str = ""
    task: str = ""
    api_key_env: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What runs a server. ``alive``: None where that cannot be seen from here.

    ``waiting`` says why it is left alone for now (its job is in the queue), ``foreign`` why it cannot be started again,
    ``ended`` how its job has ended, if the job could not say so itself.
    """

    alive: bool | None = None
    waiting: str = ""
    foreign: str = ""
    ended: str = ""


class StateStore:
    """The states in a folder. Raises `WorkflowComposerError` if it is not writable, or if another process holds a state's
    lock for ``wait`` seconds.
    """

    def __init__(self, directory: Path, *, wait: float = WAIT) -> None:
        self.directory = directory
        self._wait = wait

    def all(self) -> list[ServerState]:
        """All states, sorted by server name."""
        if not self.directory.is_dir():
            return []
        found = (self.get(path.stem) for path in sorted(self.directory.glob("*.json")))
        return [state for state in found if state is not None]

    def get(self, server: str) -> ServerState | None:
        """Return a server's state; None if it is missing or damaged."""
        with contextlib.suppress(OSError, ValueError):
            return read_saved(ServerState, self._path(server).read_bytes())
        return None

    def put(self, state: ServerState) -> ServerState:
        """Write a complete state."""
        with self._lock(state.server):
            self._write(state)
        return state

    def update(self, server: str, **changes: Any) -> ServerState | None:
        """Change some fields, under the file's lock; return None if the server has no state."""
        with self._lock(server):
            state = self.get(server)
            if state is None:
                return None
            state = replace(state, **changes)
            self._write(state)
            return state

    def forgive(self, server: str) -> None:
        """Clear a server's count of restarts: it was started by a person."""
        state = self.get(server)
        if state is not None and state.restarts:
            self.update(server, restarts=())

    def _write(self, state: ServerState) -> None:
        with self._explained():
            replace_file(self._path(state.server), saved(state), mode=0o644)

    def _path(self, server: str) -> Path:
        if not ROLE.fullmatch(server):
            raise ValueError(f"invalid server name: {server!r}")
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
                    error, "it must be a folder that you own, with free space; set `state` in the fleet file to another"
                ),
            ) from error


def remedy(error: OSError, otherwise: str) -> str:
    """The hint for a fleet file that cannot be written: ``otherwise``, unless its lock was held for too long."""
    if isinstance(error, TimeoutError):
        return "the lock is normally held for milliseconds; the process that holds it is suspended or its file system hangs"
    return otherwise
