"""The engine: every row once, each on its own way, a bounded number at a time; and nothing is lost when it ends early."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from tests.unit.batch.records import failed, record
from workflow_composer.answers import AnswerForm, reader
from workflow_composer.batch.datasets.dataset import Row
from workflow_composer.batch.run.answering import Answering, Job
from workflow_composer.batch.run.journal import RowJournal
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.records import Head
from workflow_composer.batch.run.runner import SYNC_EVERY, UNREADABLE, RunBudget, run
from workflow_composer.batch.run.tally import MANY_UNREADABLE, Tally
from workflow_composer.errors import (
    AllCandidatesFailed,
    BadRequest,
    BudgetExceeded,
    InputError,
    RateLimited,
    WorkflowComposerError,
)
from workflow_composer.types import Attempt, Usage


def jobs(count):
    """Rows of a data set."""
    return [Job(Row(n, f"id-{n}", f"question {n}", "18"), "mv_7B_k4_t0.7") for n in range(count)]


async def at_once(job):
    """An answer without any waiting."""
    return record(job.row.row)


class Answers:
    """Answers jobs by a function; what each was allowed to cost is in ``granted``."""

    failed = Answering(None, reader(AnswerForm())).failed

    def __init__(self, answer):
        self.answer = answer
        self.granted = {}

    async def __call__(self, job, budget):
        self.granted[job.row.row] = budget
        return await self.answer(job)


class Batch:
    """Runs jobs with a journal in a folder; every run opens it anew."""

    def __init__(self, folder):
        self.path = folder / "journal"

    async def run(self, found, answer=at_once, *, rows=None, limiter=None, **options):
        """Run, and return the tally."""
        rows = len(found) if rows is None else rows
        self.tally = tally = Tally(rows)
        self.answers = Answers(answer)
        with RowJournal.open(self.path, {}, rows=rows, each=tally.add_earlier) as journal:
            left = (job for job in found if not journal.is_done(job.row.row))
            return await run(left, self.answers, journal, tally=tally, limiter=limiter or Limiter(), **options)

    def finished(self, rows):
        """Numbers of the rows that are written down with an answer."""
        with RowJournal.open(self.path, {}, rows=rows) as journal:
            return [row for row in range(rows) if journal.is_done(row)]


@pytest.fixture
def batch(tmp_path):
    """A batch in an empty folder."""
    return Batch(tmp_path)


class Gate:
    """Answers that wait until they are let through; remembers who is waiting."""

    def __init__(self):
        self.waiting = {}
        self.most = 0
        self.asked = []
        self.cancelled = []

    async def __call__(self, job):
        row = job.row.row
        self.asked.append(row)
        self.waiting[row] = asyncio.Event()
        self.most = max(self.most, len(self.waiting))
        try:
            await self.waiting[row].wait()
        except asyncio.CancelledError:
            self.cancelled.append(row)
            raise
        finally:
            del self.waiting[row]
        return record(row)

    async def until(self, count):
        """Until so many wait."""
        while len(self.waiting) < count:
            await asyncio.sleep(0)


async def test_every_row_is_answered_once_and_written_down(batch):
    asked = []

    async def answer(job):
        asked.append(job.row.row)
        return record(job.row.row)

    tally = await batch.run(jobs(1000), answer)

    assert sorted(asked) == list(range(1000))
    assert batch.finished(1000) == list(range(1000))
    assert (tally.answered, tally.errors, tally.done) == (1000, 0, 1000)


async def test_a_row_that_is_done_is_not_asked_again(batch):
    found = jobs(20)
    await batch.run(found[5:9], rows=20)
    gate = Gate()
    task = asyncio.create_task(batch.run(found, gate))
    await gate.until(16)
    for each in list(gate.waiting.values()):
        each.set()
    tally = await task

    assert sorted(gate.asked) == [*range(5), *range(9, 20)]
    assert (tally.earlier, tally.answered) == (4, 20)


async def test_no_row_waits_for_another(batch):
    """A row may take as long as it likes: the others go through both of their tiers meanwhile."""
    slow, done = asyncio.Event(), []

    async def answer(job):
        if job.row.row == 0:
            await slow.wait()
        for _ in range(2):
            await asyncio.sleep(0)
        done.append(job.row.row)
        if len(done) == 99:
            slow.set()
        return record(job.row.row)

    await batch.run(jobs(100), answer, limiter=Limiter(least=4, most=4))

    assert done[-1] == 0


async def test_no_more_rows_are_read_and_started_than_are_under_way(batch):
    """Memory does not depend on how many rows there are."""
    read = 0

    def endless():
        nonlocal read
        for job in jobs(100_000):
            read += 1
            yield job

    gate = Gate()
    before = len(asyncio.all_tasks())
    task = asyncio.create_task(batch.run(endless(), gate, rows=100_000, limiter=Limiter(least=7, most=7)))
    await gate.until(7)

    assert read <= 512
    assert len(asyncio.all_tasks()) - before <= 7 + 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.most == 7


async def test_a_row_that_fails_is_a_record_with_the_error_and_its_cost(batch):
    attempt = Attempt(0, 0, "7B", True, 5.0, Usage(10, 2), 0.25, "slow down", "RateLimited")

    async def answer(job):
        if job.row.row == 3:
            raise AllCandidatesFailed("none left", attempts=[attempt, attempt])
        if job.row.row == 4:
            raise RuntimeError("a bug in a plugin")
        return record(job.row.row)

    tally = await batch.run(jobs(6), answer)
    heads = []
    RowJournal.open(batch.path, {}, rows=6, each=heads.append).close()
    errors = {head.row: head.error for head in heads if head.error}

    assert batch.finished(6) == [0, 1, 2, 5]
    assert errors[3][0] == "AllCandidatesFailed"
    assert "none left" in errors[3][1]
    assert errors[4] == ("RuntimeError", "a bug in a plugin")
    assert (tally.answered, tally.errors) == (4, 2)
    assert tally.cost == pytest.approx(0.5 + 4 * record(0).cost)


async def test_a_row_with_an_error_is_tried_again_by_the_next_run(batch):
    async def fails(job):
        return failed(job.row.row) if job.row.row % 2 else record(job.row.row)

    first = await batch.run(jobs(10), fails)
    second = await batch.run(jobs(10))

    assert (first.answered, first.errors) == (5, 5)
    assert (second.earlier, second.answered, second.errors) == (5, 10, 0)
    assert second.cost == pytest.approx(15 * record(0).cost)
    assert second.cost_now == pytest.approx(5 * record(0).cost)


async def test_a_call_that_cancels_itself_is_a_row_that_failed(batch):
    async def answer(job):
        if job.row.row == 1:
            raise asyncio.CancelledError
        return record(job.row.row)

    tally = await batch.run(jobs(3), answer)

    assert (tally.answered, tally.errors) == (2, 1)


@pytest.mark.parametrize("way", ["cancel", "stop"])
async def test_who_stops_it_cancels_the_calls_and_keeps_what_was_written(batch, way):
    gate, stop = Gate(), asyncio.Event()
    task = asyncio.create_task(batch.run(jobs(100), gate, limiter=Limiter(least=8, most=8), stop=stop))
    await gate.until(8)
    for row in (2, 5):
        gate.waiting[row].set()
    while len(gate.asked) < 10:
        await asyncio.sleep(0)
    if way == "stop":
        stop.set()
        tally = await task
        assert tally.done == 2
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert sorted(gate.cancelled) == [0, 1, 3, 4, 6, 7, 8, 9]
    assert batch.finished(100) == [2, 5]


async def test_a_full_disk_ends_the_run_with_its_error_and_cancels_the_calls(batch):
    class Full(RowJournal):
        """A disk with room for five rows."""

        def _write(self, line):
            if self.done == 5:
                raise WorkflowComposerError("no space left on device")
            super()._write(line)

    gate = Gate()

    async def answer(job):
        return await (at_once if job.row.row < 6 else gate)(job)

    with (
        Full.open(batch.path, {}, rows=50) as journal,
        pytest.raises(WorkflowComposerError, match="no space left"),
    ):
        await run(jobs(50), Answers(answer), journal, tally=Tally(50), limiter=Limiter(least=10, most=10))

    assert not gate.waiting
    assert batch.finished(50) == list(range(5))


async def test_a_fault_of_the_data_is_raised_when_the_rows_in_flight_are_done(batch):
    """What is paid for is kept."""

    def broken():
        yield from jobs(5)
        raise InputError("data.jsonl:6: not valid JSON")

    with pytest.raises(InputError, match=r"data\.jsonl:6"):
        await batch.run(broken(), rows=10)

    assert batch.finished(10) == list(range(5))


async def test_progress_that_raises_ends_the_run(batch):
    """As a pipe does that is closed."""

    def progress(tally):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await batch.run(jobs(5), progress=progress)


async def test_progress_is_told_after_every_row(batch):
    told = []
    await batch.run(jobs(30), progress=lambda tally: told.append((tally.done, tally.limit)), limiter=Limiter(most=16))

    assert [done for done, _ in told] == list(range(1, 31))
    assert all(1 <= limit <= 16 for _, limit in told)


@pytest.mark.parametrize(
    "error",
    [
        RateLimited("slow down"),
        AllCandidatesFailed("x", attempts=[Attempt(0, 0, "7B", True, 1.0, error="t", error_type="ServerUnreachable")]),
    ],
)
async def test_the_limiter_hears_of_overload(batch, error):
    limiter = Limiter(start=64)

    async def answer(job):
        raise error

    task = asyncio.create_task(batch.run(jobs(100), answer, limiter=limiter))
    while limiter.limit == 64:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert limiter.limit < 64


async def test_a_pause_is_waited_for_before_the_next_row_and_ends_with_the_first_answer(batch):
    """A server that is down gets one row after each pause; the pause of an hour is cut short by an answer."""

    class Paused(Limiter):
        def begin(self):
            super().begin()
            if self.begun == 0:
                self.pause = 3600.0
            self.begun += 1

        begun = 0

    gate = Gate()
    limiter = Paused()
    task = asyncio.create_task(batch.run(jobs(3), gate, limiter=limiter))
    await gate.until(1)
    for _ in range(20):
        await asyncio.sleep(0)
    assert gate.asked == [0]
    gate.waiting[0].set()
    await gate.until(2)
    for each in list(gate.waiting.values()):
        each.set()

    assert (await task).answered == 3


async def test_what_was_written_is_put_on_the_disk_in_the_end(batch):
    class Synced(RowJournal):
        synced = 0

        def sync(self):
            super().sync()
            self.synced = self.done

    with Synced.open(batch.path, {}, rows=5) as journal:
        await run(jobs(5), Answers(at_once), journal, tally=Tally(5), limiter=Limiter())
        assert journal.synced == 5


def test_ctrl_c_leaves_what_was_written(batch):
    """The engine knows nothing of signals: asyncio turns Ctrl-C into a cancellation."""
    gate = Gate()

    async def main():
        task = asyncio.create_task(batch.run(jobs(20), gate, limiter=Limiter(least=4, most=4)))
        await gate.until(4)
        gate.waiting[1].set()
        while len(gate.asked) < 5:
            await asyncio.sleep(0)
        signal.raise_signal(signal.SIGINT)
        await task

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())

    assert batch.finished(20) == [1]
    assert sorted(gate.cancelled) == [0, 2, 3, 4]


class TestBudget:
    """What a run may spend."""

    @pytest.fixture
    def costs_half(self):
        async def answer(job):
            return record(job.row.row, cost=0.5)

        return answer

    async def test_the_run_stops_where_the_money_is_spent_and_goes_on_with_more(self, batch, costs_half):
        """To the cent; what earlier runs have spent counts."""
        first = await batch.run(jobs(10), costs_half, budget=RunBudget(run=2.0))
        assert (first.answered, first.cost, first.stopped_by) == (4, 2.0, "budget")
        assert batch.finished(10) == [0, 1, 2, 3]

        again = RunBudget(run=2.0)
        again.earlier(first.cost)
        nothing = await batch.run(jobs(10), costs_half, budget=again)
        assert (nothing.answered, nothing.cost_now, nothing.stopped_by) == (4, 0.0, "budget")

        more = RunBudget(run=5.0)
        more.earlier(first.cost)
        last = await batch.run(jobs(10), costs_half, budget=more)
        assert (last.answered, last.cost, last.stopped_by) == (10, 5.0, "")

    async def test_what_fails_is_paid_for_too(self, batch):
        attempt = Attempt(0, 0, "7B", True, 5.0, Usage(10, 2), 0.5, "late", "CallTimeout")

        async def answer(job):
            raise AllCandidatesFailed("none left", attempts=[attempt])

        tally = await asyncio.wait_for(batch.run(jobs(10), answer, budget=RunBudget(run=1.0)), 30)
        assert (tally.errors, tally.cost, tally.stopped_by) == (2, 1.0, "budget")

    async def test_no_more_rows_are_under_way_than_the_money_pays_for(self, batch):
        """Each may cost the row's budget; when they turn out cheap, others follow."""
        gate = Gate()
        task = asyncio.create_task(batch.run(jobs(10), gate, budget=RunBudget(row=0.25, run=1.0)))
        await gate.until(4)
        for _ in range(20):
            await asyncio.sleep(0)
        assert gate.most == 4
        while not task.done():
            for each in list(gate.waiting.values()):
                each.set()
            await asyncio.sleep(0)
        assert task.result().answered == 10
        assert batch.answers.granted == dict.fromkeys(range(10), 0.25)

    async def test_a_row_that_the_last_money_does_not_pay_for_ends_the_run_and_stays_to_be_tried(self, batch):
        """With its own error in the journal; the rows behind it are not asked."""

        async def answer(job):
            if batch.answers.granted[job.row.row] < 0.5:
                raise BudgetExceeded("7B would probably cost $0.5")
            return record(job.row.row, cost=0.5)

        tally = await batch.run(jobs(10), answer, budget=RunBudget(row=0.5, run=1.25))
        assert (tally.answered, tally.errors, tally.stopped_by) == (2, 1, "budget")
        assert batch.answers.granted == {0: 0.5, 1: 0.5, 2: 0.25}
        assert batch.finished(10) == [0, 1]


class TestRetries:
    """Rows that failed for want of a server are tried again in the same run."""

    @pytest.mark.parametrize("retries", [0, 1, 3])
    async def test_a_row_is_tried_once_more_than_it_is_retried(self, batch, retries):
        asked = []

        async def answer(job):
            asked.append(job.row.row)
            if job.row.row == 1:
                raise RateLimited("slow down")
            return record(job.row.row)

        tally = await batch.run(jobs(4), answer, retries=retries, retry_after=0.0)
        assert asked.count(1) == 1 + retries
        assert sorted(set(asked)) == [0, 1, 2, 3]
        assert (tally.answered, tally.errors, tally.done) == (3, 1, 4)

    async def test_a_row_that_comes_out_well_at_last_has_not_failed(self, batch):
        """It is tried behind the rows that were not tried yet, and every try is in the journal and in the cost."""
        asked = []
        attempt = Attempt(0, 0, "7B", True, 5.0, Usage(10, 2), 0.25, "down", "ServerUnreachable")

        async def answer(job):
            asked.append(job.row.row)
            if asked.count(0) == 1 and job.row.row == 0:
                raise AllCandidatesFailed("none left", attempts=[attempt])
            return record(job.row.row, cost=0.5)

        tally = await batch.run(jobs(300), answer, retries=1, retry_after=0.0)
        assert asked.index(299) < len(asked) - 1 - asked[::-1].index(0)
        assert (tally.answered, tally.errors, tally.cost) == (300, 0, 150.25)
        heads = []
        RowJournal.open(batch.path, {}, rows=300, each=heads.append).close()
        assert [bool(head.error) for head in heads if head.row == 0] == [True, False]

    async def test_each_pause_is_twice_the_one_before_up_to_half_a_minute(self, batch, monkeypatch):
        """Once no other rows are left."""
        pauses, sleep = [], asyncio.sleep

        async def noted(seconds):
            if seconds == SYNC_EVERY:
                await sleep(seconds)
            pauses.append(seconds)
            await sleep(0)

        async def answer(job):
            raise RateLimited("slow down")

        monkeypatch.setattr(asyncio, "sleep", noted)
        await batch.run(jobs(1), answer, retries=5, retry_after=3.0)
        assert pauses == [3.0, 6.0, 12.0, 24.0, 30.0]

    @pytest.mark.parametrize("error", [BadRequest("no"), BudgetExceeded("too dear"), RuntimeError("a bug")])
    async def test_what_another_try_cannot_mend_is_not_tried_again(self, batch, error):
        asked = []

        async def answer(job):
            asked.append(job.row.row)
            raise error

        await batch.run(jobs(3), answer, retries=2, retry_after=0.0)
        assert asked == [0, 1, 2]


async def test_a_row_is_written_down_before_anyone_is_told(batch):
    """Whoever hears that it is done may rely on it; also where hearing of it ends the run."""
    seen = []

    def look(tally):
        seen.append((tally.done, len(batch.path.read_bytes().splitlines()) - 1))

    await batch.run(jobs(5), limiter=Limiter(least=1, most=1, start=1), progress=look)
    assert seen == [(n, n) for n in range(1, 6)]


async def test_rows_that_fail_give_their_places_back(batch):
    """However they fail."""

    async def answer(job):
        raise RuntimeError("a bug in a plugin")

    limiter = Limiter(least=2, most=2)
    tally = await asyncio.wait_for(batch.run(jobs(20), answer, limiter=limiter, budget=RunBudget(row=1.0, run=2.0)), 30)
    assert (tally.errors, limiter.in_flight) == (20, 0)


async def test_a_slow_iterator_holds_up_no_row(batch):
    """A row is sent when it is there, and not when a block is full."""
    gate, more = Gate(), threading.Event()

    def slowly():
        yield jobs(1)[0]
        more.wait(20)
        yield jobs(2)[1]

    task = asyncio.create_task(batch.run(slowly(), gate, rows=2))
    try:
        await asyncio.wait_for(gate.until(1), 20)
    finally:
        more.set()
    while 1 not in gate.waiting:
        await asyncio.sleep(0)
    for each in list(gate.waiting.values()):
        each.set()
    assert (await task).answered == 2


class TestTally:
    """What progress is shown from."""

    @pytest.fixture
    def clock(self):
        class Clock:
            now = 0.0

            def __call__(self):
                return self.now

        return Clock()

    def test_it_counts_tiers_accuracy_and_cost(self, clock):
        tally = Tally(10, clock)
        for row, correct in enumerate([True, True, False, None]):
            tally.add(record(row, correct=correct, cost=0.5).head)
        tally.add(failed(4, cost=0.25).head)

        assert tally.shares == {"7B": 1.0}
        assert tally.accuracy == pytest.approx(2 / 3)
        assert (tally.done, tally.answered, tally.errors, tally.cost) == (5, 4, 1, 2.25)

    def test_the_time_left_follows_the_pace_of_the_last_minute(self, clock):
        """Not the average of the whole run, as what is in flight adapts."""
        tally = Tally(1000, clock)
        assert tally.seconds_left is None
        row = 0
        for pace, seconds in ((1, 100), (4, 100)):
            for _ in range(pace * seconds):
                clock.now += 1 / pace
                tally.add(record(row).head)
                row += 1

        assert tally.rows_per_second == pytest.approx(4, rel=0.05)
        assert tally.seconds_left == pytest.approx((1000 - 500) / 4, rel=0.05)

    def test_rows_of_earlier_runs_are_no_pace(self, clock):
        tally = Tally(100, clock)
        for row in range(50):
            tally.add_earlier(Head(row, None, "7B", True, 0.1))
        tally.start()
        assert tally.seconds_left is None
        clock.now += 10
        tally.add(record(50).head)

        assert tally.rows_per_second == pytest.approx(0.1)
        assert tally.seconds_left == pytest.approx(490)
        assert (tally.done, tally.earlier) == (51, 50)


class TestUnreadableAnswers:
    """A run whose answers cannot be read asks once whether it should go on."""

    @staticmethod
    async def unreadable(job):
        return record(job.row.row, answer=None, correct=False)

    def run(self, batch, count, answer, *, goes_on):
        asked = []

        async def go_on(tally):
            asked.append((tally.done, tally.in_a_row))
            return goes_on

        tally = asyncio.run(batch.run(jobs(count), answer, limiter=Limiter.of(1), go_on=go_on))
        return tally, asked

    def test_it_is_asked_once_and_goes_on(self, batch):
        tally, asked = self.run(batch, 3 * MANY_UNREADABLE, self.unreadable, goes_on=True)
        assert asked == [(MANY_UNREADABLE, MANY_UNREADABLE)]
        assert (tally.done, tally.stopped_by, tally.unreadable) == (3 * MANY_UNREADABLE, "", 3 * MANY_UNREADABLE)

    def test_a_no_begins_no_further_row_and_keeps_what_was_answered(self, batch):
        tally, _ = self.run(batch, 3 * MANY_UNREADABLE, self.unreadable, goes_on=False)
        assert (tally.done, tally.stopped_by) == (MANY_UNREADABLE, UNREADABLE)
        assert len(batch.finished(3 * MANY_UNREADABLE)) == MANY_UNREADABLE

    def test_one_readable_answer_in_between_begins_the_count_anew(self, batch):
        async def some(job):
            return record(job.row.row, answer=None if (job.row.row + 1) % MANY_UNREADABLE else "18")

        tally, asked = self.run(batch, 3 * MANY_UNREADABLE, some, goes_on=False)
        assert (asked, tally.done) == ([], 3 * MANY_UNREADABLE)


def test_a_failed_row_with_a_label_counts_as_wrong_until_it_is_answered(batch):
    tries = []

    async def once(job):
        tries.append(job)
        if len(tries) == 1:
            raise RateLimited("later")
        return record(job.row.row)

    seen = []
    options = {"retries": 1, "retry_after": 0.0, "progress": lambda tally: seen.append((tally.graded, tally.correct))}
    asyncio.run(batch.run(jobs(1), once, **options))
    assert seen == [(1, 0), (1, 1)]
