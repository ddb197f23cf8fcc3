"""Whether a starting server serves: it is healthy, lists its model, and has returned one token, or one vector."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflow_composer.backends.http.connection import Broken
from workflow_composer.backends.replicas.observer import Late, Listing, ServerObserver
from workflow_composer.errors import EgressDenied, FleetError
from workflow_composer.fleet.monitor.observers import answer_to, observing

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet
    from workflow_composer.fleet.settings import RoleSpec

_GLANCE, _LIST = 2.0, 5.0
"""Seconds for ``/health`` and for the list of models, while the server may still be loading."""
_TOKEN = 60.0
"""Seconds for one token; the first ones may compile kernels. Asked again after that."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a server answered. ``why``: why it does not serve yet; ``never``: it will not. ``length``: of its context."""

    ready: bool = False
    why: str = "not healthy"
    never: bool = False
    length: int | None = None


class Readiness:
    """Asks a starting server again and again in threads of its own, so that its supervisor's heartbeat goes on."""

    def __init__(self, host: str, port: int, role: RoleSpec, key: str) -> None:
        self._place = (host, port, role, key)
        self._found = Proven()
        self._asking: threading.Thread | None = None

    def poll(self) -> Proven:
        """Return the last answer; ask anew where that says the server is not ready."""
        if self._asking is None or not self._asking.is_alive():
            if self._found.ready or self._found.never:
                return self._found
            self._asking = threading.Thread(target=self._ask, name="readiness", daemon=True)
            self._asking.start()
        return self._found

    def _ask(self) -> None:
        self._found = answer_to(_look(*self._place))


async def _look(host: str, port: int, role: RoleSpec, key: str) -> Proven:
    what = "vector" if role.task == "pooling" else "token"
    step = "healthy"
    try:
        async with observing(host, port, key or None) as server:
            if (status := await server.health(_GLANCE)) != 200:
                return Proven(why=f"not healthy (status {status})")
            step = "list of models"
            listing = await server.models(_LIST)
            if fault := _fault(listing, port, role):
                return fault
            step = what
            return await _proof(server, role, what, listing.length(role.served))
    except Late:
        return Proven(why="not healthy" if step == "healthy" else f"no {step} in time")
    except (OSError, Broken, EgressDenied, ValueError):  # ValueError: the key is not valid in a header
        return Proven(why="not healthy" if step == "healthy" else f"no {step}: the connection broke")


def _fault(listing: Listing, port: int, role: RoleSpec) -> Proven | None:
    if listing.status in (401, 403):
        return Proven(why=f"port {port} requires another API key (status {listing.status})", never=True)
    if not listing.models:
        return Proven(why=f"/v1/models lists no model (status {listing.status})")
    if not listing.serves(role.served):
        return Proven(why=f"port {port} serves {', '.join(listing.models)[:300]}, not {role.served}", never=True)
    return None


async def _proof(server: ServerObserver, role: RoleSpec, what: str, length: int | None) -> Proven:
    given = await (server.one_vector if role.task == "pooling" else server.one_token)(role.served, _TOKEN)
    if given.status != 200:
        return Proven(why=f"no {what}: status {given.status}")
    return Proven(ready=True, why="", length=length) if given.whole else Proven(why=f"no {what} in the response")


def refuse_another_model(fleet: Fleet, server: str, role: RoleSpec) -> None:
    """Raise `FleetError` if another server of the role serves another model now.

    Clients take all servers of a role for one model: its certificate and its figures would cover both. The server's own
    predecessor, which hands over to this one, may have another model.
    """
    for entry in fleet.registry.entries(role.name):
        mine = entry.server == server and entry.fleet in ("", fleet.known_id)
        if entry.model != role.served and not mine and entry.state != "draining":
            there = f"{entry.host}:{entry.port}" + (f" ({entry.fleet_file})" if entry.fleet_file else "")
            raise FleetError(
                f"role {role.name!r} already serves {entry.model} by {entry.server} at {there},"
                f" so {server} cannot serve {role.served} under the same role",
                hint=f"stop it first (`fleet down {entry.server}`), or give one of the two another role or registry",
            )
