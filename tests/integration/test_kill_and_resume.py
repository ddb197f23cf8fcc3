"""A batch that is killed at any moment goes on: no row is lost, none is answered twice, and the answers are the same.

Real processes and SIGKILL. The moments come from a seeded generator and are scaled to what the machine needs for a run that
nobody disturbs.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.batch_child import CALLS, JOURNAL
from tests.integration.killing import PATIENCE, Killer, answers, finished_rows
from workflow_composer.batch.results import JSONL, PARQUET

ROWS = 1000
KILLS = 50
KILLS_AT_THE_END = 6


class Batches:
    """Batches over one data set, each with an output folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chance = random.Random(20)
        rows = ({"question": f"What is {n} + 1?", "answer": str(n % 100)} for n in range(ROWS))
        (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def __call__(self, name: str) -> Killer:
        output = self.folder / name
        output.mkdir()
        argv = [sys.executable, "-m", "tests.integration.batch_child", str(self.folder), "numbers", str(output)]
        log = output / CALLS

        def asked() -> list[int]:
            text = log.read_text() if log.exists() else ""
            return [int(row) for row in text.split()]

        def calls() -> int:
            return log.stat().st_size if log.exists() else 0

        journal = output / JOURNAL
        return Killer(argv, journal=journal, asked=asked, calls=calls, chance=self.chance)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Batches to kill."""
    return Batches(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def undisturbed(batches):
    """The output folder of a batch that nobody has killed, and how long it took: to the first row, and to the last."""
    killer = batches("undisturbed")
    return killer.journal.parent, killer.undisturbed()


@pytest.mark.slow
def test_after_fifty_kills_every_row_is_answered_once_and_the_same(batches, undisturbed):
    """At random moments: while it starts, while it runs, while rows fail, while results are written."""
    whole, (first, work) = undisturbed
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        killer = batches(f"killed-{runs}")
        killer.until_done(first, work)
        kills += killer.kills
        output = killer.journal.parent

        assert not killer.repeated
        assert sorted(finished_rows(killer.journal)) == list(range(ROWS))
        assert answers(output / JSONL) == answers(whole / JSONL)
        assert (output / JSONL).read_bytes() == (whole / JSONL).read_bytes()
        assert pq.read_table(output / PARQUET).equals(pq.read_table(whole / PARQUET))
        assert len(answers(output / JSONL)) == ROWS


@pytest.mark.slow
def test_killed_while_it_writes_results_it_leaves_whole_files_or_none(batches, undisturbed):
    """And the next run writes them."""
    whole, _ = undisturbed
    killer = batches("results")
    first, _ = killer.undisturbed()
    output = killer.journal.parent
    calls = len((output / CALLS).read_text().split())
    began = time.monotonic()
    assert killer.kill_after(PATIENCE) == 0
    seconds = time.monotonic() - began
    for path in (output / JSONL, output / PARQUET):
        path.unlink()
    while killer.kills < KILLS_AT_THE_END:
        code = killer.kill_after(batches.chance.uniform(min(first, seconds / 2), seconds))
        for name in (JSONL, PARQUET):
            assert not (output / name).exists() or (output / name).read_bytes() == (whole / name).read_bytes()
        assert code in {0, -9}
    assert killer.undisturbed()

    assert (output / JSONL).read_bytes() == (whole / JSONL).read_bytes()
    assert len((output / CALLS).read_text().split()) == calls
    assert not list(output.glob(".*partial"))


def test_a_second_run_is_refused_and_the_first_goes_on(batches, undisturbed):
    """Two at once would answer every row twice."""
    killer = batches("twice")
    with killer.start() as process:
        killer.wait_for_call(process, 0)
        with killer.start() as second:
            _, told = second.communicate()
        assert second.returncode == 2
        assert "another run is writing to" in told
        assert process.wait() == 1

    assert len(finished_rows(killer.journal)) == sum(row % 17 != 0 for row in range(ROWS))
