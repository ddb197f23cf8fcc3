"""Resources that live and die with their event loop."""

from __future__ import annotations

import asyncio
import gc
import threading

from tests.integration.stub_backends import call, local_backend
from workflow_composer.support.per_loop import PerLoop


class Thing:
    """Remembers the loop in which it was closed."""

    def __init__(self) -> None:
        self.closed_in: asyncio.AbstractEventLoop | None = None

    async def close(self) -> None:
        await asyncio.sleep(0.05)  # closing takes a while, as TLS does
        self.closed_in = asyncio.get_running_loop()


def test_each_loop_has_its_own_and_closes_it_at_its_end():
    """`asyncio.run` leaves nothing open, and nothing is kept for a loop that is gone."""
    held = PerLoop(Thing, Thing.close)

    async def use() -> tuple[Thing, asyncio.AbstractEventLoop]:
        assert await held.here() is await held.here() is held[asyncio.get_running_loop()]
        return await held.here(), asyncio.get_running_loop()

    first, first_loop = asyncio.run(use())
    second, second_loop = asyncio.run(use())
    assert first is not second
    assert (first.closed_in, second.closed_in) == (first_loop, second_loop)
    assert held == held._guards == {}


def test_closing_reaches_a_loop_that_runs_in_another_thread():
    """Each resource is closed in its own loop."""
    held = PerLoop(Thing, Thing.close)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    thing = asyncio.run_coroutine_threadsafe(held.here(), loop).result(60)

    async def close() -> Thing:
        here = await held.here()
        await held.close()
        assert thing.closed_in is loop
        await held.close()
        return here

    here = asyncio.run(close())
    assert here.closed_in is not None
    loop.call_soon_threadsafe(loop.stop)
    thread.join(60)
    loop.close()


def test_a_backend_used_from_one_loop_after_another_leaves_no_connection_open(server):
    """Connections that outlive their loop would warn, and warnings fail this test."""
    backend = local_backend(server.url)
    for _ in range(3):
        asyncio.run(backend.complete(call()))
    asyncio.run(backend.close())
    gc.collect()
    assert server.wait_for(lambda stub: stub.connections == 3)


def test_a_backend_that_is_never_closed_leaves_no_warning(server):
    """The end of the loop closes what the program forgot."""
    asyncio.run(local_backend(server.url).complete(call()))
    gc.collect()
