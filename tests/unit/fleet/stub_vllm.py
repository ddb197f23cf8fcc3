"""A stand-in for a vLLM server: answers what a monitor asks, and fails in the ways that real ones do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

METRICS = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="small"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="small"}} {waiting}
vllm:kv_cache_usage_perc{{engine="0",model_name="small"}} {cache}
vllm:generation_tokens_total{{engine="0",model_name="small"}} {tokens}
vllm:prompt_tokens_total{{engine="0",model_name="small"}} 8.0
process_start_time_seconds {started}
"""


@dataclass
class StubVLLM:
    """What it serves and how it behaves. ``hang``: paths that never answer; ``answers``: path -> status and body."""

    port: int = 0
    models: list[str] = field(default_factory=lambda: ["small"])
    running: float = 0.0
    waiting: float = 0.0
    cache: float = 0.0
    tokens: float = 10.0
    started: float = 1e9
    works: bool = False
    key: str | None = None
    hang: set[str] = field(default_factory=set)
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: Callable[[], Iterator[bytes]] | None = None
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def reply(self, method: str, path: str, authorization: str | None, given: Any) -> tuple[int, bytes]:
        self.asked.append((method, path, given))
        if path in self.hang:
            self.released.wait(30)
        if path in self.answers:
            return self.answers[path]
        if path == "/health":
            return 200, b""
        if path == "/metrics":
            self.tokens += self.works
            names = ("running", "waiting", "cache", "tokens", "started")
            return 200, METRICS.format(**{name: getattr(self, name) for name in names}).encode()
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, b'{"error": "Unauthorized"}'
        if path == "/v1/models":
            return 200, json.dumps({"object": "list", "data": [{"id": name} for name in self.models]}).encode()
        if path == "/v1/completions":
            return 200, json.dumps({"choices": [{"index": 0, "text": " 2", "finish_reason": "length"}]}).encode()
        if path == "/v1/embeddings":
            return 200, json.dumps({"data": [{"index": 0, "embedding": [0.5, -0.5]}]}).encode()
        return 404, b""


@contextmanager
def serving(stub: StubVLLM, port: int = 0) -> Iterator[StubVLLM]:
    """Let it listen, on a free port unless one is named."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            given = json.loads(self.rfile.read(length)) if length else None
            status, body = stub.reply(self.command, self.path, self.headers.get("Authorization"), given)
            self.send_response(status)
            for name, value in stub.headers.items():
                self.send_header(name, value)
            if stub.body is not None and self.path in stub.answers:
                self.end_headers()
                for part in stub.body():
                    self.wfile.write(part)
                return
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError):  # the client has left
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    stub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.released.set()
        server.shutdown()
        server.server_close()
        thread.join(60)
