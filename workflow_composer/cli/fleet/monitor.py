"""``fleet monitor``: check every server, restart failed ones, send alerts."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.fleet.group import fleet_option, open_fleet
from workflow_composer.cli.interrupt import leave_now
from workflow_composer.cli.options import common_options
from workflow_composer.cli.output import print_json
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.monitor.monitor import Monitor, Round, WatchedServer

_EPILOG = """\b
Examples:
  workflow-composer fleet monitor
  workflow-composer fleet monitor --watch

\b
From cron, every 5 minutes; cron mails the events printed to standard error, each once:
  */5 * * * * cd FOLDER && .venv/bin/python scripts/llm/monitor_vllm_health.py > /dev/null

\b
Exit codes: 0 no wanted server is down, or another monitor is running; 1 a server that should run is down,
  or the registry, the state or the logs are on a full disk."""


@click.command(epilog=_EPILOG)
@click.option("--watch/--once", default=False, help="Repeat every `interval` seconds (fleet file). Default: once.")
@fleet_option
@common_options
@click.pass_obj
def monitor(state: State, watch: bool, fleet_file: str | None) -> int:
    """Check every server, restart failed ones, send alerts.

    A server must be healthy, serve its model and return one token within answer_seconds. Otherwise it is restarted, with
    increasing pauses and a maximum number of restarts. Each incident sends one alert when it opens and one when it closes.
    Servers that were stopped on purpose are left alone. Events go to standard error and to logs/fleet/monitor.log, the list
    of servers that are down or overloaded to standard output.
    """
    fleet = open_fleet(state, fleet_file)
    made = build(fleet)
    if not watch:
        found = made.round()
        _show(state, found, fleet)
        return 0 if found.well else 1
    return _watch(state, made, fleet)


def build(fleet: Fleet) -> Monitor:
    """Build the monitor from the fleet file."""
    from workflow_composer.fleet.monitor.alerts import channels
    from workflow_composer.fleet.monitor.monitor import Monitor
    from workflow_composer.fleet.runners import node_name, runners

    return Monitor(
        fleet=fleet,
        runners=runners(fleet),
        channels=channels(fleet.settings.monitor.alerts, fleet.environ),
        say=MonitorLog(fleet.logs / "fleet" / "monitor.log"),
        node=node_name(),
    )


class MonitorLog:
    """Writes lines to standard error and, with the time, to a file; if the file fails, each line tries again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._troubled = False

    def __call__(self, line: str) -> None:
        """Write one line."""
        from workflow_composer.cli.output import printable

        line = " ".join(printable(line).split())
        click.echo(line, err=True)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}\n")
        except OSError as error:
            if not self._troubled:
                click.echo(f"{self._path} cannot be written: {error.strerror or error}", err=True)
            self._troubled = True


def _watch(state: State, made: Monitor, fleet: Fleet) -> int:
    """Run rounds until Ctrl-C or SIGTERM; the first finishes the round, a second exits at once. Report failed rounds."""
    from workflow_composer.errors import WorkflowComposerError

    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if ended.is_set():  # a round saves its state before it acts, so the next one can continue
            leave_now(128 + number)
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    while not ended.is_set():
        begun = time.monotonic()
        try:
            _show(state, made.round(), fleet)
        except WorkflowComposerError as error:
            click.echo(f"error: {error}", err=True)
        ended.wait(max(0.0, begun + fleet.settings.monitor.interval - time.monotonic()))
    return 0


def _show(state: State, found: Round, fleet: Fleet) -> None:
    if state.json:
        servers = [to_dict(watched) for watched in found.servers]
        print_json({"busy": found.busy, "servers": servers, "disks": list(found.disks)})
    elif found.busy:
        click.echo(f"another monitor is running on {fleet.states.directory}: nothing was done")
    elif not found.servers and not found.disks and sys.stdout.isatty():
        click.echo("no server of this fleet has been started yet")
    else:
        for watched in found.servers:
            if watched.seen in ("down", "overloaded"):
                parts = (f"{watched.server} {watched.seen}", watched.reason, watched.action)
                click.echo(": ".join(filter(None, parts)))
            elif watched.note:
                click.echo(f"{watched.server} {watched.note}")
        for line in found.disks:
            click.echo(line)
    sys.stdout.flush()


def to_dict(watched: WatchedServer) -> dict[str, Any]:
    """The result of a round for one server, as plain data."""
    return {
        "server": watched.server,
        "seen": watched.seen,
        "reason": watched.reason,
        "phase": watched.phase,
        "action": watched.action,
        "note": watched.note,
        "seconds": watched.check.seconds if watched.check else None,
    }
