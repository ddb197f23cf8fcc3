"""Killing a batch with SIGKILL at random moments, and checking after each that it has lost nothing and repeats nothing."""

from __future__ import annotations

import json
import random
import subprocess
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.paths import ROOT

FAILED = 1
PATIENCE = 60.0
PAUSE = 0.005


Finished = tuple[int, bytes]
"""A row that has its answer, and the line that says so."""


def finished_rows(journal: Path) -> list[int]:
    """Numbers of the rows that have their answer, as they stand in a file: read without the program's own code."""
    return [row for row, _ in finished(journal)]


def finished(journal: Path) -> list[Finished]:
    """The same, with their lines. The file may be that of `execute`, of `generate` and `run_batch`, or a recording."""
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    found = [(row, line) for line in lines if (row := _answered(line)) is not None]
    assert len(found) == len({row for row, _ in found}), "a row is finished twice"
    return found


def _answered(line: bytes) -> int | None:
    """The row that a line has the answer of, if it has one."""
    fields = json.loads(line)
    if isinstance(fields, dict):
        if "error" in fields:
            return None
        return fields["index"] if "index" in fields else int(fields["question"].split()[2])
    seal, head, *_ = fields
    assert int(seal, 16) == zlib.crc32(line[12:]), f"the checksum of {line[:80]!r} is wrong"
    if isinstance(head, dict):
        return None
    row, error, *_ = head
    return row if error is None else None


def answers(results: Path) -> list[tuple[object, ...]]:
    """What the result file says of each row, without what depends on time."""
    rows = map(json.loads, results.read_text().splitlines())
    return [(row["row"], row["answer"], row["tier"], row["correct"], row["error"]) for row in rows]


class Killer:
    """Starts a command, kills it, starts it again, until it is done.

    ``argv`` is a batch that goes on where it stopped and exits with 1 as long as rows have failed. ``asked`` gives the rows
    that it has asked its models for so far, over all its runs; ``calls`` a number that grows with each and is quick to tell.
    ``journal`` is that of its output.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        journal: Path,
        asked: Callable[[], list[int]],
        calls: Callable[[], int],
        chance: random.Random,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = list(argv)
        self.journal = journal
        self.kills = 0
        self.repeated: set[int] = set()
        self.asked, self._calls = asked, calls
        self._chance = chance
        self._environ = environ

    def start(self) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(self.argv, cwd=ROOT, env=self._environ, stderr=subprocess.PIPE, text=True)

    def undisturbed(self) -> tuple[float, float]:
        """Run to the end; return the seconds until the first row was asked for, and from there to the last."""
        began = last = time.monotonic()
        process = self.start()
        self.wait_for_call(process, self._calls())
        first = time.monotonic() - began
        calls = 0
        while process.poll() is None:
            if self._calls() != calls:
                calls, last = self._calls(), time.monotonic()
            time.sleep(PAUSE)
        _, told = process.communicate()
        while process.returncode == FAILED:
            process, told = self._run()
        assert process.returncode == 0, told
        return first, max(last - began - first, PAUSE)

    def until_done(self, first: float, work: float, part: float = 0.012) -> None:
        """Run with kills until it ends by itself; each run gets about ``part`` of the work done.

        Most kills fall at a random moment after the first call of a run, some at a random moment of its start.
        """
        while True:
            done = finished(self.journal)
            asked, calls = len(self.asked()), self._calls()
            process = self.start()
            if self._chance.random() < 0.15:
                delay = self._chance.uniform(0.0, first)
            else:
                self.wait_for_call(process, calls)
                delay = self._chance.uniform(0.0, 2 * part * work)
            told = self._kill_after(process, delay)
            self._check(done, asked)
            if process.returncode == 0:
                return
            assert process.returncode in {FAILED, -9}, told
            self.kills += process.returncode == -9

    def kill_after(self, delay: float) -> int:
        """Run with one kill, unless it ends before that; return the exit code."""
        process = self.start()
        self._kill_after(process, delay)
        self.kills += process.returncode == -9
        return process.returncode

    def _run(self) -> tuple[subprocess.Popen[str], str]:
        with self.start() as process:
            _, told = process.communicate(timeout=PATIENCE)
        return process, told

    @staticmethod
    def _kill_after(process: subprocess.Popen[str], delay: float) -> str:
        with process:
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
            return process.communicate(timeout=PATIENCE)[1]

    def wait_for_call(self, process: subprocess.Popen[str], calls: int) -> None:
        """Until the command has asked for a further row, or has ended without."""
        while process.poll() is None and self._calls() == calls:
            time.sleep(PAUSE)

    def _check(self, done: list[Finished], asked: int) -> None:
        # A run that has ended puts its rows into the order of the input, so only their lines are compared.
        assert set(done) <= set(finished(self.journal)), "a finished row is lost, or its line has changed"
        self.repeated.update(set(self.asked()[asked:]) & {row for row, _ in done})
