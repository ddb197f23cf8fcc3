"""Number of Python function calls per request: of the package's functions, and of all.

    python benchmarks/call_counts.py [--json] [--list] [--cpu]

Counted by ``sys.setprofile`` in the thread of a warm worker of the service (a key with a budget, metrics and live figures
on), for one plain chat completion over HTTP; and, without HTTP, for one `agenerate` with a vote of six whose samples are a
call each. The model's server, `serving_stub.py`, is a process of its own. Counts do not depend on the machine; given are
the medians of 21 requests. ``--list`` names the functions. ``--cpu`` adds the processor time per sample of a vote, which
does depend on the machine: the median of five rounds of 100 votes, for a comparison of two checkouts in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

REQUESTS, WARM = 21, 30


class Counting:
    """Counts calls of Python functions in this thread while `on`."""

    def __init__(self) -> None:
        self.on = False
        self.calls: Counter[tuple[str, str]] = Counter()
        sys.setprofile(self._seen)

    def _seen(self, frame, event, argument) -> None:
        if self.on and event == "call":
            self.calls[frame.f_code.co_filename, frame.f_code.co_qualname] += 1

    def taken(self) -> Counter[tuple[str, str]]:
        """What was counted since the last time."""
        found, self.calls = self.calls, Counter()
        return found


def stub() -> tuple[subprocess.Popen, int]:
    """The model's server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(ROOT / "benchmarks" / "serving_stub.py"), str(port)])
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            threading.Event().wait(0.05)
        else:
            return process, port
    raise SystemExit("the stub did not start")


def profile(folder: Path, port: int) -> Path:
    """One model behind the stub."""
    path = folder / "counts.yaml"
    prices = {"input_price": 1, "output_price": 1}
    model = {"backend": "vllm", "base_url": f"http://127.0.0.1:{port}/v1", "model": "stub", **prices}
    routers = [{"cascade": {"draw": "at_once", "stopping": "fixed"}}, "cascading_provider"]
    text = {"profile_name": "counts", "allow_cloud": False, "models": {"small": model}, "routers": routers}
    path.write_text(json.dumps({**text, "task_routing": {"*": "small"}}))
    return path


def count_service(folder: Path, path: Path) -> list[Counter[tuple[str, str]]]:
    """One chat completion at a time, over one connection."""
    from workflow_composer.server import service
    from workflow_composer.server.auth.keys import Key, change_keys
    from workflow_composer.server.settings import ServerSettings

    key, secret = Key.new("counts", budget=1e9)
    change_keys(folder / "keys.json", lambda known: known.update({key.id: key}))
    environ = {"WORKFLOW_COMPOSER_METRICS": str(folder / "metrics.jsonl"), "XDG_STATE_HOME": str(folder / "xdg")}
    settings = ServerSettings(strategy=str(path), port=0, keys_file=folder / "keys.json", state_directory=folder / "state")
    (folder / "state").mkdir()
    listening = service.listen(settings.host, 0, 1)[0]
    counting, found = Counting(), []
    body = json.dumps({"model": "small", "messages": [{"role": "user", "content": "What is 2 + 2?"}]})
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: localhost",
        "Accept-Encoding: identity",
        f"Content-Length: {len(body)}",
        f"Authorization: Bearer {secret}",
        "Content-Type: application/json",
    ]
    request = "\r\n".join([*lines, "", body]).encode()  # sent at once, or the number of reads would be a matter of chance

    def ask() -> None:
        try:
            with socket.create_connection(("127.0.0.1", listening.getsockname()[1]), timeout=20) as line:
                for number in range(WARM + REQUESTS):
                    counting.on = number >= WARM
                    line.sendall(request)
                    with http.client.HTTPResponse(line, method="POST") as reply:
                        reply.begin()
                        reply.read()
                    assert reply.status == 200
                    if counting.on:
                        counting.on = False
                        found.append(counting.taken())
        finally:
            os.kill(os.getpid(), 15)

    threading.Thread(target=ask).start()
    try:
        service.run(service.alone(settings, listening, environ))
    finally:
        sys.setprofile(None)
        listening.close()
    return found


def count_vote(path: Path) -> list[Counter[tuple[str, str]]]:
    """One vote of six at a time."""
    from workflow_composer.metrics.sink import NullSink
    from workflow_composer.orchestrator import ModelOrchestrator

    async def run() -> list[Counter[tuple[str, str]]]:
        counting, found = Counting(), []
        async with ModelOrchestrator(str(path), metrics=NullSink(), environ={}) as orchestrator:
            for number in range(WARM + REQUESTS):
                counting.on = number >= WARM
                response = await orchestrator.agenerate("What is 2 + 2?", model="mv_small_k6_t0.7")
                counting.on = False
                assert len(response.samples) == 6
                if number >= WARM:
                    found.append(counting.taken())
        sys.setprofile(None)
        return found

    return asyncio.run(run())


def cpu_per_sample(path: Path) -> float:
    """Microseconds of this process (user and system) for each sample of a vote of six."""
    from workflow_composer.metrics.sink import NullSink
    from workflow_composer.orchestrator import ModelOrchestrator

    async def run() -> float:
        rounds = []
        async with ModelOrchestrator(str(path), metrics=NullSink(), environ={}) as orchestrator:
            for _ in range(6):
                began = time.process_time()
                for _ in range(100):
                    await orchestrator.agenerate("What is 2 + 2?", model="mv_small_k6_t0.7")
                rounds.append((time.process_time() - began) / 600 * 1e6)
        return statistics.median(rounds[1:])

    return asyncio.run(run())


def figures(found: list[Counter[tuple[str, str]]]) -> dict[str, int]:
    """Medians over requests."""
    package = str(ROOT / "workflow_composer")
    rows = []
    for calls in found:
        own = {place: count for place, count in calls.items() if place[0].startswith(package)}
        rows.append((sum(own.values()), len({file for file, _ in own}), sum(calls.values())))
    names = ("own_calls", "own_files", "all_frames")
    return {name: int(statistics.median(values)) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="measure the processor time of a sample, too")
    parser.add_argument("--list", action="store_true", help="name the functions, with their counts")
    options = parser.parse_args()
    process, port = stub()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = profile(folder, port)
            with (folder / "said.txt").open("w") as said:
                kept, sys.stdout = sys.stdout, said
                try:
                    served = count_service(folder, path)
                finally:
                    sys.stdout = kept
            voted = count_vote(path)
            cpu = cpu_per_sample(path) if options.cpu else None
    finally:
        process.terminate()
        process.wait()
    result = {"chat completion": figures(served), "vote of six": figures(voted)}
    if options.json:
        print(json.dumps(result | ({} if cpu is None else {"cpu_us_per_sample": round(cpu, 1)})))
        return
    print(f"{platform.platform()}, Python {platform.python_version()}; medians of {REQUESTS} requests")
    for what, counted in result.items():
        own = f"{counted['own_calls']:>5} own calls in {counted['own_files']:>2} files"
        print(f"{what:<16} {own}; {counted['all_frames']:>5} frames in all")
    if cpu is not None:
        print(f"{cpu:.0f} us of processor time per sample of the vote")
    if options.list:
        for what, calls in (("chat completion", served[0]), ("vote of six", voted[0])):
            print(f"\n{what}")
            for (file, function), count in sorted(calls.items()):
                print(f"{count:>4} {file.removeprefix(str(ROOT) + '/')}:{function}")


if __name__ == "__main__":
    main()
