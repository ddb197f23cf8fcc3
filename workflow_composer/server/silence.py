"""A stream that has nothing to say yet shows that it is alive, for clients and proxies that give up on silence.

A vote, a cascade or a model's prompt may take minutes. What is not known by then (who answers) follows as trailers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from workflow_composer.server.exchange import Exchange, Fields

SILENT = 10.0
"""Seconds without a byte after which a stream is opened, and between two signs of life before its first event."""


class Silence:
    """The time before a stream's first event: ``headers`` open it early, ``sign`` is what is sent. Call `end` after it."""

    def __init__(self, exchange: Exchange, headers: Callable[[], Fields], sign: Callable[[], bytes]) -> None:
        self._exchange = exchange
        self._headers = headers
        self._sign = sign
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(SILENT, self._ring)
        self.broken = False

    def end(self) -> None:
        """End the silence; safe to call twice."""
        self._timer.cancel()

    def _ring(self) -> None:
        if not self._exchange.opened:
            self.broken = True
            self._exchange.open_stream(headers=self._headers())
        self._exchange.write(self._sign())
        self._timer = self._loop.call_later(SILENT, self._ring)
