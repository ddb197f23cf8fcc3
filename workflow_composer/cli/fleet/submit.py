"""``fleet submit``: start servers as SLURM jobs."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from workflow_composer.cli.fleet.group import fleet_option, open_fleet
from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.slurm.commands import Slurm
    from workflow_composer.fleet.slurm.submit import Submitted


@click.command(
    epilog=examples("fleet submit", "fleet submit coder math", "fleet submit coder --dry-run", "fleet submit coder --wait")
)
@click.argument("roles", nargs=-1, metavar="[ROLE...]")
@fleet_option
@click.option("--dry-run", is_flag=True, help="Print the sbatch commands and submit nothing.")
@click.option("--wait", is_flag=True, help="Wait until the servers are ready, without time limit. Ctrl-C keeps the jobs.")
@common_options
@click.pass_obj
def submit(state: State, roles: tuple[str, ...], fleet_file: str | None, dry_run: bool, wait: bool) -> None:
    """Start servers as SLURM jobs: those of the given roles, or all but the roles with `on_request`.

    A server that already has a job keeps it. Before its time limit, a job queues its successor; after a failure it is
    requeued, at most slurm.max_requeues times in a row. Stop jobs with `fleet down`.
    """
    from workflow_composer.fleet.rebuild import rebuild
    from workflow_composer.fleet.slurm.submit import command_for
    from workflow_composer.fleet.slurm.submit import submit as submit_server

    fleet = open_fleet(state, fleet_file)
    servers = fleet.to_start(roles)
    if dry_run:
        _show_commands(state, {server: command_for(fleet, server) for server in servers})
        return
    rebuild(fleet)
    slurm = fleet.slurm
    done = []
    for server in servers:
        fleet.states.forgive(server)
        done.append(submit_server(fleet, server, slurm))
        if not state.json:
            click.echo(_line(done[-1]))
    if wait:
        _wait(state, fleet, slurm, done)
    if state.json:
        print_json([_plain(fleet, submitted) for submitted in done])


def _show_commands(state: State, commands: dict[str, list[str]]) -> None:
    if state.json:
        print_json([{"server": server, "command": command} for server, command in commands.items()])
        return
    for command in commands.values():
        click.echo(shlex.join(command))


def _line(submitted: Submitted) -> str:
    known = "" if submitted.new else "already exists, nothing submitted: "
    return f"{submitted.server}: job {submitted.job.id} {known}{submitted.job.words()}"


def _wait(state: State, fleet: Fleet, slurm: Slurm, done: list[Submitted]) -> None:
    from workflow_composer.fleet.slurm.submit import wait_for

    for submitted in done:
        url = wait_for(fleet, submitted, slurm, lambda text: click.echo(text, err=True))
        if not state.json:
            click.echo(f"{submitted.server}: {url}")


def _plain(fleet: Fleet, submitted: Submitted) -> dict[str, object]:
    from workflow_composer.fleet.slurm.submit import entry_of

    entry = entry_of(fleet, submitted.server, submitted.job.id)
    return {
        "server": submitted.server,
        "new": submitted.new,
        "job": asdict(submitted.job),
        "reason": submitted.job.words(),
        "url": entry.url if entry and entry.state == "ready" else None,
    }
