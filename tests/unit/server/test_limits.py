"""Admission: places, a queue for them, and a quick word to the rest."""

from __future__ import annotations

import asyncio
import time

import pytest

from workflow_composer.server.api.completion_handler import Admission
from workflow_composer.server.failures import HttpFailure


async def settle():
    """Let everything that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_gets_a_place_in_the_order_of_coming():
    admission, order = Admission(1, 10, 5.0), []
    await admission.enter()

    async def wait(number):
        await admission.enter()
        order.append(number)
        admission.leave()

    waiting = [asyncio.create_task(wait(number)) for number in range(5)]
    await settle()
    assert admission.queued == 5
    admission.leave()
    late = asyncio.create_task(wait(5))  # nobody passes the queue
    await asyncio.gather(*waiting, late)
    assert order == [0, 1, 2, 3, 4, 5]
    assert (admission.in_flight, admission.queued) == (0, 0)


async def test_beyond_the_queue_the_answer_comes_at_once():
    admission = Admission(1, 0, 60.0)
    await admission.enter()
    began = time.perf_counter()
    with pytest.raises(HttpFailure) as caught:
        await admission.enter()
    assert time.perf_counter() - began < 30
    assert caught.value.status == 429
    assert caught.value.retry_after


async def test_nobody_waits_longer_than_the_limit():
    admission = Admission(1, 5, 0.02)
    await admission.enter()
    with pytest.raises(HttpFailure, match=r"for 0\.02 s"):
        await admission.enter()
    assert admission.queued == 0
    admission.leave()
    await admission.enter()
    assert admission.in_flight == 1


@pytest.mark.parametrize("in_the_same_moment", [True, False])
async def test_who_gives_up_waiting_takes_no_place_with_him(in_the_same_moment):
    """Not even one that was given to him in that very moment."""
    admission = Admission(1, 5, 60.0)
    await admission.enter()
    one, two = asyncio.create_task(admission.enter()), asyncio.create_task(admission.enter())
    await settle()
    if in_the_same_moment:
        admission.leave()
        one.cancel()
    else:
        one.cancel()
        await settle()
        admission.leave()
    await asyncio.wait_for(two, 60)
    assert one.cancelled() or await asyncio.gather(one, return_exceptions=True)
    assert admission.in_flight == 1
    admission.leave()
    assert (admission.in_flight, admission.queued) == (0, 0)


async def test_a_free_slot_goes_to_the_key_that_has_the_fewest():
    """A key that fills the queue does not keep the others waiting until it is served."""
    admission, order = Admission(4, 100, 60.0), []
    for _ in range(4):
        await admission.enter("many")

    async def wait(owner):
        await admission.enter(owner)
        order.append(owner)

    waiting = [asyncio.create_task(wait("many")) for _ in range(20)]
    await settle()
    waiting += [asyncio.create_task(wait("few")) for _ in range(3)]
    await settle()
    for _ in range(2):
        admission.leave("many")
        await settle()
    assert order == ["few", "few"]
    admission.leave("many")
    await settle()
    assert order[2] in {"many", "few"}
    for _ in range(30):
        owner = max(admission.running, key=admission.running.get, default=None)
        if owner is not None:
            admission.leave(owner)
        await settle()
    assert sorted(order) == ["few"] * 3 + ["many"] * 20
    assert (admission.in_flight, admission.queued, admission.running) == (0, 0, {})


async def test_a_queue_that_one_key_has_filled_takes_in_others():
    """The last of that key's requests makes room; its own next one is refused."""
    admission = Admission(1, 4, 60.0)
    await admission.enter("many")
    waiting = [asyncio.create_task(admission.enter("many")) for _ in range(4)]
    await settle()
    with pytest.raises(HttpFailure):
        await admission.enter("many")
    few = asyncio.create_task(admission.enter("few"))
    await settle()
    assert [task.done() for task in waiting] == [False, False, False, True]
    assert waiting[3].exception().status == 429
    admission.leave("many")
    await settle()
    admission.leave("many")  # of two with as many slots, the one that was not served last
    await asyncio.wait_for(few, 60)
    for owner in ("few", "many", "many"):
        admission.leave(owner)
        await settle()
    assert (admission.in_flight, admission.queued, admission.running) == (0, 0, {})
