"""A strategy profile, from its YAML text to the checked and frozen `StrategyConfig`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig

__all__ = ["StrategyConfig"]

_HOMES = {"StrategyConfig": "strategy"}


def __getattr__(name: str) -> Any:
    from workflow_composer.support.lazy_names import lift

    return lift(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
