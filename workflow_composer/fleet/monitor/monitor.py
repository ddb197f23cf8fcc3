"""One round of the monitor: check every server, restart failed ones, send alerts, record the history."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from workflow_composer.backends.replicas.registry import BEAT
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.fleet.monitor.alerts import Alert, AlertChannel, AlertFailed
from workflow_composer.fleet.monitor.checks import Check
from workflow_composer.fleet.monitor.disks import disk_faults
from workflow_composer.fleet.monitor.history import CheckRecord, History
from workflow_composer.fleet.monitor.incident_store import MonitorFiles, Remembered, Unsent
from workflow_composer.fleet.monitor.incidents import IncidentStep, Phase, RestartRules, Seen, advance
from workflow_composer.fleet.monitor.observers import answer_to
from workflow_composer.fleet.monitor.survey import Known, check_all, known_servers, limits, look_all, of_file, withdraw_dead
from workflow_composer.fleet.processes import same_host
from workflow_composer.fleet.runners import Runner
from workflow_composer.fleet.state import Look

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.state import How


# ---------------------------------------------------------------------------------------------------------------- delivery
#
# Delivery of alerts: save them, remove each one before it is sent, retry once if a channel failed.


class Delivery:
    """Sends alerts through every channel. ``say`` writes a line to the log."""

    def __init__(self, files: MonitorFiles, channels: tuple[AlertChannel, ...], say: Callable[[str], None]) -> None:
        self._files = files
        self._channels = {channel.name: channel for channel in channels}
        self._say = say

    def remember(self, server: str, remembered: Remembered, alerts: Iterable[Alert]) -> None:
        """Save a server's monitor state and the alerts that are due. Raises `WorkflowComposerError`."""
        due = tuple(Unsent(name, alert) for alert in alerts for name in self._channels)
        self._files.save(server, replace(remembered, unsent=(*remembered.unsent, *due)))

    def tell(self, server: str, alerts: Iterable[Alert]) -> None:
        """Log the alerts and send the due ones, with the action updated to what was done."""
        alerts = list(alerts)
        for alert in alerts:
            self._say(alert.line)
        newer = {(alert.kind, alert.time): alert for alert in alerts}
        remembered = self._files.load(server)
        due = tuple(
            replace(unsent, alert=newer.get((unsent.alert.kind, unsent.alert.time), unsent.alert))
            for unsent in remembered.unsent
        )
        self._files.save(server, replace(remembered, unsent=due))
        self._send(server, lambda unsent: not unsent.failed)

    def flush(self, server: str) -> None:
        """Send what an earlier round left over: alerts not yet tried, and alerts that failed once."""
        self._send(server, lambda _: True)

    def _send(self, server: str, wanted: Callable[[Unsent], bool]) -> None:
        for unsent in self._files.load(server).unsent:
            if not wanted(unsent):
                continue
            self._strike(server, unsent)
            channel = self._channels.get(unsent.channel)
            if channel is None:
                continue  # the channel was removed from the fleet file
            try:
                channel.send(unsent.alert)
            except AlertFailed as error:
                self._failed(server, unsent, str(error))

    def _strike(self, server: str, unsent: Unsent) -> None:
        remembered = self._files.load(server)
        left = list(remembered.unsent)
        left.remove(unsent)
        self._files.save(server, replace(remembered, unsent=tuple(left)))

    def _failed(self, server: str, unsent: Unsent, reason: str) -> None:
        again = "" if unsent.failed else "; retrying once in the next round"
        self._say(f"{server}: alert by {unsent.channel} failed: {reason}{again}")
        if not unsent.failed:
            remembered = self._files.load(server)
            self._files.save(server, replace(remembered, unsent=(*remembered.unsent, replace(unsent, failed=True))))


FOLDER = "monitor"
"""The monitor's subfolder of the fleet's state."""
LOOKING = 90.0
"""Time limit for queries to SLURM in seconds; each SLURM command also has its own."""
DISKS = ".disks"
"""The name under which the state of the fleet's disks is kept; no server has it."""
HISTORY = "history.jsonl"
"""The file of checks in that folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedServer:
    """Result of a round for one server; ``action`` is one line, empty if nothing had to be done.

    ``note``: what the fleet file says otherwise than the running server.
    """

    server: str
    seen: Seen
    reason: str = ""
    phase: Phase = "healthy"
    action: str = ""
    check: Check | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Result of a round for all servers. ``busy``: another monitor was running, so this one did nothing.

    ``disks``: a line for each folder of the fleet on a full disk.
    """

    servers: tuple[WatchedServer, ...] = ()
    busy: bool = False
    disks: tuple[str, ...] = ()

    @property
    def well(self) -> bool:
        """Whether no server that should run is down, and no disk is full."""
        return not self.disks and not any(watched.seen == "down" for watched in self.servers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """Monitors the servers recorded in the fleet's state. ``say`` logs a line; ``node`` is the monitor's own node;
    ``patience``: seconds in which a server that answers may bring its entry into the registry.

    Several monitors may run, on one machine or several: they take turns and share their saved state.
    """

    fleet: Fleet
    runners: Mapping[How, Runner]
    channels: tuple[AlertChannel, ...]
    say: Callable[[str], None]
    node: str
    clock: Callable[[], float] = field(default=time.time)
    patience: float = 1.5 * BEAT

    def round(self) -> Round:
        """Check every server once. Raises `WorkflowComposerError` if the result cannot be saved."""
        files = monitor_files(self.fleet)
        with files.turn() as mine:
            return _Turn(self, files).take() if mine else Round(busy=True)


def monitor_files(fleet: Fleet) -> MonitorFiles:
    """The saved state of the fleet's monitors."""
    return MonitorFiles(fleet.states.directory / FOLDER)


def history(fleet: Fleet) -> History:
    """The history of checks of the fleet's monitors."""
    return History(fleet.states.directory / FOLDER / HISTORY, fleet.settings.monitor.history_days)


class _Turn:
    """A round in progress."""

    def __init__(self, monitor: Monitor, files: MonitorFiles) -> None:
        self.monitor = monitor
        self.files = files
        self.settings = monitor.fleet.settings.monitor
        self.rules = RestartRules(restarts=self.settings.restarts, backoff=self.settings.backoff)
        self.delivery = Delivery(files, monitor.channels, monitor.say)

    def take(self) -> Round:
        found = known_servers(self.monitor.fleet)
        servers = {known.server: known for known in found if known.state and of_file(known.state, self.monitor.fleet)}
        others = {known.server for known in found if known.state} - set(servers)
        for server in self.files.servers():
            if server not in others:
                self.delivery.flush(server)
                if server not in servers:
                    self._forget(server)
        looks, checks = answer_to(self._see(servers))
        servers = dict(self._seen_by_clients(servers, checks))
        done = tuple(self._handle(known, looks[name], checks.get(name)) for name, known in servers.items())
        disks = self._look_at_disks()
        self._record(done)
        withdraw_dead(self.monitor.fleet.registry, self.monitor.node, self.monitor.clock())
        return Round(servers=done, disks=disks)

    def _seen_by_clients(self, servers: Mapping[str, Known], checks: Mapping[str, Check]) -> Mapping[str, Known]:
        """Look again where a server answers and clients do not find it: a supervisor restores an entry that was deleted.

        After a clock has jumped, or the machine has slept, every entry is old until it is renewed.
        """
        ends = time.monotonic() + self.monitor.patience
        while any(
            known.hidden(self.monitor.clock()) and (check := checks.get(name)) and check.verdict != "down"
            for name, known in servers.items()
        ):
            if time.monotonic() > ends:
                break
            time.sleep(0.5)
            servers = {known.server: known for known in known_servers(self.monitor.fleet) if known.server in servers}
        return servers

    def _look_at_disks(self) -> tuple[str, ...]:
        """Send one alert while a disk of the fleet is full; return the lines."""
        faults = tuple(disk_faults(self.monitor.fleet))
        before, reason = self.files.load(DISKS), "; ".join(faults)
        now, node = self.monitor.clock(), self.monitor.node
        step = advance(before.memory, "down" if faults else "up", reason, now, self.rules, ours=False)
        since = step.memory.since
        alerts = [
            Alert(
                kind=kind, server="disk", role="", model="", where=node, reason=reason, action="", time=now, since=since,
                monitor=node,
            )
            for kind in step.tell
        ]  # fmt: skip
        if alerts or before.memory.phase != step.memory.phase or before.unsent:
            self.delivery.flush(DISKS)
            self.delivery.remember(DISKS, replace(self.files.load(DISKS), memory=step.memory), alerts)
            self.delivery.tell(DISKS, alerts)
        return faults

    async def _see(self, servers: Mapping[str, Known]) -> tuple[dict[str, Look], dict[str, Check]]:
        """Look at every server's runner, and check the servers that are not just starting or queued."""
        looking = {server: partial(self._look, known) for server, known in servers.items()}
        looks = await look_all(looking, LOOKING, Look(foreign="timed out determining whether it is running"))
        return looks, await self._check(servers, looks)

    def _look(self, known: Known) -> Look:
        assert known.state is not None, "servers without a state are not monitored"
        runner = self.monitor.runners.get(known.state.how)
        if not known.state.wanted:
            return Look()
        return runner.look(known.state) if runner else Look(foreign=f"no runner for {known.state.how!r} here")

    async def _check(self, servers: Mapping[str, Known], looks: Mapping[str, Look]) -> dict[str, Check]:
        now, environ = self.monitor.clock(), self.monitor.fleet.environ
        targets = {
            server: target
            for server, known in servers.items()
            if known.state and known.state.wanted and not looks[server].waiting
            if (target := known.target(environ, now, self.monitor.node, self.monitor.fleet.registry))
        }
        return await check_all(targets, limits(self.settings))

    def _handle(self, known: Known, look: Look, check: Check | None) -> WatchedServer:
        before = self.files.load(known.server)
        seen, reason = judge(known, look, check, self.monitor.clock(), before.memory.last_up)
        assert known.state is not None, "servers without a state are not monitored"
        # `fleet up` resets the restarts in the state: a person has intervened.
        memory = replace(before.memory, restarts=known.state.restarts)
        helpless = (check is not None and not check.curable) or self._is_only_hidden(known, check)
        hopeless = "a restart would not help" if helpless else ""
        foreign = look.foreign or hopeless
        step = advance(memory, seen, reason, self.monitor.clock(), self.rules, ours=not foreign)
        action = step.why_not
        if action and foreign:
            action = "" if foreign == reason else foreign
        alerts = [self._alert(known, kind, reason, step, action) for kind in step.tell]
        self.delivery.remember(known.server, replace(before, memory=step.memory), alerts)
        if step.restart:
            action = self._restart(known, step, serves=check is not None and check.serves)
            alerts = [replace(alert, action=action) for alert in alerts]
        self.delivery.tell(known.server, alerts)
        return WatchedServer(
            server=known.server,
            seen=seen,
            reason=reason,
            phase=step.memory.phase,
            action=action,
            check=check,
            note=known.edited if seen in ("up", "overloaded") else "",
        )

    def _is_only_hidden(self, known: Known, check: Check | None) -> bool:
        """Whether a server answers that clients do not find, for another reason than its own supervisor's death or sleep."""
        if check is None or check.verdict == "down" or not known.hidden(self.monitor.clock()):
            return False
        state = known.state
        here = state is not None and state.how == "process" and same_host(state.node, self.monitor.node)
        return not here or any(disk_faults(self.monitor.fleet))

    def _restart(self, known: Known, step: IncidentStep, *, serves: bool) -> str:
        assert known.state is not None, "servers without a state are not monitored"
        try:
            self.monitor.runners[known.state.how].restart(known.state, serves=serves)
        except WorkflowComposerError as error:
            action = f"restart failed: {error.message}"
        else:
            action = "restarting"
        # Starting rewrites the state; the restarts, which count towards the limit, must be kept.
        self.monitor.fleet.states.update(known.server, restarts=step.memory.restarts)
        self.monitor.say(f"{known.server}: {action}")
        return action

    def _alert(self, known: Known, kind: str, reason: str, step: IncidentStep, action: str) -> Alert:
        now = self.monitor.clock()
        target = known.target({}, now, self.monitor.node, self.monitor.fleet.registry)
        job = f", job {known.state.job_id}" if known.state and known.state.job_id else ""
        return Alert(
            kind=kind,  # type: ignore[arg-type]  # one of the step's kinds
            server=known.server,
            role=known.role,
            model=known.model,
            where=f"{target.place}{job}" if target else job.removeprefix(", "),
            reason=reason,
            action=action,
            time=now,
            since=step.memory.since,
            monitor=self.monitor.node,
        )

    def _forget(self, server: str) -> None:
        """Close the incident of a server that is no longer in the fleet's state."""
        before = self.files.load(server)
        step = advance(before.memory, "unwanted", "", self.monitor.clock(), self.rules)
        alerts = [self._alert(Known(server=server, role=server), kind, "", step, "") for kind in step.tell]
        self.delivery.remember(server, Remembered(memory=step.memory), alerts)
        self.delivery.tell(server, alerts)

    def _record(self, done: Iterable[WatchedServer]) -> None:
        now = self.monitor.clock()
        try:
            kept = history(self.monitor.fleet)
            kept.add(record for watched in done if (record := _record(watched, now)))
            kept.prune(now)
        except OSError as error:
            self.monitor.say(
                f"the history of checks cannot be written: {error.strerror or error}; the uptime will have a gap"
            )


def judge(known: Known, look: Look, check: Check | None, now: float, last_up: float = 0.0) -> tuple[Seen, str]:
    """Combine a server's state, runner and check into a result and its reason. ``last_up``: when it was last seen up."""
    state = known.state
    assert state is not None, "servers without a state are not monitored"
    if not state.wanted:
        return "unwanted", "stopped on purpose"
    if waiting := _waiting(known, look, check, now, last_up):
        return "waiting", waiting
    if check and check.verdict != "down":
        lost = known.lost(look, now)
        return ("down", lost) if lost else (check.verdict, check.reason)
    if state.status == "failed" and state.detail:
        return "down", state.detail
    return "down", check.reason if check else look.foreign or look.ended or "its address is unknown"


def _waiting(known: Known, look: Look, check: Check | None, now: float, last_up: float) -> str:
    """Return why a server that does not respond is left alone for now, or an empty text.

    It has ``start_seconds`` until its first good check: a healthy server may still be slow with the first token.
    """
    if look.waiting:
        return look.waiting
    state = known.state
    if state is None or look.alive is False:
        return ""
    if state.status == "draining":
        return "draining"
    starting = max(0.0, now - state.started)
    late = known.spec is None or starting >= known.spec.start_seconds
    answers = check is not None and check.verdict != "down"
    starts = state.status == "starting" or (state.status == "ready" and last_up < state.started)
    return f"starting for {starting:.0f} s" if starts and not late and not answers else ""


def _record(watched: WatchedServer, now: float) -> CheckRecord | None:
    """The record for the history; None for a server that is not expected to respond."""
    if watched.seen == "unwanted":
        return None
    readings = watched.check.readings if watched.check else None
    return CheckRecord(
        time=now,
        server=watched.server,
        outcome=watched.seen,
        reason=watched.reason,
        running=readings.running if readings else None,
        waiting=readings.waiting if readings else None,
        cache=readings.cache if readings else None,
        tokens=readings.tokens if readings else None,
        started=readings.started if readings else None,
    )
