"""A model server that sends too much: run with a port file's name; the model of a request names what it does.

gzip      1.5 GB of blanks, compressed to less than 10 MB
endless   a body without an end
comments  1 GB of comments before the first event
event     an event of 15 MB
heads     headers of 60 MB
interim   interim responses (103) without an end
error     an error whose text has no end
fine      a usual answer
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

BLOCK = 2**16
CHUNKED, JSON, EVENTS = "Transfer-Encoding: chunked", "Content-Type: application/json", "Content-Type: text/event-stream"
TEXT = {"index": 0, "message": {"role": "assistant", "content": "fine"}, "text": "fine", "finish_reason": "stop"}
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
WHOLE = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [TEXT], "usage": USAGE}
PIECE = {"index": 0, "delta": {"role": "assistant", "content": "fine"}, "finish_reason": None}


def head(*fields: str, status: int = 200) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", *fields, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(choice: dict) -> bytes:
    return b"data: " + json.dumps({**WHOLE, "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


def bomb() -> bytes:
    """Repeats one compressed block, because compressing it all would take a minute; its checksum is never reached."""
    packer = zlib.compressobj(wbits=31)
    start = packer.compress(b'{"choices":[{"index":0,"message":{"role":"assistant","content":"') + packer.flush(
        zlib.Z_FULL_FLUSH
    )
    return start + (packer.compress(b" " * 1_000_000) + packer.flush(zlib.Z_FULL_FLUSH)) * 1500


def answer(kind: str, stream: bool, packed: bytes) -> Iterator[bytes]:
    """The bytes of an answer."""
    if kind == "gzip":
        yield head(EVENTS if stream else JSON, "Content-Encoding: gzip", f"Content-Length: {len(packed)}") + packed
    elif kind == "endless":
        yield head(EVENTS if stream else JSON, CHUNKED)
        yield chunk(event(PIECE)) if stream else chunk(b'{"choices":[{"index":0,"message":{"role":"assistant","content":"')
        while True:
            yield chunk((event(PIECE) * (BLOCK // len(event(PIECE)))) if stream else b"x" * BLOCK)
    elif kind == "comments":
        yield head(EVENTS, CHUNKED)
        for _ in range(2**30 // BLOCK):
            yield chunk(b":\n\n" * (BLOCK // 3))
        yield chunk(event(PIECE) + b"data: [DONE]\n\n") + b"0\r\n\r\n"
    elif kind == "event":
        yield head(EVENTS, CHUNKED) + chunk(event(PIECE))
        yield chunk(event({**PIECE, "delta": {"content": "x" * 15_000_000}})) + b"0\r\n\r\n"
    elif kind == "heads":
        yield b"HTTP/1.1 200 OK\r\n"
        for number in range(60_000_000 // 1000):
            yield b"X-%d: " % number + b"h" * 1000 + b"\r\n"
    elif kind == "interim":
        while True:
            yield b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * 1000
    elif kind == "error":
        yield head(JSON, CHUNKED, status=400)
        while True:
            yield chunk(b'{"error": {"message": "' + b"e" * BLOCK)
    else:
        body = json.dumps(WHOLE).encode()
        yield head(JSON, f"Content-Length: {len(body)}") + body


def serve(connection: socket.socket, packed: bytes) -> None:
    with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as file:
        while line := file.readline():
            length = 0
            while (field := file.readline().strip()) != b"":
                name, _, value = field.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            asked = json.loads(file.read(length) or b"{}")
            if line.startswith(b"GET"):
                body = json.dumps({"object": "list", "data": [{"id": "m"}]}).encode()
                connection.sendall(head(JSON, f"Content-Length: {len(body)}") + body)
                continue
            for part in answer(asked["model"], bool(asked.get("stream")), packed):
                connection.sendall(part)


def main(place: str) -> None:
    packed = bomb()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        Path(place).write_text(str(listening.getsockname()[1]))
        while True:
            threading.Thread(target=serve, args=(listening.accept()[0], packed), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
