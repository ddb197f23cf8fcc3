"""The channel between supervisor and workers: requests and replies as JSON lines over a socket pair.

Both ends may send requests. The socket is inherited, not bound, so no other process can use it; a closed socket tells each
end that the other has exited.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from workflow_composer.errors import ChannelClosed, ConfigError, WorkflowComposerError

Answer = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]

_LONGEST_LINE = 16 * 2**20


class WorkerChannel:
    """One end of the connection between two processes of the service."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self._answers = answers
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0
        self.closed = asyncio.Event()

    async def open(self, sock: socket.socket) -> None:
        """Start listening."""
        reader, self._writer = await asyncio.open_unix_connection(sock=sock, limit=_LONGEST_LINE)
        self._begin(self._listen(reader))

    async def ask(self, what: str, *, limit: float = 10.0, **data: Any) -> Mapping[str, Any]:
        """Send a request to the other end. Raises `ChannelClosed`, TimeoutError, and `ConfigError` if it refuses."""
        if self._writer is None or self.closed.is_set():
            raise ChannelClosed("the other process has exited")
        self._number += 1
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = answer
        number = self._number
        try:
            self._send({"ask": what, "id": number, **data})
            async with asyncio.timeout(limit):
                found = await answer
        finally:
            self._waiting.pop(number, None)
        if "error" in found:
            raise ConfigError(str(found["error"]), hint=str(found.get("hint", "")))
        return found

    def close(self) -> None:
        """Close the channel."""
        if self._writer is not None:
            self._writer.close()
        for task in self._tasks:
            task.cancel()
        self._end()

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            with suppress(OSError, ValueError, LookupError, TypeError):  # or the line is malformed
                while line := await reader.readline():
                    data = json.loads(line)
                    if "ask" in data:
                        self._begin(self._answer(data))
                    elif (waiting := self._waiting.get(data["id"])) is not None and not waiting.done():
                        waiting.set_result(data)
        finally:
            self._end()

    def _end(self) -> None:
        self.closed.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ChannelClosed("the other process has exited"))

    async def _answer(self, data: Mapping[str, Any]) -> None:
        try:
            found = await self._answers[data["ask"]](data)
        except WorkflowComposerError as error:
            found = {"error": error.message, "hint": error.hint}
        except Exception as error:  # noqa: BLE001  # the other end waits for a reply
            found = {"error": f"{type(error).__name__}: {error}"}
        self._send({**found, "id": data["id"]})

    def _send(self, data: Mapping[str, Any]) -> None:
        if self._writer is not None and not self.closed.is_set():
            self._writer.write(json.dumps(data).encode() + b"\n")
