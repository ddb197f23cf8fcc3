"""Prices and the sharing of GPU time."""

from __future__ import annotations

import doctest
import itertools
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.backends import pricing
from workflow_composer.backends.pricing import GpuMeter, Price
from workflow_composer.types import Usage


def spec(**prices):
    """A profile's entry, as far as prices go."""
    return SimpleNamespace(**{"input_price": None, "output_price": None, "gpu_hour_price": None, **prices})


def shares_by_integration(calls):
    """The definition, taken literally: each interval between two events is split evenly among the calls that span it."""
    times = sorted({t for call in calls for t in call})
    shares = [0.0] * len(calls)
    for begin, end in itertools.pairwise(times):
        active = [i for i, (start, stop) in enumerate(calls) if start <= begin and end <= stop]
        for i in active:
            shares[i] += (end - begin) / len(active)
    return shares


def busy_time(calls):
    """Seconds covered by at least one call."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(calls):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def metered(calls):
    """Play the calls through a meter, stops before starts where times coincide; return each call's share."""
    now = [0.0]
    meter = GpuMeter(clock=lambda: now[0])
    events = [(start, 1, i) for i, (start, _) in enumerate(calls)] + [(stop, 2, i) for i, (_, stop) in enumerate(calls)]
    tokens, shares = {}, [0.0] * len(calls)
    for moment, kind, i in sorted(events):
        now[0] = moment
        if kind == 1:
            tokens[i] = meter.start()
        else:
            shares[i] = meter.stop(tokens[i])
    assert meter.in_flight == 0
    return shares


intervals = st.lists(
    st.tuples(st.floats(0, 1e4), st.floats(0, 1e3)).map(lambda pair: (pair[0], pair[0] + pair[1])), min_size=1, max_size=30
)


@given(calls=intervals, gpu_hour=st.floats(0, 100))
def test_costs_of_concurrent_calls_add_up_to_busy_time_times_price(calls, gpu_hour):
    """For any interleaving, what the calls are charged is what the busy GPU costs: nothing twice, nothing forgotten."""
    price = Price(gpu_hour=gpu_hour)
    charged = sum(price.cost(Usage(), share) for share in metered(calls))
    assert charged == pytest.approx(busy_time(calls) * gpu_hour / 3600, rel=1e-9, abs=1e-9)


@given(calls=intervals)
def test_each_share_equals_the_definition_of_processor_sharing(calls):
    """The virtual clock gives each call the same share as splitting every interval evenly."""
    assert metered(calls) == pytest.approx(shares_by_integration(calls), rel=1e-9, abs=1e-7)


@given(calls=intervals)
def test_no_share_is_negative_or_longer_than_its_call(calls):
    """A call is never charged for more than its own duration."""
    for share, (start, stop) in zip(metered(calls), calls, strict=True):
        assert -1e-9 <= share <= stop - start + 1e-9


def test_a_lone_call_pays_for_all_its_time():
    """With nothing else in flight the share is the duration, also after hours of idling."""
    assert metered([(0.0, 1.0), (7200.0, 7202.5)]) == [1.0, 2.5]


def test_threads_lose_no_time():
    """Calls from many threads add up as well: the meter's state is changed under a lock."""
    ticks = itertools.count()
    meter = GpuMeter(clock=lambda: float(next(ticks)))
    shares, ready = [], threading.Barrier(8)

    def work():
        ready.wait()
        shares.extend([meter.stop(meter.start()) for _ in range(500)])

    holder = meter.start()
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(shares) + meter.stop(holder)
    assert meter.in_flight == 0
    assert total == pytest.approx(next(ticks) - 1)


def test_stop_without_start_is_refused():
    """A second stop would push the count below zero and falsify every later share."""
    meter = GpuMeter()
    token = meter.start()
    meter.stop(token)
    with pytest.raises(ValueError, match="no call is in flight"):
        meter.stop(token)


def test_tokens_are_priced_per_million_in_and_out():
    """A million prompt tokens cost the input price, a million completion tokens the output price."""
    price = Price(input_per_million=3.0, output_per_million=15.0)
    assert price.cost(Usage(1_000_000, 0)) == pytest.approx(3.0)
    assert price.cost(Usage(0, 1_000_000)) == pytest.approx(15.0)
    assert price.cost(Usage(200, 100)) == pytest.approx(200 * 3e-6 + 100 * 15e-6)


def test_an_hour_of_gpu_costs_the_hourly_price():
    """3,600 seconds are one hour."""
    assert Price(gpu_hour=2.5).cost(Usage(), 3600) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        ({}, Price(0.0, 0.0, 0.0, known=False)),
        ({"input_price": 0.0, "output_price": 0.0}, Price(0.0, 0.0, 0.0)),
        ({"input_price": 1.0}, Price(1.0, 0.0, 0.0, known=False)),
        ({"input_price": 1.0, "output_price": 2.0}, Price(1.0, 2.0, 0.0)),
        ({"gpu_hour_price": 0.35}, Price(0.0, 0.0, 0.35)),
    ],
)
def test_the_price_comes_from_the_profile(prices, expected):
    """Each of the three prices is taken from the model's entry; a missing one is zero."""
    assert Price.of(spec(**prices)) == expected


def test_examples_in_the_documentation_run():
    """The docstrings' examples are true."""
    assert doctest.testmod(pricing).failed == 0


@pytest.mark.parametrize(
    ("price", "usage", "known"),
    [
        (Price(1.0, 2.0), Usage(10, 5), True),
        (Price(1.0, 2.0), Usage(10, 0), True),
        (Price(1.0, 2.0), Usage(0, 0), False),
        (Price(1.0, 2.0), Usage(0, 5), False),
        (Price(0.0, 2.0), Usage(0, 5), True),
        (Price(0.0, 0.0), Usage(0, 0), True),
        (Price(0.0, 0.0, 0.35), Usage(0, 0), True),
        (Price(0.0, 0.0, known=False), Usage(10, 5), False),
    ],
)
def test_a_cost_is_known_only_with_a_price_and_the_tokens_it_applies_to(price, usage, known):
    """A prompt always has tokens: none means that nobody counted them."""
    assert price.covers(usage) is known
