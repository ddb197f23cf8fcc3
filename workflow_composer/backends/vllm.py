"""The backend of models on local vLLM servers: one server or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflow_composer.backends.base import Backend, BackendContext
from workflow_composer.backends.openai_compatible import OpenAICompatibleBackend

if TYPE_CHECKING:
    from workflow_composer.strategy import ModelSpec


def vllm_backend(spec: ModelSpec, context: BackendContext) -> Backend:
    """Return a backend for one URL, or one that chooses a server per call if the role has several or uses the registry."""
    if spec.base_url is not None:
        return OpenAICompatibleBackend(spec, context)
    from workflow_composer.backends.replicas import ReplicatedBackend

    return ReplicatedBackend(spec, context)
