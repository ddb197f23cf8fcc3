"""Backends and calls for tests against the stub server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.integration.stub_server import Request, StubServer
from workflow_composer.backends.base import BackendContext
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.backends.openai.backend import OpenAICompatibleBackend
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.types import Chunk, LLMRequest, ModelCall, Timeouts

KEY = "sk-" + "0123456789abcdef" * 2
PROMPT = "Patient 4711 has a rash on the left arm.\nIs it contagious?"


def backend_of(
    name: str, config: StrategyConfig, environ: Mapping[str, str] | None = None, egress: EgressPolicy | None = None
) -> OpenAICompatibleBackend:
    """The backend of one of a profile's models."""
    context = BackendContext(config, egress or EgressPolicy.of(config), {} if environ is None else environ)
    return OpenAICompatibleBackend(config.backend_specs()[name], context)


def local_backend(url: str, **spec: Any) -> OpenAICompatibleBackend:
    """A vLLM model in a profile without the cloud."""
    models = {"model": {"backend": "vllm", "base_url": url, **spec}}
    return backend_of("model", StrategyConfig(profile_name="local", allow_cloud=False, models=models))


def cloud_backend(url: str, environ: Mapping[str, str] | None = None) -> OpenAICompatibleBackend:
    """A cloud model with a key."""
    models = {"api": {"backend": "openai", "model": "gpt", "base_url": url, "api_key_env": "STUB_KEY"}}
    config = StrategyConfig(profile_name="cloud", models=models)
    return backend_of("api", config, {"STUB_KEY": KEY} if environ is None else environ)


def call(*, samples: int = 1, timeouts: Timeouts | None = None, **fields: Any) -> ModelCall:
    """A call with a prompt that must show up nowhere."""
    return ModelCall(LLMRequest.of(PROMPT, **fields), samples=samples, timeouts=timeouts or Timeouts())


def posts(server: StubServer) -> list[Request]:
    """The requests that were more than questions for the model."""
    return [request for request in server.requests if request.method == "POST"]


async def collect(backend: OpenAICompatibleBackend, the_call: ModelCall) -> list[Chunk]:
    """All pieces of a stream."""
    return [chunk async for chunk in backend.stream(the_call)]
