"""The kit for plugin authors: conformance checks, an orchestrator with a plugin, fakes, and a server with recorded answers.

>>> from workflow_composer.testing import check_router, orchestrator_with
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.backends.fake import Delay, FakeBackend, Interrupted
    from workflow_composer.testing.backends import check_backend
    from workflow_composer.testing.conformance import NotConforming, check_policy, check_step
    from workflow_composer.testing.recorded_server import RecordedServer
    from workflow_composer.testing.routers import check_router
    from workflow_composer.testing.with_plugin import ask, orchestrator_with, profile_of

__all__ = [
    "Delay",
    "FakeBackend",
    "Interrupted",
    "NotConforming",
    "RecordedServer",
    "ask",
    "check_backend",
    "check_policy",
    "check_router",
    "check_step",
    "orchestrator_with",
    "profile_of",
]

_HOMES = {
    "NotConforming": "conformance",
    "RecordedServer": "recorded_server",
    "ask": "with_plugin",
    "check_backend": "backends",
    "check_policy": "conformance",
    "check_router": "routers",
    "check_step": "conformance",
    "orchestrator_with": "with_plugin",
    "profile_of": "with_plugin",
}
_FAKES = {"Delay": "fake", "FakeBackend": "fake", "Interrupted": "fake"}


def __getattr__(name: str) -> Any:
    from workflow_composer.support.lazy_names import lift

    if name in _FAKES:
        return lift("workflow_composer.backends", _FAKES, name)
    return lift(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
