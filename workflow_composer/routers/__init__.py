"""Routers: each decides which models are called for a request, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.routers.base import Router, RouterContext, RouterSettings

__all__ = ["Router", "RouterContext", "RouterSettings"]

_HOMES = {"Router": "base", "RouterContext": "base", "RouterSettings": "base"}


def __getattr__(name: str) -> Any:
    from workflow_composer.support.lazy_names import lift

    return lift(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
