"""Whose a server in the state folder is: several fleet files may name one folder, and their servers' names may be equal."""

from __future__ import annotations

from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.state import ServerState


def foreign_server(fleet: Fleet, server: str) -> ServerState | None:
    """The state of a server of that name of another fleet, which shares the state folder; None if there is none."""
    state = fleet.states.get(server)
    return None if state is None or fleet.owns(state) else state


def whose(fleet: Fleet, state: ServerState) -> str:
    """Say in a line whose server this is."""
    job = f", job {state.job_id}" if state.job_id else ""
    where = state.fleet_file or "another fleet file"
    return f"{state.server} is a server of {where}{job}, which shares the state folder {fleet.states.directory}"


def refuse_foreign(fleet: Fleet, server: str) -> None:
    """Raise `FleetError` if the state folder holds a server of that name of another fleet that is wanted or runs."""
    state = foreign_server(fleet, server)
    if state is None:
        return
    runs = any(e.server == server and e.fleet == state.fleet != "" for e in fleet.registry.entries())
    if state.wanted or runs:
        hint = "set `state` in one of the two fleet files to a folder of its own, or give the role another name"
        raise FleetError(whose(fleet, state), hint=hint, lasting=True)
