"""Which connection a request takes, and what becomes of it."""

from __future__ import annotations

import asyncio

import httpcore2
import httpx2
import pytest

from tests.integration.stub_backends import call
from tests.integration.stub_server import Reply
from workflow_composer.backends.connections import Connections
from workflow_composer.backends.egress import EgressPolicy, endpoint_of, http_client


def client_of(server, **options) -> httpx2.AsyncClient:
    """A client that reaches the stub server."""
    return http_client(EgressPolicy(False, frozenset({endpoint_of(server.url)})), **options)


async def test_as_many_connections_are_opened_as_calls_are_under_way(server, local):
    """And the same ones serve the next calls."""
    for _ in range(3):
        await asyncio.gather(*(local.complete(call()) for _ in range(30)))
    assert server.connections <= 31  # the first one asked for the model


async def test_a_connection_that_the_server_closed_is_not_used_again(server):
    """The next request gets one that lives, and no error."""
    async with client_of(server) as client:
        for _ in range(3):
            server.script(Reply(headers={"Connection": "close"}, body=b"{}"))
            assert (await client.post(server.url + "/chat/completions", json={})).status_code == 200
    assert server.connections == 3


async def test_a_connection_that_was_idle_for_too_long_is_not_used_again(server):
    """The server may be about to close it."""
    async with client_of(server, keepalive=0.05) as client:
        await client.get(server.url + "/models")
        await asyncio.sleep(0.1)
        await client.get(server.url + "/models")
        assert await asyncio.to_thread(server.wait_for, lambda stub: stub.open == 1)
    assert server.connections == 2


async def test_idle_connections_beyond_need_are_closed_while_others_work(server):
    """After a burst their number falls again, although one of them is always fresh."""
    async with client_of(server, keepalive=0.3) as client:
        await asyncio.gather(*(client.get(server.url + "/models") for _ in range(5)))
        async with asyncio.timeout(60):
            while server.open > 1:
                await client.get(server.url + "/models")
    assert server.connections == 5


async def test_a_connection_that_fails_in_any_way_is_closed():
    """Also one that had been opened when its call was cancelled."""

    class Failing(httpcore2.AsyncConnectionInterface):
        closed = False

        async def handle_async_request(self, request):
            raise asyncio.CancelledError

        async def aclose(self):
            self.closed = True

    connection = Failing()
    with pytest.raises(asyncio.CancelledError):
        await Connections(lambda _: connection).send(httpcore2.Request("GET", "http://localhost/"))
    assert connection.closed


async def test_a_broken_connection_is_dropped(server):
    """It serves nobody else, and is not left open."""
    server.script(Reply.chat("cut", die_after=1))
    async with client_of(server) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post(server.url + "/chat/completions", json={})
        assert (await client.get(server.url + "/models")).status_code == 200
    assert await asyncio.to_thread(server.wait_for, lambda stub: stub.open == 0)


async def test_closing_ends_connections_in_use_too(server):
    """Nothing outlives the client."""
    client = client_of(server)
    server.script(Reply.stream("a", "b", gap=30.0))
    response = await client.send(client.build_request("POST", server.url + "/chat/completions", json={}), stream=True)
    await client.aclose()
    assert await asyncio.to_thread(server.wait_for, lambda stub: stub.open == 0)
    await response.aclose()
