"""What a vLLM server says of itself over HTTP.

Whatever listens on its port is heard with care: no proxy, no redirect, and the size and the whole time of an answer are
bounded, also where one byte comes at a time.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from contextlib import suppress
from typing import Any

LARGEST = 4 * 1024 * 1024
"""Bytes of an answer that are read; a server's metrics have some 60,000."""

_METRIC = re.compile(r"^(vllm:[a-z0-9_]+)(?:\{[^}\n]*\})? ([0-9.eE+-]+)$", re.MULTILINE)
_BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")


class Api:
    """One server's own account of itself. Every question is a connection of its own, and has its time limit in seconds."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def healthy(self, *, timeout: float = 2.0) -> bool:
        """Whether ``/health`` says 200."""
        return self.ask("/health", timeout=timeout) is not None

    def models(self, *, timeout: float = 5.0, api_key: str = "") -> list[str] | None:
        """The ids that it serves; None where it does not say."""
        answer = self.ask("/v1/models", timeout=timeout, api_key=api_key)
        try:
            data: Any = json.loads(answer or b"")
            return [str(model["id"])[:300] for model in data["data"]]
        except (ValueError, KeyError, TypeError):
            return None

    def busy(self, *, timeout: float = 5.0) -> float | None:
        """How many requests run or wait; None where it does not say."""
        answer = self.ask("/metrics", timeout=timeout)
        found = _METRIC.findall(answer.decode("utf-8", "replace")) if answer else []
        with suppress(ValueError):
            counts = [float(value) for name, value in found if name in _BUSY]
            return sum(counts) if counts else None
        return None

    def ask(self, path: str, *, timeout: float, api_key: str = "") -> bytes | None:
        """The body of a GET that is answered with 200; None for every other outcome."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        limit = threading.Timer(timeout, _cut, (connection,))
        limit.daemon = True
        limit.start()
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {api_key}"} if api_key else {})
            answer = connection.getresponse()
            return answer.read(LARGEST) if answer.status == 200 else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            limit.cancel()
            connection.close()


def _cut(connection: http.client.HTTPConnection) -> None:
    """End a connection from another thread, so that whoever reads from it goes on."""
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
