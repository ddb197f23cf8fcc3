"""Memory, time and disk space of a batch of a million rows, with fake models.

    python benchmarks/batch_memory.py [--rows 1000000] [--folder DIR] [--json]

Rows of GSM8K's size pass through a complete batch without models: they are read from JSON lines, become records with two
tiers of four votes, are written to the journal and then to the result files; finally the run is resumed. Everything runs in
one process. ``peak`` is the maximum resident memory of a part (VmHWM, which Linux lets a process reset), and ``after`` the
resident memory at its end; both include the libraries. The exit status is 1 if the overall peak is a GiB or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from workflow_composer.batch.datasets.dataset import find
from workflow_composer.batch.report.results import JSONL, PARQUET, write_results
from workflow_composer.batch.run.answering import Answering, Job
from workflow_composer.batch.run.journal import RowJournal, fingerprint
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.records import RowRecord, TierRecord
from workflow_composer.batch.run.runner import run
from workflow_composer.batch.run.tally import Tally

GIB = 1 << 30
ROUTE = "mv_cascade_1.5B_k4_t0.7_7B_k4_t0.7_72B_k1_t0.0"
WORDS = (
    "Ann",
    "has",
    "three",
    "pens",
    "and",
    "buys",
    "four",
    "more",
    "on",
    "Monday;",
    "she",
    "gives",
    "half",
    "to",
    "her",
    "brother",
)


def write_rows(path: Path, count: int) -> None:
    """Questions of about 230 letters and solutions of about 280, as in GSM8K."""
    chance = random.Random(0)
    with path.open("w") as file:
        for row in range(count):
            question = " ".join(chance.choices(WORDS, k=45))
            solution = " ".join(chance.choices(WORDS, k=55)) + f"\n#### {row % 97}"
            file.write(json.dumps({"question": question, "answer": solution}) + "\n")


async def answer(job: Job) -> RowRecord:
    """A record like that of a row which the second tier has decided."""
    row = job.row.row
    chance = random.Random(row)
    found, tokens, seconds = str(row % 97), chance.randrange(300, 1500), 10 * chance.random()
    votes = ((found, 2), ("17", 1))
    model = "Qwen/Qwen2.5-Math-1.5B-Instruct"
    cost = tokens * 1e-7
    tiers = (
        TierRecord(
            "1.5B", model, 4, votes, 1, 0.5, False, "share 0.50", 120, tokens, cost, seconds, (True, True, False, False)
        ),
        TierRecord("7B", model, 4, ((found, 4),), 0, 1.0, True, "share 1.00", 120, tokens, 5 * cost, seconds, (True,) * 4),
    )
    return RowRecord(row, job.row.id, job.route, found, 1.0, True, 1, tiers, True, 240, 2 * tokens, 6 * cost, 2 * seconds)


class Answers:
    """Answers rows by `answer`; none fails."""

    failed = Answering.failed

    async def __call__(self, job: Job, budget: float | None) -> RowRecord:
        """The record of a row."""
        return await answer(job)


def status(name: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) << 10


class Parts:
    """Measures one part after the other."""

    def __init__(self, *, quiet: bool) -> None:
        self.found: list[dict[str, object]] = []
        self._quiet = quiet

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what is done within."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
        began, cpu = time.perf_counter(), time.process_time()
        yield
        part = {
            "part": name,
            "seconds": round(time.perf_counter() - began, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "peak_mib": status("VmHWM") >> 20,
            "after_mib": status("VmRSS") >> 20,
        }
        self.found.append(part)
        if not self._quiet:
            print("{part:<28}{seconds:>9.2f} s{cpu_seconds:>9.2f} s CPU{peak_mib:>8} MiB{after_mib:>8} MiB".format(**part))


def measure(folder: Path, rows: int, *, quiet: bool) -> dict[str, object]:
    """Run the batch; return the figures."""
    write_rows(folder / "rows.jsonl", rows)
    parts = Parts(quiet=quiet)
    journal_path = folder / "journal.jsonl"
    with parts("count and digest"):
        data = find("rows", folder)
        assert data.count() == rows
        of = {"data": data.sha256(), "routes": fingerprint(ROUTE for _ in range(rows))}
    with parts("read as tables (planning)"):
        assert sum(table.num_rows for table in data.chunks()) == rows
    with parts("answer and journal"):
        tally = Tally(rows)
        with RowJournal.open(journal_path, of, rows=rows) as journal:
            jobs = (Job(row, ROUTE) for row in data.rows())
            asyncio.run(run(jobs, Answers(), journal, tally=tally, limiter=Limiter(least=64, most=64)))
        assert tally.answered == rows
    with parts("open again (resume)"):
        tally = Tally(rows)
        with RowJournal.open(journal_path, of, rows=rows, each=tally.add_earlier) as journal:
            assert journal.done == tally.earlier == rows
    with parts("write results"):
        assert write_results(journal_path, folder).rows == rows
    running = next(part for part in parts.found if part["part"] == "answer and journal")
    return {
        "rows": rows,
        "parts": parts.found,
        "peak_mib": max(int(str(part["peak_mib"])) for part in parts.found),
        "rows_per_second": round(rows / float(str(running["seconds"]))),
        "sizes_mib": {
            path.name: path.stat().st_size >> 20
            for path in (folder / "rows.jsonl", journal_path, folder / JSONL, folder / PARQUET)
        },
        "machine": f"{os.cpu_count()} x {processor()}, Linux {platform.release()}",
        "load": [round(each, 1) for each in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("workflow-composer", "pyarrow")},
        },
    }


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to put the files, about 1.5 GiB; default: a temporary folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), options.rows, quiet=options.json)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        sizes = ", ".join(f"{name} {size} MiB" for name, size in dict(found["sizes_mib"]).items())
        print(f"\npeak {found['peak_mib']} MiB; {found['rows_per_second']} rows/s with answers that cost nothing")
        print(f"sizes: {sizes}")
        print(f"{found['machine']}, load {found['load']}, {found['versions']}")
    return 0 if int(str(found["peak_mib"])) << 20 < GIB else 1


if __name__ == "__main__":
    sys.exit(main())
