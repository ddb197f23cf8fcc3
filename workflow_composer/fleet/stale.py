"""Removes registry entries of dead servers."""

from __future__ import annotations

from workflow_composer.backends.http.connection import Broken
from workflow_composer.backends.registry import LIFETIME, Entry, Registry
from workflow_composer.errors import EgressDenied
from workflow_composer.fleet.asking import all_at_once, answer_to, observing
from workflow_composer.fleet.processes import supervisor

LONG_GONE = 600.0
"""Seconds without renewal after which an entry is removed if its port refuses connections."""
_PATIENCE = 1.0


def withdraw_dead(registry: Registry, node: str, now: float) -> list[Entry]:
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
