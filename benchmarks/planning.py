"""Time and memory of each batch policy for planning 1,000,000 questions on one core.

    python benchmarks/planning.py [--rows 1000000] [--rounds 3] [--data FILE] [--json]

The questions are grade-school problems (GSM8K's training set by ``--data train.jsonl``, plain or gzip) or, without a file,
the 1,000 problems that come with the package, repeated to the number of rows with a number appended to each, so that no two
are equal. They are in memory as Arrow tables, as a data set's reader returns them; reading a file is not counted. The probe
is trained in advance, on random labels: its predictions are irrelevant, its cost is that of any other probe, and its
isotonic kind is the more expensive one. Each policy is planned in a separate process, bound to one core. The table gives CPU
and wall time per round (wall time means little on a busy machine), and the process's peak memory above its memory before
planning.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PIECE = 65_536
TARGET = 10.0


def _questions(path: Path | None) -> list[str]:
    if path is None:
        from workflow_composer.backends.embedded.backend import CHECKPOINTS

        path = CHECKPOINTS / "problems.jsonl"
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()
    return [json.loads(line)["question"] for line in lines]


def _pieces(questions: list[str], rows: int):
    """Arrow tables of `PIECE` questions."""
    import pyarrow as pa

    pieces = []
    for start in range(0, rows, PIECE):
        numbers = range(start, min(start + PIECE, rows))
        texts = [f"{questions[number % len(questions)]} ({number})" for number in numbers]
        pieces.append(pa.table({"question": pa.array(texts)}))
    return pieces


def _train(path: Path, questions: list[str]) -> None:
    """A probe whose labels are chance, harder for the smaller tiers."""
    import numpy as np
    import pandas as pd

    from workflow_composer.batch.planning.probe_training import train

    random = np.random.default_rng(0)
    texts = [f"{questions[number % len(questions)]} [{number}]" for number in range(1200)]
    length = np.array([len(text) for text in texts])
    hard = length / length.max()
    labels = [
        pd.DataFrame({"question": texts, "model": tier, "correct": random.random(len(texts)) < ease - 0.5 * hard})
        for tier, ease in (("small", 0.75), ("medium", 0.95), ("large", 1.15))
    ]
    train(pd.concat(labels), ["small", "medium", "large"], dataset="chance", resamples=10).save(path)


def _plan(name: str, probe_path: Path, source: Path | None, rows: int, rounds: int) -> dict:
    """Plan ``rounds`` times on one core: seconds, megabytes and the number of routes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import pyarrow as pa

    from workflow_composer.batch.planning.plan_table import plan
    from workflow_composer.batch.planning.policies import PlanningContext, PlanningTier, Questions, make_policy
    from workflow_composer.batch.planning.probe import Probe
    from workflow_composer.plugins.host import plugin_host

    pa.set_cpu_count(1)
    tiers = (PlanningTier("small", 0.02, 0.02), PlanningTier("medium", 0.1, 0.1), PlanningTier("large", 0.4, 0.4))
    context = PlanningContext(tiers, predictor=Probe.load(probe_path))
    factories = {key: provided.value for key, provided in plugin_host(discover=False).registry.batch_strategies.items()}
    pieces = _pieces(_questions(source), rows)
    policy = make_policy(name, factories)
    policy.routes(Questions(pieces[0].slice(0, 100), context.predictor), context)  # imports and tables
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, walls = [], []
    for _ in range(rounds):
        began, worked = time.perf_counter(), time.process_time()
        table = plan(pieces, policy, context, name=name)
        seconds.append(time.process_time() - worked)
        walls.append(time.perf_counter() - began)
        assert len(table.frame) == rows
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    held = table.frame.memory_usage(index=False).sum() / 2**20
    return {
        "cpu_seconds": seconds,
        "wall_seconds": walls,
        "peak_mib": grown,
        "table_mib": float(held),
        "routes": len(table.breakdown.routes),
    }


def main() -> int:
    """Measure and print; 1 where a policy takes longer than `TARGET` seconds per million rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ |= dict.fromkeys(THREADS, "1")

    from workflow_composer.plugins.builtin import BATCH_STRATEGIES

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.json"
        _train(probe, _questions(options.data))
        for name in BATCH_STRATEGIES:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                arguments = (name, probe, options.data, options.rows, options.rounds)
                figures[name] = process.submit(_plan, *arguments).result()
    length = statistics.fmean(map(len, _questions(options.data)))
    return report(figures, options.rows, length, options.json)


def report(figures: dict, rows: int, length: float, as_json: bool) -> int:
    """Print the table."""
    from importlib.metadata import version

    slowest = max(statistics.median(found["cpu_seconds"]) for found in figures.values()) / rows * 1e6
    if as_json:
        json.dump({"rows": rows, "characters": length, "policies": figures}, sys.stdout)
        return int(slowest > TARGET)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pyarrow", "pandas", "scipy"))
    print(f"{platform.machine()}, one of {os.cpu_count()} CPUs, Python {platform.python_version()}, {libraries}")
    print(f"{rows:,} questions of {length:.0f} characters on average")
    print(f"{'policy':26} {'CPU: median':>12} {'least':>8} {'most':>8} {'wall':>8} {'memory':>9} {'table':>9} {'routes':>6}")
    for name, found in figures.items():
        seconds, wall = found["cpu_seconds"], statistics.median(found["wall_seconds"])
        times = f"{statistics.median(seconds):10.2f} s {min(seconds):6.2f} s {max(seconds):6.2f} s {wall:6.2f} s"
        print(f"{name:26} {times} {found['peak_mib']:5.0f} MiB {found['table_mib']:5.1f} MiB {found['routes']:6}")
    print(f"slowest: {slowest:.2f} s of CPU per million questions; the aim is less than {TARGET:.0f}")
    return int(slowest > TARGET)


if __name__ == "__main__":
    sys.exit(main())
