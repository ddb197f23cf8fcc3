"""Handlers of ``/v1/workflows/runs``: what runs of workflows are doing, of the service and of the commands beside it.

A key sees the requests that were made with it; operators see all, and so does everybody on this machine where no key is
required. Nobody sees a value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from workflow_composer.server.api.json_wire import encode
from workflow_composer.server.auth.callers import Callers
from workflow_composer.server.exchange import Exchange, Handler, Reply
from workflow_composer.server.failures import HttpFailure
from workflow_composer.workflows.live_runs import RunBoard

RUNS = "/v1/workflows/runs"
_KIND = {"object": "workflow.run"}
_USUAL, _MOST = 20, 100
_HEADERS = [("cache-control", "no-store")]


class WorkflowRuns:
    """The handlers; ``board`` has the runs."""

    def __init__(self, board: RunBoard, callers: Callers) -> None:
        self._board, self._callers = board, callers

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        return {("GET", RUNS): self.runs, ("GET", f"{RUNS}/"): self.one}

    async def runs(self, exchange: Exchange) -> Reply:
        """List the caller's runs: those under way, then the latest; ``limit`` of them."""
        caller = self._callers.of(exchange)
        asked = parse_qs(exchange.query).get("limit", [str(_USUAL)])[-1]
        if not (asked.isascii() and asked.isdigit() and 1 <= int(asked) <= _MOST):
            raise HttpFailure(400, f"limit must be a number from 1 to {_MOST}", param="limit")
        found = await asyncio.to_thread(self._board.runs, int(asked), caller.owns)
        return _reply({"object": "list", "data": [_KIND | one for one in found]})

    async def one(self, exchange: Exchange) -> Reply:
        """Return one of the caller's runs, with the drawing of its workflow. Raises `HttpFailure` 404."""
        caller = self._callers.of(exchange)
        identity = exchange.path.removeprefix(f"{RUNS}/")
        found = await asyncio.to_thread(self._board.find, identity) if caller.owns(identity) else None
        if found is None:
            message = f"there is no run {identity[:100]!r}; the ID is that of a response, or in {RUNS}"
            raise HttpFailure(404, message, code="run_not_found", param="id")
        return _reply(_KIND | found)


def _reply(found: Mapping[str, Any]) -> Reply:
    return Reply(200, encode(found), headers=_HEADERS)
