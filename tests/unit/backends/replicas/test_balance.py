"""Which server gets a request: the same for the same beginning, within a bound on the load."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.backends.replicas.replica_set import (
    BEGINNING,
    CONTEXT,
    FACTOR,
    SLACK,
    WORTH,
    bound,
    choose,
    preference,
    prefix_key,
)

SERVERS = st.lists(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=12, unique=True)
KEYS = st.binary(min_size=16, max_size=16)
LOADS = st.dictionaries(st.text("abcdef", min_size=1, max_size=6), st.floats(0, 500), min_size=1, max_size=12)
LONG = "A line of the house's conventions for file formats and tools.\n" * 40


def user(text):
    """A question."""
    return {"role": "user", "content": text}


def system(text):
    """An instruction."""
    return {"role": "system", "content": text}


# --------------------------------------------------------------------------------------------------------- the order


@given(KEYS, SERVERS)
def test_every_client_ranks_the_servers_alike(key, servers):
    """Whatever the order in which they are listed."""
    assert preference(key, servers) == preference(key, sorted(servers))


@given(KEYS, SERVERS, st.data())
def test_a_server_that_goes_moves_no_other(key, servers, data):
    """The rest keeps its order, so only its own beginnings go elsewhere."""
    gone = data.draw(st.sampled_from(servers))
    assert preference(key, [s for s in servers if s != gone]) == [s for s in preference(key, servers) if s != gone]


def test_a_new_server_takes_its_share_and_nothing_moves_between_the_others():
    """Of 3,000 beginnings on three servers a fourth takes about a quarter."""
    keys = [random.Random(n).randbytes(16) for n in range(3000)]
    before = {key: preference(key, "abc")[0] for key in keys}
    after = {key: preference(key, "abcd")[0] for key in keys}
    moved = [key for key in keys if before[key] != after[key]]
    assert {after[key] for key in moved} == {"d"}
    assert 0.20 < len(moved) / len(keys) < 0.30
    assert max(Counter(after.values()).values()) / min(Counter(after.values()).values()) < 1.25


# ---------------------------------------------------------------------------------------------------------- the bound


@given(KEYS, LOADS)
def test_no_server_gets_a_call_beyond_the_bound(key, loads):
    """Its load is at most the slack, or the factor times the mean."""
    chosen = choose(key, loads)
    assert loads[chosen] <= max(SLACK, FACTOR * sum(loads.values()) / len(loads)) + 1e-9


@given(KEYS, LOADS)
def test_the_first_in_order_within_the_bound_is_chosen(key, loads):
    """Those before it have too much to do."""
    chosen, limit = choose(key, loads), bound(loads.values())
    order = preference(key, loads)
    assert all(loads[server] > limit for server in order[: order.index(chosen)])


@given(LOADS)
def test_without_a_key_the_least_loaded_is_chosen(loads):
    """Nothing speaks for any other."""
    assert loads[choose(None, loads)] == min(loads.values())


def test_servers_with_nothing_to_do_share_requests_without_a_key():
    """Equal loads are no reason to ask always the same."""
    assert {choose(None, {"a": 0.0, "b": 0.0}) for _ in range(60)} == {"a", "b"}


# ------------------------------------------------------------------------------------------------------------ the key


def test_questions_about_one_context_have_one_key():
    """A system message that is long enough decides alone."""
    assert prefix_key([system(LONG), user("Why?")]) == prefix_key([system(LONG), user("When?")]) is not None


def test_another_context_has_another_key():
    """Also where it begins alike, up to 4,096 characters."""
    assert prefix_key([system(LONG + "BAM"), user("x")]) != prefix_key([system(LONG + "VCF"), user("x")])
    assert len(LONG) < CONTEXT


def test_the_turns_of_a_conversation_keep_their_key():
    """What is added behind the first question changes nothing."""
    first = [system("Be brief."), user(LONG)]
    assert prefix_key(first) == prefix_key([*first, {"role": "assistant", "content": "Yes."}, user("Why?")])


def test_questions_behind_one_quoted_text_have_one_key():
    """Its beginning is what they share."""
    assert len(LONG) > BEGINNING
    assert prefix_key([user(LONG + "Why?")]) == prefix_key([user(LONG + "When?")])


def test_a_context_in_parts_is_read_like_one_in_a_string():
    """Content may be a list of parts."""
    parts = {"role": "system", "content": [{"type": "text", "text": LONG}]}
    assert prefix_key([parts, user("x")]) == prefix_key([system(LONG), user("x")])


@pytest.mark.parametrize("messages", [[], [user("Why?")], [system("Be brief."), user("Why?")], [user("x" * (WORTH - 2))]])
def test_a_short_beginning_has_no_key(messages):
    """What it would save is not worth an uneven load."""
    assert prefix_key(messages) is None


@given(st.lists(st.dictionaries(st.sampled_from(["role", "content", "x"]), st.one_of(st.none(), st.text(), st.integers()))))
def test_whatever_a_message_is_a_key_can_be_made_of_it(messages):
    """What is wrong with it is for the server to say."""
    key = prefix_key(messages)
    assert key is None or len(key) == 16
