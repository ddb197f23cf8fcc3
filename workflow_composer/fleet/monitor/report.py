"""The data of `fleet status`: each server's location, current state and uptime in the last 24 hours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from workflow_composer.backends.replicas.observer import Readings
from workflow_composer.fleet.monitor.checks import Check, CheckTarget, Limits
from workflow_composer.fleet.monitor.history import DAY, CheckRecord, Uptime, tokens_per_second, uptime
from workflow_composer.fleet.monitor.monitor import history
from workflow_composer.fleet.monitor.observers import answer_to
from workflow_composer.fleet.monitor.survey import Known, check_all, known_servers, limits, look_all
from workflow_composer.fleet.runners import Runner
from workflow_composer.fleet.state import Look

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.state import How, ServerState

State = Literal["ready", "overloaded", "down", "starting", "draining", "queued", "stopped", "not started"]

QUICK = 1.5
"""Time limit in seconds of a check without a probe token."""
_GRACE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusLine:
    """One server's status. ``reason`` says why it is not ready; at ``expires`` its SLURM job ends."""

    server: str
    role: str
    model: str
    host: str = ""
    port: int = 0
    node: str = ""
    job_id: str = ""
    state: State = "not started"
    reason: str = ""
    readings: Readings = field(default_factory=Readings)
    tokens_per_second: float | None = None
    uptime: Uptime = field(default=Uptime(None, 0.0))
    expires: float | None = None
    restarts: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The line as plain data: times in seconds, uptime and cache as shares between 0 and 1, None where unknown."""
        return {
            "server": self.server,
            "role": self.role,
            "model": self.model,
            "host": self.host,
            "port": self.port,
            "node": self.node,
            "job_id": self.job_id,
            "state": self.state,
            "reason": self.reason,
            "running": self.readings.running,
            "waiting": self.readings.waiting,
            "cache": self.readings.cache,
            "tokens_per_second": self.tokens_per_second,
            "uptime": self.uptime.share,
            "uptime_checked_seconds": round(self.uptime.checked),
            "expires": self.expires,
            "restarts": self.restarts,
        }


def report(
    fleet: Fleet, runners: Mapping[How, Runner], node: str, names: tuple[str, ...] = (), *, probe: bool = False
) -> list[StatusLine]:
    """Return the status of these servers or roles, or of all; queries all servers and SLURM concurrently.

    With ``probe``, request one token from each, as the monitor does; without, this takes at most two seconds.
    """
    now = time.time()
    found = known_servers(fleet, names)
    targets = {known.server: target for known in found if (target := _target(known, fleet, now, node))}
    allowed = limits(fleet.settings.monitor)
    allowed = allowed if probe else replace(allowed, seconds=QUICK)
    checks, looks = answer_to(_ask(found, targets, runners, allowed, probe=probe))
    records: dict[str, list[CheckRecord]] = {}
    for record in history(fleet).recent(now - DAY - 2 * fleet.settings.monitor.interval):
        records.setdefault(record.server, []).append(record)
    reach = 2 * fleet.settings.monitor.interval
    lines = []
    for known in found:
        line = _line(known, targets.get(known.server), checks.get(known.server), looks.get(known.server, Look()), now)
        lines.append(_with_past(line, records.get(known.server, []), now, reach))
    return lines


def _target(known: Known, fleet: Fleet, now: float, node: str) -> CheckTarget | None:
    """The address to check; None if the server was stopped on purpose and is not in the registry."""
    stopped = known.state is None or not known.state.wanted or known.state.status == "stopped"
    if stopped and not (known.entry and known.entry.alive(now)):
        return None
    return known.target(fleet.environ, now, node, fleet.registry)


async def _ask(
    found: list[Known], targets: Mapping[str, CheckTarget], runners: Mapping[How, Runner], allowed: Limits, *, probe: bool
) -> tuple[dict[str, Check], dict[str, Look]]:
    grace = 10.0 if probe else _GRACE
    looking = {
        known.server: partial(runners[known.state.how].look, known.state)
        for known in found
        if known.state and known.state.wanted and known.state.how in runners
    }
    unseen = Look(foreign=f"timed out after {allowed.seconds:g} s determining whether it is running")
    return await asyncio.gather(
        check_all(targets, allowed, probe=probe, grace=grace), look_all(looking, allowed.seconds + grace, unseen)
    )


def _line(known: Known, target: CheckTarget | None, check: Check | None, look: Look, now: float) -> StatusLine:
    state, reason = _state(known, check, look, now)
    entry = known.entry if known.entry and known.entry.alive(now) else None
    return StatusLine(
        server=known.server,
        role=known.role,
        model=known.model,
        host=target.host if target else "",
        port=target.port if target else 0,
        node=entry.node if entry else known.state.node if known.state and target else "",
        job_id=known.state.job_id if known.state and known.state.wanted else entry.job_id if entry else "",
        state=state,
        reason=reason,
        readings=check.readings if check else Readings(),
        expires=entry.expires if entry else None,
        restarts=len(known.state.restarts) if known.state else 0,
    )


def _with_past(line: StatusLine, records: list[CheckRecord], now: float, reach: float) -> StatusLine:
    readings = line.readings
    live = CheckRecord(time=now, server=line.server, outcome="up", tokens=readings.tokens, started=readings.started)
    speed = tokens_per_second([*records, live]) if readings.tokens is not None else None
    return replace(line, uptime=uptime(records, now, reach=reach), tokens_per_second=speed)


def _state(known: Known, check: Check | None, look: Look, now: float) -> tuple[State, str]:
    state = known.state
    if state is None and known.entry is None:
        return "not started", _of_others(known, now)
    if state is not None and not state.wanted and (check is None or check.verdict == "down"):
        return "stopped", state.detail
    if look.waiting:
        return "queued", look.waiting
    if (known.entry and known.entry.state == "draining") or (state and state.status == "draining"):
        return "draining", "finishing its requests; it accepts no new ones"
    if check is None or check.verdict == "down":
        return _silent(state, check, look)
    return _answering(known, check, look, now)


def _of_others(known: Known, now: float) -> str:
    other = known.foreign
    if other is None or not other.alive(now):
        return ""
    return f"another fleet ({other.fleet_file or other.fleet}) runs a server of this name at {other.host}:{other.port}"


def _answering(known: Known, check: Check, look: Look, now: float) -> tuple[State, str]:
    """State and reason of a server that responds."""
    if known.state is not None and known.state.status == "starting" and look.alive is not False:
        return "starting", "it is healthy, but has not returned a first token yet"
    if known.state is not None and (lost := known.lost(look, now)):
        return "down", lost
    how: State = "overloaded" if check.verdict == "overloaded" else "ready"
    return how, "; ".join(filter(None, (check.reason, known.edited)))


def _silent(state: ServerState | None, check: Check | None, look: Look) -> tuple[State, str]:
    """State and reason of a server that should respond and does not."""
    if state is not None and state.status == "starting" and look.alive is not False:
        return "starting", ""
    if state is not None and state.status == "failed" and state.detail:
        return "down", state.detail
    why = look.foreign or look.ended or "its address is unknown"
    return "down", check.reason if check else why
