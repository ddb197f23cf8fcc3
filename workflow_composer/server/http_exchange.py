"""A request on a connection of `workflow_composer.server.http`, and how its answer is written there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workflow_composer.server.exchange import EVENTS, Exchange, Fields, Reply
from workflow_composer.server.heads import head

if TYPE_CHECKING:
    from workflow_composer.server.http import Connection


class HttpExchange(Exchange):
    """A request on a connection."""

    __slots__ = ("_opened", "chunks", "connection", "ends", "keep_alive")

    connection: Connection
    keep_alive: bool
    chunks: bool

    def __init__(self, method: str, path: str, **given: Any) -> None:
        super().__init__(method, path, **given)
        self.ends = False
        self._opened = False

    def send(self, reply: Reply) -> None:
        """Send a whole answer."""
        self.ends = self._last
        body = reply.body
        head_ = head(reply.status, reply.content_type, reply.headers, length=len(body), close=self.ends)
        self.connection.transport.write(head_ if self.method == "HEAD" else head_ + body)

    def open_stream(self, *, content_type: str = EVENTS, headers: Fields = ()) -> None:
        """Send the head of a stream."""
        self._opened = True
        self.ends = self._last or not self.chunks
        head_ = head(200, content_type, headers, length=None, close=self.ends, chunked=self.chunks)
        self.connection.transport.write(head_)

    def write(self, data: bytes) -> None:
        """Send a piece."""
        if data:
            self.connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunks else data)

    async def drain(self) -> None:
        """Wait while the client does not keep up."""
        if (writable := self.connection.writable) is not None:
            await writable.wait()

    def close_stream(self, trailers: Fields = ()) -> None:
        """The end."""
        if self.chunks:
            told = "".join(f"{name}: {value}\r\n" for name, value in trailers)
            self.connection.transport.write(f"0\r\n{told}\r\n".encode("ascii"))

    @property
    def opened(self) -> bool:
        """Whether the head of a stream has been sent."""
        return self._opened

    @property
    def _last(self) -> bool:
        return not self.keep_alive or self.connection.ending
