"""A whole orchestrator over scripted models, with its execution-feedback router at hand."""

from __future__ import annotations

import io
import json
from typing import Any

from tests.unit.calibration.certificates import certificate
from tests.unit.calibration.tokens import sure
from workflow_composer import LLMRequest, ModelOrchestrator, StrategyConfig, hookimpl
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.calibration.certify.certificate import Certificate
from workflow_composer.calibration.monitoring.audits import AuditLog
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plugins.host import plugin_host
from workflow_composer.routers.execution_feedback import ExecutionFeedbackRouter

TIERS = {
    "small": {"model": "s", "cost": 1.0},
    "medium": {"model": "m", "cost": 4.0},
    "large": {"model": "l", "cost": 16.0},
}
CONFIDENT = sure(*[-0.1] * 5, text="#### 4 ")
"""A score of 0.475, from the threshold of 0.4 on."""
DOUBTFUL = sure(*[-1.0] * 5, text="#### 3 ")
"""A score of 0.269: rejected."""
HOPELESS = sure(*[-3.0] * 5, text="#### 2 ")
"""A score of 0.047: straight to the last tier where that is from 0.2 down."""
NAMES = ("small", "medium", "large")
MODELS = dict(zip(NAMES, "sml", strict=True))


def profile(settings=None, *, capabilities=None, **fields):
    """Three tiers, the execution-feedback router with these settings before ``provider``."""
    models = {name: {"backend": "scripted", "capabilities": (capabilities or {}).get(name, [])} for name in "sml"}
    data = {
        "profile_name": "test",
        "models": models,
        "tiers": TIERS,
        "task_routing": {"*": "s"},
        "routers": [{"execution_feedback": settings or {}}, "provider"],
        "retries": {"attempts": 1, "base_delay": 0.001},
    }
    return StrategyConfig(**(data | fields))


class Scripted:
    """The plugin of the models: each answers from the script of its name."""

    def __init__(self, scripts):
        self.scripts = scripts
        self.made = {}

    @hookimpl
    def register_backends(self, register):
        register("scripted", self.make)

    def make(self, spec, context):
        self.made[spec.name] = FakeBackend(*self.scripts.get(spec.name, (f"{spec.name} answers",)), name=spec.name)
        return self.made[spec.name]


class Orchestrator(ModelOrchestrator):
    """What the tests look at."""

    def __init__(self, config: StrategyConfig, scripts: dict[str, Any]) -> None:
        self.scripted = Scripted(scripts)
        host = plugin_host(discover=False)
        host.add(self.scripted, name="scripted")
        self.log = io.StringIO()
        super().__init__(config, plugins=host, metrics=MemorySink(), environ={}, log=self.log)

    @property
    def router(self) -> ExecutionFeedbackRouter:
        """The router under test."""
        found = self.routers["execution_feedback"]
        assert isinstance(found, ExecutionFeedbackRouter)
        return found

    @property
    def metrics(self):
        """The lines written so far."""
        return self._sinks[0].metrics

    def calls(self, name):
        """What a model was asked."""
        return self.scripted.made[name].calls

    def request(self, prompt, **fields):
        """A request, for the router's own methods."""
        return LLMRequest.of(prompt, **fields)


def orchestrating(config: StrategyConfig, **scripts: Any) -> Orchestrator:
    """An orchestrator over models that answer from these scripts; a context manager of both kinds."""
    return Orchestrator(config, scripts)


def identified(made: Certificate) -> Certificate:
    """With the models that the profile of these tests has."""
    data = made.to_dict()
    for tier in data["tiers"]:
        tier["identity"] |= {"model": MODELS[tier["name"]], "backend": "scripted"}
    return Certificate.from_dict(json.loads(json.dumps(data)))


def suspend(tmp_path, made=None):
    """Raise the alarm of a certificate, as another process may."""
    log, digest = AuditLog(tmp_path / "audits.jsonl"), identified(made or certificate(NAMES)).digest
    log.sampled("req-1", certificate=digest, alpha=0.1, tier="small", group="*")
    log.alarm(digest, "9 of 20 audited answers were wrong")


def names(response):
    """The tiers that ran."""
    return [tier.name for tier in response.tiers]
