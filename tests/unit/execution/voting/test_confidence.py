"""How much votes say: each measure against its formula."""

from __future__ import annotations

import math
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_composer.errors import ConfigError
from workflow_composer.execution.voting.confidence import confidence, leader, most_likely

MEASURES = ["share", "entropy", "posterior", "logprob"]
votes_of_any_kind = st.lists(st.integers(-1, 5), max_size=20)


@given(st.sampled_from(MEASURES), votes_of_any_kind, st.data())
@settings(deadline=None)
def test_confidence_lies_between_nothing_and_certainty(measure, votes, data):
    """Or is unknown, where there is one vote of one sample, or where weights are missing."""
    weights = data.draw(st.lists(st.floats(1e-9, 1), min_size=len(votes), max_size=len(votes)))
    found = confidence(measure, votes, weights)
    if not any(vote >= 0 for vote in votes):
        assert found == 0.0
    elif len(votes) == 1:
        assert found is None
    else:
        assert 0.0 <= found <= 1.0


@given(st.sampled_from(MEASURES), votes_of_any_kind, st.randoms())
@settings(deadline=None)
def test_confidence_does_not_depend_on_the_order_of_votes(measure, votes, rng):
    """Nor on how groups are numbered."""
    weighted = [(vote, 0.1 + 0.1 * (vote + 1)) for vote in votes]
    shuffled = rng.sample(weighted, len(weighted))
    renamed = {number: place for place, number in enumerate(rng.sample(range(6), 6))}
    one = confidence(measure, [v for v, _ in weighted], [w for _, w in weighted])
    other = confidence(measure, [renamed.get(v, -1) for v, _ in shuffled], [w for _, w in shuffled])
    assert one == pytest.approx(other, abs=1e-9)


@given(st.sampled_from(["share", "entropy", "posterior"]), st.integers(2, 30))
@settings(deadline=None)
def test_agreement_gives_more_confidence_than_any_dissent(measure, n):
    """And one sample that cannot be read takes some of it away, or leaves it where it says nothing."""
    unanimous = confidence(measure, [0] * n)
    assert confidence(measure, [0] * (n - 1) + [1]) < unanimous
    assert confidence(measure, [0] * (n - 1) + [-1]) < unanimous
    assert measure == "posterior" or unanimous == 1.0


def test_an_unknown_measure_is_an_error():
    """The known ones are named."""
    with pytest.raises(ConfigError, match="share"):
        confidence("certainty", [0, 0])


# --------------------------------------------------------------------------------------------------------------- leader


@given(votes_of_any_kind)
@settings(deadline=None)
def test_the_leader_has_the_most_votes_and_came_first_among_equals(votes):
    """What could not be read never leads."""
    counts = Counter(vote for vote in votes if vote >= 0)
    found = leader(votes)
    if not counts:
        assert found is None
        return
    best = max(counts.values())
    assert found == next(vote for vote in votes if counts.get(vote) == best)


@given(votes_of_any_kind, st.data())
@settings(deadline=None)
def test_with_weights_the_heaviest_group_leads(votes, data):
    """Where one weight is unknown, votes are counted."""
    weights = data.draw(st.lists(st.integers(0, 4).map(lambda w: w / 4), min_size=len(votes), max_size=len(votes)))
    total: dict[int, float] = {}
    for vote, weight in zip(votes, weights, strict=True):
        if vote >= 0:
            total[vote] = total.get(vote, 0) + weight
    assert leader(votes, weights) == max(total, key=total.get, default=None)
    if votes:
        assert leader(votes, [None, *weights[1:]]) == leader(votes)


# ------------------------------------------------------------------------------------------------------------- measures


def test_share_counts_unreadable_samples_against_the_leader():
    """Two of four were drawn for it."""
    assert confidence("share", [0, 0, 1, -1]) == 0.5


@given(st.lists(st.integers(-1, 4), min_size=2, max_size=20).filter(lambda votes: max(votes) >= 0))
@settings(deadline=None)
def test_entropy_is_shannons_by_its_largest_value(votes):
    """Every unreadable sample is an answer of its own, by scipy."""
    stats = pytest.importorskip("scipy.stats")
    counts = [*Counter(v for v in votes if v >= 0).values(), *[1] * votes.count(-1)]
    expected = 1 - stats.entropy(counts) / math.log(len(votes))
    assert confidence("entropy", votes) == pytest.approx(expected, abs=1e-12)


def test_logprob_is_the_leaders_part_of_the_weight():
    """Unreadable samples keep theirs from the leader."""
    assert confidence("logprob", [0, 1, 0, -1], [0.5, 0.9, 0.5, 0.1]) == pytest.approx(1.0 / 2.0)


@pytest.mark.parametrize("weights", [None, [0.5, None], [0.5, math.nan], [0.5, -0.1], [0.5, math.inf], [0.0, 0.0]])
def test_logprob_is_unknown_where_a_weight_is(weights):
    """A missing signal is not confidence."""
    assert confidence("logprob", [0, 0], weights) is None


# ------------------------------------------------------------------------------------------------------------ posterior


def exact(a, others):
    """P(the first gamma variable exceeds the others) as a fraction: the integrand is a polynomial in x and exp(-x)."""
    terms = {(0, 0): Fraction(1)}
    for shape in others:
        product: dict[tuple[int, int], Fraction] = dict(terms)
        for (m, d), c in terms.items():
            for i in range(shape):
                product[m + 1, d + i] = product.get((m + 1, d + i), Fraction(0)) - c / math.factorial(i)
        terms = product
    gamma = math.factorial
    return sum(c * Fraction(gamma(a - 1 + d), gamma(a - 1) * (m + 1) ** (a + d)) for (m, d), c in terms.items())


@given(st.integers(1, 24), st.lists(st.integers(1, 9), max_size=4))
@settings(deadline=None)
def test_the_posterior_is_exact_to_nine_digits(a, others):
    """Against the integral in whole numbers."""
    assert most_likely(a, (*others, 1)) == pytest.approx(float(exact(a, (*others, 1))), abs=1e-9)


def test_against_one_rival_it_is_a_beta_tail():
    """Also for thousands of votes, by scipy."""
    stats = pytest.importorskip("scipy.stats")
    for a, b in [(1, 1), (2, 1), (9, 3), (64, 40), (700, 690), (5000, 4950)]:
        assert most_likely(a, (b,)) == pytest.approx(stats.beta.sf(0.5, a, b), abs=1e-9)


def test_the_posterior_holds_for_many_rivals_alike():
    """Forty answers of one vote each: all have the same chance, and the unseen one less."""
    integrate, stats = pytest.importorskip("scipy.integrate"), pytest.importorskip("scipy.stats")

    def integrand(x):
        return stats.gamma.pdf(x, 2) * stats.gamma.cdf(x, 2) ** 39 * stats.gamma.cdf(x, 1)

    expected, _ = integrate.quad(integrand, 0, 60, limit=400, epsabs=1e-13)
    assert confidence("posterior", list(range(40))) == pytest.approx(expected, abs=1e-9)


def test_the_posterior_is_what_drawing_from_it_gives():
    """Dirichlet samples by gamma variables; four standard errors of slack."""
    rng = random.Random(3)
    counts, runs = [4, 2, 1], 20_000
    wins = 0
    for _ in range(runs):
        first, *others = (rng.gammavariate(shape, 1) for shape in [*(count + 1 for count in counts), 1])
        wins += first > max(others)
    expected = confidence("posterior", [0] * 4 + [1] * 2 + [2] + [-1])
    assert wins / runs == pytest.approx(expected, abs=4 * math.sqrt(0.25 / runs))


def test_the_posterior_is_calibrated_under_its_prior():
    """Where shares are drawn from the prior, a leader of posterior about q is the mode about q of the time."""
    rng = random.Random(11)
    expected, hits, runs = 0.0, 0, 3000
    for _ in range(runs):
        shares = [rng.gammavariate(1, 1) for _ in range(3)]
        votes = rng.choices([0, 1, 2], shares, k=8)
        if len(set(votes)) < 2:
            continue  # the prior has one unseen answer, no more
        seen = sorted(set(votes))
        if len(seen) == 3:
            continue
        expected += confidence("posterior", votes)
        hits += shares[leader(votes)] == max(shares)
    assert hits / expected == pytest.approx(1.0, abs=0.05)
