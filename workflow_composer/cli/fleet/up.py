"""``fleet up``: start servers on this machine and wait for them."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.fleet.group import fleet_option, open_fleet
from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json, print_table
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.cli.progress import Waiting
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.launch.local import Starting
    from workflow_composer.fleet.state import ServerState

_TICK = 0.2


@click.command(epilog=examples("fleet up", "fleet up coder math", "fleet up coder --dry-run"))
@click.argument("roles", nargs=-1, metavar="[ROLE...]")
@click.option("--dry-run", is_flag=True, help="Print the exact commands and start nothing.")
@fleet_option
@common_options
@click.pass_obj
def up(state: State, roles: tuple[str, ...], dry_run: bool, fleet_file: str | None) -> int:
    """Start servers on this machine, those of the given roles or all but `on_request`, and wait until they are ready.

    They keep running when this command ends; after Ctrl-C they continue to start. A server that is already running is kept
    as it is. Exit code 1: a server did not start; its line says why.
    """
    fleet = open_fleet(state, fleet_file)
    servers = fleet.to_start(roles)
    if dry_run:
        return _dry_run(state, fleet, servers)
    from workflow_composer.cli.progress import Waiting
    from workflow_composer.fleet.rebuild import rebuild

    rebuild(fleet)
    with Waiting(sys.stderr) as waiting:
        results = _wait(fleet, servers, waiting)
    failed = [result for result in results if result["status"] != "ready"]
    if state.json:
        print_json(results)
        return 1 if failed else 0
    print_table(
        ("server", "model", "url", "status"),
        [(r["server"], r["model"], r["url"], r["detail"] or r["status"]) for r in results],
    )
    return 1 if failed else 0


def _dry_run(state: State, fleet: Fleet, servers: tuple[str, ...]) -> int:
    from workflow_composer.errors import FleetError
    from workflow_composer.fleet.launch.local import target
    from workflow_composer.fleet.launch.preparation import plan

    found: list[dict[str, Any]] = []
    failed = 0
    for server in servers:
        chosen = target(fleet, server)
        try:
            command = plan(fleet, chosen.role, chosen.place.port, chosen.place.listen)
        except FleetError as error:
            failed += 1
            found.append({"server": server, "error": str(error)})
        else:
            found.append({"server": server, "command": command.shown, "notes": list(command.notes)})
    if state.json:
        print_json(found)
        return 1 if failed else 0
    for item in found:
        click.echo(f"# {item['server']}")
        for note in item.get("notes", ()):
            click.echo(f"# {note}")
        if "command" in item:
            click.echo(item["command"])
        else:
            click.echo(f"error: {item['error']}", err=True)
    return 1 if failed else 0


def _wait(fleet: Fleet, servers: tuple[str, ...], waiting: Waiting) -> list[dict[str, str]]:
    """Start all servers, then wait for all; return one result each, in the given order."""
    from workflow_composer.errors import WorkflowComposerError
    from workflow_composer.fleet.launch.local import Starting

    results: dict[str, dict[str, str]] = {}
    under_way: dict[str, Starting] = {}
    for server in servers:
        try:
            fleet.states.forgive(server)
            under_way[server] = Starting(fleet, server)
        except WorkflowComposerError as error:
            results[server] = _result(fleet, server, "failed", str(error))
    while under_way:
        for server, starting in list(under_way.items()):
            try:
                ready = starting.poll()
            except WorkflowComposerError as error:
                ready, results[server] = None, _result(fleet, server, "failed", str(error))
            else:
                if ready is None:
                    continue
                results[server] = _ready(fleet, starting, ready)
            del under_way[server]
        if under_way:
            waiting.show(_progress(under_way))
            time.sleep(_TICK)
    return [results[server] for server in servers]


def _ready(fleet: Fleet, starting: Starting, state: ServerState) -> dict[str, str]:
    detail = f"already running (process {state.pid})" if starting.found else f"ready after {starting.seconds:.0f} s"
    return _result(fleet, starting.server, "ready", detail, port=state.port)


def _result(fleet: Fleet, server: str, status: str, detail: str, *, port: int = 0) -> dict[str, str]:
    from workflow_composer.fleet.launch.local import target

    chosen = target(fleet, server)
    host = f"[{chosen.place.host}]" if ":" in chosen.place.host else chosen.place.host
    url = f"http://{host}:{port or chosen.place.port}/v1" if status == "ready" else ""
    return {"server": server, "model": chosen.role.served, "url": url, "status": status, "detail": detail}


def _progress(under_way: dict[str, Starting]) -> str:
    if len(under_way) == 1:
        ((server, starting),) = under_way.items()
        return f"{server}: {starting.seconds:.0f} s  {starting.last_line()}"
    seconds = max(starting.seconds for starting in under_way.values())
    return f"waiting for {', '.join(under_way)}: {seconds:.0f} s"
