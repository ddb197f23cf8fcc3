"""The API described: ``GET /openapi.json``."""

from __future__ import annotations

import functools
from typing import Any

from workflow_composer.server.exchange import Exchange, Reply
from workflow_composer.server.openapi import document
from workflow_composer.server.wire import encode


async def describing(exchange: Exchange) -> Reply:
    """The OpenAPI document."""
    return Reply(200, _written())


@functools.cache
def _written() -> bytes:
    found: dict[str, Any] = document()
    return encode(found)
