"""One resource per event loop, closed in its own loop.

Connections belong to the loop that opened them: they fail in another loop, and warn if they are closed after its end. A
backend is used from the loop of the synchronous API, from a server's, and from one per `asyncio.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

from workflow_composer.runner import stands_still

T = TypeVar("T")
_PATIENCE = 1.0
"""Seconds to wait for another thread's loop to close its resource."""


class PerLoop(Generic[T]):
    """Makes a resource on first use in a loop; closes it on request, or when the loop shuts down."""

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._close = close
        self._held: dict[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[T, None]]] = {}

    def made(self) -> T | None:
        """Return the running loop's resource; None if it has not been made yet."""
        held = self._held.get(asyncio.get_running_loop())
        return None if held is None else held[0]

    async def get(self) -> T:
        """Return the running loop's resource, making it if needed."""
        loop = asyncio.get_running_loop()
        held = self._held.get(loop)
        if held is None:
            self._forget_closed_loops()
            guard = self._lifetime(loop)
            held = self._held[loop] = (await anext(guard), guard)
        return held[0]

    async def close(self) -> None:
        """Close the resources of all loops, each in its own loop; safe to call twice."""
        here = asyncio.get_running_loop()
        for loop, (_, guard) in list(self._held.items()):
            self._held.pop(loop, None)
            if loop is here:
                await guard.aclose()
            elif loop.is_running():
                ended = asyncio.run_coroutine_threadsafe(_end(guard), loop)
                if not stands_still(loop):  # a loop blocked by this call closes it afterwards
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(asyncio.wrap_future(ended), _PATIENCE)

    async def _lifetime(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[T, None]:
        # A loop ends the async generators that were started in it before it closes (`shutdown_asyncgens`, which
        # `asyncio.run` calls): the one public hook by which a resource learns of the end of its loop.
        value = self._make()
        try:
            yield value
        finally:
            self._held.pop(loop, None)
            await self._close(value)

    def _forget_closed_loops(self) -> None:
        for loop in list(self._held):
            if loop.is_closed():
                self._held.pop(loop, None)


async def _end(guard: AsyncGenerator[T, None]) -> None:
    await guard.aclose()
