"""A small OpenAI-compatible server on the loopback interface, for tests and benchmarks.

It runs in a thread of its own, answers what it is told to (`StubServer.script`) and something sensible otherwise, and keeps
a record of requests and of clients that hung up before their answer was complete::

    with StubServer() as server:
        server.script(Reply.error(429, "slow down", headers={"Retry-After": "2"}))
        ...  # the first chat request gets 429, later ones an answer
        assert server.requests[0].json["model"] == "stub-model"
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

MODEL = "stub-model"


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What to answer. Times in seconds.

    ``delay`` passes before the status line, which waits ``until`` a test has set an event; ``hang`` lets it never come. With
    ``events`` the answer is a stream: ``first`` passes before the first event and ``gap`` before each other one.
    ``die_after``: the connection is cut after so many events, or in the middle of the body; ``hang_after``: so many events
    are followed by nothing.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    hang: bool = False
    until: threading.Event | None = None
    events: tuple[bytes, ...] | None = None
    first: float = 0.0
    gap: float = 0.0
    die_after: int | None = None
    hang_after: int | None = None
    done: bool = True

    @classmethod
    def of(cls, value: Any, **options: Any) -> Self:
        """Answer with JSON."""
        return cls(body=json.dumps(value).encode(), **options)

    @classmethod
    def chat(cls, *texts: str, model: str = MODEL, finish: str = "stop", **options: Any) -> Self:
        """Answer with one choice per text."""
        choices = [
            {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": None}
            for i, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": 5, "completion_tokens": 3 * len(texts), "total_tokens": 5 + 3 * len(texts)}
        return cls.of(
            {"id": "c", "object": "chat.completion", "model": model, "choices": choices, "usage": usage}, **options
        )

    @classmethod
    def stream(cls, *texts: str, usage: bool = True, finish: str | None = "stop", **options: Any) -> Self:
        """Answer with a stream: the role, one event per text, the end, and the usage."""
        deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
        deltas += [({"content": text}, None) for text in texts]
        if finish is not None:
            deltas.append(({}, finish))
        events = [_chunk([{"index": 0, "delta": delta, "finish_reason": end}]) for delta, end in deltas]
        if usage:
            events.append(_chunk([], usage={"prompt_tokens": 5, "completion_tokens": len(texts), "total_tokens": 0}))
        return cls(events=tuple(events), **options)

    @classmethod
    def error(
        cls,
        status: int,
        message: str = "no",
        *,
        code: Any = None,
        kind: str = "error",
        param: str | None = None,
        **options: Any,
    ) -> Self:
        """Answer with an error in OpenAI's form."""
        return cls.of({"error": {"message": message, "type": kind, "param": param, "code": code}}, status=status, **options)

    @classmethod
    def redirect(cls, location: str, status: int = 307) -> Self:
        """Answer with a redirect."""
        return cls(status=status, headers={"Location": location})


Handler = Callable[[Request], Reply]


class StubServer:
    """Listens from construction on; a context manager that stops it.

    ``listing`` replaces the answer to ``/models``; ``answer`` makes the answer to each POST that has none in the script;
    ``metrics`` is what ``/metrics`` says, where it says anything.
    """

    def __init__(
        self,
        *,
        models: Iterable[str] = (MODEL,),
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.scheme = "https" if tls else "http"
        self.models = list(models)
        self.listing: Reply | None = None
        self.answer: Handler | None = None
        self.metrics: str | None = None
        self.requests: list[Request] = []
        self.connections = 0
        self.open = 0
        self.disconnects = 0
        self._script: deque[Reply | Handler] = deque()
        self._changed = threading.Condition()
        self._going = threading.Event()
        self._going.set()
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stub-server", daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, host, port, backlog=1024, ssl=tls), self._loop
        )
        self._server = started.result(60)
        self.host, self.port = self._server.sockets[0].getsockname()[:2]

    @property
    def url(self) -> str:
        """The API's address, with ``/v1``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/v1"

    def script(self, *replies: Reply | Handler) -> None:
        """Give these answers to the next POST requests, in order."""
        self._script.extend(replies)

    def wait_for(self, condition: Callable[[Self], bool], seconds: float = 60.0) -> bool:
        """Wait until a condition on the record holds."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), seconds)

    def freeze(self) -> None:
        """Answer nothing from now on, but keep port and connections open, as SIGSTOP would."""
        self._going.clear()
        self._loop.call_soon_threadsafe(self._going.wait)

    def thaw(self) -> None:
        """Go on."""
        self._going.set()

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self.thaw()
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(60)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(60)
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _stop(self) -> None:
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        # asyncio leaves the socket of a connection open if its server closes or its task ends while it is being accepted;
        # only a handshake can take long
        if accepting := asyncio.all_tasks() - {asyncio.current_task()} - self._serving.keys():
            await asyncio.wait(accepting, timeout=1)
        self._server.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving[task] = writer
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # a task that is cancelled before its first step has closed nothing
        self._serving.pop(task).transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._changed:
            self.connections += 1
            self.open += 1
            connection = self.connections
            self._changed.notify_all()
        try:
            while (request := await _read(reader, connection)) is not None:
                with self._changed:
                    self.requests.append(request)
                    self._changed.notify_all()
                if not await self._answer(self._reply(request), reader, writer):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            with self._changed:
                self.open -= 1
                self._changed.notify_all()

    def _reply(self, request: Request) -> Reply:
        if request.method == "POST" and self._script:
            scripted = self._script.popleft()
            return scripted(request) if callable(scripted) else scripted
        if request.method == "POST" and self.answer is not None:
            return self.answer(request)
        if request.path == "/metrics" and self.metrics is not None:
            return Reply(body=self.metrics.encode(), headers={"Content-Type": "text/plain"})
        if request.path.endswith("/models"):
            return self.listing or Reply.of(
                {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
            )
        if request.path.endswith("/embeddings"):
            texts = request.json["input"]
            rows = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(texts)]
            return Reply.of({"model": MODEL, "data": rows, "usage": {"prompt_tokens": len(texts), "total_tokens": 0}})
        if request.path.endswith("/chat/completions"):
            if request.json.get("stream"):
                return Reply.stream("an ", "answer")
            return Reply.chat(*["an answer"] * request.json.get("n", 1), model=request.json["model"])
        return Reply.error(404, "no such path")

    async def _answer(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Write a reply; return whether the connection lives on."""
        if not await self._pause(float("inf") if reply.hang else reply.delay, reader):
            return False
        while reply.until is not None and not reply.until.is_set():
            if not await self._pause(0.02, reader):
                return False
        if reply.events is not None:
            return await self._stream(reply, reader, writer)
        head = {"Content-Type": "application/json", "Content-Length": str(len(reply.body)), **reply.headers}
        body = reply.body if reply.die_after is None else reply.body[: len(reply.body) // 2]
        writer.write(_head(reply.status, head) + body)
        await writer.drain()
        return reply.die_after is None

    async def _stream(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked", **reply.headers}
        writer.write(_head(reply.status, head))
        for number, event in enumerate([*(reply.events or ()), *([b"[DONE]"] if reply.done else [])]):
            if number == reply.die_after:
                await writer.drain()
                return False
            pause = float("inf") if number == reply.hang_after else reply.gap if number else reply.first
            if not await self._pause(pause, reader):
                return False
            data = b"data: " + event + b"\n\n"
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _pause(self, seconds: float, reader: asyncio.StreamReader) -> bool:
        """Wait; return whether the client is still there."""
        if seconds <= 0:
            return True
        left = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({left}, timeout=None if seconds == float("inf") else seconds)
            if not left.done():
                return True
            with self._changed:
                self.disconnects += 1
                self._changed.notify_all()
            return False
        finally:
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)


def silent_sockets(count: int) -> list[Any]:
    """Sockets that listen and never answer; the caller closes them."""
    import socket

    sockets = []
    for _ in range(count):
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen(8)
        sockets.append(sock)
    return sockets


def _chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
    return json.dumps(
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": MODEL,
            "choices": choices,
            **more,
        }
    ).encode()


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def _read(reader: asyncio.StreamReader, connection: int) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    except (asyncio.IncompleteReadError, ValueError):
        return None
    return Request(method, path, headers, body, connection)
