"""Servers on this machine: resolve a name, start in the background, wait, stop."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow_composer.errors import FleetError, nearest
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.launch.exit_reasons import last_line
from workflow_composer.fleet.launch.process import log_path
from workflow_composer.fleet.launch.supervisor import STOPPING, ListenPlace
from workflow_composer.fleet.launch.supervisor_lock import Holder, Holding
from workflow_composer.fleet.ownership import foreign_server, refuse_foreign, whose
from workflow_composer.fleet.processes import supervisor
from workflow_composer.fleet.settings import RoleSpec, short_names
from workflow_composer.fleet.state import ServerState
from workflow_composer.support.own_program import own_command

BARE_PORT = 8000
"""Port of a model that is not a role of the fleet file: vLLM's default."""
LISTEN = "127.0.0.1"
_SLACK = 30.0
"""Seconds to wait beyond the supervisor's own time limits."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server to run; ``in_file``: its role is defined in the fleet file."""

    server: str
    role: RoleSpec
    place: ListenPlace
    in_file: bool


def target(fleet: Fleet, name: str, *, port: int | None = None) -> LocalServer:
    """Resolve a role, a server name, a model id or a folder. Raises `FleetError`."""
    try:
        role, usual = fleet.find(name)
        server, in_file = name, True
    except FleetError:
        if "/" not in name and not name.startswith(".") and nearest(name, fleet.settings.roles):
            raise
        role, usual, in_file = bare_role(name), BARE_PORT, False
        server = role.name
    listen = fleet.settings.listen or LISTEN
    # A server that listens on all addresses is published under its node's name.
    host = os.uname().nodename if listen in ("0.0.0.0", "::", "") else listen  # noqa: S104  # compared, not bound
    return LocalServer(server, role, ListenPlace(port=port or usual, listen=listen, host=host), in_file)


def bare_role(model: str) -> RoleSpec:
    """Return an ad-hoc role for a model. Raises `FleetError` if its folder does not exist."""
    place = Path(os.path.abspath(os.path.expanduser(model)))  # noqa: PTH100, PTH111  # no error without a home
    if place.is_dir():
        served, model = place.name, str(place)
    elif model.startswith((".", "/", "~")):
        raise FleetError(f"no such folder: {place}", hint="give a role of the fleet file, a model id or an existing folder")
    else:
        served = model
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", model.rstrip("/").rpartition("/")[2]).lstrip("-._")[:64]
    return RoleSpec(name=name or "model", model=model, served_name=served, aliases=short_names(served), port=BARE_PORT)


def holder(fleet: Fleet, server: str) -> Holder | None:
    """Return the process that supervises a server now; None if there is none."""
    return Holding(fleet.states.directory, server).holder() or _by_entry(fleet, server)


def _by_entry(fleet: Fleet, server: str) -> Holder | None:
    """The supervisor that the server's registry entry names: its lock is gone if the state folder was deleted."""
    here = os.uname().nodename
    for entry in fleet.registry.entries():
        mine = entry.server == server and not entry.job_id and entry.fleet and fleet.owns(entry)
        if mine and (entry.node != here or supervisor(entry.pid, server, entry.started)):
            return Holder(entry.pid, entry.node)
    return None


# ---------------------------------------------------------------------------------------------------------------- starting


class Starting:
    """A server starting in the background. Poll it with `poll`; several can be waited for together."""

    def __init__(self, fleet: Fleet, server: str, *, options: Sequence[str] = (), port: int | None = None) -> None:
        """Start a supervisor unless the server already has one. Raises `FleetError`."""
        self.fleet = fleet
        self.target = target(fleet, server, port=port)
        self.server = self.target.server
        self._begun = time.monotonic()
        self._child: _Child | None = None
        refuse_foreign(fleet, self.server)
        self.found = holder(fleet, self.server)
        if self.found is None:
            _refuse_beside_job(fleet, self.server)
            self._child = _spawn(fleet, server, self.server, options, port)

    @property
    def seconds(self) -> float:
        """Seconds waited so far."""
        return time.monotonic() - self._begun

    def poll(self) -> ServerState | None:
        """Return the state once the server is ready; None while it starts. Raises `FleetError` if it has failed."""
        state = self.fleet.states.get(self.server)
        child = self._child
        if child is not None and child.ended():
            other = holder(self.fleet, self.server)
            if other is None:
                raise FleetError(f"{self.server} has not started: {self._why(state)}", hint=f"its log: {self._log}")
            self.found, self._child = other, None  # another process started it first; wait for that one
        elif child is None and holder(self.fleet, self.server) is None:
            raise FleetError(f"{self.server} has not started: {self._why(state)}", hint=f"its log: {self._log}")
        mine = child is None or (state is not None and state.pid == child.pid)
        if state is not None and state.status == "ready" and mine:
            return state
        if self.seconds > self.target.role.start_seconds + _SLACK:
            raise FleetError(f"{self.server} is not ready after {self.seconds:.0f} s", hint=f"its log: {self._log}")
        return None

    def last_line(self) -> str:
        """The last line of its log."""
        try:
            with self._log.open("rb") as file:
                file.seek(max(0, self._log.stat().st_size - 4000))
                return last_line(file.read().decode("utf-8", "replace"))
        except OSError:
            return ""

    @property
    def _log(self) -> Path:
        return log_path(self.fleet.logs, self.server)

    def _why(self, state: ServerState | None) -> str:
        if state is not None and state.status in ("failed", "stopped"):
            return state.detail or "it was stopped"
        return self.last_line() or "its supervisor exited"


def _refuse_beside_job(fleet: Fleet, server: str) -> None:
    """Raise `FleetError` if the server already runs as a SLURM job."""
    for entry in fleet.registry.entries():
        if entry.server == server and entry.job_id and fleet.owns(entry):
            raise FleetError(
                f"{server} is already running as SLURM job {entry.job_id} on {entry.node or entry.host}",
                hint=f"use that one, or stop it first: `fleet down {server}`",
            )


class _Child:
    """A process in a new session; it keeps running when this process ends, so there is nothing to close."""

    def __init__(self, command: list[str], environ: Mapping[str, str], errors: Path) -> None:
        quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
        log = (os.POSIX_SPAWN_OPEN, 2, str(errors), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.pid = os.posix_spawn(command[0], command, environ, file_actions=[*quiet, log], setsid=True)

    def ended(self) -> bool:
        """Whether it has ended."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        except ChildProcessError:
            return True


def _spawn(fleet: Fleet, named: str, server: str, options: Sequence[str], port: int | None) -> _Child:
    """Start the supervisor in the background; its standard error goes to the server's log."""
    command = own_command(
        "workflow_composer.cli.main", ["fleet", "serve", named, "--keep-wanted", "--fleet", str(fleet.path)]
    )
    command += ["--port", str(port)] if port else []
    command += ["--", *options] if options else []
    log = log_path(fleet.logs, server)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return _Child(command, fleet.environ, log)
    except OSError as error:
        raise FleetError(
            f"{server} cannot be started: {log}: {error.strerror}", hint="set `logs` to a writable folder"
        ) from error


# ---------------------------------------------------------------------------------------------------------------- stopping


class Stopping:
    """A server that is being stopped; `poll` says whether it has stopped.

    ``notes``: a line if another fleet has a server of that name.
    """

    def __init__(self, fleet: Fleet, server: str, *, wanted: bool = False) -> None:
        """Ask its supervisor to drain and exit. ``wanted``: the monitor should restart it. Raises `FleetError`."""
        self.fleet = fleet
        self.server = server
        self._begun = time.monotonic()
        self._urged = False
        self.notes: list[str] = []
        self.holder: Holder | None = None
        if foreign := foreign_server(fleet, server):
            self.notes.append(f"{whose(fleet, foreign)}: left alone")
            return
        self.holder = holder(fleet, server)
        state = fleet.states.update(server, wanted=wanted)
        self._drain = _drain_seconds(fleet, server)
        if self.holder is None:
            if state is not None and state.status in ("starting", "ready", "draining") and state.how == "process":
                # The supervisor was killed or its machine is gone; the guard has ended its processes.
                fleet.states.update(server, status="stopped", pid=0, detail="its supervisor was killed")
            return
        if not self.holder.here or not self.holder.pid:
            where = self.holder.node or "another machine"
            raise FleetError(f"{server} runs on {where}", hint=f"run `fleet down {server}` on {where}")
        self._signal(signal.SIGTERM)

    @property
    def found(self) -> bool:
        """Whether the server had a supervisor."""
        return self.holder is not None

    def poll(self) -> bool:
        """Whether it has stopped; kills a supervisor that exceeds its own time limits."""
        if self.holder is None or holder(self.fleet, self.server) != self.holder:
            return True
        if not self._urged and time.monotonic() - self._begun > self._drain + STOPPING + _SLACK:
            self._urged = True
            self._signal(signal.SIGKILL)
        return False

    def _signal(self, number: signal.Signals) -> None:
        try:
            if self.holder is not None:
                os.kill(self.holder.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            raise FleetError(
                f"{self.server} belongs to another user: process {self.holder.pid if self.holder else 0}"
            ) from None


def _drain_seconds(fleet: Fleet, server: str) -> float:
    try:
        return fleet.find(server)[0].drain_seconds
    except FleetError:  # a model that is not a role
        return bare_role("model").drain_seconds
