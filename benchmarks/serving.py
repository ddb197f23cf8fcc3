"""Cost of the service per request, compared with no proxy, nginx, three Rust routers and LiteLLM's proxy, on one machine.

    python benchmarks/serving.py [--peers FOLDER] [--rounds 5] [--seconds 3] [--only NAME ...] [--json]

``--peers``: an environment with the others (``python -m venv FOLDER``; ``FOLDER/bin/pip install 'litellm[proxy]'
sglang-router smg vllm-router``); nginx and wrk come from the system. What is missing is left out and said so.

Every server has one worker on the first core, all of its usual work on (ours: keys with a budget, metrics, the JSONL log
of decisions, breakers, live figures; LiteLLM: its key, and its metrics or not; sglang-router, smg and vllm-router: their
metrics and breakers) and the same upstream: `serving_stub.py`, which answers at once from the second core, where the load
comes from, too.
"direct" is that stub on the first core. All run side by side and are measured in turn, round after round, so that
whatever else the machine does meets all of them; given are medians over rounds and, in brackets, the least and the most.
CPU is user and system time of the server per request. With two workers, the second core is shared with the load, which is
why there only the CPU time per request means something.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.serving_load import Load, body_of, cpu_times, free_port, megabytes, wrk
from benchmarks.serving_peers import Peer, Running, peers

SERVER_CORE, LOAD_CORE = 0, 1
CONNECTIONS = (1, 16, 64)
LARGE = 16 * 1024
"""Bytes of a large request's body: a question with a few pages of context."""
OURS, TWO = "workflow_composer", "workflow_composer, 2 workers"


class Figures:
    """What was measured: per server and quantity one value a round."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = {}

    def add(self, server: str, quantity: str, value: float) -> None:
        """One round's value."""
        self.values.setdefault(server, {}).setdefault(quantity, []).append(value)

    def middle(self, server: str, quantity: str) -> float:
        """The median; not a number where it was not measured."""
        found = self.values.get(server, {}).get(quantity)
        return statistics.median(found) if found else float("nan")

    def against(self, server: str, quantity: str, other: str) -> float:
        """The median of the ratios of rounds."""
        pairs = zip(
            self.values.get(server, {}).get(quantity, []), self.values.get(other, {}).get(quantity, []), strict=False
        )
        ratios = [one / two for one, two in pairs if two]
        return statistics.median(ratios) if ratios else float("nan")

    def added(self, server: str, quantity: str) -> float:
        """The median of what it is more than direct, in the same round."""
        pairs = zip(
            self.values.get(server, {}).get(quantity, []), self.values.get("direct", {}).get(quantity, []), strict=False
        )
        differences = [one - two for one, two in pairs]
        return statistics.median(differences) if differences else float("nan")

    def cell(self, server: str, quantity: str, form: str = "{:,.0f}") -> str:
        """The median with its range, as text."""
        found = self.values.get(server, {}).get(quantity)
        if not found:
            return "-"
        middle, least, most = (form.format(x) for x in (statistics.median(found), min(found), max(found)))
        return middle if len(found) == 1 else f"{middle} ({least} to {most})"


def unary(running: Running, figures: Figures, what: str, body: bytes, connections: int, seconds: float) -> None:
    """Load of whole answers, and the processor's time for each."""
    before = cpu_times(running.process.pid)
    load = wrk(running.url, running.key, body, connections=connections, seconds=seconds, core=LOAD_CORE)
    user, system = (after - start for after, start in zip(cpu_times(running.process.pid), before, strict=True))
    note(figures, running.name, f"unary {what}", load)
    figures.add(running.name, f"cpu {what}", (user + system) / max(load.rate * seconds, 1) * 1e6)
    figures.add(running.name, f"kernel {what}", system / max(load.rate * seconds, 1) * 1e6)


def measure(running: Running, figures: Figures, seconds: float, calls: int) -> None:
    """One round of one server."""
    name = running.name
    for connections in CONNECTIONS:
        unary(running, figures, str(connections), body_of(running.model), connections, seconds)
    unary(running, figures, "large", body_of(running.model, size=LARGE), 16, seconds)
    load = wrk(
        running.url, running.key, body_of(running.model, stream=True), connections=16, seconds=seconds, core=LOAD_CORE
    )
    note(figures, name, "streams", load)
    if name == TWO:
        return
    caller = running.caller()
    times = sorted(caller.unary() for _ in range(calls))
    caller.close()
    figures.add(name, "one p50", times[len(times) // 2] * 1e3)
    figures.add(name, "one p99", times[len(times) * 99 // 100] * 1e3)
    caller = running.caller(stream=True)
    both = [caller.stream() for _ in range(max(20, calls // 10))]
    caller.close()
    figures.add(name, "first token p50", statistics.median(first for first, _ in both) * 1e3)
    figures.add(name, "whole stream p50", statistics.median(whole for _, whole in both) * 1e3)


def note(figures: Figures, name: str, what: str, load: Load) -> None:
    """Keep what wrk saw."""
    if load.failed:
        raise RuntimeError(f"{name}, {what}: {load.failed} requests failed")
    for quantity, value in (("rate", load.rate), ("p50", load.p50), ("p95", load.p95), ("p99", load.p99)):
        figures.add(name, f"{what} {quantity}", value)


def grown(running: Running, requests: int) -> tuple[float, float]:
    """Memory after a warm-up, and after so many requests more, in MB."""
    body = body_of(running.model)

    def work(count: int) -> None:
        done = 0.0
        while done < count:
            load = wrk(running.url, running.key, body, connections=16, seconds=3, core=LOAD_CORE)
            done += load.rate * 3

    work(requests // 10)
    before = megabytes(running.process.pid)
    work(requests)
    return before, megabytes(running.process.pid)


def run(chosen: list[Peer], arguments: argparse.Namespace, folder: Path) -> dict:
    """Start all, measure round after round, stop all."""
    figures, started = Figures(), []
    upstream = Peer("stub", next(peer.command for peer in chosen if peer.name == "direct")).start(
        folder / "upstream", free_port(), LOAD_CORE
    )
    try:
        for peer in chosen:
            if peer.why_not:
                say(f"{peer.name}: {peer.why_not}")
                continue
            for attempt in range(1 if peer.name.startswith("LiteLLM") else arguments.starts):
                running = peer.start(folder / f"{peer.name}-{attempt}", upstream.port, SERVER_CORE)
                figures.add(peer.name, "first answer", running.first)
                if attempt + 1 < arguments.starts and not peer.name.startswith("LiteLLM"):
                    running.stop()
            if peer.name == TWO:
                os.sched_setaffinity(running.process.pid, {0, 1})
                for one in running_children(running):
                    os.sched_setaffinity(one, {0, 1})
            figures.add(peer.name, "idle", megabytes(running.process.pid))
            started.append(running)
        for number in range(arguments.rounds):
            say(f"round {number + 1} of {arguments.rounds}")
            for running in started:
                slow = running.name.startswith("LiteLLM")
                measure(running, figures, arguments.seconds, 100 if slow else arguments.calls)
        for running in started:
            if running.name == OURS:
                say(f"{arguments.requests:,} requests for the growth of memory")
                before, after = grown(running, arguments.requests)
                figures.add(OURS, "warm", before)
                figures.add(OURS, "after many", after)
    finally:
        for running in (*started, upstream):
            running.stop()
    return figures.values


def running_children(running: Running) -> list[int]:
    """The workers of a server."""
    from benchmarks.serving_load import family

    return family(running.process.pid)[1:]


def table(figures: Figures, names: list[str]) -> str:
    """What was measured, as a table for people."""
    columns = [
        ("requests/s, 16 conn.", "unary 16 rate", "{:,.0f}"),
        ("CPU us/request", "cpu 16", "{:,.0f}"),
        ("of it the kernel's", "kernel 16", "{:,.0f}"),
        ("requests/s, 16 KiB, 16 conn.", "unary large rate", "{:,.0f}"),
        ("CPU us/request, 16 KiB", "cpu large", "{:,.0f}"),
        ("p50 ms, 16 KiB, 16 conn.", "unary large p50", "{:.2f}"),
        ("p99 ms, 16 KiB, 16 conn.", "unary large p99", "{:.2f}"),
        *((f"p{p} ms, {c} conn.", f"unary {c} p{p}", "{:.2f}") for c in CONNECTIONS for p in (50, 95, 99)),
        ("one call p50 ms", "one p50", "{:.3f}"),
        ("one call p99 ms", "one p99", "{:.3f}"),
        ("streams/s, 16 conn.", "streams rate", "{:,.0f}"),
        ("first token p50 ms", "first token p50", "{:.3f}"),
        ("first answer s", "first answer", "{:.2f}"),
        ("idle MB", "idle", "{:.0f}"),
    ]
    rows = [["", *names]] + [[title, *(figures.cell(name, key, form) for name in names)] for title, key, form in columns]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def targets(figures: Figures) -> list[tuple[str, float, str, bool]]:
    """What the service is to reach: the target, the value, its form, and whether it does."""
    growth = figures.middle(OURS, "after many") - figures.middle(OURS, "warm")
    two = figures.against(TWO, "cpu 16", OURS) - 1
    found = [
        ("requests/s against LiteLLM, at least 100", figures.against(OURS, "unary 16 rate", "LiteLLM"), "{:.0f}", 100, True),
        (
            "the same, LiteLLM's metrics off",
            figures.against(OURS, "unary 16 rate", "LiteLLM, no metrics"),
            "{:.0f}",
            100,
            True,
        ),
        (
            "requests/s against sglang-router, at least 1",
            figures.against(OURS, "unary 16 rate", "sglang-router"),
            "{:.2f}",
            1,
            True,
        ),
        ("added at one connection, median, at most 0.25 ms", figures.added(OURS, "one p50"), "{:.3f}", 0.25, False),
        ("added at one connection, p99, at most 1 ms", figures.added(OURS, "one p99"), "{:.3f}", 1.0, False),
        ("streams/s against nginx, at least 0.8", figures.against(OURS, "streams rate", "nginx"), "{:.2f}", 0.8, True),
        ("added to the first token, median, at most 0.5 ms", figures.added(OURS, "first token p50"), "{:.3f}", 0.5, False),
        ("first answer after the start, at most 1.0 s", figures.middle(OURS, "first answer"), "{:.2f}", 1.0, False),
        ("idle worker, at most 80 MB", figures.middle(OURS, "idle"), "{:.0f}", 80.0, False),
        ("growth over the requests, under 5 MB", growth, "{:.1f}", 5.0, False),
        ("CPU per request, two workers against one, at most +10 %", two * 100, "{:+.0f} %", 10.0, False),
    ]
    return [(text, value, form, value >= limit if least else value <= limit) for text, value, form, limit, least in found]


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="environment with LiteLLM's proxy and the routers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement by wrk")
    parser.add_argument("--calls", type=int, default=2000, help="over one connection, in each round")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--requests", type=int, default=100_000, help="for the growth of memory")
    parser.add_argument("--only", nargs="*", help="names of servers")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    chosen = [p for p in peers(arguments.peers) if not arguments.only or p.name in {"direct", *arguments.only}]
    with tempfile.TemporaryDirectory() as folder:
        figures = Figures()
        figures.values = run(chosen, arguments, Path(folder))
    if arguments.json:
        print(json.dumps(figures.values))
        return
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}; {arguments.rounds} rounds")
    print(table(figures, [p.name for p in chosen if p.name in figures.values]))
    print()
    for text, value, form, met in targets(figures):
        if math.isnan(value):  # with `--only`, or for want of a peer
            continue
        print(f"{'met   ' if met else 'missed'}  {form.format(value):>8}  {text}")


if __name__ == "__main__":
    main()
