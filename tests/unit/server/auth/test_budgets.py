"""Budgets of keys that several workers reserve: who may start, who waits, and what becomes of what was set aside."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
from calendar import timegm

import pytest

from workflow_composer.errors import BudgetExceeded, BudgetReserved
from workflow_composer.execution.reservation import Reservation
from workflow_composer.server.auth.keys import Key
from workflow_composer.server.auth.ledger import TOGETHER, Ledger
from workflow_composer.server.failures import HttpFailure
from workflow_composer.storage.locks import RangeLocks

NOW = float(timegm((2026, 5, 31, 23, 0, 0)))
DAY = 86_400.0


class Clock:
    """A clock that is set by hand."""

    now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def workers(tmp_path, clock):
    """Two workers' ledgers over one file, and what they report."""
    told = []
    made = [Ledger(tmp_path / "ledger.bin", report=told.append, clock=clock) for _ in range(2)]
    made[0].told = told
    yield made
    for ledger in made:
        ledger.close()


def key_of(**limits):
    """A key's record."""
    return Key.new("ann", now=NOW, **limits)[0]


async def test_what_one_worker_has_reserved_another_cannot(workers):
    one, two = workers
    key = key_of(budget=1.0)
    held = Reservation(one.admit(key, NOW))
    assert held.take(0.75)
    one.write(NOW + 1.0)  # gives back what it had set aside beyond that
    other = Reservation(two.admit(key, NOW))
    assert not other.take(0.5)
    assert other.take(0.25)
    held.settle(0.25)
    one.write(NOW + 1.0)
    assert Reservation(two.admit(key, NOW)).take(0.5)


async def test_a_request_that_goes_on_is_charged_what_it_has_used_and_holds_no_more_while_it_waits(workers, clock):
    """Two requests in two workers, each of which needs more than the other leaves: one gets it, and none waits for ever."""
    one, two = workers
    key = key_of(budget=1.0)
    mine, other = Reservation(one.admit(key, NOW)), Reservation(two.admit(key, NOW))
    assert mine.take(0.4)
    one.write(NOW + 1.0)
    assert other.take(0.4)
    two.write(NOW + 1.0)
    ended = []

    async def goes_on(reservation):
        used = 0.25
        try:
            await reservation.cover(object(), lambda: (0.5, 0.0), lambda: 0.5, lambda: (used, 10))
            used += 0.5
        finally:
            ended.append(used)
            reservation.settle(used, 20)

    done = await asyncio.wait_for(asyncio.gather(goes_on(mine), goes_on(other), return_exceptions=True), 60)
    assert sorted(ended) == [0.25, 0.75]
    assert sum(isinstance(end, BudgetExceeded) for end in done) == 1
    for ledger in workers:
        ledger.write(clock())
    account = one.account(key, NOW)
    assert (account.spent, account.requests, account.tokens) == (pytest.approx(1.0), 2, 40)


async def test_a_request_waits_for_those_of_other_workers_and_gets_what_they_leave(workers):
    one, two = workers
    key = key_of(budget=1.0)
    held = Reservation(one.admit(key, NOW))
    assert held.take(1.0)
    waiting = asyncio.create_task(Reservation(two.admit(key, NOW)).wait(lambda: (0.5, 0.0)))
    await asyncio.sleep(0)
    assert not waiting.done()
    held.settle(0.25)
    one.write(NOW + 1.0)
    assert await asyncio.wait_for(waiting, 60) is None


async def test_an_unbounded_request_gets_the_rest_once_it_is_alone(workers):
    one, two = workers
    key = key_of(budget=1.0)
    held = Reservation(one.admit(key, NOW))
    assert held.take(0.5)
    other = Reservation(two.admit(key, NOW))
    waiting = asyncio.create_task(other.wait(lambda: (math.inf, 0.0)))
    await asyncio.sleep(0)
    held.settle(0.4)
    one.write(NOW + 1.0)
    assert await asyncio.wait_for(waiting, 60) == pytest.approx(0.6)
    assert other.amount == pytest.approx(0.6)


async def test_nothing_left_is_an_exhausted_budget_and_a_wait_ends_with_the_requests_limit(workers):
    one, two = workers
    key = key_of(budget=1.0)
    held = Reservation(one.admit(key, NOW))
    assert held.take(1.0)
    with pytest.raises(BudgetReserved):
        await Reservation(two.admit(key, NOW)).wait(lambda: (0.5, 0.0), until=0.0)
    waiting = asyncio.create_task(Reservation(two.admit(key, NOW)).wait(lambda: (0.5, 0.0)))
    await asyncio.sleep(0)
    held.settle(1.0)
    one.write(NOW + 1.0)
    with pytest.raises(HttpFailure) as caught:
        await asyncio.wait_for(waiting, 60)
    assert caught.value.code == "insufficient_quota"


def test_small_requests_on_a_large_budget_ask_the_file_once_in_a_while(workers, monkeypatch):
    """Not each of them: two locks and four reads of a file would cost more than the rest of the work for a key."""
    one, _ = workers
    key, asked = key_of(budget=100.0), []
    refill = Ledger._refill
    monkeypatch.setattr(Ledger, "_refill", lambda *given: asked.append(1) or refill(*given))
    under_way = []
    for number in range(640):
        reserved = Reservation(one.admit(key, NOW))
        assert reserved.take(0.01)
        under_way.append(reserved)
        if number >= 64:
            under_way.pop(0).settle(0.01)
    assert len(asked) < 10
    for reserved in under_way:
        reserved.settle(0.01)
    one.write(NOW + 1.0)
    assert one.account(key, NOW).spent == pytest.approx(6.4)
    assert one.budget_of(key).granted == (0.0, 0.0)


def test_a_request_that_costs_more_than_it_reserved_is_charged_in_full(workers):
    one, two = workers
    key = key_of(budget=1.0)
    reserved = Reservation(one.admit(key, NOW))
    assert reserved.take(0.1)
    reserved.settle(0.95)
    assert not Reservation(one.admit(key, NOW)).take(0.1)
    one.write(NOW + 1.0)
    assert two.left(key, NOW) == pytest.approx(0.05)
    assert not Reservation(two.admit(key, NOW)).take(0.1)


HOLDS = """
import sys, time
from pathlib import Path
from workflow_composer.execution.reservation import Reservation
from workflow_composer.server.auth.keys import Key
from workflow_composer.server.auth.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
key = Key(sys.argv[2], "k", "s", "d", 0.0, budget=1.0, period="total", concurrent=1)
budget = ledger.admit(key, time.time())
assert Reservation(budget).take(1.0)
assert ledger.begin(budget, 1)
print("holds", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_worker_had_set_aside_is_free_when_it_is_killed(tmp_path, number):
    key = key_of(budget=1.0, period="total", concurrent=1)
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "l.bin"), key.id], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline()
    ledger = Ledger(tmp_path / "l.bin")
    budget = ledger.admit(key, NOW)
    assert not Reservation(budget).take(0.5)
    assert not ledger.begin(budget, 1)
    other.send_signal(number)
    other.communicate()
    assert Reservation(budget).take(0.5)
    assert ledger.begin(budget, 1)
    ledger.close()


RACE = """
import asyncio, sys, time
from pathlib import Path
from workflow_composer.execution.reservation import Reservation
from workflow_composer.server.auth.keys import Key
from workflow_composer.server.auth.ledger import Ledger
async def main():
    ledger = Ledger(Path(sys.argv[1]))
    key = Key(sys.argv[2], "k", "s", "d", 0.0, budget=1.0, period="total")
    spent = 0
    async def one():
        nonlocal spent
        try:
            reserved = Reservation(ledger.admit(key, time.time()))
            if not reserved.take(1.0):
                await reserved.wait(lambda: (1.0, 0.0))
        except Exception as error:
            assert getattr(error, "code", "") == "insufficient_quota", error
            return
        await asyncio.sleep(0.05)
        spent += 1
        reserved.settle(1.0)
    async def save():
        while True:
            await asyncio.sleep(0.1)
            ledger.write(time.time())
    saving = asyncio.create_task(save())
    await asyncio.gather(*(one() for _ in range(32)))
    saving.cancel()
    ledger.close()
    print(spent)
asyncio.run(main())
"""


def test_64_requests_of_a_dollar_on_a_budget_of_one_over_two_workers(tmp_path):
    arguments = [sys.executable, "-c", RACE, str(tmp_path / "l.bin"), key_of().id]
    running = [subprocess.Popen(arguments, stdout=subprocess.PIPE) for _ in range(2)]
    assert sum(int(process.communicate(timeout=120)[0]) for process in running) == 1


# ------------------------------------------------------------------------------------------------ several limits of a key


def test_of_several_budgets_the_one_that_is_reached_first_counts(workers, clock):
    one, _ = workers
    key = key_of(budget=1.0, period="day", budgets=(("month", 1.5),))
    assert Reservation(one.admit(key, NOW)).budget.refill(1.0, 0.0)
    one.charge(key, cost=1.0, tokens=0, now=NOW)
    with pytest.raises(HttpFailure) as caught:
        one.admit(key, NOW)
    assert "per day" in caught.value.message
    assert caught.value.retry_after == 3600.0  # the month ends with the day
    clock.now = NOW + 3600.0
    assert one.left(key, clock.now) == 1.0
    one.charge(key, cost=1.0, tokens=0, now=clock.now)
    clock.now += DAY
    assert one.left(key, clock.now) == 0.5
    one.charge(key, cost=0.5, tokens=0, now=clock.now)
    with pytest.raises(HttpFailure) as caught:
        one.admit(key, clock.now)
    assert "per month" in caught.value.message
    assert one.account(key, clock.now).spent_in("total") == 2.5


def test_tokens_per_day_are_reserved_and_come_again_with_the_day(workers, clock):
    one, two = workers
    key = key_of(tokens_per_day=100)
    reserved = Reservation(one.admit(key, NOW))
    assert reserved.take(math.inf, 80.0)
    assert not Reservation(two.admit(key, NOW)).take(0.0, 30.0)
    reserved.settle(5.0, 100)
    one.write(NOW + 1.0)
    with pytest.raises(HttpFailure) as caught:
        two.admit(key, NOW)
    assert (caught.value.code, "100 tokens per day" in caught.value.message) == ("insufficient_quota", True)
    clock.now = NOW + 3600.0
    assert Reservation(two.admit(key, clock.now)).take(0.0, 100.0)


async def test_requests_in_progress_are_limited_over_all_workers(workers):
    one, two = workers
    key = key_of(concurrent=2)
    here, there = one.admit(key, NOW), two.admit(key, NOW)
    await here.begin(60.0)
    await there.begin(60.0)
    with pytest.raises(HttpFailure, match="2 requests"):
        await here.begin(0.0)
    waiting = asyncio.create_task(here.begin(60.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    there.end()
    await asyncio.wait_for(waiting, 60)
    here.end()
    here.end()
    assert (here.running, there.running) == (0, 0)


def test_a_changed_limit_counts_at_once(workers):
    one, _ = workers
    key = key_of(budget=100.0)
    assert Reservation(one.admit(key, NOW)).take(0.01)
    smaller = Key(**{**{name: getattr(key, name) for name in Key.__slots__}, "budget": 0.5})
    assert not Reservation(one.admit(smaller, NOW)).take(0.6)
    assert Reservation(one.admit(smaller, NOW)).take(0.25)


# ------------------------------------------------------------------------------------------------------ clocks and files


@pytest.mark.parametrize("days", [1, 40, 400])
def test_a_clock_that_was_ahead_never_gives_a_budget_twice(workers, clock, days):
    one, two = workers
    key = key_of(budget=1.0, period="day", requests_per_minute=1)
    one.charge(key, cost=1.0, tokens=0, now=NOW)
    for _ in range(3):
        clock.now = NOW + days * DAY
        if one.left(key, clock.now):
            one.charge(key, cost=1.0, tokens=0, now=clock.now)
        one.write(clock.now)
        clock.now = NOW
        assert two.left(key, NOW) == 0.0
        one.write(NOW)
    assert two.account(key, NOW).spent_in_all == 2.0
    assert sum("clock was set back" in text for text in one.told) in (1, 2)  # each worker says it once
    assert one.left(key, NOW + (days + 1) * DAY) == 1.0


def test_a_clock_that_was_ahead_locks_no_key_out_of_its_rates(workers, clock):
    one, _ = workers
    key = key_of(requests_per_minute=1, tokens_per_minute=600)
    one.admit(key, NOW + 40 * DAY)
    one.charge(key, cost=0.0, tokens=600, now=NOW + 40 * DAY)
    one.write(NOW + 40 * DAY)
    one.charge(key, cost=0.0, tokens=0, now=NOW)
    one.write(NOW + 1.0)
    one.admit(key, NOW + 62.0)


@pytest.mark.parametrize("how", ["truncated", "cut", "removed", "replaced", "zeroed"])
def test_a_ledger_that_is_lost_while_the_service_runs_is_told_and_made_whole(tmp_path, clock, workers, how):
    one, two = workers
    path, key, other = tmp_path / "ledger.bin", key_of(budget=1.0), key_of(budget=5.0)
    one.charge(key, cost=0.75, tokens=3, now=NOW)
    one.charge(other, cost=0.5, tokens=3, now=NOW)
    one.write(NOW)
    assert (two.left(key, NOW), two.left(other, NOW)) == (0.25, 4.5)
    if how == "truncated":
        os.truncate(path, 0)
    elif how == "cut":
        os.truncate(path, 100)
    elif how == "removed":
        path.unlink()
    elif how == "replaced":
        empty = Ledger(tmp_path / "new.bin")
        empty.close()
        (tmp_path / "new.bin").replace(path)
    else:
        path.write_bytes(path.read_bytes()[:64] + bytes(7000))
    for ledger in (one, two):
        for turn in range(3):
            clock.now = NOW + 2.0 * turn
            ledger.write(clock.now)
            ledger.admit(key, clock.now)
    assert one.told
    one.charge(key, cost=0.25, tokens=3, now=clock.now)
    one.write(clock.now + 2.0)
    with pytest.raises(HttpFailure) as caught:
        two.admit(key, clock.now)
    assert caught.value.code == "insufficient_quota"
    assert two.left(other, clock.now) == 4.5
    again = Ledger(path)
    assert again.account(key, clock.now).spent == 1.0
    again.close()


def test_a_ledger_that_became_another_file_is_left_alone_and_limits_are_not_ignored(tmp_path, workers):
    one, _ = workers
    path, key, free = tmp_path / "ledger.bin", key_of(budget=1.0), key_of()
    one.charge(key, cost=0.5, tokens=3, now=NOW)
    one.write(NOW)
    other = b"something else entirely" * 400
    path.write_bytes(other)
    for turn in range(3):
        one.write(NOW + 2.0 * turn)
        one.charge(key, cost=0.25, tokens=3, now=NOW)
        one.admit(free, NOW)
    with pytest.raises(HttpFailure) as caught:
        one.admit(key, NOW)
    assert caught.value.status == 503
    assert path.read_bytes() == other
    assert one.told


def test_a_disk_without_room_for_reservations_refuses_and_recovers(tmp_path, workers, monkeypatch):
    one, _ = workers
    key = key_of(budget=1.0)
    budget = one.admit(key, NOW)
    real = os.pwrite

    def full(descriptor, data, place):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(HttpFailure) as caught:
            Reservation(budget).take(0.5)
        assert caught.value.status == 503
        one.charge(key, cost=0.25, tokens=1, now=NOW)
        one.write(NOW + TOGETHER)
    assert os.pwrite is real
    assert any("No space left" in text for text in one.told)
    one.write(NOW + 1.0)
    assert one.left(key, NOW) == 0.75
    assert Reservation(budget).take(0.75)


class Work:
    """Counts the steps of requests in this thread (calls of Python functions), and what they do with files."""

    def __init__(self, monkeypatch):
        self.steps = self.locks = self.reads = self.writes = 0
        for name in ("pread", "pwrite"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name), "reads" if name == "pread" else "writes"))
        monkeypatch.setattr(RangeLocks, "hold", self._counted(RangeLocks.hold, "locks"))

    def _counted(self, function, what):
        def counted(*arguments, **named):
            setattr(self, what, getattr(self, what) + 1)
            return function(*arguments, **named)

        return counted

    def _seen(self, frame, event, _):
        self.steps += event == "call"

    def of(self, requests):
        """What these requests take."""
        self.steps = self.locks = self.reads = self.writes = 0
        sys.setprofile(self._seen)
        try:
            requests()
        finally:
            sys.setprofile(None)
        return self.steps, self.locks, self.reads, self.writes


async def test_a_budget_costs_a_request_few_steps_and_no_access_to_a_file(workers, clock, monkeypatch):
    """64 requests at a time of a cent on $100, two thousand per second: what a key without a budget takes, and few steps of
    its own. The ledger is read and locked when charges are written together, and when a part is set aside.
    """
    ledger, _ = workers
    work = Work(monkeypatch)

    def requests(key, rounds=40):
        def run():
            for _ in range(rounds):
                under_way = []
                for _ in range(64):
                    budget = ledger.admit(key, clock.now)
                    under_way.append(reservation := Reservation(budget))
                    if budget.is_limited:
                        assert reservation.take(0.01)
                for reservation in under_way:
                    clock.now += 0.0005
                    reservation.settle(0.01, 20)

        return run

    with_one, without = key_of(budget=100.0), key_of()
    for key in (with_one, without):
        requests(key, 2)()  # its place in the ledger is found once
    number = 40 * 64
    steps, locks, reads, writes = work.of(requests(with_one))
    steps_without, locks_without, reads_without, writes_without = work.of(requests(without))
    assert steps - steps_without <= 4 * number
    seconds = number * 0.0005
    together = seconds / TOGETHER
    assert locks - locks_without <= 2 * together + 1
    assert reads - reads_without <= 6 * together + 3
    assert writes - writes_without <= 4 * together + 3
    assert max(locks, reads, writes) < 0.1 * number
