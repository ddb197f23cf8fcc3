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
from workflow_composer.fleet.processes import supervisor
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
    return entry.node == node and not entry.job_id and supervisor(entry.pid, entry.server, entry.started) is None


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
    """One server. ``spec``: its role in this fleet file. ``entry``: its newest registry entry, which may be stale."""

    server: str
    role: str
    spec: RoleSpec | None = None
    state: ServerState | None = None
    entry: Entry | None = None

    @property
    def model(self) -> str:
        """The model id that it should serve."""
        return self.spec.served if self.spec else self.entry.model if self.entry else ""

    def target(self, environ: Mapping[str, str], now: float, node: str) -> CheckTarget | None:
        """The address to check from ``node``; None if it is unknown."""
        place = self._place(now, node)
        if place is None or not self.model:
            return None
        variable = self.spec.api_key_env if self.spec else None
        return CheckTarget(
            host=place[0],
            port=place[1],
            model=self.model,
            pooling=self.spec is not None and self.spec.task == "pooling",
            key=environ.get(variable) or None if variable else None,
            key_variable=variable,
        )

    def _place(self, now: float, node: str) -> tuple[str, int] | None:
        if self.entry and self.entry.alive(now):
            return self.entry.host, self.entry.port
        state = self.state
        if state and state.how == "process" and state.port:
            same = self.entry is not None and self.entry.port == state.port
            away = self.entry.host if self.entry and same else state.node
            return ("127.0.0.1" if state.node in ("", node) and not same else away), state.port
        return None


def known_servers(fleet: Fleet, names: tuple[str, ...] = ()) -> list[Known]:
    """Return every server in the fleet file, the state or the registry; or only those with these names or roles."""
    states = {state.server: state for state in fleet.states.all()}
    entries: dict[str, Entry] = {}
    for entry in fleet.registry.all():
        if entry.server not in entries or _newer(entry, entries[entry.server]):
            entries[entry.server] = entry
    found = []
    for server in dict.fromkeys((*fleet.servers(), *states, *sorted(entries))):
        state, last = states.get(server), entries.get(server)
        role = state.role if state else last.role if last else fleet.find(server)[0].name
        if not names or server in names or role in names:
            spec = fleet.settings.roles.get(role) if of_file(state, fleet) else None
            found.append(Known(server=server, role=role, spec=spec, state=state, entry=last))
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
