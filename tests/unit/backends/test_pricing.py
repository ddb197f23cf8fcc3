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
from workflow_composer.backends.pricing import GpuMeter, ModelNames, Price, same_model
from workflow_composer.types import Usage


def spec(**prices):
    """A profile's entry, as far as prices go."""
    unset = ("input_price", "output_price", "gpu_hour_price", "cached_input_price", "reasoning_price")
    return SimpleNamespace(**dict.fromkeys(unset) | prices)


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
        (
            {"input_price": 1.0, "output_price": 2.0, "cached_input_price": 0.1, "reasoning_price": 3.0},
            Price(1.0, 2.0, cached_per_million=0.1, reasoning_per_million=3.0),
        ),
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
def test_a_recorded_cost_is_known_only_with_a_price_and_the_tokens_it_applies_to(price, usage, known):
    """A prompt always has tokens: none means that nobody counted them."""
    assert price.covers(usage) is known


def test_cached_and_reasoning_tokens_have_prices_of_their_own():
    """Without them they cost what the others do."""
    usage = Usage(1_000_000, 1_000_000, cached_tokens=400_000, reasoning_tokens=900_000)
    assert Price(2.0, 8.0).cost(usage) == pytest.approx(10.0)
    assert Price(2.0, 8.0, cached_per_million=0.5).cost(usage) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 8)
    assert Price(2.0, 8.0, reasoning_per_million=3.0).cost(usage) == pytest.approx(2 + 0.9 * 3 + 0.1 * 8)


@given(counts=st.tuples(*[st.integers(0, 2**40)] * 4), prices=st.tuples(*[st.floats(0, 1000)] * 4))
def test_no_usage_costs_less_than_nothing(counts, prices):
    """A server may report more cached tokens than prompt tokens."""
    price = Price(*prices[:2], cached_per_million=prices[2], reasoning_per_million=prices[3])
    prompt, answer, cached, reasoning = counts
    assert price.cost(Usage(prompt, answer, cached, reasoning)) >= -1e-9 * (prompt + answer)


SAME = [
    ("gpt-4o", "gpt-4o-2024-08-06"),
    ("gpt-4o-2024-08-06", "gpt-4o"),
    ("gpt-4", "gpt-4-0613"),
    ("gpt-3.5-turbo", "gpt-3.5-turbo-0125"),
    ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022"),
    ("claude-3-5-sonnet", "us.anthropic.claude-3-5-sonnet-20241022"),
    ("mistral-large-latest", "mistral-large-2411"),
    ("gemini-2.5-flash", "models/gemini-2.5-flash-preview-09-2025"),
    ("gemini-1.5-pro", "gemini-1.5-pro-002"),
    ("claude-sonnet-4", "claude-sonnet-4@20250514"),
    ("llama3", "llama3:latest"),
    ("llama3:8b", "library/llama3:8b"),
    ("openai/gpt-4o", "gpt-4o"),
    ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b-instruct"),
    ("/models/Qwen2.5-7B-Instruct/", "Qwen2.5-7B-Instruct"),
]
OTHER = [
    ("gpt-4o", "gpt-4o-mini"),
    ("gpt-4o", "gpt-4o-mini-2024-07-18"),
    ("gpt-4", "gpt-4-turbo-2024-04-09"),
    ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06"),
    ("gpt-5", "gpt-5-nano-2025-08-07"),
    ("llama3:8b", "llama3:70b"),
    ("claude-3-5-sonnet", "claude-3-5-haiku-20241022"),
    ("Qwen2.5-7B-Instruct", "Qwen2.5-72B-Instruct"),
    ("deepseek-chat", "deepseek-reasoner"),
    ("mistral-large-2407", "mistral-large-2411"),
]


@pytest.mark.parametrize(("asked", "answered", "same"), [(*p, True) for p in SAME] + [(*p, False) for p in OTHER])
def test_snapshots_tags_and_paths_of_a_model_are_that_model_and_others_are_not(asked, answered, same):
    assert same_model(asked, answered) is same


class TestNames:
    """What is charged when another model answers."""

    OWN, CHEAP = Price(10.0, 10.0), Price(1.0, 1.0)

    def names(self, told, **options):
        others = [("gpt-4o-mini", self.CHEAP), ("free-of-price", Price(known=False))]
        return ModelNames("gpt-4o", options.pop("aliases", ()), others, name="big", report=told.append, **options)

    def test_the_model_that_answered_is_charged_and_the_change_is_told_once(self):
        told = []
        names = self.names(told)
        for answered in ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4o-mini"):
            assert names.price(answered, self.OWN) == (self.CHEAP, False)
        assert [("big" in text, "gpt-4o-mini" in text) for text in told] == [(True, True)] * 2

    def test_a_model_without_a_price_is_charged_as_the_one_asked_for_and_estimated(self):
        told = []
        assert self.names(told).price("unheard-of", self.OWN) == (self.OWN, True)
        assert self.names(told).price("free-of-price", self.OWN) == (self.OWN, True)
        assert len(told) == 2

    @pytest.mark.parametrize("answered", ["gpt-4o", "gpt-4o-2024-08-06", "my-deployment", "", None])
    def test_its_own_names_are_known_from_then_on(self, answered):
        told = []
        names = self.names(told, aliases=("my-deployment",))
        assert names.price(answered, self.OWN) == (self.OWN, False)
        assert (answered in names.known, told) == (True, [])

    def test_a_gpu_costs_what_it_costs_whatever_runs_on_it(self):
        told = []
        assert self.names(told).price("gpt-4o-mini", Price(gpu_hour=2.0)) == (Price(gpu_hour=2.0), False)
        assert len(told) == 1

    def test_a_server_that_answers_as_another_model_each_time_fills_neither_memory_nor_log(self):
        told = []
        names = ModelNames(None, name="any", report=told.append)
        for number in range(3000):
            assert names.price(f"m{number}", self.OWN) == (self.OWN, False)
        assert len(names.known) <= 1000
        names = self.names(told)
        for number in range(3000):
            names.price(f"{number}-of-many", self.OWN)
        assert len(told) <= 20
