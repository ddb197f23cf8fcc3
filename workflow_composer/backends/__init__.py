"""Model backends: servers, cloud APIs, in-process models, recordings, scripted fakes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.backends.base import Backend, BackendContext, BackendFactory
    from workflow_composer.backends.fake import FakeBackend
    from workflow_composer.backends.http.client import Client
    from workflow_composer.backends.http.egress import EgressPolicy
    from workflow_composer.backends.recordings import open_recording

__all__ = ["Backend", "BackendContext", "BackendFactory", "Client", "EgressPolicy", "FakeBackend", "open_recording"]

_HOMES = {
    "Backend": "base",
    "BackendContext": "base",
    "BackendFactory": "base",
    "Client": "http.client",
    "EgressPolicy": "http.egress",
    "FakeBackend": "fake",
    "open_recording": "recordings",
}


def __getattr__(name: str) -> Any:
    from workflow_composer.support.lazy_names import lift

    return lift(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
