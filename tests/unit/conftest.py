"""Fixtures that several unit tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.stub_server import StubServer


@pytest.fixture
def server() -> Iterator[StubServer]:
    """An OpenAI-compatible server on the loopback interface: a fake with a socket."""
    with StubServer() as stub:
        yield stub
