"""A model server that answers immediately, for `serving.py`; it is fast, so that it does not limit the measurement.

    python benchmarks/serving_stub.py PORT

Any POST gets one short chat answer, or, where its body asks for a stream, 64 tokens: each an event that is written by
itself, as a model's server does, and then usage and ``[DONE]``. Any GET gets a list of one model. It knows just enough HTTP
for that.
"""

from __future__ import annotations

import asyncio
import json
import sys

MODEL = "stub"
TOKENS = 64


def _chunk(delta: dict, finish: str | None = None, **more: object) -> bytes:
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    data = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices, **more}
    event = b"data: " + json.dumps(data).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


USAGE = {"prompt_tokens": 9, "completion_tokens": TOKENS, "total_tokens": 9 + TOKENS}
_ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Four."}, "logprobs": None, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}
_LIST = {
    "object": "list",
    "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "stub", "max_model_len": 4096}],
}
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _whole(data: object) -> bytes:
    body = json.dumps(data).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


ANSWER, LIST = _whole(_ANSWER), _whole(_LIST)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST = HEAD + _chunk({"role": "assistant", "content": ""})
TOKEN = _chunk({"content": " word"})
LAST = _chunk({}, "stop") + _chunk({}, None, usage=USAGE) + _DONE


class Stub(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._left = 0

    def data_received(self, data: bytes) -> None:
        """Answer once a request is whole."""
        if self._received:
            data = self._received + data
            self._received = b""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._received = data
            return
        at = data.find(b"ontent-length: ", 0, end)
        if at < 0:
            at = data.find(b"ontent-Length: ", 0, end)
        length = 0 if at < 0 else int(data[at + 15 : data.index(b"\r\n", at)])
        if len(data) - end - 4 < length:
            self._received = data
            return
        if data.startswith(b"GET"):
            self._transport.write(LIST)
        elif b'"stream": true' in data or b'"stream":true' in data:
            self._left = TOKENS
            self._transport.write(FIRST)
            self._loop.call_soon(self._token)
        else:
            self._transport.write(ANSWER)

    def _token(self) -> None:
        if self._left:
            self._left -= 1
            self._transport.write(TOKEN)
            self._loop.call_soon(self._token)
        else:
            self._transport.write(LAST)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(int(sys.argv[1])))
    else:
        uvloop.run(_serve(int(sys.argv[1])))
