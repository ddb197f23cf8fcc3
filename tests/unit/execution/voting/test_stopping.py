"""When a vote may end: each rule against its formula, and what it promises against simulation."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_composer.errors import ConfigError
from workflow_composer.execution.voting import stopping
from workflow_composer.execution.voting.confidence import leader
from workflow_composer.execution.voting.stopping import decided, evidence, stopping_rule

NAMES = ["decided", "beta", "window", "sprt", "martingale", "fixed"]
WITH_LEVEL = ["beta", "window", "sprt", "martingale"]


def numbered(answers):
    """Votes for answers in the order in which they came: -1 stays, others are numbered by first appearance."""
    numbers: dict[int, int] = {}
    return [-1 if answer == -1 else numbers.setdefault(answer, len(numbers)) for answer in answers]


votes_of_any_kind = st.lists(st.integers(-1, 4), max_size=12).map(numbered)


# ------------------------------------------------------------------------------------------------------- what all share


@given(st.sampled_from(NAMES), votes_of_any_kind, st.integers(0, 12))
@settings(deadline=None)
def test_every_rule_stops_at_the_limit(name, votes, spare):
    """And asked again with the same votes it says the same."""
    rule = stopping_rule(name)
    assert rule.stop(votes, len(votes))
    assert rule.stop(votes, max(0, len(votes) - spare))
    assert rule.stop(votes, len(votes) + spare) == rule.stop(votes, len(votes) + spare)


@given(st.sampled_from([name for name in NAMES if name != "fixed"]), votes_of_any_kind, st.integers(0, 12))
@settings(deadline=None)
def test_every_rule_but_fixed_stops_when_the_vote_is_decided(name, votes, spare):
    """No sample is drawn that cannot matter."""
    limit = len(votes) + spare
    assert stopping_rule(name).stop(votes, limit) or not decided(votes, limit)


@given(votes_of_any_kind, st.integers(1, 12))
@settings(deadline=None)
def test_fixed_never_stops_early(votes, spare):
    """Not even where all agree."""
    assert not stopping_rule("fixed").stop(votes, len(votes) + spare)
    assert not stopping_rule("fixed").certifies(votes)


@given(st.sampled_from(NAMES), st.integers(0, 30))
@settings(deadline=None)
def test_samples_that_cannot_be_read_never_certify_anything(name, count):
    """A vote for nothing is no evidence, however many there are."""
    rule = stopping_rule(name)
    assert not rule.certifies([-1] * count)
    assert not rule.stop([-1] * count, count + 1)


@pytest.mark.parametrize("name", ["beta", "sprt", "martingale"])
@given(votes=votes_of_any_kind, places=st.lists(st.integers(0, 100), max_size=5))
@settings(deadline=None)
def test_what_cannot_be_read_changes_no_certificate(name, votes, places):
    """Wherever it stands among the votes."""
    spread = list(votes)
    for place in places:
        spread.insert(place % (len(spread) + 1), -1)
    assert stopping_rule(name).certifies(spread) == stopping_rule(name).certifies([v for v in votes if v != -1])


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("majority", None),
        ("", None),
        ("beta", 0.5),
        ("beta", 1.0),
        ("beta", float("nan")),
        ("window", 1),
        ("window", 2.5),
        ("window", float("inf")),
        ("sprt", 0.5),
        ("sprt", 0.0),
        ("martingale", 0.0),
        ("martingale", 1.0),
        ("decided", 0.9),
        ("fixed", 8),
    ],
)
def test_what_makes_no_rule_is_an_error(name, level):
    """An unknown name, a level out of range, a level where there is none."""
    with pytest.raises(ConfigError):
        stopping_rule(name, level)


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_says_what_kind_of_promise_it_makes(name):
    """In the first words of its docstring."""
    first = type(stopping_rule(name)).__doc__.split()[:2]
    assert " ".join(first).rstrip(",:") in {"Certainty about", "A posterior", "A heuristic", "A guarantee", "No early"}


# -------------------------------------------------------------------------------------------------------------- decided


@given(st.lists(st.integers(-1, 3), max_size=5).map(numbered), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_decided_means_that_no_continuation_has_another_winner(votes, spare):
    """Checked against every continuation, ties included; and as soon as it is so, it says so."""
    first = leader(votes)
    continuations = itertools.product([-1, *range(max(votes, default=-1) + 4)], repeat=spare)
    winners = {leader(votes + list(more)) for more in continuations}
    assert decided(votes, len(votes) + spare) == (winners == {first} and (first is not None or spare == 0))


# ----------------------------------------------------------------------------------------------------------------- beta


@given(a=st.integers(0, 60), b=st.integers(0, 60))
@settings(deadline=None)
def test_beta_is_the_published_formula(a, b):
    """``beta.sf(0.5, a + 1, b + 1)`` of the two leading counts, by scipy."""
    stats = pytest.importorskip("scipy.stats")
    first, second = max(a, b), min(a, b)
    expected = stats.beta.sf(0.5, first + 1, second + 1)
    for level in (0.8, 0.95, 0.99):
        if abs(expected - level) > 1e-12:
            assert stopping_rule("beta", level).certifies([0] * a + [1] * b) == (expected >= level)


def test_beta_is_exact_at_the_level_itself():
    """Four agreeing votes give 1 - 2**-5 exactly."""
    assert stopping_rule("beta", 31 / 32).certifies([0] * 4)
    assert not stopping_rule("beta", 31 / 32 + 1e-15).certifies([0] * 4)


def test_beta_looks_at_the_two_leading_answers_only():
    """As published: votes for others are left out."""
    assert stopping_rule("beta").certifies([0] * 6 + [1] + [2, 3, 4])


# --------------------------------------------------------------------------------------------------------------- window


@given(st.lists(st.integers(-1, 1), max_size=14).map(numbered), st.integers(2, 4))
@settings(deadline=None)
def test_a_window_certifies_when_all_of_it_agrees(votes, size):
    """Windows do not overlap, and one that is not full yet says nothing."""
    whole = [votes[i : i + size] for i in range(0, len(votes), size) if i + size <= len(votes)]
    expected = any(len(set(window)) == 1 and window[0] != -1 for window in whole)
    assert stopping_rule("window", size).certifies(votes) == expected


# ----------------------------------------------------------------------------------------------------------------- sprt


def test_sprt_accepts_either_hypothesis():
    """Eight to nothing is clear; eleven to eleven will not become so."""
    rule = stopping_rule("sprt")
    assert not rule.certifies([0] * 7)
    assert rule.certifies([0] * 8)
    assert rule.stop([0] * 8, 100)
    close = [0, 1] * 11
    assert rule.stop(close, 100)
    assert not rule.certifies(close)
    assert not rule.stop(close[:-2], 100)


def test_sprt_keeps_its_errors_where_the_pair_is_named_beforehand():
    """Wald's bounds, by simulation: how often answer 0 is accepted against answer 1, under either hypothesis."""
    rng = random.Random(7)
    rule = stopping_rule("sprt", 0.1)

    def accepts_alternative(share):
        votes = []
        while True:
            votes.append(0 if rng.random() < share else 1)
            for_first = votes.count(0) >= votes.count(1)
            if rule.certifies(numbered(votes)) and for_first:
                return True
            if rule.stop(numbered(votes), 10_000):
                return False

    runs = 300
    assert sum(not accepts_alternative(0.75) for _ in range(runs)) / runs < 0.1 + 0.05
    assert sum(accepts_alternative(0.5) for _ in range(runs)) / runs < 0.1 + 0.05


# ----------------------------------------------------------------------------------------------------------- martingale


@given(st.integers(0, 40), st.integers(0, 40))
@settings(deadline=None)
def test_the_evidence_is_a_martingale_that_starts_at_one(a, b):
    """Under an even race the next vote leaves it as it is on average, exactly; the theorem needs no more."""
    assert evidence(0, 0) == 1
    assert (evidence(a + 1, b) + evidence(a, b + 1)) / 2 == evidence(a, b)


@given(st.integers(0, 40), st.integers(0, 40))
@settings(deadline=None)
def test_the_evidence_falls_on_average_where_the_rival_is_stronger(a, b):
    """A vote for the rival never helps, so the null hypothesis may say "at most one half"."""
    assert evidence(a, b + 1) < evidence(a, b) < evidence(a + 1, b)


def test_the_evidence_is_the_mixture_that_its_docstring_states():
    """By numerical integration over the bets."""
    integrate = pytest.importorskip("scipy.integrate")
    for a, b in [(0, 0), (6, 0), (3, 2), (20, 11), (0, 7)]:
        value, _ = integrate.quad(lambda t, a=a, b=b: (2 * t) ** a * (2 - 2 * t) ** b * t**4 * 160 / 31, 0.5, 1)
        assert float(evidence(a, b)) == pytest.approx(value, rel=1e-9)


def test_the_parts_of_the_error_add_up_to_the_level():
    """Level 2/3, 2/9, 2/27, … for the answers in the order of their appearance; a later answer needs more."""
    rule = stopping_rule("martingale", 0.05)
    for place in range(4):
        needed = next(
            n for n in range(1, 40) if evidence(n, place and 1) >= Fraction(3 ** (place + 1)) / (2 * Fraction(0.05))
        )
        others = list(range(place))
        votes = [*others, place, *others[:1], *[place] * needed]
        assert rule.certifies(votes)
        assert not rule.certifies(votes[:-1])
    assert sum(Fraction(2, 3 ** (place + 1)) for place in range(50)) < 1


def test_an_even_race_between_two_is_certified_at_most_as_often_as_stated():
    """Exactly: the probability of ever being certified within 150 votes, over all sequences, looked at after every vote."""
    level = 0.05
    needs = [Fraction(3 ** (place + 1)) / (2 * Fraction(level)) for place in range(2)]
    states: dict[tuple, float] = {(1, None): 1.0}  # (votes of 0, votes of 0 and of 1 behind the first of 1)
    certified = 0.0
    for _ in range(150):
        following: dict[tuple, float] = {}
        for (zero, one), weight in states.items():
            for state in ((zero + 1, one and (one[0] + 1, one[1])), (zero, (0, 0) if one is None else (one[0], one[1] + 1))):
                following[state] = following.get(state, 0.0) + weight / 2
        states = {}
        for (zero, one), weight in following.items():
            votes_of_one = 0 if one is None else one[1] + 1
            if zero >= votes_of_one:
                wins = evidence(zero - 1, votes_of_one) >= needs[0]
            else:
                wins = evidence(one[1], one[0]) >= needs[1]
            if wins:
                certified += weight
            else:
                states[zero, one] = weight
    assert 0.2 * level < certified <= level


WORLDS = {
    "two, tied": ([0.5, 0.5], set()),
    "three, tied": ([1 / 3, 1 / 3, 1 / 3], set()),
    "two tied at the top of many": ([0.3, 0.3, *[0.04] * 10], set()),
    "two tied, half unreadable": ([0.25, 0.25], set()),
    "nearly tied": ([0.51, 0.49], {0}),
    "the mode is rarely seen first": ([0.2, *[0.1] * 8], {0}),
    "many alike": ([0.02] * 50, set()),
    "clear": ([0.8, 0.15, 0.05], {0}),
}


@pytest.mark.parametrize("world", WORLDS)
def test_the_guarantee_holds_however_one_stops(world):
    """Looked at after every vote, and stopped by the first certificate: wrong at most ``level`` of the time.

    In a tie no answer is the one mode, and every certificate is wrong. 500 votes of 40; four standard errors of slack.
    """
    shares, modes = WORLDS[world]
    level, runs, limit = 0.2, 500, 40
    rng = random.Random(hash(tuple(shares)))
    rule = stopping_rule("martingale", level)
    wrong = right = 0
    for _ in range(runs):
        drawn = rng.choices([*range(len(shares)), -1], [*shares, max(0.0, 1 - sum(shares))], k=limit)
        votes = numbered(drawn)
        for n in range(1, limit + 1):
            if rule.certifies(votes[:n]):
                answer = drawn[votes.index(leader(votes[:n]))]
                wrong += answer not in modes
                right += answer in modes
                break
    assert wrong / runs <= level + 4 * (level * (1 - level) / runs) ** 0.5
    if world == "clear":
        assert right / runs > 0.95


def test_the_certificate_does_come():
    """Seven agreeing votes at the usual level; the first one only names the answer."""
    rule = stopping_rule("martingale")
    assert rule.certifies([0] * 7)
    assert not rule.certifies([0] * 6)
    assert stopping.Martingale().level == 0.05
