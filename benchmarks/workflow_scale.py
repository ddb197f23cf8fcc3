"""A run over many rows whose answers are all kept: peak memory, processor time, and how long the index of the journal takes.

    python benchmarks/workflow_scale.py [--rows 20000] [--rows 5000] [--json]

Three questions a row, each reading the one before, with recorded answers of 120 characters: the journal is written with the
keys that a run makes, and then a run in a process of its own goes over all rows, asks nothing, and writes the table. For
each number of rows: seconds until the journal is open and indexed, CPU seconds and peak resident memory of that process. In
the table of a million rows three million entries are indexed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STEPS = ("a", "b", "c")
PADDING = "x" * 100
FLOW = """
workflow: three
inputs: {t: text}
steps:
  a: {prompt: "first {{ t }}"}
  b: {prompt: "second {{ a }}"}
  c: {prompt: "third {{ b }}"}
output: {t: "{{ t }}", c: "{{ c }}"}
"""
FACTS = {"calls": 1, "cost": 1e-6, "model": "m", "candidate": "m", "tier": 0, "seconds": 0.1, "tokens": [40, 30]}


@contextmanager
def opened(folder: Path) -> Iterator[Any]:
    """A run over the table of a folder, with models that nobody can reach."""
    from workflow_composer import ModelOrchestrator, StrategyConfig
    from workflow_composer.batch.datasets.table import read_table
    from workflow_composer.workflows.definition.loading import load_workflow
    from workflow_composer.workflows.run import WorkflowRun

    model = {"backend": "vllm", "base_url": "http://127.0.0.1:9", "model": "m"}
    config = StrategyConfig(profile_name="scale", models={"m": model}, task_routing={"*": "m"})
    table = read_table(folder / "in.jsonl", asks=False)
    flow = load_workflow(folder / "flow.yaml", config=config, columns=table.names)
    with ModelOrchestrator(config, environ={}) as models, WorkflowRun(flow, table, folder / "out.jsonl", models) as run:
        yield run


def record(folder: Path, rows: int) -> None:
    """Write the table, the flow, and the journal with every answer."""
    from workflow_composer.workflows.keeping.journal import ANSWER

    (folder / "flow.yaml").write_text(FLOW)
    (folder / "in.jsonl").write_text("".join(json.dumps({"t": f"row-{number}"}) + "\n" for number in range(rows)))
    with opened(folder) as run:
        steps = run.workflow.steps
        for row in run.source:
            text = row.inputs["t"]
            for name, word in zip(STEPS, ("first", "second", "third"), strict=True):
                asked = {"messages": [{"role": "user", "content": f"{word} {text}"}]}
                question = run.world.question(steps[name], row=row.id, place=name, asked=asked)
                text = f"{name} of row {row.number} {PADDING}"
                run.journal.append(ANSWER, question, cost=1e-6, value=text, facts=FACTS)


def run_over(folder: Path) -> dict[str, Any]:
    """Run over the recorded answers; return what it took."""
    began = time.perf_counter()
    with opened(folder) as run:
        indexed = time.perf_counter() - began
        report = asyncio.run(run.run())
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rows": report.rows,
        "done": report.by_state["done"],
        "kept": report.kept,
        "calls": report.calls,
        "indexed": indexed,
        "cpu": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss / 1024,
        "wall": time.perf_counter() - began,
    }


def measured(rows: int) -> dict[str, Any]:
    """Record and run, each in a process of its own; return what the run took."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, str(Path(__file__).resolve()), "--folder", name]
        environ = {"PYTHONPATH": str(HERE.parent), "PATH": "/usr/bin:/bin", "HOME": name}
        subprocess.run([*command, "--record", str(rows)], check=True, env=environ)
        done = subprocess.run(command, check=True, env=environ, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print; with ``--folder``, be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, action="append", help="may be given several times")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.folder is not None:
        if options.record is not None:
            record(options.folder, options.record)
        else:
            print(json.dumps(run_over(options.folder)))
        return
    found = [measured(rows) for rows in options.rows or [5000, 20000]]
    if options.json:
        print(json.dumps(found))
        return
    print(f"{platform.platform()}, Python {platform.python_version()}; {len(STEPS)} answers a row, all kept")
    print(f"{'rows':>9} {'calls':>6} {'kept':>9} {'index s':>8} {'CPU s':>8} {'us/answer':>10} {'peak MiB':>9}")
    for one in found:
        each = 1e6 * one["cpu"] / one["kept"]
        print(
            f"{one['rows']:9d} {one['calls']:6d} {one['kept']:9d} {one['indexed']:8.1f} {one['cpu']:8.1f} "
            f"{each:10.0f} {one['peak']:9.0f}"
        )


if __name__ == "__main__":
    main()
