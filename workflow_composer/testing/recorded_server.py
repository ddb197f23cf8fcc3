"""A server on this machine with recorded answers, for tests of backends that call one."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Received:
    """A request that the server received."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as data. Raises ValueError."""
        return json.loads(self.body)


class RecordedServer:
    """Answers each path with what was recorded: data (sent as JSON), bytes, or ``(status, data)``. A context manager.

    A list of byte strings is sent as an event stream, one string after the other; a function of the `Received` request
    returns any of these. Paths without an answer get 404.

    >>> with RecordedServer({"/v1/models": {"data": []}}) as server:
    ...     server.url.startswith("http://127.0.0.1:")
    True
    """

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.received: list[Received] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Received(self.command, self.path, dict(self.headers), body)
                server.received.append(asked)
                recorded = answers.get(self.path.partition("?")[0], (404, {"error": {"message": "nothing is recorded"}}))
                recorded = recorded(asked) if callable(recorded) else recorded
                status, data = recorded if isinstance(recorded, tuple) else (200, recorded)
                pieces, kind = _sent(data)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(sum(map(len, pieces))))
                self.end_headers()
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()

            do_GET = do_POST = _answer  # noqa: N815  # the names that the standard library looks for

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  # its name there
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, name="recorded server", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _sent(data: Any) -> tuple[list[bytes], str]:
    if isinstance(data, bytes):
        return [data], "application/octet-stream"
    if isinstance(data, list) and all(isinstance(piece, bytes) for piece in data) and data:
        return data, "text/event-stream"
    return [json.dumps(data).encode()], "application/json"
