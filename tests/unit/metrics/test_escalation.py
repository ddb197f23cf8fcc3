"""What escalation has cost and saved."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_composer.backends.pricing import Price
from workflow_composer.metrics.escalation import EscalationTally
from workflow_composer.types import Attempt, LLMResponse, RoutingDecision, Sample, TierResult, Usage, Verdict

PRICES = {"small": Price(1.0, 2.0), "medium": Price(3.0, 6.0), "large": Price(10.0, 20.0)}
NAMES = tuple(PRICES)


def call(tier, name, *, prompt=10, tokens=5, error=None, cost=None):
    usage = Usage(prompt, tokens)
    price = PRICES[name].cost(usage) if cost is None else cost
    return Attempt(tier, 0, name, True, 1.0, usage, price, error and "went wrong", error)


def answered(*calls, accepted=True, samples=1):
    """A response whose attempts are these; the last one's tier decided."""
    deciding = calls[-1].tier
    tiers = []
    for tier in sorted({one.tier for one in calls}):
        own = [one for one in calls if one.tier == tier]
        usage, cost = sum((one.usage for one in own), Usage()), sum(one.cost for one in own)
        drawn = (Sample("4"),) * (samples if tier == deciding else 1)
        name = own[0].name
        tiers.append(TierResult(tier, name, name, name, drawn, Verdict(accepted), usage, cost, 1.0))
    made = RoutingDecision("test", "execution_feedback", calls[-1].name, "", True, deciding, 0, "*", "")
    usage, cost = sum((one.usage for one in calls), Usage()), sum(one.cost for one in calls)
    return LLMResponse("4", made, (Sample("4"),), usage, cost, tuple(calls), "r", 1.0, 0.1, None, accepted, tuple(tiers))


def tally(*responses):
    made = EscalationTally("large", PRICES["large"].cost)
    for response in responses:
        made.count(response)
    return made.stats()


def test_before_any_request_there_is_nothing():
    stats = tally()
    assert (stats.requests, stats.spent, stats.kept, stats.wasted, stats.always_strongest, stats.saved) == (0,) * 6


def test_an_accepted_cheap_answer_saves_the_difference_to_the_strongest():
    stats = tally(answered(call(0, "small")))
    assert (stats.kept, stats.wasted) == (pytest.approx(20e-6), 0)
    assert (stats.always_strongest, stats.saved) == (pytest.approx(200e-6), pytest.approx(180e-6))


def test_an_answer_that_is_thrown_away_is_wasted_and_nothing_is_saved():
    stats = tally(answered(call(0, "small"), call(1, "large")))
    assert (stats.escalated, stats.by_tier) == (1, {"large": 1})
    assert stats.wasted == pytest.approx(20e-6)
    assert stats.saved == pytest.approx(-20e-6)


def test_failed_and_abandoned_calls_are_wasted_also_in_the_tier_that_answers():
    gone = call(0, "small", error="Abandoned")
    stats = tally(answered(gone, call(1, "large", error="ServerFailed"), call(1, "large")))
    assert (stats.abandoned, stats.kept) == (1, pytest.approx(200e-6))
    assert stats.wasted == pytest.approx(220e-6)
    assert stats.always_strongest == pytest.approx(200e-6)


def test_of_a_vote_the_strongest_tier_would_have_given_one_answer():
    """Five samples in two calls are not five answers of the strongest tier."""
    stats = tally(answered(call(0, "small", tokens=15), call(0, "small", tokens=10), samples=5))
    assert stats.always_strongest == pytest.approx(PRICES["large"].cost(Usage(10, 5)))
    assert stats.wasted == 0


def test_gpu_time_of_the_strongest_tier_counts_in_what_it_would_have_cost():
    """As much per token as where it answered; before it ever did, nobody knows."""
    cheap = answered(call(0, "small", tokens=5))
    assert tally(cheap).always_strongest == pytest.approx(200e-6)
    dear = answered(call(0, "small"), call(1, "large", tokens=5, cost=200e-6 + 5e-3))
    assert tally(cheap, dear).always_strongest == pytest.approx(2 * (200e-6 + 5e-3))


calls = st.builds(
    lambda prompt, tokens, error, cost: {"prompt": prompt, "tokens": tokens, "error": error, "cost": cost},
    st.integers(0, 500),
    st.integers(0, 500),
    st.sampled_from([None, "ServerFailed", "CallTimeout"]),
    st.none() | st.floats(0, 1),
)


@settings(deadline=None)
@given(st.lists(st.lists(st.lists(calls, min_size=1, max_size=3), min_size=1, max_size=3), max_size=8), st.integers(1, 5))
def test_the_two_sums_add_up_whatever_happened(requests, samples):
    responses = []
    for tiers in requests:
        made = [call(at, NAMES[at], **one) for at, tier in enumerate(tiers) for one in tier]
        last = len(tiers) - 1
        responses.append(answered(*made, call(last, NAMES[last]), samples=samples))
    stats = tally(*responses)
    assert stats.spent == pytest.approx(sum(response.cost for response in responses))
    assert stats.kept + stats.wasted == pytest.approx(stats.spent)
    assert stats.spent + stats.saved == pytest.approx(stats.always_strongest)
    assert stats.wasted >= -1e-12
    assert sum(stats.by_tier.values()) == stats.requests == len(requests)


def test_many_threads_count_at_the_same_time():
    made = EscalationTally("large", PRICES["large"].cost)
    response = answered(call(0, "small"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [made.count(response) for _ in range(100)], range(8)))
    assert made.stats().requests == 800
    assert made.stats().spent == pytest.approx(800 * 20e-6)


def test_the_stats_are_plain_data():
    assert tally(answered(call(0, "small"))).to_dict()["by_tier"] == {"small": 1}
