"""An orchestrator over fake models that has one plugin more, to run requests through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from workflow_composer.backends.fake import FakeBackend
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.orchestrator import ModelOrchestrator
from workflow_composer.plugins.hookspecs import hookimpl
from workflow_composer.plugins.host import PluginHost

if TYPE_CHECKING:
    from workflow_composer.types import LLMResponse

_BACKEND = "kit_fake"


class _Fakes:
    def __init__(self, answers: Mapping[str, Sequence[Any]]) -> None:
        self.made: dict[str, FakeBackend] = {}
        self._answers = answers

    @hookimpl
    def register_backends(self, register: Any) -> None:
        """Register the backend of the kit's models."""
        register(_BACKEND, self._make)

    def _make(self, spec: Any, context: Any) -> FakeBackend:
        script = self._answers.get(spec.name, (f"{spec.name} answers",))
        self.made[spec.name] = FakeBackend(*script, name=spec.name, local=True)
        return self.made[spec.name]


def profile_of(**keys: Any) -> StrategyConfig:
    """Return a profile with the fake models ``small`` and ``large``, both of them tiers, and with these keys.

    >>> profile_of(routers=["provider"]).task_routing["*"]
    'small'
    """
    models = {name: {"backend": _BACKEND, "model": name} for name in ("small", "large")}
    tiers = {"small": {"model": "small", "cost": 1.0}, "large": {"model": "large", "cost": 10.0}}
    base = {"profile_name": "kit", "allow_cloud": False, "models": models, "tiers": tiers, "task_routing": {"*": "small"}}
    return StrategyConfig(**{**base, **keys})


@contextmanager
def orchestrator_with(
    plugin: object | None = None, *, answers: Mapping[str, Sequence[Any]] | None = None, **profile: Any
) -> Iterator[KitOrchestrator]:
    """Yield an orchestrator with a plugin, over fake models; ``profile`` has keys of `profile_of`.

    ``answers`` are scripts of `FakeBackend` by model. The models that answer are in ``orchestrator.fakes``, by name; no
    metrics file is written. Raises `WorkflowComposerError` if the plugin or the profile is invalid.
    """
    host, fakes = PluginHost(), _Fakes(answers or {})
    host.add(fakes, name="workflow_composer_testing")
    if plugin is not None:
        host.add(plugin, name="under_test")
    with KitOrchestrator(profile_of(**profile), plugins=host, metrics=MemorySink(), environ={}) as orchestrator:
        orchestrator.fakes = fakes.made
        yield orchestrator


class KitOrchestrator(ModelOrchestrator):
    """An orchestrator over fake models: ``fakes``, by name."""

    fakes: Mapping[str, FakeBackend]


def ask(plugin: object | None, prompt: str, *, profile: Mapping[str, Any] | None = None, **fields: Any) -> LLMResponse:
    """Run one request through a plugin, and return the response; ``fields`` are those of `LLMRequest`. Raises as
    `ModelOrchestrator.generate`.

    >>> ask(None, "hello", profile={"routers": ["provider"]}).text
    'small answers'
    """
    with orchestrator_with(plugin, **(profile or {})) as orchestrator:
        return orchestrator.generate(prompt, **fields)
