"""What runs a server, a process of this node or a SLURM job: whether it lives, and how it is started again."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Protocol

from workflow_composer.errors import FleetError
from workflow_composer.fleet.processes import command_line, stop_supervisor, supervisor
from workflow_composer.fleet.slurm import Slurm
from workflow_composer.fleet.slurm_runner import SlurmRunner
from workflow_composer.fleet.state import Look, ServerState

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.local import Starting
    from workflow_composer.fleet.state import How

PREFLIGHT = 60.0
"""Seconds in which a start that cannot succeed is expected to say so; the rest is waited for by later rounds."""
_TICK = 0.2


class Runner(Protocol):
    """Processes, or SLURM."""

    def look(self, state: ServerState) -> Look:
        """See whether the server's runner lives."""
        ...

    def restart(self, state: ServerState) -> None:
        """End what is left of the server and start it again; does not wait until it answers.

        Raises `WorkflowComposerError` with the reason where it cannot be started.
        """
        ...


class ProcessRunner:
    """Supervisors on this node."""

    def __init__(self, fleet: Fleet, node: str) -> None:
        self._fleet = fleet
        self._node = node
        self._started: dict[str, Starting] = {}

    def look(self, state: ServerState) -> Look:
        """Whether the supervisor that the state names still is one."""
        if state.node not in ("", self._node):
            foreign = f"it runs on node {state.node}, whose processes only a monitor there can start again"
            return Look(foreign=foreign)
        return Look(alive=supervisor(state.pid, state.server, state.started) is not None)

    def restart(self, state: ServerState) -> None:
        """Kill the supervisor, where it still is one, with its vLLM; start another, unless it was stopped meanwhile."""
        from workflow_composer.fleet.local import Starting

        server = state.server
        if process := supervisor(state.pid, server, state.started):
            resigns = "--keep-wanted" not in command_line(process.pid)
            stop_supervisor(process)
            if resigns:  # one that somebody started by hand takes a signal for that person's wish
                self._fleet.states.update(server, wanted=True)
        now = self._fleet.states.get(server)
        if now is None or not now.wanted:
            raise FleetError("it was stopped on purpose meanwhile")
        begun = time.time()
        # Held, so that its end is noticed: a child that nobody waits for stays a zombie.
        starting = self._started[server] = Starting(self._fleet, server, options=state.options, port=state.port or None)
        while not self._under_way(starting, begun) and starting.seconds < PREFLIGHT:
            time.sleep(_TICK)

    def _under_way(self, starting: Starting, begun: float) -> bool:
        """Whether vLLM has been started. Raises `FleetError` where it cannot be: a port is taken, memory is short."""
        state = self._fleet.states.get(starting.server)
        return starting.poll() is not None or (state is not None and state.started >= begun)


def node_name() -> str:
    """What this machine is called."""
    return os.uname().nodename


def runners(fleet: Fleet) -> dict[How, Runner]:
    """Processes of this machine, and SLURM's jobs."""
    return {"process": ProcessRunner(fleet, node_name()), "slurm": SlurmRunner(fleet, Slurm(fleet.environ))}
