"""What tests of the service's parts share."""

from __future__ import annotations

import pytest

from tests.unit.server.examples import Sent


@pytest.fixture
def given():
    """Makes requests that were given to a handler."""

    def make(method="GET", path="/", body=b"", headers=None, query=""):
        return Sent(method, path, body, headers=headers or {}, query=query, client="10.0.0.7")

    return make
