"""Servers of this machine: which one is meant, started in the background and waited for, stopped."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.holding import Holder, Holding
from workflow_composer.fleet.process import log_path
from workflow_composer.fleet.reasons import last_line
from workflow_composer.fleet.settings import RoleSpec
from workflow_composer.fleet.state import ServerState
from workflow_composer.fleet.supervisor import STOPPING, Place
from workflow_composer.names import nearest

BARE_PORT = 8000
"""The port of a model that is no role of the fleet file: vLLM's own default."""
LISTEN = "127.0.0.1"
_SLACK = 30.0
"""Seconds beyond the limits that the supervisor itself keeps."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server that is to run: ``in_file`` says whether its role stands in the fleet file."""

    server: str
    role: RoleSpec
    place: Place
    in_file: bool


def target(fleet: Fleet, name: str, *, port: int | None = None) -> Target:
    """What a role, a server's name, a model's id or a folder means. Raises `FleetError`."""
    try:
        role, usual = fleet.find(name)
        server, in_file = name, True
    except FleetError:
        if "/" not in name and not name.startswith(".") and nearest(name, fleet.settings.roles):
            raise
        role, usual, in_file = bare_role(name), BARE_PORT, False
        server = role.name
    listen = fleet.settings.listen or LISTEN
    # Who listens everywhere is found under its node's name.
    host = os.uname().nodename if listen in ("0.0.0.0", "::", "") else listen  # noqa: S104  # compared, not bound
    return Target(server, role, Place(port=port or usual, listen=listen, host=host), in_file)


def bare_role(model: str) -> RoleSpec:
    """A role made on the spot for a model. Raises `FleetError` where its folder is not there."""
    place = Path(os.path.abspath(os.path.expanduser(model)))  # noqa: PTH100, PTH111  # no error without a home
    if place.is_dir():
        served, model = place.name, str(place)
    elif model.startswith((".", "/", "~")):
        raise FleetError(f"there is no folder {place}", hint="name a role of the fleet file, a model's id or a folder")
    else:
        served = model
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", model.rstrip("/").rpartition("/")[2]).lstrip("-._")[:64]
    return RoleSpec(name=name or "model", model=model, served_name=served, port=BARE_PORT)


def holder(fleet: Fleet, server: str) -> Holder | None:
    """The process that looks after a server now; None where nobody does."""
    return Holding(fleet.states.directory, server).holder()


# ---------------------------------------------------------------------------------------------------------------- starting


class Starting:
    """A server that was asked to start in the background. `poll` says how it goes; many can be waited for together."""

    def __init__(self, fleet: Fleet, server: str, *, options: Sequence[str] = (), port: int | None = None) -> None:
        """Start its supervisor, unless somebody looks after the server already. Raises `FleetError`."""
        self.fleet = fleet
        self.target = target(fleet, server, port=port)
        self.server = self.target.server
        self._begun = time.monotonic()
        self._child: _Child | None = None
        self.found = holder(fleet, self.server)
        if self.found is None:
            _refuse_beside_job(fleet, self.server)
            self._child = _spawn(fleet, server, self.server, options, port)

    @property
    def seconds(self) -> float:
        """For how long it has been waited for."""
        return time.monotonic() - self._begun

    def poll(self) -> ServerState | None:
        """Its state once it is ready; None while it starts. Raises `FleetError` where it has failed."""
        state = self.fleet.states.get(self.server)
        child = self._child
        if child is not None and child.ended():
            other = holder(self.fleet, self.server)
            if other is None:
                raise FleetError(f"{self.server} has not started: {self._why(state)}", hint=f"its log: {self._log}")
            self.found, self._child = other, None  # another was quicker; this one waits with it
        elif child is None and holder(self.fleet, self.server) is None:
            raise FleetError(f"{self.server} has not started: {self._why(state)}", hint=f"its log: {self._log}")
        mine = child is None or (state is not None and state.pid == child.pid)
        if state is not None and state.status == "ready" and mine:
            return state
        if self.seconds > self.target.role.start_seconds + _SLACK:
            raise FleetError(f"{self.server} is not ready after {self.seconds:.0f} s", hint=f"its log: {self._log}")
        return None

    def last_line(self) -> str:
        """What its log says last."""
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
        return self.last_line() or "its supervisor has ended"


def _refuse_beside_job(fleet: Fleet, server: str) -> None:
    """A server that runs as a SLURM job is not started a second time here."""
    for entry in fleet.registry.entries():
        if entry.server == server and entry.job_id:
            raise FleetError(
                f"{server} runs already: as SLURM job {entry.job_id} on {entry.node or entry.host}",
                hint=f"use that, or `fleet down {server}` first",
            )


class _Child:
    """A process of a session of its own, which goes on when this one ends; so there is nothing to close."""

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
    """Its supervisor, in the background, with its complaints in the server's log."""
    command = [
        sys.executable,
        "-m",
        "workflow_composer",
        "fleet",
        "serve",
        named,
        "--keep-wanted",
        "--fleet",
        str(fleet.path),
    ]
    command += ["--port", str(port)] if port else []
    command += ["--", *options] if options else []
    log = log_path(fleet.logs, server)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return _Child(command, fleet.environ, log)
    except OSError as error:
        raise FleetError(
            f"{server} cannot be started: {log}: {error.strerror}", hint="`logs` names another folder"
        ) from error


# ---------------------------------------------------------------------------------------------------------------- stopping


class Stopping:
    """A server that was asked to stop. `poll` says whether it has."""

    def __init__(self, fleet: Fleet, server: str, *, wanted: bool = False) -> None:
        """Ask its supervisor to drain it and end. ``wanted``: it shall be started again. Raises `FleetError`."""
        self.fleet = fleet
        self.server = server
        self._begun = time.monotonic()
        self._urged = False
        self.holder = holder(fleet, server)
        state = fleet.states.update(server, wanted=wanted)
        self._drain = _drain_seconds(fleet, server)
        if self.holder is None:
            if state is not None and state.status in ("starting", "ready", "draining") and state.how == "process":
                # Its supervisor has been killed or its machine has gone; the guard has ended what it ran.
                fleet.states.update(server, status="stopped", pid=0, detail="its supervisor has ended without a word")
            return
        if not self.holder.here or not self.holder.pid:
            where = self.holder.node or "another machine"
            raise FleetError(f"{server} runs on {where}", hint=f"log in to {where} and run `fleet down {server}` there")
        self._signal(signal.SIGTERM)

    @property
    def found(self) -> bool:
        """Whether anybody looked after it."""
        return self.holder is not None

    def poll(self) -> bool:
        """Whether it has stopped. A supervisor that does not keep its own limits is ended."""
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
            raise FleetError(f"{self.server} is another user's: process {self.holder.pid if self.holder else 0}") from None


def _drain_seconds(fleet: Fleet, server: str) -> float:
    try:
        return fleet.find(server)[0].drain_seconds
    except FleetError:  # a model that is no role
        return bare_role("model").drain_seconds
