"""CPU time to read the kept answers of a run again, beside reading them once by `execute --replay`.

    python benchmarks/regrading.py [--rows 10000]

A recording of two models answers every question by a cascade: three votes of a small model, then one of a large one. The
texts are worked solutions of about 600 characters. Each command runs in a process of its own; its CPU time is that of the
process and its children, as the system counts it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUTE = "mv_cascade_small_k3_t0.7_large_k1_t0.0"


def write_recording(path: Path, rows: int, *, seed: int = 0) -> None:
    """Write a graded recording: the small model is of two minds about every third question."""
    chance = random.Random(seed)
    with path.open("w") as file:
        for n in range(rows):
            right = str(chance.randrange(10, 10_000))
            for model, samples in (("small", 3), ("large", 1)):
                for sample in range(samples):
                    said = right if model == "large" or n % 3 or not sample else str(int(right) + sample)
                    line = {"question": f"Question {n}: how many?", "model": model, "sample": sample, "tokens": 150}
                    file.write(json.dumps(line | {"answer": solution(said, chance), "correct": said == right}) + "\n")


def solution(answer: str, chance: random.Random) -> str:
    """Return a worked solution that ends with the answer."""
    numbers = [(chance.randrange(99), chance.randrange(99)) for _ in range(8)]
    steps = [f"Step {at}: {a} + {b} gives a part of it, so we add it up." for at, (a, b) in enumerate(numbers)]
    return "\n".join([*steps, f"So the total is \\boxed{{{answer}}}."])


def cpu_of(*arguments: str, folder: Path) -> float:
    """Run a command of the package; return its CPU time in seconds."""
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "workflow_composer", *arguments])
    _, status, used = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 7):
        raise SystemExit(f"{' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime


def measured(rows: int) -> tuple[float, float]:
    """Return the CPU seconds of ``execute --replay`` and of ``regrade`` over this many rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recording(folder / "own.jsonl", rows)
        executed = cpu_of("execute", "--replay", "own.jsonl", "--routes", ROUTE, folder=folder)
        again = cpu_of("regrade", "results", "--extract", "boxed", folder=folder)
        return executed, again


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    rows = parser.parse_args().rows
    executed, again = measured(rows)
    print(
        f"{rows:,} rows: execute --replay {executed:.1f} s of CPU time, regrade {again:.1f} s ({again / executed:.2f} of it)"
    )


if __name__ == "__main__":
    main()
