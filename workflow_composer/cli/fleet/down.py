"""``fleet down``: stop servers after their active requests have finished."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from workflow_composer.cli.fleet.group import fleet_option, open_fleet
from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json, print_table
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.cli.progress import Waiting
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.launch.local import Stopping
    from workflow_composer.fleet.slurm.submit import Cancelling

_TICK = 0.2


@click.command(epilog=examples("fleet down", "fleet down coder", "fleet down coder-2"))
@click.argument("roles", nargs=-1, metavar="[ROLE...]")
@fleet_option
@common_options
@click.pass_obj
def down(state: State, roles: tuple[str, ...], fleet_file: str | None) -> int:
    """Stop servers: all known ones, or those of the given roles. Active requests have the role's `drain_seconds` to finish.

    The monitor does not restart them. Exit code 1: a server could not be stopped from here; its line says why.
    """
    from workflow_composer.cli.progress import Waiting
    from workflow_composer.fleet.rebuild import rebuild

    fleet = open_fleet(state, fleet_file)
    rebuild(fleet)
    with Waiting(sys.stderr) as waiting:
        results = _stop(fleet, chosen(fleet, roles), waiting)
    if state.json:
        print_json(results)
    elif results:
        print_table(("server", "status"), [(result["server"], result["detail"]) for result in results])
    else:
        click.echo("no servers to stop")
    return 1 if any(result["status"] == "failed" for result in results) else 0


def chosen(fleet: Fleet, roles: tuple[str, ...]) -> tuple[str, ...]:
    """Return the chosen servers, including those whose role is not in the fleet file. Raises `FleetError`."""
    states = [state for state in fleet.states.all() if fleet.owns(state)]
    if not roles:
        return tuple(state.server for state in states)
    found: dict[str, None] = {}
    for role in roles:
        known = [state.server for state in states if role in (state.role, state.server)]
        # More replicas may be running than the fleet file defines now.
        found |= dict.fromkeys([*(fleet.servers((role,)) if not known else ()), *known])
    return tuple(found)


def _stop(fleet: Fleet, servers: tuple[str, ...], waiting: Waiting) -> list[dict[str, str]]:
    from workflow_composer.errors import WorkflowComposerError

    results: dict[str, dict[str, str]] = {}
    under_way: dict[str, Stopping | Cancelling] = {}
    for server in servers:
        try:
            under_way[server] = _stopping(fleet, server)
        except WorkflowComposerError as error:
            results[server] = {"server": server, "status": "failed", "detail": str(error)}
    begun = time.monotonic()
    while under_way:
        for server in [server for server, stopping in under_way.items() if stopping.poll()]:
            ended = under_way.pop(server)
            detail = "; ".join(["stopped" if ended.found else "not running", *ended.notes])
            results[server] = {"server": server, "status": "stopped", "detail": detail}
        if under_way:
            waiting.show(f"waiting for {', '.join(under_way)}: {time.monotonic() - begun:.0f} s")
            time.sleep(_TICK)
    return [results[server] for server in servers]


def _stopping(fleet: Fleet, server: str) -> Stopping | Cancelling:
    from workflow_composer.errors import FleetError
    from workflow_composer.fleet.launch.local import Stopping
    from workflow_composer.fleet.slurm.submit import Cancelling

    state = fleet.states.get(server)
    if state is not None and fleet.owns(state):
        return Cancelling(fleet, server, fleet.slurm) if state.how == "slurm" else Stopping(fleet, server)
    stopping = Stopping(fleet, server)
    if not stopping.found and shutil.which("squeue", path=fleet.environ.get("PATH")):
        with contextlib.suppress(FleetError):  # SLURM is installed here, but no cluster is in reach
            cancelling = Cancelling(fleet, server, fleet.slurm)
            cancelling.notes += stopping.notes
            return cancelling
    return stopping
