"""What a budget costs: requests per second of 64 clients whose key has one, against the same without.

    python benchmarks/budgets.py [--rounds 15] [--workers 2] [--json]

A service with two workers over `serving_stub.py`; every request costs $0.01, the budget is $100, and each of 64 connections
sends one request after the other. Rounds are paired: both keys are new in each, and take turns in being the first, so that
both see the same machine. Given are the medians over the rounds, and the ratio of each pair: the median, the quartiles and
the range. The processor time of the service per request is a second measure, on which other programs have less influence.
The goal is a ratio of at least 0.95 in requests per second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.serving_load import body_of, cpu_times, free_port  # noqa: E402
from workflow_composer.server.auth.keys import Key, change_keys  # noqa: E402

CLIENTS, EACH, WARM = 64, 40, 10
BUDGET, PRICE = 100.0, 0.01
GOAL = 0.95


class Client(asyncio.Protocol):
    """One connection that sends its next request when it has the answer to the last one."""

    def __init__(self, request: bytes, number: int) -> None:
        self._request = request
        self._left = number
        self._data = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take an answer, whose body ends with the object that it is."""
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self._data[:400].decode()))
            return
        self._data = b""
        self._left -= 1
        if self._left:
            self._transport.write(self._request)
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """The service hung up."""
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the connection was closed"))


@dataclass(frozen=True)
class Measured:
    """One round with one key."""

    rate: float
    cpu: float


async def ask(port: int, secret: str, each: int) -> float:
    """Send so many requests on each connection; the seconds that they took."""
    body = body_of("small")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Authorization: Bearer {secret}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    made = [await loop.create_connection(lambda: Client(request, each), "127.0.0.1", port) for _ in range(CLIENTS)]
    await asyncio.gather(*(client.done for _, client in made))
    return time.perf_counter() - began


def measure(port: int, pid: int, secret: str) -> Measured:
    """One round with one key: a few requests to warm up, then those that count."""
    asyncio.run(ask(port, secret, WARM))
    before = sum(cpu_times(pid))
    seconds = asyncio.run(ask(port, secret, EACH))
    used = sum(cpu_times(pid)) - before
    return Measured(CLIENTS * EACH / seconds, used / (CLIENTS * EACH) * 1e6)


def profile(folder: Path, stub: int) -> Path:
    """One model whose answers of two tokens cost what they should."""
    model = {"backend": "vllm", "base_url": f"http://127.0.0.1:{stub}/v1", "model": "stub"}
    prices = {"input_price": 0, "output_price": PRICE / 2 * 1e6}
    text = {"profile_name": "budgets", "allow_cloud": False, "models": {"small": model | prices}}
    path = folder / "budgets.yaml"
    path.write_text(json.dumps({**text, "routers": ["cascading_provider"], "task_routing": {"*": "small"}}))
    return path


def serve(folder: Path, path: Path, workers: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start the service; its process and port."""
    own = {"WORKFLOW_COMPOSER_SERVE_STATE": str(folder / "state"), "WORKFLOW_COMPOSER_METRICS": str(folder / "m.jsonl")}
    options = ("--port", "0", "--workers", str(workers), "--json", "--keys", str(folder / "keys.json"))
    command = [sys.executable, "-m", "workflow_composer", "-s", str(path), "serve", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    return process, int(json.loads(process.stdout.readline())["url"].rpartition(":")[2])


def rounds_of(number: int, workers: int) -> list[tuple[Measured, Measured]]:
    """All rounds: with a budget, and without."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        keys = [[Key.new("with", budget=BUDGET, period="total"), Key.new("without")] for _ in range(number)]
        made = {key.id: key for pair in keys for key, _ in pair}
        change_keys(folder / "keys.json", lambda known: known.update(made))
        stub = subprocess.Popen([sys.executable, str(ROOT / "benchmarks" / "serving_stub.py"), str(port)])
        time.sleep(1.0)  # there is no other sign of it
        service, at = serve(folder, profile(folder, port), workers)
        try:
            for turn, pair in enumerate(keys):
                order = (0, 1) if turn % 2 else (1, 0)
                seen = {which: measure(at, service.pid, pair[which][1]) for which in order}
                found.append((seen[0], seen[1]))
                print(f"round {turn + 1}: {seen[0].rate:.0f} of {seen[1].rate:.0f} requests/s", file=sys.stderr, flush=True)
        finally:
            for process in (service, stub):
                process.send_signal(signal.SIGTERM)
                process.wait()
    return found


def summary(found: list[tuple[Measured, Measured]]) -> dict[str, object]:
    """Medians, and the spread of the ratios of the pairs."""
    rates = [one.rate / other.rate for one, other in found]
    cpus = [other.cpu / one.cpu for one, other in found]
    told: dict[str, object] = {}
    for name, rows in (("with", [one for one, _ in found]), ("without", [other for _, other in found])):
        told[name] = {each: statistics.median(getattr(row, each) for row in rows) for each in ("rate", "cpu")}
    for name, ratios in (("rate", rates), ("cpu", cpus)):
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        told[f"{name}_ratio"] = {"median": middle, "quartiles": [low, high], "range": [min(ratios), max(ratios)]}
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = summary(rounds_of(options.rounds, options.workers))
    if options.json:
        print(json.dumps(told))
        return
    print(f"{platform.platform()}, Python {platform.python_version()}; {options.rounds} pairs, {options.workers} workers")
    for name in ("with", "without"):
        one = told[name]
        assert isinstance(one, dict)
        print(
            f"{name + ' a budget':<18} {one['rate']:>7.0f} requests/s {one['cpu']:>7.0f} us of the service's CPU per request"
        )
    for name, what in (("rate", "requests/s"), ("cpu", "CPU per request, without to with")):
        ratio = told[f"{name}_ratio"]
        assert isinstance(ratio, dict)
        (low, high), (least, most) = ratio["quartiles"], ratio["range"]
        print(f"{what}: median {ratio['median']:.3f}, quartiles {low:.3f} to {high:.3f}, range {least:.3f} to {most:.3f}")
    reached = told["rate_ratio"]
    assert isinstance(reached, dict)
    print(f"goal {GOAL}: {'reached' if reached['median'] >= GOAL else 'missed'}")


if __name__ == "__main__":
    main()
