"""The cache and its index, against plain dictionaries."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.errors import ConfigError
from workflow_composer.moe.routing.cache import HashIndex
from workflow_composer.moe.routing.hashing import context_keys, mixed, suffix_keys, weights_key
from workflow_composer.moe.routing.three_paths import RouteCache


class Now:
    """A clock that is set by hand."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def keys(*numbers):
    return np.array(numbers, np.uint64)


KEY = st.integers(0, 40)  # many share their low bits, which are the place in the index


@given(st.lists(st.tuples(st.sampled_from(["find", "put", "later"]), st.lists(KEY, unique=True, max_size=6)), max_size=60))
def test_it_remembers_what_an_ordered_dictionary_would(steps):
    """Five entries, ten seconds, least recently used first out: whatever is asked in whatever order."""
    now, expected = Now(), OrderedDict()
    cache = RouteCache(5, 10.0, now)
    owner = {}
    for action, numbers in steps:
        if action == "later":
            now.time += 4
        elif action == "find":
            slots = cache.find(keys(*(number * 64 for number in numbers)))
            for number, slot in zip(numbers, slots.tolist(), strict=True):
                good = number in expected and expected[number] + 10.0 > now.time
                assert (slot >= 0) == good
                if good:
                    assert owner[slot] == number
                    expected.move_to_end(number)
        else:
            slots = cache.put(keys(*(number * 64 for number in numbers)))
            # What is there already is used again first, then the new ones come, then all are counted as used in order.
            for number in [*(n for n in numbers[-5:] if n in expected), *numbers[-5:]]:
                expected[number] = now.time
                expected.move_to_end(number)
            while len(expected) > 5:
                expected.popitem(last=False)
            for number, slot in zip(numbers, slots.tolist(), strict=True):
                assert (slot >= 0) == (number in numbers[-5:])
                if slot >= 0:
                    owner[slot] = number
        assert len(cache) <= 5


def test_it_takes_the_memory_that_is_stated_and_no_more():
    """24 bytes an entry and 48 to 96 for the index, before anything came and after a hundred times as much as fits."""
    cache = RouteCache(1000)
    before = cache.nbytes
    drawing = np.random.default_rng(0)
    for _ in range(100):
        cache.put(np.unique(drawing.integers(0, 2**63, 1000).astype(np.uint64)))

    assert 72 * 1000 <= before == cache.nbytes <= 120 * 1000
    assert len(cache) == 1000


def test_an_index_finds_what_was_entered_after_many_came_and_went():
    """Gaps are filled again and probing stays short."""
    index, alive = HashIndex(64), {}
    drawing = np.random.default_rng(1)
    for turn in range(300):
        new = [int(key) for key in np.unique(drawing.integers(0, 2**63, 20)) if int(key) not in alive]
        index.add(keys(*new), np.arange(turn * 100, turn * 100 + len(new), dtype=np.int32))
        alive |= {key: turn * 100 + at for at, key in enumerate(new)}
        gone = list(alive)[: max(0, len(alive) - 40)]
        index.remove(keys(*gone))
        for key in gone:
            del alive[key]
        assert index.find(keys(*alive)).tolist() == list(alive.values())
        assert (index.find(keys(*gone)) == -1).all()


@pytest.mark.parametrize("arguments", [(0, 60.0), (10, 0.0)])
def test_a_cache_of_nothing_is_refused(arguments):
    with pytest.raises(ConfigError, match="at least one entry"):
        RouteCache(*arguments)


def test_keys_depend_on_every_token_their_order_and_the_gate():
    """Columns are newest first."""
    one, two, none = (np.array([token]) for token in (1, 2, -1))
    made = [context_keys(columns, gate)[0] for columns in ([one, two], [two, one], [one, none], [one]) for gate in (0, 5)]
    assert len(set(made)) == 8


@pytest.mark.parametrize("gate", [0, 5])
def test_contexts_of_different_lengths_have_different_keys_whatever_token_they_end_in(gate):
    """All contexts of up to six tokens out of four, among them those of zeros only."""
    found = []
    for width in range(1, 7):
        every = np.arange(4**width)
        found.append(context_keys([every // 4**at % 4 for at in range(width)], gate))
    assert len(np.unique(np.concatenate(found))) == sum(4**width for width in range(1, 7))


def test_keys_of_a_million_contexts_differ():
    """And their low bits, which are places in the index, are spread evenly."""
    numbers = np.arange(1_000_000)
    found = context_keys([numbers % 1000, numbers // 1000])
    assert len(np.unique(found)) == len(numbers)
    counts = np.bincount((found & np.uint64(255)).astype(np.int64), minlength=256)
    assert counts.min() > 3600
    assert counts.max() < 4220


def test_the_key_of_a_context_is_the_last_of_its_endings():
    columns = [np.array([3, 4]), np.array([5, 6]), np.array([7, 8])]
    endings = list(suffix_keys(columns, 9))
    assert (endings[-1] == context_keys(columns, 9)).all()
    assert (endings[1] == context_keys(columns[:2], 9)).all()
    assert (mixed(np.array([1], np.uint64)) != 1).all()


def test_weights_have_another_name_where_one_bit_is_another():
    weights = np.ones((4, 4), np.float32)
    name = weights_key(weights)
    weights[2, 2] = np.nextafter(np.float32(1), np.float32(2))
    assert weights_key(weights) != name
