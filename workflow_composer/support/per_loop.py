"""One resource per event loop, closed in its own loop.

Connections belong to the loop that opened them: they fail in another loop, and warn if they are closed after its end. A
backend is used from the loop of the synchronous API, from a server's, and from one per `asyncio.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from workflow_composer.support.loop_thread import stands_still

T = TypeVar("T")
_PATIENCE = 1.0
"""Seconds to wait for another thread's loop to close its resource."""


class PerLoop(dict[asyncio.AbstractEventLoop, T]):
    """Makes a resource at its first use in a loop; closes it on demand, or when that loop shuts down.

    A mapping from loops to their existing resources: ``held.get(asyncio.get_running_loop()) or await held.here()``.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        super().__init__()
        self._make = make
        self._close = close
        self._guards: dict[asyncio.AbstractEventLoop, AsyncGenerator[T, None]] = {}

    async def here(self) -> T:
        """Return the running loop's resource, making it if needed."""
        loop = asyncio.get_running_loop()
        if loop not in self:
            self._forget_closed_loops()
            self._guards[loop] = guard = self._lifetime(loop)
            self[loop] = await anext(guard)
        return self[loop]

    async def close(self) -> None:
        """Close the resources of all loops, each in its own loop; safe to call twice."""
        here = asyncio.get_running_loop()
        for loop, guard in list(self._guards.items()):
            self._forget(loop)
            if loop is here:
                await guard.aclose()
            elif loop.is_running():
                ended = asyncio.run_coroutine_threadsafe(_end(guard), loop)
                if not stands_still(loop):  # a loop blocked by this call closes it afterwards
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(asyncio.wrap_future(ended), _PATIENCE)

    async def _lifetime(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[T, None]:
        # A loop ends the async generators that were started in it before it closes (`shutdown_asyncgens`, which
        # `asyncio.run` calls): the only public hook that reports the end of a loop.
        value = self._make()
        try:
            yield value
        finally:
            self._forget(loop)
            await self._close(value)

    def _forget_closed_loops(self) -> None:
        for loop in list(self):
            if loop.is_closed():
                self._forget(loop)

    def _forget(self, loop: asyncio.AbstractEventLoop) -> None:
        self.pop(loop, None)
        self._guards.pop(loop, None)


async def _end(guard: AsyncGenerator[T, None]) -> None:
    await guard.aclose()
