"""The built-in routers, backends and batch policies, registered through the same hooks as plugins."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from workflow_composer.errors import ConfigError
from workflow_composer.plugins.hookspecs import RegisterBackend, RouterFactory, StrategyFactory, hookimpl
from workflow_composer.plugins.host import BUILTIN, PluginHost
from workflow_composer.support.installing import install_command

ROUTERS = {
    "t4_model": "workflow_composer.routers.t4_model:T4ModelRouter",
    "provider": "workflow_composer.routers.provider:ProviderRouter",
    "cascade": "workflow_composer.routers.cascade:CascadeRouter",
    "execution_feedback": "workflow_composer.routers.execution_feedback:ExecutionFeedbackRouter",
    "cascading_provider": "workflow_composer.routers.cascading_provider:CascadingProviderRouter",
    "adaptive": "workflow_composer.routers.adaptive:AdaptiveRouter",
}
_ROUTER_EXTRAS = {"adaptive": "calibration"}
BACKENDS = {
    "vllm": "workflow_composer.backends.replicas.backend:vllm_backend",
    "openai": "workflow_composer.backends.openai.backend:OpenAICompatibleBackend",
    "embedded": "workflow_composer.backends.embedded.backend:EmbeddedBackend",
    "replay": "workflow_composer.backends.recordings:ReplayBackend",
    "fake": "workflow_composer.backends.fake:FakeBackend.of_spec",
}
BATCH_STRATEGIES = {
    "plain": "workflow_composer.batch.planning.policies:Plain",
    "majority_vote": "workflow_composer.batch.planning.policies:MajorityVote",
    "cascade": "workflow_composer.batch.planning.policies:Cascade",
    "adaptive_k_sampling": "workflow_composer.batch.planning.policies:AdaptiveKSampling",
    "cost_aware_escalation": "workflow_composer.batch.planning.policies:CostAwareEscalation",
    "entropy_aware_escalation": "workflow_composer.batch.planning.policies:EntropyAwareEscalation",
}


class _Lazy:
    """A factory that imports its target on first use; ``extra`` names the package extra with the required libraries."""

    def __init__(self, place: str, *, extra: str = "") -> None:
        self._place = place
        self._extra = extra

    def _load(self) -> Any:
        module, _, path = self._place.partition(":")
        try:
            found: Any = import_module(module)
        except ModuleNotFoundError as error:
            if not self._extra:
                raise
            raise ConfigError(f"{error.name} is not installed", hint=install_command(self._extra)) from error
        for name in path.split("."):
            found = getattr(found, name)
        return found

    def __call__(self, *args: Any) -> Any:
        return self._load()(*args)

    @property
    def Settings(self) -> Any:  # noqa: N802  # the name it has on routers
        """The router's settings model."""
        return self._load().Settings


class BuiltinPlugin:
    """The built-in plugin."""

    @hookimpl
    def register_routers(self, register: Callable[[str, RouterFactory], None]) -> None:
        """Register the routers of `workflow_composer.routers`."""
        for name, place in ROUTERS.items():
            register(name, _Lazy(place, extra=_ROUTER_EXTRAS.get(name, "")))

    @hookimpl
    def register_backends(self, register: RegisterBackend) -> None:
        """Register the backends of `workflow_composer.backends`."""
        for name, place in BACKENDS.items():
            register(name, _Lazy(place))

    @hookimpl
    def register_batch_strategies(self, register: Callable[[str, StrategyFactory], None]) -> None:
        """Register the policies of `workflow_composer.batch.planning.policies`."""
        for name, place in BATCH_STRATEGIES.items():
            register(name, _Lazy(place, extra="batch"))


def plugin_host(*, discover: bool = True, on_broken: Callable[[str, str], None] | None = None) -> PluginHost:
    """Return a host with the built-in plugin and, by default, every installed plugin."""
    host = PluginHost(on_broken=on_broken)
    host.add(BuiltinPlugin(), name=BUILTIN)
    if discover:
        host.discover()
    return host
