"""The bound on asking, attacked."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workflow_composer.errors import ConfigError
from workflow_composer.moe.routing.three_paths import ExpensiveShare, ThreePaths, Way

SHARES = st.sampled_from([0.0, 0.01, 0.1, 0.15, 1 / 3, 0.5, 0.999999999, 1.0])


def holds(granted, share, extra=0):
    """Whether granted <= share * (n + 1) + extra at every prefix; ``granted`` is one truth per decision."""
    counts = np.cumsum(granted)
    limits = [share * (n + 1) + extra for n in range(1, len(counts) + 1)]
    return all(count <= limit + 1e-9 for count, limit in zip(counts.tolist(), limits, strict=True))


@given(st.lists(st.booleans(), max_size=300), SHARES, st.integers(0, 5))
def test_the_bound_holds_at_every_prefix_whoever_wants_when(wants, share, extra):
    """No order of wishes breaks it."""
    budget = ExpensiveShare(share, extra=extra)
    granted = [budget.take(wants=want) for want in wants]

    assert holds(granted, share, extra)
    assert all(want or not given_ for want, given_ in zip(wants, granted, strict=True))


RUNS = st.lists(st.tuples(st.booleans(), st.integers(1, 25)), max_size=8).map(
    lambda runs: [want for want, length in runs for _ in range(length)]
)
"""Wishes in long runs: what is refused must not be made up for later."""


@given(st.lists(RUNS | st.lists(st.booleans(), max_size=60), max_size=12), SHARES, st.integers(0, 3))
@example([[True] * 6 + [False] * 10 + [True] * 6], 0.5, 0)
def test_batches_are_granted_what_one_by_one_would_have_been(batches, share, extra):
    """Whatever the sizes of the batches; the figures that are kept agree as well."""
    single, many = ExpensiveShare(share, extra=extra), ExpensiveShare(share, extra=extra)
    for batch in batches:
        wanting = np.flatnonzero(np.array(batch, np.bool_))
        one_by_one = [single.take(wants=want) for want in batch]
        together = many.grant(len(batch), wanting)

        assert together.tolist() == [one_by_one[at] for at in wanting]
        assert (many.decisions, many.granted) == (single.decisions, single.granted)
        assert many.worst == pytest.approx(single.worst)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=200),
    st.lists(st.integers(1, 50), min_size=1, max_size=10),
    SHARES,
)
def test_three_paths_decide_in_batches_as_one_by_one(stream, sizes, share):
    """Contexts that come again, tables that know some, and a budget that runs out; at every prefix the bound."""
    keys = np.array([(key + 1) * 0x9E3779B97F4A7C15 % 2**64 for key, _ in stream], np.uint64)
    fast = np.array([known for _, known in stream], np.bool_)
    found = [paths_of(keys, fast, share, steps) for steps in ([1], sizes)]

    assert found[0] == found[1]
    assert holds([path == Way.LEARNED for path in found[1]], share)


def paths_of(keys, fast, share, sizes):
    """The path of each decision where the batches have these sizes, over and over."""
    paths = ThreePaths(share=share)
    found, start, turn = [], 0, 0
    while start < len(keys):
        end = start + sizes[turn % len(sizes)]
        unknown = np.flatnonzero(~fast[start:end])
        choice = paths.choose(len(fast[start:end]), unknown, keys[start:end][unknown])
        paths.store(choice.asked)
        found += choice.paths.tolist()
        start, turn = end, turn + 1
    assert sum(paths.counts()[path.name.lower()] for path in Way) == len(keys)
    return found


def test_a_spent_budget_is_said_and_counted():
    """The first six of a stream that nobody knows: the budget for one comes with the sixth."""
    paths = ThreePaths(share=0.15)
    choice = paths.choose(7, np.arange(7), np.arange(7, dtype=np.uint64))

    assert [Way(path) for path in choice.paths] == [Way.FORCED] * 5 + [Way.LEARNED, Way.FORCED]
    assert paths.counts()["forced"] == 6
    assert paths.counts()["worst_prefix_share"] == pytest.approx(1 / 7)


def test_the_bound_holds_where_threads_ask_at_once():
    """Every prefix of the order in which decisions were counted is one that a lock let through."""
    budget = ExpensiveShare(0.15)
    paths = ThreePaths(share=0.15)

    def work(seed):
        drawing = np.random.default_rng(seed)
        for _ in range(100):
            size = int(drawing.integers(1, 40))
            budget.grant(size, np.flatnonzero(drawing.random(size) < 0.5))
            assert budget.granted <= 0.15 * (budget.decisions + 40 * 8)
            paths.choose(size, np.arange(size), drawing.integers(0, 2**63, size).astype(np.uint64))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert budget.granted == budget.allowed(budget.decisions)
    for used in (budget, paths.budget):
        assert used.worst <= 0.15
        assert used.granted <= 0.15 * (used.decisions + 1)


def test_a_share_is_meant_exactly_as_it_is_written():
    """0.29 * 100 is less than 29 in binary arithmetic, and 0.29 times 100 is 29."""
    budget = ExpensiveShare(0.29)
    assert budget.allowed(99) == 29
    assert ExpensiveShare(0.1).allowed(29) == 3


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_beyond_all_is_refused(share):
    with pytest.raises(ConfigError, match="from 0 to 1"):
        ExpensiveShare(share)
