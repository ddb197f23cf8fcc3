"""Routes requests to the cheapest language model that is good enough, and keeps data where the profile allows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.plan import Member, Plan, Tier
    from workflow_composer.plugins.hookspecs import hookimpl
    from workflow_composer.support.typed_fields import RequestFields
    from workflow_composer.types import LLMRequest, LLMResponse

__all__ = [
    "LLMRequest",
    "LLMResponse",
    "Member",
    "ModelOrchestrator",
    "Plan",
    "RequestFields",
    "StrategyConfig",
    "Tier",
    "hookimpl",
]
__version__ = "0.1.0"

# Names are imported on first use (PEP 562), so that `import workflow_composer` is fast.
_HOMES = {
    "LLMRequest": "types",
    "LLMResponse": "types",
    "Member": "plan",
    "ModelOrchestrator": "orchestrator",
    "Plan": "plan",
    "RequestFields": "support.typed_fields",
    "StrategyConfig": "config.strategy",
    "Tier": "plan",
    "hookimpl": "plugins.hookspecs",
}


def __getattr__(name: str) -> Any:
    from workflow_composer.support.lazy_names import lift

    return lift(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
