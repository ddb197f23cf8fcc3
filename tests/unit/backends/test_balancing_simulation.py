"""What the way of choosing achieves, by simulation: skewed contexts, servers that come and go."""

from __future__ import annotations

import pytest

from benchmarks.balancing import POLICIES, simulate
from workflow_composer.backends.replicas.replica_set import FACTOR

SHAPE = {"requests": 4000, "servers": 4, "contexts": 60, "clients": 48}


@pytest.fixture(scope="module")
def outcomes():
    """Two rounds of every way of choosing."""
    return {name: [simulate(policy, **SHAPE, seed=seed) for seed in range(2)] for name, policy in POLICIES.items()}


def worst(outcomes, what):
    """The least of a figure over the rounds."""
    return min(getattr(outcome, what) for outcome in outcomes)


def test_more_requests_meet_a_warm_cache_than_without_a_preference(outcomes):
    """At least a sixth more of all requests than by either way that looks at no context."""
    for other in ("round robin", "least loaded"):
        assert worst(outcomes["balance.choose"], "warm") > max(o.warm for o in outcomes[other]) + 0.16


def test_the_load_stays_bounded_where_hashing_alone_lets_one_server_drown(outcomes):
    """The largest load is on average little above the factor times the mean."""
    ours = max(outcome.unevenness for outcome in outcomes["balance.choose"])
    assert ours < FACTOR + 0.15 < worst(outcomes["rendezvous hashing alone"], "unevenness")


def test_all_is_done_sooner_than_without_a_preference(outcomes):
    """A cache that is met saves more than the unevenness costs."""
    ours = max(outcome.time for outcome in outcomes["balance.choose"])
    assert ours < 0.9 * min(worst(outcomes[other], "time") for other in ("round robin", "least loaded"))
