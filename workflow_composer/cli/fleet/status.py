"""``fleet status``: show addresses and states of servers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from workflow_composer.cli.fleet.group import fleet_option, open_fleet
from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json, print_table
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.fleet.monitor.history import Uptime
    from workflow_composer.fleet.monitor.report import StatusLine

_HEADERS = ("server", "model", "where", "state", "queue", "tokens/s", "uptime 24 h", "expires", "reason")
_FULL_DAY = 23 * 3600


@click.command(epilog=examples("fleet status", "fleet status coder --check", "fleet status --json"))
@click.argument("servers", nargs=-1, metavar="[ROLE|SERVER]...")
@click.option("--check", "probe", is_flag=True, help="Also request one token from each server, as the monitor does.")
@fleet_option
@common_options
@click.pass_obj
def status(state: State, servers: tuple[str, ...], probe: bool, fleet_file: str | None) -> None:
    """Show addresses and states of servers.

    Queries every server of the fleet file, the fleet's state and the registry concurrently, for at most two seconds, with
    --check for answer_seconds of the fleet file. Queue: running + waiting requests. Tokens/s: since the monitor's last
    check. Uptime: share of the last 24 hours in which the monitor checked.
    """
    from workflow_composer.fleet.monitor.disks import disk_faults
    from workflow_composer.fleet.monitor.report import report
    from workflow_composer.fleet.runners import node_name, runners

    fleet = open_fleet(state, fleet_file)
    found = report(fleet, runners(fleet), node_name(), servers, probe=probe)
    for fault in disk_faults(fleet):
        click.echo(f"warning: {fault}", err=True)
    if state.json:
        print_json([line.to_dict() for line in found])
        return
    now = time.time()
    print_table(_HEADERS, (_row(line, now) for line in found))


def _row(line: StatusLine, now: float) -> tuple[str, ...]:
    return (
        line.server,
        line.model,
        _where(line),
        line.state,
        _queue(line),
        "-" if line.tokens_per_second is None else f"{line.tokens_per_second:.1f}",
        uptime_words(line.uptime),
        "-" if line.expires is None else span_words(line.expires - now),
        _reason(line),
    )


def _where(line: StatusLine) -> str:
    place = f"{line.host}:{line.port}" if line.host else ""
    return ", ".join(filter(None, (place, f"job {line.job_id}" if line.job_id else ""))) or "-"


def _queue(line: StatusLine) -> str:
    running, waiting = line.readings.running, line.readings.waiting
    return "-" if running is None else f"{running} + {waiting or 0}"


def _reason(line: StatusLine) -> str:
    again = f"restarted {line.restarts} {'time' if line.restarts == 1 else 'times'} by the monitor" if line.restarts else ""
    return "; ".join(filter(None, (line.reason, again)))


def uptime_words(found: Uptime) -> str:
    """The uptime share, and the time it refers to if that is less than a day.

    >>> from workflow_composer.fleet.monitor.history import Uptime
    >>> uptime_words(Uptime(0.9987, 86400)), uptime_words(Uptime(1.0, 7300)), uptime_words(Uptime(None, 0))
    ('99.9%', '100.0% of 2 h', 'unknown')
    """
    if found.share is None:
        return "unknown"
    return f"{found.share:.1%}" if found.checked >= _FULL_DAY else f"{found.share:.1%} of {_length(found.checked)}"


def span_words(seconds: float) -> str:
    """A time from now, in words.

    >>> span_words(59), span_words(600), span_words(7300), span_words(200_000), span_words(-5)
    ('in 59 s', 'in 10 min', 'in 2 h', 'in 2 d', 'now')
    """
    return f"in {_length(seconds)}" if seconds > 0 else "now"


def _length(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length and (unit != "d" or seconds >= 2 * length):
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
