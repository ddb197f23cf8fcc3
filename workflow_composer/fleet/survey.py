"""The known servers, from fleet file, state and registry, and concurrent checks of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflow_composer.backends.registry import Entry
from workflow_composer.fleet.asking import all_at_once
from workflow_composer.fleet.checks import Check, Limits, Target, check
from workflow_composer.fleet.state import Look, ServerState
from workflow_composer.runner import in_own_thread

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.settings import MonitorSettings, RoleSpec


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

    def target(self, environ: Mapping[str, str], now: float, node: str) -> Target | None:
        """The address to check from ``node``; None if it is unknown."""
        place = self._place(now, node)
        if place is None or not self.model:
            return None
        variable = self.spec.api_key_env if self.spec else None
        return Target(
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
    targets: Mapping[str, Target], allowed: Limits, *, probe: bool = True, grace: float = 10.0
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
