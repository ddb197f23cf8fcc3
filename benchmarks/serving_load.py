"""Load for `serving.py`: `wrk` for many connections, a blocking socket for one, and process statistics of the kernel."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MESSAGES = [{"role": "user", "content": "What is two and two? Answer with one word, and think about it before you do."}]


def body_of(model: str, *, stream: bool = False, size: int = 0) -> bytes:
    """A request's body; a question before it makes it ``size`` bytes long, if it is shorter."""
    asked = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}

    def body(messages: list[dict[str, str]]) -> bytes:
        return json.dumps({"model": model, "messages": messages, "temperature": 0.0, "max_tokens": 64, **asked}).encode()

    missing = size - len(body([{"role": "user", "content": ""}, *MESSAGES]))
    if missing <= 0:
        return body(MESSAGES)
    text = "There are words before the question. " * (missing // 37 + 1)
    return body([{"role": "user", "content": text[:missing]}, *MESSAGES])


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw. Latencies in ms."""

    rate: float
    p50: float
    p95: float
    p99: float
    failed: int


_LUA = """
wrk.method = "POST"
wrk.body = [==[%s]==]
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer %s"
done = function(summary, latency, requests)
  local failed = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
  failed = failed + summary.errors.timeout
  io.write(string.format("RESULT %%d %%d %%f %%f %%f %%d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), failed))
end
"""


def wrk(url: str, key: str, body: bytes, *, connections: int, seconds: float, core: int) -> Load:
    """Load by wrk, from one thread that is pinned to a core."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_LUA % (body.decode(), key))
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", script.name, url]
        done = subprocess.run(pinned(core, command), capture_output=True, text=True, check=True)
    found = re.search(r"RESULT (.*)", done.stdout)
    assert found is not None, done.stdout
    requests, micros, p50, p95, p99, failed = map(float, found[1].split())
    return Load(requests / micros * 1e6, p50 / 1e3, p95 / 1e3, p99 / 1e3, int(failed))


def pinned(core: int, command: list[str]) -> list[str]:
    """The command on one core, where there is `taskset`."""
    return ["taskset", "-c", str(core), *command] if shutil.which("taskset") and (os.cpu_count() or 1) > 1 else command


class Caller:
    """One connection, kept open, from this very thread: the least that a client can add to what is measured."""

    def __init__(self, port: int, path: str, key: str, body: bytes) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def unary(self) -> float:
        """Send one request; seconds until the whole answer is here."""
        began = time.perf_counter()
        self._socket.sendall(self._request)
        data = b""
        length = None
        while length is None or len(data) < length:
            more = self._socket.recv(1 << 16)
            if not more:
                raise ConnectionError("the connection was closed")
            data += more
            if length is None and (end := data.find(b"\r\n\r\n")) >= 0:
                head = data[:end].lower()
                if not head.startswith(b"http/1.1 200"):
                    raise ConnectionError(data[:300].decode(errors="replace"))
                if b"content-length" in head:
                    length = end + 4 + int(re.search(rb"content-length: *(\d+)", head)[1])
                elif data.endswith(b"0\r\n\r\n"):
                    break
        return time.perf_counter() - began

    def stream(self) -> tuple[float, float]:
        """Send one request; seconds until the first token is here, and until the end is."""
        began = time.perf_counter()
        self._socket.sendall(self._request)
        data, first = b"", None
        while not data.endswith((b"\r\n0\r\n\r\n", b"\n0\r\n\r\n")) and not (
            b"\r\n0\r\n" in data and data.endswith(b"\r\n\r\n")
        ):
            more = self._socket.recv(1 << 16)
            if not more:
                raise ConnectionError("the connection was closed")
            data += more
            if first is None and b"data: " in data:
                first = time.perf_counter() - began
        return first or 0.0, time.perf_counter() - began

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def cpu_times(pid: int) -> tuple[float, float]:
    """Seconds of user and of system time of a process and its children, so far."""
    user = system = 0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        user, system = user + int(fields[11]), system + int(fields[12])
    return user / os.sysconf("SC_CLK_TCK"), system / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Both together."""
    return sum(cpu_times(pid))


def megabytes(pid: int) -> float:
    """Resident memory of a process and its children."""
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
