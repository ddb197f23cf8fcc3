"""Routes requests to the cheapest language model that is good enough, and keeps data where the profile allows it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.hookspecs import hookimpl
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.strategy import StrategyConfig
    from workflow_composer.types import LLMRequest, LLMResponse, Member, Plan, Tier

__all__ = ["LLMRequest", "LLMResponse", "Member", "ModelOrchestrator", "Plan", "StrategyConfig", "Tier", "hookimpl"]
__version__ = "0.1.0"

# Names are imported on first use (PEP 562), so that `import workflow_composer` is fast.
_HOMES = {
    "LLMRequest": "types",
    "LLMResponse": "types",
    "Member": "types",
    "ModelOrchestrator": "orchestrator",
    "Plan": "types",
    "StrategyConfig": "strategy",
    "Tier": "types",
    "hookimpl": "hookspecs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
