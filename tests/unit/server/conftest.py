"""What tests of the service's parts share."""

from __future__ import annotations

import json

import pytest

from workflow_composer.server.exchange import Exchange


class Given(Exchange):
    """A request that was given, and what is written to its sender."""

    __slots__ = ("_opened", "written")

    def __init__(self, method="GET", path="/", body=b"", headers=None, query=""):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        super().__init__(method, path, headers=headers or {}, body=data, query=query, client="10.0.0.7", request_id="req-1")
        self.written = []
        self._opened = False

    def open_stream(self, *, content_type="", headers=()):
        self._opened = True

    def write(self, data):
        self.written.append(data)

    async def drain(self):
        pass

    def close_stream(self, trailers=()):
        pass

    @property
    def opened(self):
        return self._opened


@pytest.fixture
def given():
    """Makes requests."""
    return Given
