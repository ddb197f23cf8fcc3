"""Money of runs and rows within each other, and how many calls may be under way."""

import asyncio
import contextlib
import math
import threading
import time

import pytest

from workflow_composer.errors import AllCandidatesFailed, BudgetExceeded, RunBudgetReached
from workflow_composer.types import Attempt, LLMRequest
from workflow_composer.workflows.keeping.gate import Asker, CallGate, OneAtATime
from workflow_composer.workflows.keeping.money import MoneyAccount, RunPurse
from workflow_composer.workflows.run import RowPace
from workflow_composer.workflows.running.servers import RefusalCap, load_of


def estimate(dollars):
    return lambda: (dollars, 0.0)


async def one_call(purse, cost, guess, *, seen=True):
    """Reserve, spend and settle, as a step does."""
    part = purse.begin()
    part.is_unseen = lambda: not seen
    if not part.take(guess):
        await part.wait(estimate(guess))
    await asyncio.sleep(0)
    part.settle(cost)


# ----------------------------------------------------------------------------------------------------------------- money


def test_a_run_without_a_budget_needs_no_purse():
    assert RunPurse(MoneyAccount()).part(None).begin() is None


async def test_what_a_row_spends_is_spent_in_the_run_too():
    run = MoneyAccount(1.0)
    row = RunPurse(run).part(0.5)
    await one_call(row.part(None), 0.2, 0.3)
    assert (run.spent, row.account.spent) == (0.2, 0.2)
    assert (run.room, row.account.room) == pytest.approx((0.8, 0.3))
    assert run.held == row.account.held == 0


async def test_a_rows_limit_stops_the_row_and_not_the_run():
    run = MoneyAccount(10.0)
    row, other = RunPurse(run).part(0.3), RunPurse(run).part(0.3)
    await one_call(row, 0.3, 0.3)
    with pytest.raises(BudgetExceeded):
        row.begin()
    assert not run.is_reached
    await one_call(other, 0.1, 0.1)


async def test_the_runs_limit_stops_the_run():
    run = MoneyAccount(0.3, spent=0.3)
    with pytest.raises(RunBudgetReached):
        RunPurse(run).part(5.0).begin()
    assert run.is_reached


async def test_estimates_that_fill_the_budget_are_waited_for():
    """Ten calls guessed at .4 and costing .01 fit into a budget of 1."""
    run = MoneyAccount(1.0)
    rows = [RunPurse(run).part(None) for _ in range(10)]
    await asyncio.gather(*(one_call(row, 0.01, 0.4) for row in rows))
    assert run.spent == pytest.approx(0.1)


async def test_a_row_that_has_spent_comes_before_one_that_has_not():
    run, ended = MoneyAccount(1.0), []
    begun, new = RunPurse(run).part(None), RunPurse(run).part(None)
    await one_call(begun, 0.1, 0.1)
    holder = RunPurse(run).begin()
    assert holder.take(0.9)

    async def call(name, row):
        await one_call(row, 0.5, 0.5)
        ended.append(name)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        waiting = [group.create_task(call("new", new))]
        await asyncio.sleep(0)
        waiting.append(group.create_task(call("begun", begun)))
        await asyncio.sleep(0)
        holder.settle(0.0)
        await asyncio.wait(waiting)
    assert ended == ["begun", "new"]


async def test_a_call_of_unknown_price_takes_what_is_left_alone():
    run = MoneyAccount(0.25)
    purse = RunPurse(run)
    part = purse.begin()
    part.is_unseen = lambda: True
    assert not part.take(math.inf)
    assert await part.wait(estimate(math.inf)) is None, "it is not limited by what it was guessed at"
    assert run.room == 0.0
    part.settle(0.09)
    assert run.room == pytest.approx(0.16)


# ------------------------------------------------------------------------------------------------------------------ gate


async def test_no_more_are_under_way_than_allowed_and_all_pass():
    gate, most, passed = CallGate(3), 0, 0

    async def work():
        nonlocal most, passed
        async with gate():
            most = max(most, gate.in_flight)
            await asyncio.sleep(0)
        passed += 1

    await asyncio.gather(*(work() for _ in range(50)))
    assert (most, passed, gate.in_flight) == (3, 50, 0)


async def test_one_who_is_cancelled_while_waiting_leaves_no_hole():
    gate = CallGate(1)
    async with gate():
        waiting = [asyncio.create_task(pass_through(gate)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
    await asyncio.wait(waiting, timeout=20)
    assert [task.cancelled() for task in waiting] == [True, False, False]
    assert gate.in_flight == 0


async def pass_through(gate):
    async with gate():
        await asyncio.sleep(0)


async def test_a_stopped_run_lets_everybody_pass():
    stopped = False
    gate = CallGate(1, stop=lambda: stopped)
    async with gate():
        waiting = [asyncio.create_task(pass_through(gate)) for _ in range(3)]
        await asyncio.sleep(0)
        stopped = True
        gate.open()
        done, _ = await asyncio.wait(waiting, timeout=20)
    assert len(done) == 3


def test_a_server_that_refuses_teaches_its_limit_once():
    cap = RefusalCap()
    cap.refused(16)
    assert cap.limit == 8
    cap.refused(16)
    assert cap.limit == 8, "those that were under way with it say the same"
    for _ in range(16):
        cap.ended(well=True)
    cap.refused(6)
    assert cap.limit == 5
    refused = 0
    for _ in range(1000):
        cap.ended(well=True)
        if cap.limit > 5:
            refused += 1
            cap.refused(int(cap.limit))
    assert cap.limit <= 6
    assert refused <= 5, "one more is tried after ever more answers"


def failed(kind, name="small"):
    return Attempt(0, 0, name, True, 1.0, error="no", error_type=kind, fault="server")


async def under_way(gates, model, calls):
    """Make calls through gates in turn; the most that were under way at a time."""
    now = most = 0

    async def call(gate):
        nonlocal now, most
        async with gate(model):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1

    async with asyncio.timeout(60):
        await asyncio.gather(*(call(gates[number % len(gates)]) for number in range(calls)))
    return most


async def test_what_a_server_has_told_one_run_every_run_of_the_process_knows():
    address = {"a": "http://one.test/v1", "b": "http://two.test/v1"}.get
    one, two = CallGate(16, address=address), CallGate(16, address=address)
    assert await under_way([one, two], "a", 64) == 32
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(one("a"))
        one.hear([failed("RateLimited", "a")])
    assert load_of("http://one.test/v1").limit == 4
    assert await under_way([one, two, CallGate(16, address=address)], "a", 60) == 4, "of all runs together"
    assert await under_way([two], "b", 40) == 16, "another server is none of its business"
    assert (load_of("http://one.test/v1").in_flight, one.in_flight, two.in_flight) == (0, 0, 0)


async def test_calls_of_a_busy_server_hold_up_no_calls_of_another():
    gate = CallGate(4, address={"a": "http://three.test/v1", "b": "http://four.test/v1"}.get)
    async with gate("a"), gate("a"):
        gate.hear([failed("RateLimited", "a")])  # it bears one
        waiting = [asyncio.create_task(pass_through(lambda: gate("a"))) for _ in range(9)]
        await asyncio.sleep(0)
        async with asyncio.timeout(20), gate("b"), gate("b"):
            assert gate.in_flight == 4
    await asyncio.wait(waiting, timeout=20)
    assert all(task.done() for task in waiting)


def test_a_run_in_another_thread_goes_on_when_a_call_of_this_one_has_ended():
    address = {"a": "http://five.test/v1"}.get
    load_of("http://five.test/v1").begin()
    load_of("http://five.test/v1").refused()  # it bears one, which is under way

    def run():
        asyncio.run(asyncio.wait_for(pass_through(lambda: CallGate(4, address=address)("a")), 20))

    thread = threading.Thread(target=run)
    thread.start()
    while not load_of("http://five.test/v1")._waiters and thread.is_alive():
        time.sleep(0.001)
    load_of("http://five.test/v1").end(well=True)
    thread.join()
    assert load_of("http://five.test/v1").in_flight == 0


async def test_refusals_of_a_server_that_no_call_asks_first_slow_the_run():
    gate = CallGate(16, address={"a": "http://six.test/v1"}.get)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(gate("a"))
        gate.hear([failed("RateLimited", "of a later tier")])
    assert gate.limit == 4


class Refusing:
    """A server that refuses at first."""

    def __init__(self, times, kind="RateLimited"):
        self.times, self.kind, self.asked = times, kind, 0

    async def __call__(self, request):
        self.asked += 1
        if self.asked <= self.times:
            failed = Attempt(0, 0, "small", True, 1.0, error="no", error_type=self.kind, fault="server")
            raise AllCandidatesFailed("no", attempts=(failed,))
        return Answered()


class Answered:
    attempts = ()


async def test_a_refused_call_is_tried_again_and_a_failed_one_is_not():
    request = LLMRequest.of("?")
    served = Refusing(2)
    assert await Asker(served, CallGate(1), asyncio.Event())(request)
    assert served.asked == 3
    failing = Refusing(1, "ServerFailed")
    with pytest.raises(AllCandidatesFailed):
        await Asker(failing, CallGate(1), asyncio.Event())(request)
    assert failing.asked == 1


async def test_a_stopped_run_does_not_try_again():
    stopped, served = asyncio.Event(), Refusing(9)
    stopped.set()
    with pytest.raises(AllCandidatesFailed):
        await Asker(served, CallGate(1), stopped)(LLMRequest.of("?"))
    assert served.asked == 1


async def test_one_of_a_name_at_a_time():
    once, inside, most = OneAtATime(), [], []

    async def work(name):
        async with once(name):
            inside.append(name)
            await asyncio.sleep(0)
            most.append(inside.count(name))
            inside.remove(name)

    await asyncio.gather(*(work(name) for name in "aabab"))
    assert set(most) == {1}


def test_no_more_rows_begin_than_the_budget_can_bring_to_their_end():
    account = MoneyAccount(1.0)
    pace = RowPace(CallGate(8), account)
    pace.begin()
    assert pace.room, "nothing is known of what a row costs"
    pace.learn(0.3)
    pace.begin()
    assert pace.room, "three rows of .3 fit"
    pace.begin()
    assert not pace.room, "a fourth does not"
    account.charged(0.2, 0)
    for _ in range(3):
        pace.end(well=True)
    account.room -= 0.9
    assert pace.room, "one alone may always try"
