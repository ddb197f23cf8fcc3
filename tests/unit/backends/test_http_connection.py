"""One HTTP connection: what a server sends out of turn is nobody's answer, and what is too much is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from workflow_composer.backends.http.connection import Broken, Connection

ASK = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def connected(sent: bytes) -> AsyncIterator[Connection]:
    """A connection to a server that sends these bytes to every request."""

    class Server(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(sent)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, connection = await loop.create_connection(lambda: Connection(loop), "127.0.0.1", port)
    try:
        async with asyncio.timeout(5):
            yield connection
    finally:
        connection.abort()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)


@pytest.mark.parametrize("sent", [OK, b"HTTP/1.1 100 Continue\r\n\r\n" + OK])
async def test_a_connection_that_is_in_step_can_be_used_again(sent):
    async with connected(sent) as connection:
        assert (await connection.ask(ASK)).body == b"ok"
        assert connection.usable


@pytest.mark.parametrize("behind", [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf of", OK, b"nonsense"])
async def test_a_connection_with_something_behind_the_answer_is_not_used_again(behind):
    """What follows would be taken for the answer to the next request, which may be another client's."""
    async with connected(OK + behind) as connection:
        assert (await connection.ask(ASK)).body == b"ok"
        assert not connection.usable


async def test_a_server_that_goes_over_to_another_protocol_has_failed():
    async with connected(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n") as connection:
        with pytest.raises(Broken):
            await connection.ask(ASK)
