"""Cost of the journal as an append-only file, compared with the same records in SQLite.

    python benchmarks/journal_forms.py [--rows 100000] [--folder DIR] [--json]

Every row is made durable against SIGKILL on its own before the next is written, as a batch does it: one ``write`` of a line
with a checksum, or one transaction (write-ahead log; ``synchronous`` NORMAL and OFF). Then the file is opened again and gone
through for what a later run needs: which rows are done, and by which tier, with what cost. CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.batch_memory import ROUTE, answer, processor
from workflow_composer.batch.datasets.dataset import Row
from workflow_composer.batch.run.answering import Job
from workflow_composer.batch.run.journal import RowJournal
from workflow_composer.batch.run.lines import record_line
from workflow_composer.batch.run.records import RowRecord
from workflow_composer.batch.run.tally import Tally


def append_to_file(path: Path, records: list[RowRecord]) -> None:
    """The journal of the package."""
    with RowJournal.open(path, {}, rows=len(records)) as journal:
        for record in records:
            journal.append(record)


def open_file(path: Path, rows: int) -> int:
    """What a later run does first."""
    tally = Tally(rows)
    RowJournal.open(path, {}, rows=rows, each=tally.add_earlier).close()
    return tally.answered


def append_to_sqlite(path: Path, records: list[RowRecord], synchronous: str) -> None:
    """A table of the same lines: SQLite has no checksums of its own."""
    with sqlite3.connect(path, isolation_level=None) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(f"PRAGMA synchronous={synchronous}")
        head = "row INTEGER PRIMARY KEY, failed INTEGER, deciding TEXT, correct INTEGER, cost REAL"
        database.execute(f"CREATE TABLE rows ({head}, line BLOB)")
        for record in records:
            head_of = (record.row, record.error is not None, record.deciding, record.correct, record.cost)
            database.execute("INSERT OR REPLACE INTO rows VALUES (?,?,?,?,?,?)", (*head_of, record_line(record)))
    database.close()


def open_sqlite(path: Path, rows: int) -> int:
    """The same from the table; the checksums are compared as the journal does it."""
    database = sqlite3.connect(path)
    found = database.execute("SELECT row, failed, deciding, correct, cost, line FROM rows")
    counted = sum(zlib.crc32(line[12:-1]) == int(line[2:10], 16) for *_, line in found)
    database.close()
    return counted


def timed(work: Callable[[], object]) -> float:
    """CPU seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(folder: Path, rows: int) -> list[dict[str, object]]:
    """Write and read both."""
    jobs = [Job(Row(row, str(row), "", None), ROUTE) for row in range(rows)]
    records = [made_at_once(job) for job in jobs]
    found = []
    for name, write, read in (
        ("lines in a file", append_to_file, open_file),
        ("SQLite, WAL, NORMAL", lambda path, all_: append_to_sqlite(path, all_, "NORMAL"), open_sqlite),
        ("SQLite, WAL, OFF", lambda path, all_: append_to_sqlite(path, all_, "OFF"), open_sqlite),
    ):
        path = folder / name.replace(" ", "_")
        write_seconds = timed(lambda write=write, path=path: write(path, records))
        size = path.stat().st_size
        read_seconds = timed(lambda read=read, path=path: read(path, rows))
        found.append(
            {
                "form": name,
                "write_us_per_row": round(write_seconds / rows * 1e6, 1),
                "bytes_per_row": round(size / rows),
                "open_us_per_row": round(read_seconds / rows * 1e6, 1),
            }
        )
    return found


def made_at_once(job: Job) -> RowRecord:
    """The record of the other benchmark, without an event loop."""
    coroutine = answer(job)
    try:
        coroutine.send(None)
    except StopIteration as done:
        record: RowRecord = done.value
        return record
    raise RuntimeError("it waits for something")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), options.rows)
    if options.json:
        json.dump(found, sys.stdout, indent=2)
        return
    print(f"{'form':24}{'write':>14}{'size':>14}{'open again':>16}")
    for each in found:
        print("{form:24}{write_us_per_row:>8} us/row{bytes_per_row:>8} B/row{open_us_per_row:>10} us/row".format(**each))
    print(f"{os.cpu_count()} x {processor()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")


if __name__ == "__main__":
    main()
