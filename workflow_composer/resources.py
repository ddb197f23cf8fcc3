"""What is there to work with: local servers, cloud keys, SLURM, the embedded engine."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from workflow_composer.backends.egress import EgressPolicy, http_client
from workflow_composer.backends.probe import api_url, probe
from workflow_composer.types import EndpointStatus, ResourceStatus

if TYPE_CHECKING:
    from workflow_composer.strategy import ModelSpec, StrategyConfig

PROBE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class _Target:
    name: str
    url: str
    key: str | None


class ResourceDetector:
    """Looks for what a profile can use.

    ``limit``: seconds that a probe of one server may take. All are probed at once, so a hundred dead ones take no longer
    than one. Local servers are reached through the profile's `EgressPolicy`; cloud servers are not contacted at all.
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
        """Probe now. Never raises; what is wrong with a server stands in its ``detail``."""
        endpoints = await self._probe(self._targets())
        return replace(unprobed(self._config, self._environ), endpoints=endpoints, probed_at=time.time())

    async def _probe(self, targets: list[_Target]) -> dict[str, EndpointStatus]:
        if not targets:
            return {}
        egress = self._egress or EgressPolicy.of(self._config)
        questions = {(target.url, target.key) for target in targets}
        async with http_client(egress, environ=self._environ) as client:
            found = await asyncio.gather(*(probe(client, "", url, limit=self._limit, key=key) for url, key in questions))
        answers = dict(zip(questions, found, strict=True))
        return {target.name: replace(answers[target.url, target.key], name=target.name) for target in targets}

    def _targets(self) -> list[_Target]:
        config = self._config
        keys = {spec.endpoint: self._key(spec) for spec in config.models.values() if spec.endpoint}
        targets = [_Target(role, api_url(url), keys.get(role)) for role, url in config.vllm_endpoints.items()]
        for name, spec in config.models.items():
            if spec.backend == "vllm" and spec.base_url and spec.endpoint is None:
                targets.append(_Target(name, api_url(spec.base_url), self._key(spec)))
        return targets

    def _key(self, spec: ModelSpec) -> str | None:
        return self._environ.get(spec.api_key_env) if spec.api_key_env else None


def unprobed(config: StrategyConfig, environ: Mapping[str, str]) -> ResourceStatus:
    """What can be known without asking a server; the endpoints are unknown."""
    return ResourceStatus(
        cloud_apis=cloud_apis(config, environ),
        slurm_available=slurm_available(environ),
        embedded_available=embedded_available(),
    )


def cloud_apis(config: StrategyConfig, environ: Mapping[str, str]) -> dict[str, bool]:
    """Cloud model -> whether its key is there; empty where the profile allows no cloud."""
    models = {name: spec for name, spec in config.models.items() if not spec.local} if config.allow_cloud else {}
    return {name: not spec.api_key_env or bool(environ.get(spec.api_key_env)) for name, spec in models.items()}


def slurm_available(environ: Mapping[str, str]) -> bool:
    """Whether SLURM's commands are on the search path."""
    path = environ.get("PATH", os.defpath)
    return any(shutil.which(command, path=path) for command in ("sbatch", "sinfo"))


def embedded_available() -> bool:
    """Whether the embedded engine is installed; does not load it."""
    return importlib.util.find_spec("mistralrs") is not None
