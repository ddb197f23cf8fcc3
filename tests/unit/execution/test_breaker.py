"""The circuit breaker's three states, with a clock of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.errors import BadRequest, CircuitOpen, RateLimited, ServerFailed
from workflow_composer.execution.breaker import CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def opened(clock, failures=2):
    breaker = CircuitBreaker("a", failures=failures, cooldown=10.0, clock=clock)
    for _ in range(failures):
        breaker.fail(ServerFailed("x"), probe=breaker.admit())
    return breaker


def test_it_opens_after_consecutive_failures_and_refuses_calls():
    """The refusal names the endpoint and when it is asked again."""
    breaker = opened(Clock())
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen, match=r"a failed 2 times in a row, so .*next try in 10 s"):
        breaker.admit()


def test_a_success_in_between_starts_the_count_anew():
    """Only failures in a row count."""
    breaker = CircuitBreaker("a", failures=2)
    for _ in range(5):
        breaker.fail(ServerFailed("x"), probe=breaker.admit())
        breaker.succeed()
    assert breaker.state == "closed"


@pytest.mark.parametrize("error", [BadRequest("x", status=400), RateLimited("x", status=429)])
def test_an_endpoint_that_answers_at_all_is_alive(error):
    """A refusal shows that the server works, and even closes the breaker."""
    breaker = CircuitBreaker("a", failures=2)
    breaker.fail(ServerFailed("x"), probe=breaker.admit())
    breaker.fail(error, probe=breaker.admit())
    breaker.fail(ServerFailed("x"), probe=breaker.admit())
    assert breaker.state == "closed"


def test_after_the_cooldown_exactly_one_probe_passes():
    """Others are refused until the probe has reported."""
    clock = Clock()
    breaker = opened(clock)
    clock.now = 10.0
    assert breaker.state == "half-open"
    assert breaker.admit() is True
    with pytest.raises(CircuitOpen, match="a probe is in progress"):
        breaker.admit()


def test_a_probe_with_a_long_answer_keeps_the_others_out_for_one_cooldown_only():
    """It may run for minutes, and whoever asked for it may have done so on purpose."""
    clock = Clock()
    breaker = opened(clock)
    clock.now = 10.0
    assert breaker.admit() is True
    clock.now = 19.9
    with pytest.raises(CircuitOpen, match="a probe is in progress"):
        breaker.admit()
    clock.now = 20.0
    assert breaker.admit() is True
    with pytest.raises(CircuitOpen):
        breaker.admit()
    breaker.succeed()
    breaker.release(probe=True)  # the first one is given up
    assert breaker.state == "closed"


def test_a_good_probe_closes_and_a_bad_one_opens_for_another_cooldown():
    """The state after the probe is the probe's verdict."""
    clock = Clock()
    breaker = opened(clock)
    clock.now = 10.0
    breaker.fail(ServerFailed("x"), probe=breaker.admit())
    assert breaker.state == "open"
    clock.now = 20.0
    breaker.admit()
    breaker.succeed()
    assert breaker.state == "closed"
    assert breaker.admit() is False


def test_a_cancelled_probe_lets_another_one_pass():
    """A probe that is given up must not leave the endpoint refused for ever."""
    clock = Clock()
    breaker = opened(clock)
    clock.now = 10.0
    breaker.release(probe=breaker.admit())
    assert breaker.admit() is True


@given(st.lists(st.sampled_from(["fail", "succeed", "cancel", "wait"]), max_size=60))
def test_never_more_than_one_probe_and_never_stuck(steps):
    """Whatever happens, after a cooldown one call passes; while open, none does."""
    clock = Clock()
    breaker = CircuitBreaker("a", failures=3, cooldown=10.0, clock=clock)
    for step in steps:
        if step == "wait":
            clock.now += 10.0
            continue
        before = breaker.state
        try:
            probe = breaker.admit()
        except CircuitOpen:
            assert before == "open"
            continue
        assert before != "open"
        assert probe == (before == "half-open")
        if step == "fail":
            breaker.fail(ServerFailed("x"), probe=probe)
            assert before != "half-open" or breaker.state == "open"
        elif step == "succeed":
            breaker.succeed()
            assert breaker.state == "closed"
        else:
            breaker.release(probe=probe)
    clock.now += 10.0
    breaker.admit()
