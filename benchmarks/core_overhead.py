"""Overhead of the core per request, compared with a bare call of the `openai` client to a local stub in the same run.

    python benchmarks/core_overhead.py [--requests 2000] [--rounds 7] [--json]

`agenerate` on a `FakeBackend` makes one plan, runs it, and writes one metric line to a file; its CPU time is all overhead.
The `openai` client's call is a floor that every request to a real server pays in any case: it is made to a stub on the
loopback that answers at once from a process of its own. CPU seconds of this process (user and system) are counted, not wall
time, on one core. Rounds of both alternate; the table gives the median round and the spread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing import Process, Queue
from pathlib import Path

BODY = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "4"}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }
).encode()
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


class _Stub(asyncio.Protocol):
    """Answers every request on a connection at once; knows just enough HTTP for that."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = next((int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length")), 0)
        if len(body) >= length:
            self._received = body[length:]
            self._transport.write(REPLY)


def serve(ports: Queue) -> None:
    """Run the stub until it is terminated."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Stub, "127.0.0.1", 0)
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def _scripted():
    """A plugin host with a backend that returns one ready answer, so that no time is spent on making one up."""
    from workflow_composer import hookimpl
    from workflow_composer.backends.fake import FakeBackend
    from workflow_composer.plugins.host import plugin_host
    from workflow_composer.types import Completion, Sample, Usage

    class Scripted:
        @hookimpl
        def register_backends(self, register):
            answer = Completion(samples=(Sample("4", "stop"),), usage=Usage(9, 1), model="stub")
            register("scripted", lambda spec, context: FakeBackend(answer, name=spec.name, record=False))

    host = plugin_host(discover=False)
    host.add(Scripted(), name="scripted")
    return host


async def cpu_microseconds(requests: int, call: Callable[[], Awaitable[object]]) -> float:
    """CPU time of this process per call, in microseconds."""
    before = time.process_time()
    for _ in range(requests):
        await call()
    return (time.process_time() - before) / requests * 1e6


async def measure(requests: int, rounds: int, port: int, folder: Path) -> dict[str, list[float]]:
    """Alternate rounds of each way of asking."""
    from openai import AsyncOpenAI

    from workflow_composer import ModelOrchestrator, StrategyConfig
    from workflow_composer.metrics.sink import JsonlSink

    models = {"m": {"backend": "scripted"}}
    config = StrategyConfig(profile_name="bench", models=models, task_routing={"*": "m"})
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    lines = folder / "routing_metrics.jsonl"
    async with ModelOrchestrator(config, plugins=_scripted(), metrics=JsonlSink(lines), environ={}) as orchestrator, client:

        async def core() -> object:
            return await orchestrator.agenerate("What is 2 + 2?")

        async def bare() -> object:
            return await client.chat.completions.create(model="m", messages=messages)

        figures: dict[str, list[float]] = {"core": [], "openai": []}
        for call in (core, bare):
            await cpu_microseconds(200, call)
        for _ in range(rounds):
            figures["core"].append(await cpu_microseconds(requests, core))
            figures["openai"].append(await cpu_microseconds(max(100, requests // 10), bare))
    written = sum(1 for _ in lines.open())
    assert written == 200 + rounds * requests, f"{written} metric lines"
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ports: Queue = Queue()
    stub = Process(target=serve, args=(ports,), daemon=True)
    stub.start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures = asyncio.run(measure(options.requests, options.rounds, ports.get(timeout=30), Path(folder)))
    finally:
        stub.terminate()
        stub.join()
    report(figures, options.json)


def report(figures: dict[str, list[float]], as_json: bool) -> None:
    """Print medians, spread and the ratio."""
    from importlib.metadata import version

    medians = {name: statistics.median(values) for name, values in figures.items()}
    if as_json:
        json.dump({"cpu_us": figures, "median": medians}, sys.stdout)
        return
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, openai {version('openai')}")
    print(f"{'CPU per request, one core':44} {'median':>9} {'min':>9} {'max':>9}")
    names = {"core": "agenerate on a FakeBackend, metric written", "openai": "bare openai client, stub on the loopback"}
    for name, label in names.items():
        values = figures[name]
        print(f"{label:44} {medians[name]:6.0f} us {min(values):6.0f} us {max(values):6.0f} us")
    print(f"the core costs {medians['core'] / medians['openai']:.3f} of the client's own call")


if __name__ == "__main__":
    main()
