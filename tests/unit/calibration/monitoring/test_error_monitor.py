"""The test of audited answers: it keeps its level whenever it is looked at, and it sees what has changed."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.calibration.monitoring.error_monitor import (
    ODDS_RATIOS,
    RiskMonitor,
    StratifiedMonitor,
    weight_to_come,
)
from workflow_composer.errors import ConfigError

ALPHAS = st.floats(0.01, 0.9)
AUDITS = st.lists(st.booleans(), max_size=12)


def observed(audits, alpha=0.1, **settings):
    monitor = RiskMonitor(alpha, **settings)
    for wrong in audits:
        monitor.observe(wrong)
    return monitor


def sequences(length, error):
    """Every sequence of so many audits, with its probability."""
    for audits in itertools.product((False, True), repeat=length):
        yield audits, math.prod(error if wrong else 1 - error for wrong in audits)


def defined(audits, alpha):
    """The e-value by its definition: every alternative from every start, each with its weight."""
    total = weight_to_come(len(audits))
    for ratio in ODDS_RATIOS:
        odds = ratio * alpha / (1 - alpha)
        q = odds / (1 + odds)
        for start in range(len(audits)):
            ratios = [q / alpha if wrong else (1 - q) / (1 - alpha) for wrong in audits[start:]]
            weight = weight_to_come(start) - weight_to_come(start + 1)
            total += weight * math.prod(ratios) / len(ODDS_RATIOS)
    return total


def until_alarm(seed, *, error, after=0, alpha=0.1, most=2000):
    """How many audits behind a change from alpha to ``error`` the alarm comes; below 0: before it; None: not at all."""
    draw, monitor = random.Random(seed), RiskMonitor(alpha)
    for n in range(after + most):
        monitor.observe(draw.random() < (alpha if n < after else error))
        if monitor.alarmed:
            return monitor.alarm_at - after
    return None


@given(AUDITS, ALPHAS)
def test_the_e_value_is_the_mixture_of_all_alternatives_and_starts(audits, alpha):
    """The short update of eight sums is the long formula."""
    assert observed(audits, alpha).e_value == pytest.approx(defined(audits, alpha))


@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.5, 0.9])
def test_its_expectation_stays_one_at_alpha_and_falls_below(alpha):
    """Exactly, over all sequences of ten audits: this and Ville's inequality are the guarantee."""
    at, below = (
        math.fsum(p * observed(audits, alpha).e_value for audits, p in sequences(10, error)) for error in (alpha, alpha / 2)
    )
    assert at == pytest.approx(1.0)
    assert below < 0.99


def test_stopping_at_the_alarm_gains_nothing():
    """Whoever looks after every audit and stops at the first alarm finds one with probability 5 % at the most, exactly."""
    alarms = math.fsum(p for audits, p in sequences(12, 0.2) if observed(audits, 0.2).alarmed)
    assert 0 < alarms <= 0.05


@given(AUDITS, st.integers(0, 11), ALPHAS)
def test_a_wrong_answer_in_place_of_a_right_one_is_more_evidence(audits, at, alpha):
    """At any place, whatever else was found."""
    if at < len(audits):
        worse, better = [*audits], [*audits]
        worse[at], better[at] = True, False
        assert observed(worse, alpha).e_value > observed(better, alpha).e_value


@pytest.mark.parametrize("error", [0.1, 0.05])
def test_a_thousand_clean_runs_give_fewer_than_fifty_false_alarms(error):
    """At the certified error and below it, looked at after every one of 400 audits."""
    alarms = sum(until_alarm(seed, error=error, most=400) is not None for seed in range(1000))
    assert alarms < 50


@pytest.mark.parametrize("after", [0, 200, 1000])
@pytest.mark.parametrize("error", [0.2, 0.3, 0.5])
def test_drift_in_mid_run_raises_the_alarm_within_the_stated_number_of_audits(error, after):
    """Half of the runs by the number stated, nineteen in twenty by twice that number."""
    stated = RiskMonitor(0.1).audits_to_alarm(error, after)
    waits = [until_alarm(seed, error=error, after=after) for seed in range(100)]
    waits = sorted(wait for wait in waits if wait is None or wait > 0)
    assert waits[len(waits) // 2] <= stated
    assert waits[math.ceil(0.95 * len(waits)) - 1] <= 2 * stated


def test_the_alarm_stays_when_answers_are_right_again():
    """It was justified when it came; only a new calibration or a person ends it."""
    monitor = observed([True] * 10)
    at = monitor.alarm_at
    for _ in range(500):
        monitor.observe(wrong=False)
    assert monitor.e_value < 1
    assert (monitor.alarmed, monitor.alarm_at) == (True, at)
    assert (monitor.audits, monitor.wrong) == (510, 10)


def test_no_number_of_wrong_answers_breaks_the_arithmetic():
    """Neither overflow behind a thousand wrong answers nor underflow behind many right ones ends the test."""
    monitor = observed([True] * 3000, alpha=1e-6)
    assert math.isfinite(monitor.e_value)
    for _ in range(3000):
        monitor.observe(wrong=False)
    monitor = observed([False] * 20_000, alpha=0.9)
    for _ in range(60):
        monitor.observe(wrong=True)
    assert math.isfinite(monitor.e_value)


def test_an_error_that_is_allowed_never_raises_the_alarm_on_average():
    """So the stated number of audits is infinite."""
    monitor = RiskMonitor(0.1)
    assert monitor.audits_to_alarm(0.1) == monitor.audits_to_alarm(0.02) == math.inf
    assert monitor.audits_to_alarm(0.3) < monitor.audits_to_alarm(0.2) < monitor.audits_to_alarm(0.2, after=1000)


def test_a_grader_that_errs_has_a_higher_limit():
    """Two of ten wrong by a grader that may be wrong about one in ten say as little as one of ten by one that never is."""
    strict, lenient, blind = RiskMonitor(0.1), RiskMonitor(0.1), RiskMonitor(0.1)
    for at in range(200):
        strict.observe(at % 5 == 0)
        lenient.observe(at % 5 == 0, limit=0.2)
        blind.observe(wrong=True, limit=1.0)
    assert strict.alarmed
    assert not lenient.alarmed
    assert (blind.e_value, blind.audits) == (1.0, 0)


@pytest.mark.parametrize("limits", [[0.1, 0.3] * 4, [0.5] * 4 + [0.1] * 4])
def test_limits_that_change_from_audit_to_audit_keep_the_expectation(limits):
    """Each audit's factor has expectation one at its own limit."""
    mean = 0.0
    for audits in itertools.product((False, True), repeat=len(limits)):
        monitor, chance = RiskMonitor(0.1), 1.0
        for wrong, limit in zip(audits, limits, strict=True):
            monitor.observe(wrong, limit)
            chance *= limit if wrong else 1 - limit
        mean += chance * monitor.e_value
    assert mean == pytest.approx(1.0)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, math.nan, True])
def test_shares_that_are_none_are_refused(value):
    """Alpha and the level lie between 0 and 1."""
    with pytest.raises(ConfigError, match="alpha must be"):
        RiskMonitor(value)
    with pytest.raises(ConfigError, match="level must be"):
        StratifiedMonitor(0.1, level=value)


def test_before_the_first_audit_there_is_no_evidence():
    """And the error is unknown, which is not 0."""
    for monitor in (RiskMonitor(0.1), StratifiedMonitor(0.1)):
        assert (monitor.e_value, monitor.error, monitor.alarmed, monitor.alarm_at) == (1.0, None, False, None)
    assert StratifiedMonitor(0.1).worst is None


# ------------------------------------------------------------------------------------------------------------ strata


def test_strata_keep_the_expectation_even_where_a_wrong_answer_chooses_the_next():
    """Which tier an audit comes from may depend on all that was found before."""
    mean = 0.0
    for audits, chance in sequences(10, 0.2):
        monitor, stratum = StratifiedMonitor(0.2), 0
        for wrong in audits:
            monitor.observe(wrong, f"tier {stratum}")
            stratum = stratum + 1 if wrong else 0
        mean += chance * monitor.e_value
    assert mean == pytest.approx(1.0)


def test_a_thousand_clean_runs_over_strata_give_fewer_than_fifty_false_alarms():
    """Six strata of unequal size, all at the certified error."""
    alarms = 0
    for seed in range(1000):
        draw, monitor = random.Random(seed), StratifiedMonitor(0.1)
        for _ in range(150):
            monitor.observe(draw.random() < 0.1, str(int(6 * draw.random() ** 2)))
        alarms += monitor.alarmed
    assert alarms < 50


def test_a_stratum_that_goes_bad_is_seen_where_the_whole_is_not():
    """One answer in ten comes from a tier that is wrong half the time; all together they are within the claim."""
    draw, monitor = random.Random(3), StratifiedMonitor(0.1)
    for at in range(1000):
        rare = at % 10 == 0
        monitor.observe(draw.random() < (0.5 if rare else 0.03), "rare" if rare else "common")
    assert monitor.alarmed
    assert not monitor.whole.alarmed
    assert monitor.error < 0.1
    assert monitor.worst == "rare"


def test_drift_everywhere_is_seen_little_later_with_strata():
    """Half of the weight is the whole's: at three times the certified error half of the alarms keep the stated number."""
    waits = []
    for seed in range(100):
        draw, monitor = random.Random(seed), StratifiedMonitor(0.1)
        while not monitor.alarmed:
            monitor.observe(draw.random() < 0.3, draw.choice("abc"))
        waits.append(monitor.alarm_at)
    assert sorted(waits)[50] <= RiskMonitor(0.1).audits_to_alarm(0.3)
