"""Entries of the registry whose server is surely dead."""

from __future__ import annotations

import socket

from workflow_composer.backends.registry import LIFETIME, Entry, Registry
from workflow_composer.fleet.processes import supervisor

LONG_GONE = 600.0
"""Seconds without renewal after which an entry whose port refuses connections is taken away."""
_PATIENCE = 1.0


def withdraw_dead(registry: Registry, node: str, now: float) -> list[Entry]:
    """Take away what nobody renews and nobody answers for; returns it.

    Surely dead: not renewed in time, and either its process was on this node and is gone, or its port has refused
    connections long after. A node that cannot be reached may come back, and its entry stays; clients do not believe it.
    """
    dead = [entry for entry in registry.all() if now - entry.updated >= LIFETIME and _is_dead(entry, node, now)]
    for entry in dead:
        if entry in list(registry.all()):  # not renewed meanwhile
            registry.withdraw(entry)
    return dead


def _is_dead(entry: Entry, node: str, now: float) -> bool:
    if entry.node == node and not entry.job_id and supervisor(entry.pid, entry.server, entry.started) is None:
        return True
    return now - entry.updated >= LONG_GONE and _refuses(entry.host, entry.port)


def _refuses(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
