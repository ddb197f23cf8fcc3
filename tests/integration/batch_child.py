"""A batch to be killed: answers the rows of a data set from a script, as the command line does with models.

    python -m tests.integration.batch_child DATA NAME OUTPUT

The answer to a row depends on the row alone; it takes a moment, and every 17th row fails the first time that it is asked.
Every call is logged as a line with the row's number before it is made. Exit codes: 0 all rows have answers, 1 some failed,
2 the run could not begin.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from workflow_composer.batch.answering import Job
from workflow_composer.batch.datasets import find
from workflow_composer.batch.journal import Journal, fingerprint
from workflow_composer.batch.limiter import Limiter
from workflow_composer.batch.records import RowRecord, TierRecord
from workflow_composer.batch.results import write_results
from workflow_composer.batch.run.runner import run
from workflow_composer.batch.tally import Tally
from workflow_composer.errors import CallTimeout, InputError

ROUTE = "mv_cascade_small_k4_t0.7_large_k1_t0.0"
CALLS, JOURNAL = "calls.log", "journal.jsonl"


class Script:
    """Answers, and a log of who asked for them."""

    def __init__(self, log: Path) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._asked = set(log.read_text().split())

    async def __call__(self, job: Job) -> RowRecord:
        row = job.row.row
        os.write(self._log, b"%d\n" % row)
        await asyncio.sleep(random.random() * 0.002)
        if row % 17 == 0 and str(row) not in self._asked:
            raise CallTimeout("no answer in time")
        return scripted(job)


def scripted(job: Job) -> RowRecord:
    """The answer to a row."""
    chance = random.Random(job.row.question)
    answer = str(chance.randrange(100))
    small = tier("small", chance.choice([(("1", 3), ("2", 1)), ((answer, 4),)]), chance)
    tiers = (small,) if small.accepted else (small, tier("large", ((answer, 1),), chance))
    return RowRecord(
        row=job.row.row,
        id=job.row.id,
        route=job.route,
        answer=answer,
        confidence=tiers[-1].confidence,
        accepted=True,
        tier=len(tiers) - 1,
        tiers=tiers,
        correct=answer == job.row.label,
        prompt_tokens=sum(each.prompt_tokens for each in tiers),
        completion_tokens=sum(each.completion_tokens for each in tiers),
        cost=sum(each.cost for each in tiers),
        seconds=chance.random(),
    )


def tier(name: str, votes: tuple[tuple[str, int], ...], chance: random.Random) -> TierRecord:
    """What a tier did for it."""
    samples = sum(count for _, count in votes)
    share, tokens = votes[0][1] / samples, chance.randrange(1000)
    return TierRecord(name, name, samples, votes, 0, share, share > 0.8, "", 50, tokens, tokens * 1e-6, chance.random())


def main(data_dir: Path, name: str, output: Path) -> int:
    """Run, or go on."""
    data = find(name, data_dir)
    rows = data.count()
    tally = Tally(rows)
    of = {"data": data.sha256(), "routes": fingerprint([ROUTE])}
    with Journal.open(output / JOURNAL, of, rows=rows, each=tally.add_earlier) as journal:
        jobs = (Job(row, ROUTE) for row in data.rows(journal.first_open))
        script = Script(output / CALLS)
        asyncio.run(run(jobs, script, journal, tally=tally, limiter=Limiter(least=8, most=64)))
        write_results(output / JOURNAL, output)
    return 1 if tally.errors else 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
