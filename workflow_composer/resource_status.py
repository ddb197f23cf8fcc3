"""What there is to work with: what probes of servers found, and which keys and engines are there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NONE: Mapping[str, bool] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """What a probe of one local server found, or of all ``replicas`` of a role. ``detail`` explains in words, always."""

    name: str
    url: str
    healthy: bool
    models: tuple[str, ...] = ()
    latency_ms: float | None = None
    detail: str = ""
    replicas: tuple[EndpointStatus, ...] = ()


_NO_ENDPOINTS: Mapping[str, EndpointStatus] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """What is there to work with. ``probed_at`` is None where no probe has been made yet and endpoints are unknown."""

    endpoints: Mapping[str, EndpointStatus] = field(default_factory=lambda: _NO_ENDPOINTS)
    cloud_apis: Mapping[str, bool] = field(default_factory=lambda: _NONE)
    slurm_available: bool = False
    embedded_available: bool = False
    probed_at: float | None = None

    @property
    def vllm_endpoints(self) -> Mapping[str, bool]:
        """Endpoint name -> healthy."""
        return {name: status.healthy for name, status in self.endpoints.items()}

    @property
    def age(self) -> float | None:
        """Seconds since the probe."""
        return None if self.probed_at is None else time.time() - self.probed_at


@dataclass(frozen=True, slots=True)
class OrchestratorStatus:
    """What is active and what is reachable. ``chosen_by`` is "argument", "environment", "detection" or "switch";
    ``in_process`` names the models that the embedded engine runs here.
    """

    strategy: str
    source: str
    chosen_by: str
    allow_cloud: bool
    debug: bool
    resources: ResourceStatus
    routers: tuple[str, ...]
    models: tuple[str, ...]
    in_process: tuple[str, ...]
    broken_plugins: tuple[str, ...]
