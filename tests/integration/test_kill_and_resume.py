"""Rows that are killed at any moment go on: no row is lost, none is paid for twice, and the answers are the same.

Real processes and SIGKILL, through every door of the runner. The moments come from a seeded generator and are scaled to what
the machine needs for a run that nobody disturbs.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.killing import PATIENCE, Killer, answers, finished_rows
from tests.integration.rows_child import CALLS, ROUTE, journal_of
from tests.paths import ROOT
from workflow_composer.batch.report.results import JSONL, PARQUET

ROWS = 600
KILLS = 8
KILLS_AT_THE_END = 3
DOORS = ("generate", "execute", "record", "run_batch")


class Batches:
    """Batches over one data set, each with an output folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chance = random.Random(20)
        self._undisturbed: dict[str, tuple[Killer, tuple[float, float]]] = {}
        rows = ({"question": f"What is {n} + 0?", "answer": str(n)} for n in range(ROWS))
        (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def __call__(self, door: str, name: str) -> Killer:
        output = self.folder / door.replace(":", "-").replace("/", "-") / name
        output.mkdir(parents=True)
        argv = [sys.executable, "-m", "tests.integration.rows_child", door, str(self.folder), str(output)]
        log = output / CALLS

        def asked() -> list[int]:
            text = log.read_text() if log.exists() else ""
            return [int(row) for row in text.split()]

        def calls() -> int:
            return log.stat().st_size if log.exists() else 0

        return Killer(argv, journal=output / journal_of(door), asked=asked, calls=calls, chance=self.chance)

    def undisturbed(self, door: str) -> tuple[Killer, tuple[float, float]]:
        """A batch that nobody has killed, and how long it took: to the first row, and to the last."""
        if door not in self._undisturbed:
            killer = self(door, "undisturbed")
            self._undisturbed[door] = killer, killer.undisturbed()
        return self._undisturbed[door]


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Batches to kill."""
    return Batches(tmp_path_factory.mktemp("killed"))


def said(killer):
    """What the journal says of each row, without what depends on time, on the order in which rows ended, and on failures."""
    results = killer.journal.parent / JSONL
    if results.exists():
        return [(row, answer, correct, error) for row, answer, _, correct, error in answers(results)]
    told = ("index", "question", "text", "answer", "correct", "model", "error")
    lines = map(json.loads, killer.journal.read_text().splitlines())
    return sorted(json.dumps([line.get(name) for name in told]) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_after_many_kills_every_row_is_answered_once_and_the_same(batches, door):
    """At random moments: while it starts, while it runs, while rows fail and are tried again, while results are written."""
    whole, (first, work) = batches.undisturbed(door)
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        assert runs < 2 * KILLS
        killer = batches(door, f"killed-{runs}")
        killer.until_done(first, work, part=0.1)
        kills += killer.kills

        assert not killer.repeated
        assert sorted(finished_rows(killer.journal)) == list(range(ROWS))
        assert said(killer) == said(whole)
        if door in {"generate", "run_batch"}:
            assert len(killer.journal.read_bytes().splitlines()) == ROWS


@pytest.mark.slow
def test_killed_while_it_writes_results_it_leaves_whole_files_or_none(batches):
    """And the next run writes them, from answers that are there."""
    killer = batches("execute", "results")
    first, _ = killer.undisturbed()
    output = killer.journal.parent
    whole = {name: (output / name).read_bytes() for name in (JSONL, PARQUET)}
    table = pq.read_table(output / PARQUET)
    calls = Counter(killer.asked())
    began = time.monotonic()
    assert killer.kill_after(PATIENCE) == 0
    seconds = time.monotonic() - began
    for name in whole:
        (output / name).unlink()
    while killer.kills < KILLS_AT_THE_END:
        code = killer.kill_after(batches.chance.uniform(min(first, seconds / 2), seconds))
        for name, text in whole.items():
            assert not (output / name).exists() or (output / name).read_bytes() == text
        assert code in {0, -9}
    assert killer.undisturbed()

    assert (output / JSONL).read_bytes() == whole[JSONL]
    assert pq.read_table(output / PARQUET).equals(table)
    assert Counter(killer.asked()) == calls
    assert not list(output.glob(".*partial"))


@pytest.mark.parametrize("door", DOORS)
def test_a_second_run_is_refused_and_the_first_goes_on(batches, door):
    """Two at once would answer every row twice."""
    killer = batches(door, "twice")
    with killer.start() as process:
        killer.wait_for_call(process, 0)
        process.send_signal(19)  # SIGSTOP: it holds its lock, and does not end before the other has looked
        with killer.start() as second:
            _, told = second.communicate(timeout=PATIENCE)
        process.send_signal(18)  # SIGCONT
        assert second.returncode == 2, told
        assert "another run is writing to" in told
        process.communicate(timeout=PATIENCE)
        assert process.returncode in {0, 1}

    assert len(finished_rows(killer.journal)) >= sum(row % 17 != 0 for row in range(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("door", ["generate", "execute"])
def test_killed_shards_lose_no_row_and_are_joined_in_the_order_of_the_input(batches, door):
    """Each shard is killed and resumed on its own; merging may be killed, too."""
    whole, (first, work) = batches.undisturbed(f"{door}:2/3")
    killer = batches(f"{door}:2/3", "joined")
    killer.until_done(first, work, part=0.15)
    assert killer.kills
    assert not killer.repeated
    assert sorted(finished_rows(killer.journal)) == list(range(1, ROWS, 3))
    assert said(killer) == said(whole)
    output = Path(killer.argv[-1])
    for shard in ("1/3", "3/3"):
        other = [*killer.argv[:3], f"{door}:{shard}", *killer.argv[4:]]
        while (code := subprocess.run(other, cwd=ROOT, capture_output=True, check=False).returncode) == 1:
            pass
        assert code == 0
    target = output / ("out.jsonl" if door == "generate" else f"numbers/{ROUTE}")
    merge = [sys.executable, "-m", "workflow_composer", "merge", str(target)]
    for delay in (0.3, 0.6, 0.9):
        with subprocess.Popen(merge, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            time.sleep(delay)
            process.kill()
    subprocess.run(merge, cwd=ROOT, check=True)
    joined = target if door == "generate" else target / "journal.jsonl"
    assert finished_rows(joined) == list(range(ROWS))
