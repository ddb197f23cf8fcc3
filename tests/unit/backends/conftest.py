"""Backends behind the stub server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator

import pytest

from tests.integration.stub_backends import cloud_backend, local_backend
from tests.integration.stub_server import StubServer
from workflow_composer.backends.openai.backend import OpenAICompatibleBackend


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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Certificate and key of localhost, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", file, "-out", file.with_suffix(".crt")]
    subprocess.run([openssl, *options.split(), *names], check=True, capture_output=True)
    file.write_text(file.read_text() + file.with_suffix(".crt").read_text())
    return file
