"""What runs a server, a process of this node or a SLURM job: whether it lives, and how it is started again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from workflow_composer.fleet.processes import stop_supervisor, supervisor
from workflow_composer.fleet.state import ServerState

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.state import How


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What runs a server. ``alive``: None where that cannot be seen from here.

    ``waiting`` says why it is left alone for now (its job is in the queue), ``foreign`` why it cannot be started again.
    """

    alive: bool | None = None
    waiting: str = ""
    foreign: str = ""


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

    def look(self, state: ServerState) -> Look:
        """Whether the supervisor that the state names still is one."""
        if state.node not in ("", self._node):
            foreign = f"it runs on node {state.node}, whose processes only a monitor there can start again"
            return Look(foreign=foreign)
        return Look(alive=supervisor(state.pid, state.server, state.started) is not None)

    def restart(self, state: ServerState) -> None:
        """Kill the supervisor, where it still is one, with its vLLM; start another."""
        from workflow_composer.fleet.local import start

        if process := supervisor(state.pid, state.server, state.started):
            stop_supervisor(process)
        start(self._fleet, state.server, options=state.options)


def node_name() -> str:
    """What this machine is called."""
    import socket

    return socket.gethostname()


def runners(fleet: Fleet) -> dict[How, Runner]:
    """Those of this machine."""
    return {"process": ProcessRunner(fleet, node_name())}
