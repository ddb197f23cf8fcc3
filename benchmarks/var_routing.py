"""Speed of adaptive routing on one core: in batches, token by token, and compared with the gate alone.

python benchmarks/var_routing.py [--quick]

A stream of tokens of which about 55 % have fast routes, 35 % repeat a context that was decided before, and 10 % are asked
about. Figures are nanoseconds of processor time per token: the median of several runs, with the least and the greatest. All
rows of a table come from the same run of this script.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded: one core
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import platform
import time
from pathlib import Path

import numpy as np

from workflow_composer.moe.routing.learned_gate import LinearGate
from workflow_composer.moe.routing.system import VARSystem

VOCABULARY, EXPERTS, CLUSTERS, PHRASE = 1000, 8, 16, 40
CLEAR = 14  # of the clusters have favourites


def stream(size, seed, *, fast=0.55, repeated=0.37):
    """Phrases of 40 tokens: of tokens with fast routes, of a few ambiguous phrases again and again, or of new ones."""
    drawing = np.random.default_rng(seed)
    tokens = np.arange(VOCABULARY)
    clear, ambiguous = tokens[(tokens % CLUSTERS < CLEAR)][:300], tokens[(tokens % CLUSTERS >= CLEAR) & (tokens >= 10)]
    phrases = np.random.default_rng(99).choice(ambiguous, (4, PHRASE))
    kinds = drawing.random(size // PHRASE)
    made = [
        drawing.choice(clear, PHRASE)
        if kind < fast
        else phrases[drawing.integers(4)]
        if kind < fast + repeated
        else drawing.choice(ambiguous, PHRASE)
        for kind in kinds
    ]
    return np.concatenate(made)


def linear_gate(hidden):
    """A gate with a clear favourite pair for most clusters."""
    drawing = np.random.default_rng(0)
    bias = np.zeros((CLUSTERS, EXPERTS), np.float32)
    for cluster in range(CLEAR):
        bias[cluster, drawing.permutation(EXPERTS)[:2]] = [12, 9]
    return LinearGate((drawing.standard_normal((EXPERTS, hidden)) * 0.3 / hidden**0.5).astype(np.float32), bias)


def measured(work, tokens, runs):
    """Median, least and greatest nanoseconds per token; one run before that counts for nothing."""
    work()
    found = []
    for _ in range(runs):
        started = time.process_time_ns()
        work()
        found.append((time.process_time_ns() - started) / tokens)
    return np.median(found), min(found), max(found)


def torch_gate_times(hidden, tokens, states, runs):
    """The demonstration's gate, in torch, if that is there."""
    try:
        import torch

        from workflow_composer.moe.models.demo import RealisticMoERouter
    except ModuleNotFoundError:
        return None
    torch.set_num_threads(1)
    gate, ids, rows = RealisticMoERouter(hidden, EXPERTS), torch.from_numpy(tokens), torch.from_numpy(states)
    return measured(lambda: gate.route(rows, ids), len(tokens), runs)


def rows_of(size, hidden, runs):
    """The lines of the table for one hidden size."""
    gate = linear_gate(hidden)
    embedding = np.random.default_rng(1).standard_normal((VOCABULARY, hidden), np.float32)
    teach, tokens = stream(100_000, 1), stream(size, 2)
    system = VARSystem(gate, clock=lambda: 0.0)
    system.precompute_statistics(teach, embedding[teach])
    states = embedding[tokens]
    few = 2000

    def batch():
        system.new_text(forget=False)
        system.reset_performance_counters()
        system.route_batch(tokens, states)

    def one_by_one():
        system.new_text(forget=False)
        system.reset_performance_counters()
        for token, state in zip(tokens[:few].tolist(), states[:few], strict=True):
            system.route_token(token, state)

    found = [("VAR, in batches", measured(batch, len(tokens), runs))]
    stats = system.get_performance_stats()
    found += [
        ("VAR, token by token", measured(one_by_one, few, max(2, runs // 3))),
        ("gate in batches, numpy", measured(lambda: gate.route(states, tokens), len(tokens), runs)),
        ("gate in batches, torch", torch_gate_times(hidden, tokens, states, runs)),
    ]
    return stats, system, [(name, times) for name, times in found if times is not None]


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and runs")
    quick = parser.parse_args().quick
    size, runs = (100_000, 3) if quick else (400_000, 11)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    print(f"{cpu}; Python {platform.python_version()}, numpy {np.__version__}; {size} tokens, {runs} runs\n")
    for hidden in (64, 512) if quick else (64, 512, 2048):
        if hidden * size * 4 > 2**30:
            size = 100_000
        stats, system, rows = rows_of(size, hidden, runs)
        shares = ", ".join(f"{name} {stats[f'{name}_share']:.1%}" for name in ("fast", "cached", "learned", "forced"))
        print(f"hidden size {hidden}, {EXPERTS} experts: {shares}\n")
        print("| path | ns per token: median (least to greatest) | million tokens a second |")
        print("|---|---:|---:|")
        for name, (median, least, greatest) in rows:
            print(f"| {name} | {median:,.0f} ({least:,.0f} to {greatest:,.0f}) | {1000 / median:,.3g} |")
        print()
    cache = system.nbytes - system.tables.nbytes - len(system.tables)
    print(f"memory: {cache / 1000:.0f} bytes per context of the cache (1,000 at the most), fixed; ", end="")
    print(f"{system.tables.nbytes / len(system.tables):.0f} per row of the tables")


if __name__ == "__main__":
    main()
