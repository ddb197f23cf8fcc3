"""``fleet logs``: show the end of a server's log, and follow it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from workflow_composer.cli.fleet.group import fleet_option, open_fleet
from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json, printable
from workflow_composer.cli.state import State
from workflow_composer.errors import FleetError

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.state import ServerState

_TICK = 0.3
_BLOCK = 1 << 16


@click.command(epilog=examples("fleet logs coder", "fleet logs coder -n 200", "fleet logs coder -f"))
@click.argument("server", metavar="ROLE|SERVER")
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="Number of lines to show.")
@fleet_option
@common_options
@click.pass_obj
def logs(state: State, server: str, follow: bool, lines: int, fleet_file: str | None) -> None:
    """Show the end of a server's log: the output of vLLM, and lines of the supervisor, marked [fleet]."""
    from workflow_composer.fleet.launch.process import log_path

    fleet = open_fleet(state, fleet_file)
    known = fleet.states.get(server)
    if known is None:
        fleet.find(server)
    path = Path(known.log) if known and known.log else log_path(fleet.logs, server)
    try:
        ending = tail(path, lines)
    except OSError as error:
        hint = f"start it with `fleet up {server}`"
        if known and known.how == "slurm":
            hint = _job_words(fleet, known) or f"start it with `fleet submit {server}`"
        raise FleetError(f"{server} has no log at {path}: {error.strerror}", hint=hint) from error
    if state.json:
        print_json({"server": server, "log": str(path), "lines": ending})
        return
    for line in ending:
        click.echo(printable(line))
    if follow:
        for line in added(path):
            click.echo(printable(line))


def _job_words(fleet: Fleet, state: ServerState) -> str:
    """What SLURM says of the server's job; empty if nothing."""
    try:
        job = fleet.slurm.job(state.job_id)
    except FleetError as error:
        return error.message
    return f"job {job.id}: {job.words()}" if job else ""


def tail(path: Path, count: int) -> list[str]:
    """Return the last lines of a file, read from its end. Raises OSError."""
    with path.open("rb") as file:
        position, data = file.seek(0, os.SEEK_END), b""
        while position > 0 and data.count(b"\n") <= count:
            size = min(_BLOCK, position)
            position -= size
            file.seek(position)
            data = file.read(size) + data
    return data.decode("utf-8", "replace").splitlines()[-count:] if count else []


def added(path: Path) -> Iterator[str]:
    """Yield lines added from now on; follow the log across rotations. Raises OSError."""
    file = path.open("rb")
    file.seek(0, os.SEEK_END)
    return _lines(file, path)


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    rest = b""
    try:
        while True:
            if data := file.read(_BLOCK):
                *whole, rest = (rest + data).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in whole)
            elif path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                file.close()
                file, rest = path.open("rb"), b""
            else:
                time.sleep(_TICK)
    finally:
        file.close()
