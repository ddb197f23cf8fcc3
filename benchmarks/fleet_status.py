"""How long `fleet status` takes over the history of a week of many servers, and how much of it is read.

    python benchmarks/fleet_status.py [--servers 100] [--days 7] [--interval 300] [--rounds 5] [--json]

The servers are in the fleet file and none of them runs, so that what is timed is what a history costs: the whole command's
work from the loaded fleet file to the lines of the table. Given are the medians of the rounds, the bytes that are read of
the history, and, for comparison, the seconds that reading all of it takes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from workflow_composer.fleet.file import Fleet, load_fleet  # noqa: E402  # the checkout's package
from workflow_composer.fleet.monitor.history import DAY  # noqa: E402
from workflow_composer.fleet.monitor.monitor import history  # noqa: E402
from workflow_composer.fleet.monitor.report import report  # noqa: E402
from workflow_composer.storage import lines  # noqa: E402


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=100)
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--interval", type=float, default=300.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fleet = fleet_of(Path(folder), asked.servers, asked.interval)
        size = write_history(fleet, asked.days, asked.interval)
        with counted() as read:
            report(fleet, {}, "here")
        took = [timed(lambda: report(fleet, {}, "here")) for _ in range(asked.rounds)]
        whole = timed(lambda: sum(1 for _ in history(fleet).records()))
    found = {
        "seconds": round(statistics.median(took), 2),
        "bytes_read": read[0],
        "bytes_of_history": size,
        "seconds_to_read_all": round(whole, 2),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    print(json.dumps(found) if asked.json else "\n".join(f"{name:<20} {value}" for name, value in found.items()))


def fleet_of(folder: Path, servers: int, interval: float) -> Fleet:
    """A fleet file with that many servers."""
    roles = {f"r{n}": {"model": "m", "port": 8001 + n} for n in range(servers)}
    tree = {"registry": "registry", "state": "state", "roles": roles, "monitor": {"interval": interval}}
    (folder / "fleet.yaml").write_text(json.dumps(tree))
    return load_fleet(folder / "fleet.yaml", {"HOME": str(folder)})


def write_history(fleet: Fleet, days: float, interval: float) -> int:
    """Write a check of each server in each interval, up to now; return the size of the file."""
    path, now = history(fleet).path, time.time()
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        for number in range(int(days * DAY / interval), 0, -1):
            for server in fleet.servers():
                check = {"time": now - number * interval, "server": server, "outcome": "up", "reason": "", "running": 3}
                more = {"waiting": 0, "cache": 0.25, "tokens": 123456.0, "started": now - 9e5}
                file.write(json.dumps(check | more, separators=(",", ":")) + "\n")
    return path.stat().st_size


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the bytes that are read of ordered files of lines."""
    read, opened = [0], lines.seekable

    class Counting:
        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def readline(self, most: int = -1) -> bytes:
            line = self.file.readline(most)
            read[0] += len(line)
            return line

    lines.seekable = lambda path: Counting(opened(path))
    try:
        yield read
    finally:
        lines.seekable = opened


def timed(work: Callable[[], object]) -> float:
    """The seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
