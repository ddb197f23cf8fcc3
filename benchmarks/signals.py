"""Signals of many answers at once: time on one core.

    python benchmarks/signals.py [--answers 10000] [--tokens 512] [--top 5] [--rounds 5] [--json]

Tokens are drawn from random distributions, a quarter of them flat, the rest peaked; the chosen token is one of the likeliest
in 99 of 100 places, and else one that was less likely. The arrays lie in memory before the clock starts. The best of several
rounds counts, in CPU time (one thread does it all), since other work on the machine can only make it longer; the middle one
stands beside it. The last row is `signals.analyze`, answer by answer, on a fiftieth of them, times fifty.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise

import numpy as np

from workflow_composer.calibration.scores.signal_table import SignalTable
from workflow_composer.calibration.scores.signals import analyze


def draw(answers: int, tokens: int, top: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities of the chosen tokens, offsets of the answers, and those of the likeliest tokens."""
    generator = np.random.default_rng(seed)
    count = answers * tokens
    weights = generator.exponential(
        size=(count, top + 1),
    ).astype(np.float64)
    weights[: 3 * count // 4, 0] *= 30.0
    weights[:, top] *= 0.02
    generator.shuffle(weights)
    weights /= weights.sum(axis=1, keepdims=True)
    likeliest = np.log(np.sort(weights[:, :top], axis=1)[:, ::-1])
    place = np.minimum(generator.geometric(0.7, size=count) - 1, top - 1)
    chosen = likeliest[np.arange(count), place]
    beyond = generator.random(count) < 0.01
    chosen[beyond] = np.minimum(likeliest[beyond, -1] - 0.5, np.log(weights[beyond, top] / 2))
    return chosen, np.arange(0, count + 1, tokens), np.ascontiguousarray(likeliest)


def measure(work, rounds: int) -> list[float]:
    """CPU seconds of each round; the first, which warms up, is not counted."""
    found = []
    for _ in range(rounds + 1):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return found[1:]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen, offsets, top = draw(options.answers, options.tokens, options.top)
    some = max(1, options.answers // 50)
    lists = [(chosen[a:b].tolist(), top[a:b].tolist()) for a, b in pairwise(offsets[: some + 1])]
    times = {
        "batch, chosen tokens only": measure(lambda: SignalTable.of(chosen, offsets), options.rounds),
        f"batch, top {options.top}": measure(lambda: SignalTable.of(chosen, offsets, top), options.rounds),
        f"one by one, top {options.top}": [
            seconds * options.answers / some for seconds in measure(lambda: [analyze(*answer) for answer in lists], 1)
        ],
    }
    rows = {name: {"best": min(found), "median": statistics.median(found)} for name, found in times.items()}
    if options.json:
        print(json.dumps({"answers": options.answers, "tokens": options.tokens, "seconds": rows}, indent=2))
        return
    print(f"{options.answers:,} answers of {options.tokens} tokens, CPU seconds on one core")
    print(f"{'':28}{'best':>8}{'median':>8}{'answers/s':>12}")
    for name, row in rows.items():
        print(f"{name:28}{row['best']:8.2f}{row['median']:8.2f}{options.answers / row['best']:12,.0f}")


if __name__ == "__main__":
    main()
