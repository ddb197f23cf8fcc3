"""Fixtures that several unit tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.integration.stub_server import StubServer

# A machine that is busy with other work makes neither examples nor their generation wrong.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture
def server() -> Iterator[StubServer]:
    """An OpenAI-compatible server on the loopback interface: a fake with a socket."""
    with StubServer() as stub:
        yield stub
