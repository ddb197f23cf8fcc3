"""Processor time of a single answer of the command line from a local server, beside what its libraries take to import.

    python benchmarks/single_answer.py [--rounds 15] [--strategy FILE] [--json]

Each row is a process of its own: ``generate`` with one prompt, and two controls: Python that does nothing, and Python
that imports the libraries without which no profile can be read (click, PyYAML, pydantic, asyncio). The stub on the
loopback answers at once, from this process. CPU seconds of the rows' processes (user and system) are counted, not
wall time. Rounds of all rows alternate, so that a busy machine slows them alike; the table gives median, spread, and
the ratio to the libraries' row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARIES = "import asyncio, click, pydantic, yaml; from pydantic import BaseModel, Field"


def seconds(command: list[str], environ: dict[str, str]) -> float:
    """CPU seconds of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def stub() -> Iterator[str]:
    """The address of a server that answers at once."""
    from tests.integration.stub_server import StubServer

    with StubServer() as server:
        yield server.url


def profile_of(url: str, folder: Path) -> Path:
    """Write a profile as the shipped ones are: a cascade first, then one model for everything."""
    path = folder / "single.yaml"
    profile = {
        "profile_name": "single",
        "allow_cloud": False,
        "vllm_endpoints": {"small": url},
        "task_routing": {"*": "small"},
        "routers": ["cascade", "cascading_provider"],
    }
    path.write_text(json.dumps(profile))
    return path


def measured(rounds: int, strategy: str | None) -> dict[str, list[float]]:
    """CPU seconds of each row, in rounds."""
    with stub() as url, tempfile.TemporaryDirectory() as folder:
        profile = strategy or str(profile_of(url, Path(folder)))
        environ = {**os.environ, "PYTHONPATH": str(HERE.parent), "XDG_STATE_HOME": folder}
        answer = ["-m", "workflow_composer", "-s", profile, "generate", "hello"]
        rows = {"one answer": answer, "its libraries": ["-c", LIBRARIES], "Python": ["-c", "pass"]}
        found: dict[str, list[float]] = {name: [] for name in rows}
        for turn in range(rounds + 1):
            for name, arguments in rows.items():
                spent = seconds([sys.executable, *arguments], environ)
                if turn:  # the first round compiles
                    found[name].append(spent)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--strategy", help="a profile instead of the stub's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measured(options.rounds, options.strategy)
    if options.json:
        print(json.dumps(found))
        return
    control = statistics.median(found["its libraries"])
    print(f"{platform.platform()}, Python {platform.python_version()}; medians of {options.rounds} rounds, CPU seconds")
    for name, values in found.items():
        middle = statistics.median(values)
        print(f"{name:<14} {middle:6.3f}   ({min(values):.3f} to {max(values):.3f})   {middle / control:5.2f} x")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
