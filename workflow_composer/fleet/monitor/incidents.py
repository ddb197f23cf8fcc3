"""When to restart a failing server and when to send alerts: a state machine without clock, files or network.

::

    healthy ──down──> down ──restart──> down (backoff, cap) ──up──> settling ──up for long enough──> healthy
       │                ▲                                              │ down
       └──overloaded──> overloaded ──down──> down                      └──> down, the same incident

An **incident** opens when a server fails or is overloaded and closes when it has recovered. An incident sends at most four
alerts, each once: overloaded, down, manual action required, and recovered. The first incident in six hours closes with the
first good check. A *flapping* server, which fails repeatedly, must stay up for ten minutes, then twenty, at most an hour,
before its incident closes, so that it does not flood a mailbox.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Seen = Literal["up", "overloaded", "down", "waiting", "unwanted"]
"""Result of a round. ``waiting``: starting, draining or queued, as expected. ``unwanted``: stopped on purpose."""
Phase = Literal["healthy", "overloaded", "down", "settling"]
Kind = Literal["overloaded", "down", "person", "recovered", "ended"]

WINDOW = 6 * 3600.0
"""Seconds in which restarts and incidents are counted."""
SETTLE = 600.0
"""Seconds that a server must stay up to close its second incident within `WINDOW`; doubles each time up to `SETTLED`."""
SETTLED = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartRules:
    """At most ``restarts`` within `WINDOW`; ``backoff`` seconds before the second one, doubled for each further one."""

    restarts: int = 5
    backoff: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The monitor's state of a server, kept between rounds. Times are Unix times.

    ``told``: alerts sent for the open incident; ``incidents``: start times of it and of those in the six hours before;
    ``restarts``: times of restarts; ``well_since``: since when it has been up while the incident settles; ``last_up``:
    when it was last seen up.
    """

    phase: Phase = "healthy"
    since: float = 0.0
    reason: str = ""
    told: tuple[Kind, ...] = ()
    incidents: tuple[float, ...] = ()
    restarts: tuple[float, ...] = ()
    well_since: float = 0.0
    last_up: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentStep:
    """Outcome of a round for a server: the new state, the alerts to send and whether to restart it now.

    ``why_not`` says why a server that is down is not restarted; empty if it is restarted or not down.
    """

    memory: Memory
    tell: tuple[Kind, ...] = ()
    restart: bool = False
    why_not: str = ""


def advance(memory: Memory, seen: Seen, reason: str, now: float, rules: RestartRules, *, ours: bool = True) -> IncidentStep:
    """Return the next step. ``ours``: the monitor may restart the server; otherwise it only sends alerts."""
    now = max(now, memory.since)  # a clock set back must not open or close an incident
    memory = replace(memory, restarts=_recent(memory.restarts, now))
    if seen == "unwanted":
        return _end(memory, "ended")
    if seen == "waiting":
        return IncidentStep(memory=replace(memory, phase="down") if memory.phase == "settling" else memory)
    if seen in ("up", "overloaded"):
        memory = replace(memory, last_up=now)
        return _up(memory, now) if seen == "up" else _overloaded(memory, reason, now)
    return _down(memory, reason, now, rules, ours=ours)


def next_restart(memory: Memory, rules: RestartRules) -> float:
    """Return the earliest time of the next restart: at once for the first, then ``backoff`` seconds, doubled each time."""
    if not memory.restarts:
        return 0.0
    return memory.restarts[-1] + rules.backoff * 2.0 ** min(len(memory.restarts) - 1, 20)


def _up(memory: Memory, now: float) -> IncidentStep:
    if memory.phase == "healthy":
        return IncidentStep(memory=memory)
    since = memory.well_since if memory.phase == "settling" else now
    if now - since >= _settling(memory):
        return _end(memory, "recovered")
    return IncidentStep(memory=replace(memory, phase="settling", well_since=since))


def _overloaded(memory: Memory, reason: str, now: float) -> IncidentStep:
    if memory.phase != "healthy":  # it responds again but has not recovered yet
        return IncidentStep(memory=replace(memory, phase="overloaded", reason=reason))
    opened = _open(memory, "overloaded", reason, now)
    return _tell(opened, "overloaded")


def _down(memory: Memory, reason: str, now: float, rules: RestartRules, *, ours: bool) -> IncidentStep:
    if memory.phase == "healthy":
        memory = _open(memory, "down", reason, now)
    memory = replace(memory, phase="down", reason=reason)
    if not ours:
        return _tell(memory, "down", why_not="this monitor cannot restart it")
    if len(memory.restarts) >= rules.restarts:
        hours = f"{WINDOW / 3600:g} hours"
        why = f"restarted {len(memory.restarts)} times within {hours}: manual action required"
        return _tell(memory, "down", "person", why_not=why)
    if (at := next_restart(memory, rules)) > now:
        return _tell(memory, "down", why_not=f"next restart in {at - now:.0f} s at the earliest")
    return replace(_tell(replace(memory, restarts=(*memory.restarts, now)), "down"), restart=True)


def _open(memory: Memory, phase: Phase, reason: str, now: float) -> Memory:
    incidents = (*_recent(memory.incidents, now), now)
    return replace(memory, phase=phase, since=now, reason=reason, told=(), incidents=incidents, well_since=0.0)


def _tell(memory: Memory, *kinds: Kind, why_not: str = "") -> IncidentStep:
    new = tuple(kind for kind in kinds if kind not in memory.told)
    return IncidentStep(memory=replace(memory, told=(*memory.told, *new)), tell=new, why_not=why_not)


def _end(memory: Memory, kind: Kind) -> IncidentStep:
    if memory.phase == "healthy":
        return IncidentStep(memory=memory)
    return IncidentStep(memory=replace(memory, phase="healthy", reason="", told=(), well_since=0.0), tell=(kind,))


def _settling(memory: Memory) -> float:
    """Seconds that the server must stay up before the open incident closes."""
    earlier = len(memory.incidents) - 1
    return 0.0 if earlier < 1 else min(SETTLED, SETTLE * 2.0 ** min(earlier - 1, 10))


def _recent(times: tuple[float, ...], now: float) -> tuple[float, ...]:
    return tuple(time for time in times if now - time < WINDOW)
