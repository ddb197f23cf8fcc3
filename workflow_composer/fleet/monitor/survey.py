"""The known servers, from fleet file, state and registry, and concurrent checks of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflow_composer.backends.http.connection import Broken
from workflow_composer.backends.replicas.registry import LIFETIME, Entry, ServerRegistry
from workflow_composer.errors import EgressDenied
from workflow_composer.fleet.monitor.checks import Check, CheckTarget, Limits, check
from workflow_composer.fleet.monitor.observers import all_at_once, answer_to, observing
from workflow_composer.fleet.processes import same_host, supervisor
from workflow_composer.fleet.state import Look, ServerState
from workflow_composer.support.loop_thread import in_own_thread

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.settings import MonitorSettings, RoleSpec


# ------------------------------------------------------------------------------------------------------------------- stale
#
# Removes registry entries of dead servers.


LONG_GONE = 600.0
"""Seconds without renewal after which an entry is removed if its port refuses connections."""
_PATIENCE = 1.0


def withdraw_dead(registry: ServerRegistry, node: str, now: float) -> list[Entry]:
    """Remove the entries of dead servers; return them.

    Dead: not renewed in time, and either its process on this node is gone, or its port refuses connections after
    `LONG_GONE` seconds. Entries of unreachable nodes stay, since the node may come back; clients ignore stale entries.
    """
    stale = [entry for entry in registry.all() if now - entry.updated >= LIFETIME]
    ended = [entry for entry in stale if _ended_here(entry, node)]
    silent = [entry for entry in stale if entry not in ended and now - entry.updated >= LONG_GONE]
    dead = ended + (answer_to(_refusing(silent)) if silent else [])
    for entry in dead:
        if entry in list(registry.all()):  # not renewed in the meantime
            registry.withdraw(entry)
    return dead


def _ended_here(entry: Entry, node: str) -> bool:
    return same_host(entry.node, node) and not entry.job_id and supervisor(entry.pid, entry.server, entry.started) is None


async def _refusing(entries: list[Entry]) -> list[Entry]:
    """The entries whose ports refuse connections; a hanging name server delays none of the others."""
    asking = {entry.file_name: _refuses(entry.host, entry.port) for entry in entries}
    found = await all_at_once(asking, 2 * _PATIENCE)
    return [entry for entry in entries if found.get(entry.file_name)]


async def _refuses(host: str, port: int) -> bool:
    try:
        async with observing(host, port) as server:
            await server.health(_PATIENCE)
    except ConnectionRefusedError:
        return True
    except (OSError, Broken, EgressDenied):
        return False
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One server. ``spec``: its role in this fleet file. ``entry``: its newest registry entry, which may be stale.

    ``foreign``: the entry of another fleet's server of this name.
    """

    server: str
    role: str
    spec: RoleSpec | None = None
    state: ServerState | None = None
    entry: Entry | None = None
    foreign: Entry | None = None

    @property
    def model(self) -> str:
        """The model id that it should serve: the one with which it was started, else that of the fleet file."""
        if self.state and self.state.model:
            return self.state.model
        return self.spec.served if self.spec else self.entry.model if self.entry else ""

    @property
    def edited(self) -> str:
        """What the fleet file says otherwise than the running server, with what to do; empty if nothing."""
        state, spec = self.state, self.spec
        if state is None or spec is None or not state.model or (state.model, state.task) == (spec.served, spec.task):
            return ""
        start = "submit" if state.how == "slurm" else "up"
        new = spec.served if spec.served != state.model else f"{spec.served} with task: {spec.task}"
        return (
            f"serves {state.model}, as it was started; the fleet file now says {new}: for that,"
            f" `fleet down {self.server}` and `fleet {start} {self.server}`"
        )

    def target(self, environ: Mapping[str, str], now: float, node: str, registry: ServerRegistry) -> CheckTarget | None:
        """The address to check from ``node``; None if it is unknown. ``registry`` may have the server's key."""
        place = self._place(now, node)
        if place is None or not self.model:
            return None
        started = self.state is not None and bool(self.state.model)
        made = registry.key_of(self.entry) if self.entry and self.entry.key else ""
        variable = self.state.api_key_env if self.state and started else self.spec.api_key_env if self.spec else None
        task = self.state.task if self.state and started else self.spec.task if self.spec else ""
        return CheckTarget(
            host=place[0],
            port=place[1],
            model=self.model,
            pooling=task == "pooling",
            key=made or (environ.get(variable) if variable else None) or None,
            key_variable=variable or None,
        )

    def hidden(self, now: float) -> str:
        """Why clients that look into the registry do not find a server that answers; empty if they do."""
        if self.entry is None:
            return "it answers, but the registry has no entry of it, so that clients do not find it"
        if stale := self.entry.stale(now):
            return f"it answers, but clients do not use it: {stale}"
        if self.entry.state == "starting" and self.state and self.state.status == "ready":
            return "it answers, but its entry in the registry still says that it is starting"
        return ""

    def lost(self, look: Look, now: float) -> str:
        """Why a server that answers is of no use to clients, now or soon; empty if all is well."""
        if look.alive is False and not self.renewed(now):
            process = f" (process {self.state.pid})" if self.state and self.state.pid else ""
            return f"it responds, but its supervisor{process} is gone"
        return self.hidden(now)

    def renewed(self, now: float) -> bool:
        """Whether its SLURM job renews its entry, so that the job lives, whatever a list of jobs says."""
        entry, state = self.entry, self.state
        return entry is not None and state is not None and bool(state.job_id) and self._of_job(state) and entry.alive(now)

    def _of_job(self, state: ServerState) -> bool:
        return self.entry is not None and self.entry.job_id == state.job_id

    def _place(self, now: float, node: str) -> tuple[str, int] | None:
        if self.entry and self.entry.alive(now):
            return self.entry.host, self.entry.port
        state = self.state
        if self.entry and state and state.job_id and self.entry.job_id == state.job_id:
            return self.entry.host, self.entry.port  # its entry is not renewed, but it may answer
        if state and state.how == "process" and state.port:
            same = self.entry is not None and self.entry.port == state.port
            away = self.entry.host if self.entry and same else state.node
            here = not state.node or same_host(state.node, node)
            return ("127.0.0.1" if here and not same else away), state.port
        return None


def known_servers(fleet: Fleet, names: tuple[str, ...] = ()) -> list[Known]:
    """Return every server in the fleet file, the state or the registry; or only those with these names or roles."""
    states = {state.server: state for state in fleet.states.all()}
    entries, foreign, mine = dict[str, Entry](), dict[str, Entry](), fleet.known_id
    own = {*fleet.servers(), *states}
    for entry in fleet.registry.all():
        found_in = foreign if entry.server in own and entry.fleet not in ("", mine) else entries
        if entry.server not in found_in or _newer(entry, found_in[entry.server]):
            found_in[entry.server] = entry
    found = []
    for server in dict.fromkeys((*fleet.servers(), *states, *sorted(entries))):
        state, last = states.get(server), entries.get(server)
        role = state.role if state else last.role if last else fleet.find(server)[0].name
        if not names or server in names or role in names:
            spec = fleet.settings.roles.get(role) if of_file(state, fleet) else None
            found.append(Known(server=server, role=role, spec=spec, state=state, entry=last, foreign=foreign.get(server)))
    return found


def of_file(state: ServerState | None, fleet: Fleet) -> bool:
    """Whether a state belongs to this fleet file; several fleet files may share a state folder."""
    return state is None or state.fleet_file in ("", str(fleet.path))


def limits(settings: MonitorSettings) -> Limits:
    """The limits of a check, from the fleet file."""
    return Limits(seconds=settings.answer_seconds, queue=settings.queue_limit, cache=settings.cache_limit)


async def check_all(
    targets: Mapping[str, CheckTarget], allowed: Limits, *, probe: bool = True, grace: float = 10.0
) -> dict[str, Check]:
    """Check all servers concurrently. One whose check exceeds its time limit plus ``grace`` counts as hanging."""
    checks = {server: check(target, allowed, probe=probe) for server, target in targets.items()}
    found = await all_at_once(checks, allowed.seconds + grace)
    late = {
        server: Check(
            verdict="down", reason=f"{target.place} sent no complete response within {allowed.seconds:g} s: it hangs"
        )
        for server, target in targets.items()
        if server not in found
    }
    return found | late


async def look_all(looks: Mapping[str, Callable[[], Look]], seconds: float, unseen: Look) -> dict[str, Look]:
    """Look at all runners concurrently; the result of one that takes longer than ``seconds`` is ``unseen``.

    Each look blocks, since a query to SLURM runs a command, and so has its own thread.
    """
    looking = {server: in_own_thread(look, f"look-{server}") for server, look in looks.items()}
    found = await all_at_once(looking, seconds)
    return {server: found.get(server, unseen) for server in looks}


def _newer(one: Entry, other: Entry) -> bool:
    """Whether ``one`` is newer: during a handover a server has two entries, and the draining one is older."""
    return (one.state != "draining", one.started) > (other.state != "draining", other.started)
