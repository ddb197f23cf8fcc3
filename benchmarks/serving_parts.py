"""Comparison of parts for the service: HTTP servers, HTTP clients, JSON libraries and counters, each alone, in one run.

    python benchmarks/serving_parts.py [--peers FOLDER] [--rounds 3] [--seconds 2] [--json]

``--peers``: an environment with the others (``FOLDER/bin/pip install aiohttp granian httptools openai orjson starlette
uvicorn uvloop``); what is missing is left out. Servers read a chat request's JSON and answer with a fixed body, from one
core, under wrk with 16 connections on the other. Clients ask the stub of `serving.py` from 16 tasks; their CPU time per
request is the process's own. JSON is a chat request read and its answer written, the least of five times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.serving_load import body_of, cpu_seconds, free_port, pinned, wrk
from benchmarks.serving_stub import ANSWER

BODY = ANSWER.partition(b"\r\n\r\n")[2]
REQUEST = body_of("stub")
PATH = "/v1/chat/completions"
TASKS = 16

# -------------------------------------------------------------------------------------------------------------- servers


def serve_ours(port: int) -> None:
    """The service's own server, with msgspec."""
    import uvloop

    from workflow_composer.server.api.forms import Form
    from workflow_composer.server.exchange import Exchange, Reply
    from workflow_composer.server.http import HttpLimits, HttpServer

    form = Form({}, example={})

    async def answer(exchange: Exchange) -> Reply:
        form.read(exchange.body)
        return Reply(200, BODY)

    async def run() -> None:
        server = HttpServer(answer, lambda status, reason: Reply(status), HttpLimits())
        listening = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", port)
        await listening.serve_forever()

    uvloop.run(run())


def serve_aiohttp(port: int) -> None:
    """Aiohttp's server on uvloop."""
    import uvloop
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        json.loads(await request.read())
        return web.Response(body=BODY, content_type="application/json")

    app = web.Application()
    app.router.add_post(PATH, answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, loop=uvloop.new_event_loop())


async def asgi(scope, receive, send):
    """The smallest ASGI application that does the same."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    json.loads(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def starlette():
    """The same with Starlette."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def answer(request):
        await request.json()
        return Response(BODY, media_type="application/json")

    return Starlette(routes=[Route(PATH, answer, methods=["POST"])])


def serve_uvicorn(port: int, app: object = asgi) -> None:
    """uvicorn, with uvloop and httptools."""
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False, loop="uvloop", http="httptools")


def serve_granian(port: int) -> None:
    """granian, in Rust, with one worker and one thread."""
    from granian import Granian

    Granian(f"{Path(__file__).stem}:asgi", address="127.0.0.1", port=port, interface="asgi", log_enabled=False).serve()


SERVERS: dict[str, Callable[[int], None]] = {
    "ours (httptools)": serve_ours,
    "granian, ASGI": serve_granian,
    "uvicorn, ASGI": serve_uvicorn,
    "uvicorn, Starlette": lambda port: serve_uvicorn(port, starlette()),
    "aiohttp": serve_aiohttp,
}

# -------------------------------------------------------------------------------------------------------------- clients


async def ask_ours(port: int) -> Callable[[], Awaitable[object]]:
    """The package's own client."""
    from workflow_composer.backends.http.client import Client, Origin, head
    from workflow_composer.backends.http.egress import EgressPolicy
    from workflow_composer.config.strategy import StrategyConfig

    config = StrategyConfig(profile_name="p", vllm_endpoints={"a": f"http://127.0.0.1:{port}/v1"})
    client, origin = Client(EgressPolicy.of(config), keepalive=60.0), Origin(False, "127.0.0.1", port)
    headers = {"Content-Type": "application/json", "Content-Length": str(len(REQUEST))}
    data = head("POST", PATH, origin, headers) + b"\r\n" + REQUEST

    async def ask() -> object:
        return (await client.send(origin, data, connect=5.0)).body

    return ask


async def ask_aiohttp(port: int) -> Callable[[], Awaitable[object]]:
    """Aiohttp's client."""
    import aiohttp

    session = aiohttp.ClientSession()

    async def ask() -> object:
        headers = {"Content-Type": "application/json"}
        async with session.post(f"http://127.0.0.1:{port}{PATH}", data=REQUEST, headers=headers) as reply:
            return await reply.read()

    return ask


async def ask_httpx(port: int) -> Callable[[], Awaitable[object]]:
    """httpx, which the `openai` client stands on."""
    import httpx

    client = httpx.AsyncClient()

    async def ask() -> object:
        return (await client.post(f"http://127.0.0.1:{port}{PATH}", content=REQUEST)).content

    return ask


async def ask_openai(port: int) -> Callable[[], Awaitable[object]]:
    """The `openai` client."""
    import openai

    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    fields = {name: value for name, value in json.loads(REQUEST).items() if name != "model"}

    async def ask() -> object:
        return await client.chat.completions.create(model="stub", **fields)

    return ask


CLIENTS = {"ours (httptools)": ask_ours, "aiohttp": ask_aiohttp, "httpx": ask_httpx, "openai": ask_openai}


def run_client(name: str, port: int, seconds: float) -> dict[str, float]:
    """Requests a second, and CPU time of each, of one client."""
    import uvloop

    async def run() -> dict[str, float]:
        ask = await CLIENTS[name](port)
        await ask()
        ends, done = time.perf_counter() + seconds, 0

        async def work() -> None:
            nonlocal done
            while time.perf_counter() < ends:
                await ask()
                done += 1

        before, began = time.process_time(), time.perf_counter()
        await asyncio.gather(*(work() for _ in range(TASKS)))
        took, used = time.perf_counter() - began, time.process_time() - before
        return {"rate": done / took, "cpu": used / done * 1e6}

    found = uvloop.run(run())
    os.write(1, json.dumps(found).encode())
    os._exit(0)  # sessions are left open on purpose: how they close is not measured


# ----------------------------------------------------------------------------------------------------------------- JSON


def run_json() -> dict[str, list[float]]:
    """Microseconds to read a request and to write an answer, of each library that is there."""
    found: dict[str, list[float]] = {}
    answer = json.loads(BODY)
    for name in ("json", "orjson", "msgspec"):
        try:
            module = __import__(f"{name}.json" if name == "msgspec" else name, fromlist=["x"])
        except ModuleNotFoundError:
            continue
        read, write = (module.decode, module.encode) if name == "msgspec" else (module.loads, module.dumps)
        found[name] = [
            min(timeit.repeat(lambda work=work, value=value: work(value), number=20_000, repeat=5)) / 20_000 * 1e6
            for work, value in ((read, REQUEST), (write, answer))
        ]
    return found


def run_counters() -> dict[str, float]:
    """Microseconds to count one request: six counters and two histograms by five labels, or our live metrics."""
    from prometheus_client import CollectorRegistry, Counter, Histogram

    from workflow_composer.metrics.live import LABELS, LiveMetrics
    from workflow_composer.metrics.record import RoutingMetric

    registry = CollectorRegistry()
    counters = [Counter(f"c{number}", "c", LABELS, registry=registry) for number in range(6)]
    histograms = [Histogram(f"h{number}", "h", LABELS, registry=registry) for number in range(2)]
    labels = ("strategy", "router", "task", "model", "0")
    metric = RoutingMetric("t", "r", *labels[:3], 9, "m", "model", 0, 0, False, 9.0, 0.1, 9, 2, 0.1, True, None, 1)
    live = LiveMetrics()

    def count() -> None:
        for counter in counters:
            counter.labels(*labels).inc()
        for histogram in histograms:
            histogram.labels(*labels).observe(0.1)

    works = {"prometheus_client": count, "ours": lambda: live.write(metric)}
    return {name: min(timeit.repeat(work, number=20_000, repeat=5)) / 20_000 * 1e6 for name, work in works.items()}


# -------------------------------------------------------------------------------------------------------------- the run


def interpreter(name: str, peers: Path | None) -> str:
    """The Python that has a candidate: this one for our own, the peers' for the others."""
    return sys.executable if name.startswith("ours") or peers is None else str(peers / "bin" / "python")


def answered(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a server listens; whether it ever does."""
    import socket

    for _ in range(400):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        else:
            return True
    return False


def measure_server(name: str, arguments: argparse.Namespace) -> tuple[float, float] | None:
    """Requests a second and CPU time of each; None where it is not installed."""
    port = free_port()
    command = [interpreter(name, arguments.peers), __file__, "--serve", name, str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(pinned(0, command), stdout=log, stderr=log, cwd=Path(__file__).parent)
        try:
            if not answered(port, process):
                return None
            url = f"http://127.0.0.1:{port}{PATH}"
            wrk(url, "key", REQUEST, connections=16, seconds=1, core=1)
            before = cpu_seconds(process.pid)
            load = wrk(url, "key", REQUEST, connections=16, seconds=arguments.seconds, core=1)
            used = cpu_seconds(process.pid) - before
            assert not load.failed, name
            return load.rate, used / (load.rate * arguments.seconds) * 1e6
        finally:
            process.terminate()
            process.wait()


def measure_client(name: str, port: int, arguments: argparse.Namespace) -> tuple[float, float] | None:
    """The same of a client."""
    command = [interpreter(name, arguments.peers), __file__, "--ask", name, str(port), "--seconds", str(arguments.seconds)]
    done = subprocess.run(pinned(0, command), capture_output=True, cwd=Path(__file__).parent, check=False)
    if done.returncode or not done.stdout:
        return None
    found = json.loads(done.stdout)
    return found["rate"], found["cpu"]


def table(title: str, rows: dict[str, list[tuple[float, float]]]) -> str:
    """Medians, best first."""
    lines = [f"{title:28}{'requests/s':>24}{'CPU us/request':>18}"]
    for name, values in sorted(rows.items(), key=lambda row: -statistics.median(rate for rate, _ in row[1])):
        rates, cpu = [rate for rate, _ in values], statistics.median(used for _, used in values)
        spread = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        lines.append(f"{name:28}{spread:>24}{cpu:>18,.0f}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="environment with the other libraries")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--parse", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        SERVERS[arguments.serve[0]](int(arguments.serve[1]))
        return
    if arguments.ask:
        run_client(arguments.ask[0], int(arguments.ask[1]), arguments.seconds)
        return
    if arguments.parse:
        print(json.dumps(run_json()))
        return
    servers: dict[str, list[tuple[float, float]]] = {}
    clients: dict[str, list[tuple[float, float]]] = {}
    port = free_port()
    stub = subprocess.Popen(pinned(1, [sys.executable, str(Path(__file__).parent / "serving_stub.py"), str(port)]))
    try:
        assert answered(port, stub)
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
            for name in SERVERS:
                if (found := measure_server(name, arguments)) is not None:
                    servers.setdefault(name, []).append(found)
            for name in CLIENTS:
                if (found := measure_client(name, port, arguments)) is not None:
                    clients.setdefault(name, []).append(found)
    finally:
        stub.terminate()
        stub.wait()
    parsers = run_json()
    if arguments.peers is not None:
        command = [str(arguments.peers / "bin" / "python"), __file__, "--parse"]
        others = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        parsers = {**others, **parsers}
    if arguments.json:
        print(json.dumps({"servers": servers, "clients": clients, "json": parsers, "counting": run_counters()}))
        return
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}; {arguments.rounds} rounds\n")
    print(table("servers", servers), end="\n\n")
    print(table("clients", clients), end="\n\n")
    print(f"{'JSON':28}{'read, us':>12}{'write, us':>12}")
    for name, (reads, writes) in sorted(parsers.items(), key=lambda row: sum(row[1])):
        print(f"{name:28}{reads:>12.2f}{writes:>12.2f}")
    print(f"\n{'counting a request':28}{'us':>12}")
    for name, micros in run_counters().items():
        print(f"{name:28}{micros:>12.2f}")


if __name__ == "__main__":
    main()
