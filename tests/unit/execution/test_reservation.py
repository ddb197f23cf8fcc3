"""Reservations: what requests under way promise to spend, who waits for whom, and what is settled."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from workflow_composer.errors import BudgetExceeded
from workflow_composer.execution.reservation import Budget, BudgetReserved, Reservation


async def settle():
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_requests_under_way_never_reserve_more_than_the_limit():
    budget, spent, most, under_way = Budget(1.0), 0.0, 0.0, set()

    async def one():
        nonlocal spent, most
        reserved = await budget.reserve(0.25)
        under_way.add(reserved)
        most = max(most, sum(each.amount for each in under_way) + spent)
        await asyncio.sleep(0)
        under_way.remove(reserved)
        spent += min(0.1, reserved.amount)
        reserved.settle(min(0.1, reserved.amount))

    done = await asyncio.gather(*(one() for _ in range(20)), return_exceptions=True)
    assert most <= 1.0 + 1e-9
    assert spent == pytest.approx(budget.spent)
    assert 0.75 < spent <= 1.0 + 1e-9
    assert all(isinstance(end, BudgetExceeded) for end in done if end is not None)


async def test_what_does_not_fit_waits_for_those_under_way_in_the_order_of_coming():
    budget, order = Budget(1.0), []
    first = await budget.reserve(0.9)

    async def wait(name, amount):
        reserved = await budget.reserve(amount)
        order.append(name)
        reserved.settle(0.0)

    waiting = [asyncio.create_task(wait("large", 0.8)), asyncio.create_task(wait("small", 0.01))]
    await settle()
    assert order == []  # the small one would fit, but the large one would then wait for ever
    first.settle(0.1)
    await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert order == ["large", "small"]
    assert budget.room == pytest.approx(0.9)


async def test_more_than_is_left_is_granted_as_what_is_left_once_nothing_else_is_under_way():
    budget = Budget(1.0)
    other = await budget.reserve(0.5)
    unbounded = asyncio.create_task(budget.reserve(math.inf))
    await settle()
    assert not unbounded.done()
    other.settle(0.25)
    reserved = await asyncio.wait_for(unbounded, 60)
    assert reserved.amount == 0.75
    assert budget.room == 0.0


async def test_nothing_is_left_is_an_error_only_when_nothing_is_under_way():
    budget = Budget(1.0)
    first = await budget.reserve(1.0)
    second = asyncio.create_task(budget.reserve(0.5))
    await settle()
    assert not second.done()
    first.settle(1.0)
    with pytest.raises(BudgetExceeded) as caught:
        await asyncio.wait_for(second, 60)
    assert not isinstance(caught.value, BudgetReserved)
    assert budget.waiting == 0


async def test_a_request_waits_no_longer_than_its_own_limit():
    budget = Budget(1.0)
    first = await budget.reserve(1.0)
    with pytest.raises(BudgetReserved):
        await budget.reserve(0.5, until=time.perf_counter() + 0.01)
    assert budget.waiting == 0
    first.settle(0.0)
    assert (await budget.reserve(0.5)).amount == 0.5


async def test_a_cancelled_wait_leaves_the_turn_to_the_next():
    budget = Budget(1.0)
    first = await budget.reserve(1.0)
    one, two = (asyncio.create_task(budget.reserve(0.5)) for _ in range(2))
    await settle()
    one.cancel()
    await settle()
    first.settle(0.0)
    assert (await asyncio.wait_for(two, 60)).amount == 0.5
    assert budget.waiting == 0


async def test_an_estimate_is_made_again_when_it_is_the_requests_turn():
    """The request before it may have taught what to expect."""
    budget, expected = Budget(1.0), [math.inf]
    first = await budget.reserve(1.0)
    second = asyncio.create_task(budget.reserve(lambda: (expected[-1], 0.0)))
    await settle()
    expected.append(0.125)
    first.settle(0.125)
    reserved = await asyncio.wait_for(second, 60)
    assert reserved.amount == 0.125


async def test_tokens_are_reserved_beside_dollars():
    budget = Budget(1.0, tokens=100)
    one = Reservation(budget)
    assert one.take(0.1, 60)
    assert not Reservation(budget).take(0.1, 60)
    one.settle(0.1, 10)
    assert Reservation(budget).take(0.1, 90)


async def test_who_waits_gives_up_the_place_and_takes_one_again():
    budget, told = Budget(1.0), []

    class Place:
        def leave(self):
            told.append("left")

        async def enter(self):
            told.append("entered")

    first = await budget.reserve(1.0)
    second = Reservation(budget, place=Place())
    waiting = asyncio.create_task(second.wait(lambda: (0.5, 0.0)))
    await settle()
    assert (told, second.aside) == (["left"], True)
    first.settle(0.0)
    await asyncio.wait_for(waiting, 60)
    assert (told, second.aside) == (["left", "entered"], False)


def test_what_costs_nothing_is_never_held_back():
    budget = Budget(1.0, spent=2.0)
    assert Reservation(budget).take(0.0)
    assert not Reservation(budget).take(0.01)
