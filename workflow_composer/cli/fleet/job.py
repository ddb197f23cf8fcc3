"""``fleet job``: run by SLURM jobs, not by users, so `fleet --help` does not list it."""

from __future__ import annotations

import time

import click

from workflow_composer.cli.fleet.group import fleet_option, open_fleet
from workflow_composer.cli.options import common_options
from workflow_composer.cli.state import State


@click.command(hidden=True)
@click.argument("server")
@fleet_option
@common_options
@click.pass_obj
def job(state: State, server: str, fleet_file: str | None) -> int:
    """Run a server in this SLURM job until it ends; `fleet submit` creates the job.

    Exit codes: 0 stopped, or handed over to a successor; 1 failed.
    """
    from workflow_composer.fleet.slurm.job import ServerJob

    fleet = open_fleet(state, fleet_file)
    return ServerJob(fleet, server, environ=state.environ, slurm=fleet.slurm, say=_say).run()


def _say(text: str) -> None:
    """Write a line with the time to the job's log."""
    click.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")
