"""One round of the monitor: check every server, start again what has failed, tell who wants to know, write it down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.fleet.alerts import Alert, Channel
from workflow_composer.fleet.asking import answer_to
from workflow_composer.fleet.checks import Check
from workflow_composer.fleet.delivery import Delivery
from workflow_composer.fleet.history import History, Record
from workflow_composer.fleet.incidents import Phase, Rules, Seen, Step, advance
from workflow_composer.fleet.memory import MonitorFiles, Remembered
from workflow_composer.fleet.runners import Runner
from workflow_composer.fleet.stale import withdraw_dead
from workflow_composer.fleet.state import Look
from workflow_composer.fleet.survey import Known, check_all, known_servers, limits, look_all, of_file

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.state import How

FOLDER = "monitor"
"""The monitor's own folder within the fleet's state."""
LOOKING = 90.0
"""Seconds for questions to SLURM; its commands have a limit of their own."""
HISTORY = "history.jsonl"
"""The file of checks in that folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a round found of one server and did about it; ``action`` is one line, empty where nothing was to be done."""

    server: str
    seen: Seen
    reason: str = ""
    phase: Phase = "healthy"
    action: str = ""
    check: Check | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """All of them. ``busy``: another monitor was at work, so that this one did nothing."""

    servers: tuple[Watched, ...] = ()
    busy: bool = False

    @property
    def well(self) -> bool:
        """Whether nothing that should run is down."""
        return not any(watched.seen == "down" for watched in self.servers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """Watches the servers that the fleet's state knows. ``say`` takes lines for people; ``node`` is where it runs.

    Many may run, on one machine or several: they take turns, and share what they remember.
    """

    fleet: Fleet
    runners: Mapping[How, Runner]
    channels: tuple[Channel, ...]
    say: Callable[[str], None]
    node: str
    clock: Callable[[], float] = field(default=time.time)

    def round(self) -> Round:
        """Look at every server once. Raises `WorkflowComposerError` where what was found cannot be remembered."""
        files = monitor_files(self.fleet)
        with files.turn() as mine:
            return _Turn(self, files).take() if mine else Round(busy=True)


def monitor_files(fleet: Fleet) -> MonitorFiles:
    """What the fleet's monitors remember."""
    return MonitorFiles(fleet.states.directory / FOLDER)


def history(fleet: Fleet) -> History:
    """What the fleet's monitors found, check by check."""
    return History(fleet.states.directory / FOLDER / HISTORY, fleet.settings.monitor.history_days)


class _Turn:
    """One round that is under way."""

    def __init__(self, monitor: Monitor, files: MonitorFiles) -> None:
        self.monitor = monitor
        self.files = files
        self.settings = monitor.fleet.settings.monitor
        self.rules = Rules(restarts=self.settings.restarts, backoff=self.settings.backoff)
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
        done = tuple(self._handle(known, looks[name], checks.get(name)) for name, known in servers.items())
        self._record(done)
        withdraw_dead(self.monitor.fleet.registry, self.monitor.node, self.monitor.clock())
        return Round(servers=done)

    async def _see(self, servers: Mapping[str, Known]) -> tuple[dict[str, Look], dict[str, Check]]:
        """What runs each server, and what those say that are not waited for."""
        looking = {server: partial(self._look, known) for server, known in servers.items()}
        looks = await look_all(looking, LOOKING, Look(foreign="it could not be seen in time whether it runs"))
        return looks, await self._check(servers, looks)

    def _look(self, known: Known) -> Look:
        assert known.state is not None, "servers without a state are not the monitor's"
        runner = self.monitor.runners.get(known.state.how)
        if not known.state.wanted:
            return Look()
        return runner.look(known.state) if runner else Look(foreign=f"nothing here starts servers by {known.state.how}")

    async def _check(self, servers: Mapping[str, Known], looks: Mapping[str, Look]) -> dict[str, Check]:
        now, environ = self.monitor.clock(), self.monitor.fleet.environ
        targets = {
            server: target
            for server, known in servers.items()
            if known.state and known.state.wanted and not looks[server].waiting
            if (target := known.target(environ, now, self.monitor.node))
        }
        return await check_all(targets, limits(self.settings))

    def _handle(self, known: Known, look: Look, check: Check | None) -> Watched:
        before = self.files.load(known.server)
        seen, reason = judge(known, look, check, self.monitor.clock(), before.memory.last_up)
        assert known.state is not None, "servers without a state are not the monitor's"
        # `fleet up` begins a state anew: whoever typed it has looked.
        memory = replace(before.memory, restarts=known.state.restarts)
        hopeless = "" if check is None or check.curable else "starting it again would change nothing"
        foreign = look.foreign or hopeless
        step = advance(memory, seen, reason, self.monitor.clock(), self.rules, ours=not foreign)
        action = step.why_not
        if action and foreign:
            action = "" if foreign == reason else foreign
        alerts = [self._alert(known, kind, reason, step, action) for kind in step.tell]
        self.delivery.remember(known.server, replace(before, memory=step.memory), alerts)
        if step.restart:
            action = self._restart(known, step)
            alerts = [replace(alert, action=action) for alert in alerts]
        self.delivery.tell(known.server, alerts)
        return Watched(server=known.server, seen=seen, reason=reason, phase=step.memory.phase, action=action, check=check)

    def _restart(self, known: Known, step: Step) -> str:
        assert known.state is not None, "servers without a state are not the monitor's"
        try:
            self.monitor.runners[known.state.how].restart(known.state)
        except WorkflowComposerError as error:
            action = f"it could not be started again: {error.message}"
        else:
            action = "it is started again"
        # Starting writes the state anew; what counts towards the cap must stay.
        self.monitor.fleet.states.update(known.server, restarts=step.memory.restarts)
        self.monitor.say(f"{known.server}: {action}")
        return action

    def _alert(self, known: Known, kind: str, reason: str, step: Step, action: str) -> Alert:
        now = self.monitor.clock()
        target = known.target({}, now, self.monitor.node)
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
        """End the incident of a server that the fleet's state does not know any more."""
        before = self.files.load(server)
        step = advance(before.memory, "unwanted", "", self.monitor.clock(), self.rules)
        alerts = [self._alert(Known(server=server, role=server), kind, "", step, "") for kind in step.tell]
        self.delivery.remember(server, Remembered(memory=step.memory), alerts)
        self.delivery.tell(server, alerts)

    def _record(self, done: Iterable[Watched]) -> None:
        now = self.monitor.clock()
        try:
            kept = history(self.monitor.fleet)
            kept.add(record for watched in done if (record := _record(watched, now)))
            kept.prune(now)
        except OSError as error:
            self.monitor.say(f"the history of checks cannot be written: {error.strerror or error}; uptime will have a gap")


def judge(known: Known, look: Look, check: Check | None, now: float, last_up: float = 0.0) -> tuple[Seen, str]:
    """What a server's state, its runner and its answers come to, and why. ``last_up``: when a round saw it up last."""
    state = known.state
    assert state is not None, "servers without a state are not the monitor's"
    if not state.wanted:
        return "unwanted", "stopped on purpose"
    if waiting := _waiting(known, look, check, now, last_up):
        return "waiting", waiting
    if check and check.verdict != "down":
        if look.alive is False:
            return "down", f"it answers, but the process that looks after it ({state.pid}) is gone"
        return check.verdict, check.reason
    if state.status == "failed" and state.detail:
        return "down", state.detail
    return "down", check.reason if check else look.foreign or "nothing says where it runs"


def _waiting(known: Known, look: Look, check: Check | None, now: float, last_up: float) -> str:
    """Why a server that does not answer is left alone for now; empty where it is not.

    It has ``start_seconds`` from its start to its first good check: healthy servers may still be slow with the first token.
    """
    if look.waiting:
        return look.waiting
    state = known.state
    if state is None or look.alive is False:
        return ""
    if state.status == "draining":
        return "it drains"
    starting = max(0.0, now - state.started)
    late = known.spec is None or starting >= known.spec.start_seconds
    answers = check is not None and check.verdict != "down"
    starts = state.status == "starting" or (state.status == "ready" and last_up < state.started)
    return f"it has been starting for {starting:.0f} s" if starts and not late and not answers else ""


def _record(watched: Watched, now: float) -> Record | None:
    """The line for the history; None for a server that nobody expects to answer."""
    if watched.seen == "unwanted":
        return None
    readings = watched.check.readings if watched.check else None
    return Record(
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
