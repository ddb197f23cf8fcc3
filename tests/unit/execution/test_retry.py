"""When the same endpoint is called again, and after which pause."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.errors import BadRequest, RateLimited, ServerFailed
from workflow_composer.execution.call import Trace
from workflow_composer.execution.member_run import RetryPolicy

FAILED = ServerFailed("500")


@given(st.integers(1, 9), st.floats(0, 1), st.floats(0.001, 5), st.floats(0.001, 60))
def test_pauses_are_uniform_below_an_exponential_ceiling(tried, draw, base, longest):
    """Full jitter: the pause is the drawn share of min(longest, base * 2**(n-1))."""
    policy = RetryPolicy(10, base, longest, random=lambda: draw)
    pause = policy.pause(FAILED, tried, others_left=False, time_left=1e9)
    assert pause == pytest.approx(draw * min(longest, base * 2 ** (tried - 1)))


def test_the_number_of_calls_is_bounded():
    """The policy counts the first call too."""
    policy = RetryPolicy(3, random=lambda: 0.0)
    assert [policy.pause(FAILED, n, others_left=False, time_left=9) is None for n in (1, 2, 3)] == [False, False, True]


def test_what_is_not_retryable_is_not_retried():
    """The error itself says so."""
    assert RetryPolicy().pause(BadRequest("x"), 1, others_left=False, time_left=9) is None


def test_no_pause_is_begun_that_outlasts_the_request():
    """Better to fail, or to ask another, than to sleep through the deadline."""
    policy = RetryPolicy(random=lambda: 1.0, base_delay=2.0)
    assert policy.pause(FAILED, 1, others_left=False, time_left=1.0) is None


@pytest.mark.parametrize(("others", "expected"), [(True, None), (False, 20.0)])
def test_a_long_retry_after_is_waited_for_only_by_the_last_candidate(others, expected):
    """Where another candidate is left, it is asked instead."""
    policy = RetryPolicy(max_delay=8.0, random=lambda: 0.0)
    assert policy.pause(RateLimited("x", retry_after=20.0), 1, others_left=others, time_left=60) == expected


def test_retry_after_is_the_least_pause():
    """Jitter is added on top, so that waiting clients do not come back together."""
    policy = RetryPolicy(base_delay=1.0, random=lambda: 0.5)
    assert policy.pause(RateLimited("x", retry_after=2.0), 1, others_left=True, time_left=60) == 2.5


def test_a_deadline_counts_down_on_its_clock():
    """Without a limit there is always time left."""
    now = [100.0]
    trace = Trace(5.0, clock=lambda: now[0])
    assert (trace.left, trace.over) == (5.0, False)
    now[0] = 106.0
    assert (trace.left, trace.over) == (0.0, True)
    assert Trace().left == float("inf")
