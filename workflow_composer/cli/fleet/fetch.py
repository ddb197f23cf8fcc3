"""``fleet fetch``: download the models of roles where there is network access."""

from __future__ import annotations

import sys

import click

from workflow_composer.cli.fleet.group import fleet_option, open_fleet
from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json
from workflow_composer.cli.state import State


@click.command(epilog=examples("fleet fetch", "fleet fetch coder math"))
@click.argument("roles", nargs=-1, metavar="[ROLE...]")
@fleet_option
@common_options
@click.pass_obj
def fetch(state: State, roles: tuple[str, ...], fleet_file: str | None) -> None:
    """Download the models of the given roles, or of all, into the cache from which servers without network read them.

    Run it on a login node with the same `HF_HOME` as the jobs. Exit code 1: a model cannot be downloaded; its line says why.
    """
    from workflow_composer.cli.progress import Waiting
    from workflow_composer.fleet.launch.preparation import fetch as fetch_model

    fleet = open_fleet(state, fleet_file)
    chosen = [fleet.role(name) for name in roles or tuple(fleet.settings.roles)]
    done = []
    for role in chosen:
        with Waiting(sys.stderr) as waiting:
            folder = fetch_model(fleet, role, waiting.show)
        done.append({"role": role.name, "model": role.model, "folder": folder})
        if not state.json:
            click.echo(f"{role.name}: {folder}")
    if state.json:
        print_json(done)
