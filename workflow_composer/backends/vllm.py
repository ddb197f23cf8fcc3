"""The backend of models on vLLM servers of one's own: one server, or as many as there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflow_composer.backends.base import Backend, BackendContext
from workflow_composer.backends.openai_compatible import OpenAICompatibleBackend

if TYPE_CHECKING:
    from workflow_composer.strategy import ModelSpec


def vllm_backend(spec: ModelSpec, context: BackendContext) -> Backend:
    """A model at one URL is spoken to directly; one whose role has several places or a registry gets a server per call."""
    if spec.base_url is not None:
        return OpenAICompatibleBackend(spec, context)
    from workflow_composer.backends.replicas import ReplicatedBackend

    return ReplicatedBackend(spec, context)
