"""Detection of available resources: local servers, cloud keys, SLURM, the embedded engine."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from workflow_composer.backends.egress import EgressPolicy
from workflow_composer.backends.http.client import Client
from workflow_composer.backends.observer import Observer
from workflow_composer.backends.places import Finder
from workflow_composer.backends.probe import api_url, probe
from workflow_composer.backends.replica import Place
from workflow_composer.types import EndpointStatus, ResourceStatus

if TYPE_CHECKING:
    from workflow_composer.strategy import ModelSpec, StrategyConfig

PROBE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class _Target:
    """One server to probe; ``registered``: the registry lists it with its model."""

    name: str
    url: str
    key: str | None
    model: str | None = None
    registered: bool = False


class ResourceDetector:
    """Detects the resources that a profile can use.

    ``limit`` bounds the probe of one server in seconds. All servers are probed concurrently, so a hundred dead servers take
    no longer than one. Local servers are reached through the profile's `EgressPolicy`; cloud servers are never contacted.
    """

    def __init__(
        self,
        config: StrategyConfig,
        *,
        environ: Mapping[str, str] | None = None,
        egress: EgressPolicy | None = None,
        limit: float = PROBE_SECONDS,
    ) -> None:
        self._config = config
        self._environ = os.environ if environ is None else environ
        self._egress = egress
        self._limit = limit

    async def detect(self) -> ResourceStatus:
        """Probe now. Never raises; ``detail`` describes a server's problem."""
        finders = {role: Finder(self._config, role, self._environ) for role in self._config.vllm_endpoints}
        places = dict(zip(finders, await asyncio.gather(*(finder.places() for finder in finders.values())), strict=True))
        targets = [target for role in finders for target in self._targets(role, places[role] or ())]
        found = await self._probe([*targets, *self._models()])
        endpoints: dict[str, EndpointStatus] = {}
        for role, finder in finders.items():
            answers = [status for target, status in found if target.name == role]
            one = len(finder.listed) == 1 and not finder.registered
            endpoints[role] = answers[0] if one else finder.summary(role, answers)
        endpoints |= {target.name: status for target, status in found if target.name not in finders}
        return replace(unprobed(self._config, self._environ), endpoints=endpoints, probed_at=time.time())

    async def _probe(self, targets: list[_Target]) -> list[tuple[_Target, EndpointStatus]]:
        if not targets:
            return []
        egress = self._egress or EgressPolicy.of(self._config)
        for target in targets:
            if target.registered:
                egress = egress.admitting(target.url)
        questions = list(dict.fromkeys((target.url, target.key, target.model) for target in targets))
        async with Client(egress) as client:
            found = await asyncio.gather(
                *(
                    probe(Observer.over(client, url, key), "", limit=self._limit, model=model)
                    for url, key, model in questions
                )
            )
        answers = dict(zip(questions, found, strict=True))
        return [(target, replace(answers[target.url, target.key, target.model], name=target.name)) for target in targets]

    def _targets(self, role: str, places: Iterable[Place]) -> list[_Target]:
        keys = {spec.endpoint: self._key(spec) for spec in self._config.models.values() if spec.endpoint}
        return [_Target(role, place.url, keys.get(role), place.model, place.registered) for place in places]

    def _models(self) -> list[_Target]:
        """Return the models with their own server."""
        own = {name: s for name, s in self._config.models.items() if s.backend == "vllm" and s.endpoint is None}
        return [_Target(name, api_url(s.base_url), self._key(s)) for name, s in own.items() if s.base_url]

    def _key(self, spec: ModelSpec) -> str | None:
        return self._environ.get(spec.api_key_env) if spec.api_key_env else None


def unprobed(config: StrategyConfig, environ: Mapping[str, str]) -> ResourceStatus:
    """Return the status without probing servers; the endpoints are unknown."""
    return ResourceStatus(
        cloud_apis=cloud_apis(config, environ),
        slurm_available=slurm_available(environ),
        embedded_available=embedded_available(),
    )


def cloud_apis(config: StrategyConfig, environ: Mapping[str, str]) -> dict[str, bool]:
    """Map each cloud model to whether its key is set; empty if the profile forbids the cloud."""
    models = {name: spec for name, spec in config.models.items() if not spec.local} if config.allow_cloud else {}
    return {name: not spec.api_key_env or bool(environ.get(spec.api_key_env)) for name, spec in models.items()}


def slurm_available(environ: Mapping[str, str]) -> bool:
    """Whether SLURM's commands are on the PATH."""
    path = environ.get("PATH", os.defpath)
    return any(shutil.which(command, path=path) for command in ("sbatch", "sinfo"))


def embedded_available() -> bool:
    """Whether the embedded engine is installed; does not load it."""
    return importlib.util.find_spec("mistralrs") is not None
