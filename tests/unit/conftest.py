"""Unit tests may use the stub server of the integration tests: it is a fake with a socket."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))


@pytest.fixture
def server() -> Iterator[object]:
    """A stub server that answers like vLLM unless scripted."""
    from stub_server import StubServer

    with StubServer() as stub:
        yield stub
