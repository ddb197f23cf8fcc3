"""How often a request meets a server that has its context cached, and how evenly the servers are loaded, by way of choosing.

    python benchmarks/balancing.py [--requests 20000] [--rounds 7] [--servers 4] [--contexts 60] [--json]

A simulation: clients with a bounded number of calls in flight ask questions behind contexts, the n-th of which is 1/n as
popular as the first. Each server keeps the contexts of its last requests, and answers a question of a known context four
times as fast; the more calls it has, the slower each of them. A quarter of the way in a server is added, half-way one goes
and takes its cache with it, at three quarters it comes back cold. `balance.choose` is the package's own; the others are what
it was chosen over.
The table gives medians and ranges over rounds with different seeds.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import random
import statistics
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from workflow_composer.backends.replicas.replica_set import choose, preference

CACHED = 12
"""Contexts that a server's cache holds."""
COLD, WARM = 4.0, 1.0
"""Work of a question behind a context that must be read, and behind one that need not be."""
BATCH = 8.0
"""Calls that a server has at once at full speed each."""

Policy = Callable[[bytes, Mapping[str, float], int], str]


@dataclass
class Server:
    """One simulated server: its calls, and the contexts in its cache, the latest last."""

    calls: int = 0
    cache: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def meets(self, context: bytes) -> bool:
        """Whether the context is cached; it is afterwards."""
        warm = context in self.cache
        self.cache[context] = None
        self.cache.move_to_end(context)
        if len(self.cache) > CACHED:
            self.cache.popitem(last=False)
        return warm


@dataclass
class Outcome:
    """What became of a round."""

    warm: float
    unevenness: float
    time: float


POLICIES: dict[str, Policy] = {
    "round robin": lambda key, loads, number: sorted(loads)[number % len(loads)],
    "least loaded": lambda key, loads, number: choose(None, loads),
    "rendezvous hashing alone": lambda key, loads, number: preference(key, loads)[0],
    "balance.choose": lambda key, loads, number: choose(key, loads),
}


def simulate(policy: Policy, *, requests: int, servers: int, contexts: int, clients: int, seed: int) -> Outcome:
    """Run one round."""
    luck = random.Random(seed)
    random.seed(seed)  # `choose` breaks ties by it
    keys = [luck.randbytes(16) for _ in range(contexts)]
    popularity = [1.0 / (rank + 1) for rank in range(contexts)]
    fleet = {f"http://node-{number}:8001/v1": Server() for number in range(servers)}
    changes = {
        requests // 4: lambda: fleet.update({"http://new:8001/v1": Server()}),
        requests // 2: lambda: fleet.pop("http://node-0:8001/v1"),
        requests * 3 // 4: lambda: fleet.update({"http://node-0:8001/v1": Server()}),
    }
    now, warm = 0.0, 0
    unevenness: list[float] = []
    under_way: list[tuple[float, int, Server]] = []
    for number, context in enumerate(luck.choices(keys, popularity, k=requests)):
        if number in changes:
            changes[number]()
        while len(under_way) >= clients:
            now, _, server = heapq.heappop(under_way)
            server.calls -= 1
        server = fleet[policy(context, {name: float(s.calls) for name, s in fleet.items()}, number)]
        server.calls += 1
        met = server.meets(context)
        warm += met
        work = (WARM if met else COLD) * luck.uniform(0.5, 1.5) * max(1.0, server.calls / BATCH)
        heapq.heappush(under_way, (now + work, number, server))
        if len(under_way) == clients:
            loads = [s.calls for s in fleet.values()]
            unevenness.append(max(loads) / max(1e-9, statistics.mean(loads)))
    end = max(when for when, _, _ in under_way)
    return Outcome(warm / requests, statistics.mean(unevenness), end)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--contexts", type=int, default=60)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shape = {name: getattr(options, name) for name in ("requests", "servers", "contexts", "clients")}
    found = {
        name: [simulate(policy, **shape, seed=seed) for seed in range(options.rounds)] for name, policy in POLICIES.items()
    }
    if options.json:
        json.dump({name: [vars(outcome) for outcome in outcomes] for name, outcomes in found.items()}, sys.stdout)
        return
    report(found, shape, options.rounds)


def report(found: Mapping[str, list[Outcome]], shape: Mapping[str, int], rounds: int) -> None:
    """Print medians and ranges."""
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(", ".join(f"{value} {name}" for name, value in shape.items()) + f", {rounds} rounds: median (range)")
    print(f"{'way of choosing':26} {'met a warm cache':>22} {'largest / mean load':>22} {'time until done':>24}")
    for name, outcomes in found.items():
        columns = [
            _column([100.0 * outcome.warm for outcome in outcomes], "{:.1f}", " %"),
            _column([outcome.unevenness for outcome in outcomes], "{:.2f}"),
            _column([outcome.time for outcome in outcomes], "{:.0f}"),
        ]
        print(f"{name:26} {columns[0]:>22} {columns[1]:>22} {columns[2]:>24}")


def _column(values: list[float], form: str, unit: str = "") -> str:
    median, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{median}{unit} ({low}-{high})"


if __name__ == "__main__":
    main()
