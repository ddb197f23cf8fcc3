"""Backends behind the stub server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.stub_backends import cloud_backend, local_backend
from tests.integration.stub_server import StubServer
from workflow_composer.backends.openai_compatible import OpenAICompatibleBackend


@pytest.fixture
async def local(server: StubServer) -> AsyncIterator[OpenAICompatibleBackend]:
    """A vLLM model, in a profile without the cloud."""
    backend = local_backend(server.url)
    yield backend
    await backend.close()


@pytest.fixture
async def cloud(server: StubServer) -> AsyncIterator[OpenAICompatibleBackend]:
    """A cloud model with a key."""
    backend = cloud_backend(server.url)
    yield backend
    await backend.close()
