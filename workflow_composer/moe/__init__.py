"""Verifiable adaptive routing (VAR) of tokens in mixture-of-experts models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.moe.models.demo import RealisticMoERouter
    from workflow_composer.moe.models.gates import gates
    from workflow_composer.moe.models.recording import RouteRecorder, effect, predict, rows_of
    from workflow_composer.moe.models.transformers_moe import TableRouting
    from workflow_composer.moe.routing.system import VARSystem
    from workflow_composer.moe.routing.tables import RouteTables

__all__ = [
    "RealisticMoERouter",
    "RouteRecorder",
    "RouteTables",
    "TableRouting",
    "VARSystem",
    "effect",
    "gates",
    "predict",
    "rows_of",
]

_HOMES = {
    "RealisticMoERouter": "models.demo",
    "RouteRecorder": "models.recording",
    "RouteTables": "routing.tables",
    "TableRouting": "models.transformers_moe",
    "VARSystem": "routing.system",
    "effect": "models.recording",
    "gates": "models.gates",
    "predict": "models.recording",
    "rows_of": "models.recording",
}


def __getattr__(name: str) -> Any:
    from workflow_composer.support.lazy_names import lift

    return lift(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
