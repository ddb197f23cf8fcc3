"""The servers of a role: those listed in the profile and those in the registry."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from workflow_composer.backends.http.egress import canonical_host, endpoint_of
from workflow_composer.backends.replicas.observer import api_url, shown_url
from workflow_composer.backends.replicas.registry import (
    Entry,
    Picture,
    RegistryView,
    SigningKey,
    registry_directory,
    view_of,
)
from workflow_composer.backends.replicas.replica import ReplicaPlace
from workflow_composer.config.own_machines import own_users
from workflow_composer.config.profile_models import registered_role
from workflow_composer.types import EndpointStatus

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig


class Finder:
    """Finds the servers of one role while a strategy is active."""

    def __init__(self, config: StrategyConfig, role: str | None, environ: Mapping[str, str]) -> None:
        self.listed = config.servers_of(role)
        self._role = role or ""
        self._roles = tuple(found for place in self.listed if (found := registered_role(place)) is not None)
        self._fixed = tuple(ReplicaPlace(api_url(place)) for place in self.listed if registered_role(place) is None)
        self._view: RegistryView | None = None
        if self._roles:
            folder = registry_directory(environ, config.registry)
            self._view = view_of(folder, own_users(config.local_users), SigningKey.read(environ))
        self._seen: Picture | None = None

    @property
    def registered(self) -> bool:
        """Whether the registry is used."""
        return self._view is not None

    async def places(self) -> tuple[ReplicaPlace, ...] | None:
        """Return the servers that accept calls; None if they have not changed."""
        if self._view is None:
            if self._seen is not None:
                return None
            self._seen = Picture()
            return self._fixed
        picture = await self._view.picture()
        return None if picture is self._seen else self._look_at(picture)

    def places_now(self) -> tuple[ReplicaPlace, ...]:
        """Like `places`, but reads the registry now, in this thread."""
        if self._view is None:
            return self._fixed
        self._view.read()
        return self._look_at(self._view.known)

    def _look_at(self, picture: Picture) -> tuple[ReplicaPlace, ...]:
        self._seen = picture
        return (*self._unregistered(picture), *self._registered(picture))

    def _registered(self, picture: Picture) -> Iterable[ReplicaPlace]:
        """Yield the places of the ready servers, oldest first: the model of the oldest is the role's.

        A certificate and the numbers of a role are about one model, so that a server of another one gets no calls.
        """
        ready = [entry for entry in self.entries if entry.state == "ready"]
        for entry in ready:
            place = place_of(entry, picture.keys.get(entry.file_name, ""))
            first = next(other for other in ready if other.role == entry.role)
            yield place if entry.model == first.model else replace(place, refused=_another_model(entry, first))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The registry's entries of the role at the last read, in any state."""
        return tuple(entry for entry in self._seen.entries if entry.role in self._roles) if self._seen else ()

    def _unregistered(self, picture: Picture) -> Iterable[ReplicaPlace]:
        """Yield the listed servers without a registry entry; an entry also has model and state."""
        assert self._view is not None  # there is a snapshot
        known = {(canonical_host(entry.host), entry.port) for entry in picture.entries}
        known |= {("localhost", entry.port) for entry in picture.entries if self._view.here(entry)}
        return (place for place in self._fixed if _endpoint(place.url) not in known)

    @property
    def _stale(self) -> list[tuple[Entry, str]]:
        """The role's entries that are not valid, the newest three."""
        found = [one for one in self._seen.stale if one[0].role in self._roles] if self._seen else []
        return sorted(found, key=lambda one: -one[0].updated)[:3]

    # ---------------------------------------------------------------------------------------------------------- messages

    def nobody(self, refused: Sequence[str]) -> str:
        """Explain why no server is available."""
        reasons = list(refused)
        reasons += [f"{entry.server} on {entry.node or entry.host}: {why}" for entry, why in self._stale]
        if states := [f"{entry.server} on {entry.node or entry.host} is {entry.state}" for entry in self.entries]:
            reasons += [state for state in states if not state.endswith(" ready")]
        if self._seen is not None and self._seen.fault:
            reasons.append(self._seen.fault)
        names = " or ".join(self._roles) or self._role
        return f"no server of {names} is ready" + (f": {'; '.join(reasons)}" if reasons else "; none is registered")

    @property
    def hint(self) -> str:
        """Return the remedy for `nobody`."""
        role = self._roles[0] if self._roles else self._role
        return f"see `fleet status`; start one with `fleet up {role}` or `fleet submit {role}`"

    def summary(self, name: str, replicas: Sequence[EndpointStatus]) -> EndpointStatus:
        """Summarize the status of all servers in one line."""
        up = [replica for replica in replicas if replica.healthy]
        resting = [f"{entry.server} is {entry.state}" for entry in self.entries if entry.state != "ready"]
        words = [f"{len(up)} of {len(replicas)} up" if replicas else self.nobody(())] + (resting if replicas else [])
        return EndpointStatus(
            name=name,
            url=", ".join(place if registered_role(place) else shown_url(place) for place in self.listed),
            healthy=bool(up),
            models=tuple(dict.fromkeys(model for replica in up for model in replica.models)),
            latency_ms=min((r.latency_ms for r in up if r.latency_ms is not None), default=None),
            detail="; ".join(words),
            replicas=tuple(replicas),
        )


def place_of(entry: Entry, key: str = "") -> ReplicaPlace:
    """Return the place of a registered server, which requires ``key`` if that is not empty."""
    return ReplicaPlace(entry.url, entry.model, registered=True, length=entry.max_model_len, key=key)


def _another_model(entry: Entry, first: Entry) -> tuple[str, str]:
    return (
        f"{entry.server} at {entry.host}:{entry.port} serves {entry.model}, but the role's {first.server} at"
        f" {first.host}:{first.port} serves {first.model}",
        "one role is one model: stop one of them with `fleet down`, or give it a role of its own",
    )


def _endpoint(url: str) -> tuple[str, int]:
    host, port = endpoint_of(url)
    return ("localhost" if host in ("127.0.0.1", "::1", os.uname().nodename.lower()) else host), port
