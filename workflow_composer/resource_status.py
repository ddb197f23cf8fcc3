"""Available resources: results of probes, keys and engines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NONE: Mapping[str, bool] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """Result of a probe of one local server, or of all ``replicas`` of a role. ``detail`` always explains it in words."""

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
    """Available resources. ``probed_at`` is None if nothing was probed yet and the endpoints are unknown."""

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
    """The active strategy and the available resources. ``chosen_by`` is "argument", "environment", "detection" or "switch";
    ``in_process`` names the models that the embedded engine runs in this process.
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
