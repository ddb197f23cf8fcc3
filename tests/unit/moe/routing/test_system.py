"""VARSystem: the paths of tokens, their routes, and what makes old routes invalid."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.moe.made_gates import gate, taught, text
from workflow_composer.errors import ConfigError, InputError
from workflow_composer.moe.routing.decisions import lost_weight
from workflow_composer.moe.routing.system import VARSystem
from workflow_composer.moe.routing.tables import RouteTables
from workflow_composer.moe.routing.three_paths import Way

LEARNED = {"learned_share": 1.0}


def test_a_batch_goes_as_its_tokens_would_one_by_one():
    """Paths, experts and weights, whatever the batches' sizes."""
    tokens, hidden = text(600, seed=1)
    single, many = taught(), taught()
    one_by_one = [single.route_token(int(token), state) for token, state in zip(tokens, hidden, strict=True)]
    start, made = 0, []
    for size in (1, 7, 200, 392):
        made.append(many.route_batch(tokens[start : start + size], hidden[start : start + size]))
        start += size

    assert [d.path for d in one_by_one] == [Way(p) for batch in made for p in batch.paths]
    np.testing.assert_array_equal([d.expert_indices for d in one_by_one], np.concatenate([b.expert_indices for b in made]))
    np.testing.assert_allclose(
        [d.expert_weights for d in one_by_one], np.concatenate([b.expert_weights for b in made]), 1e-5
    )
    assert {d.path for d in one_by_one} == set(Way)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=400),
    st.lists(st.integers(1, 90), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.05, 0.15, 0.5]),
)
def test_no_stream_of_tokens_gets_the_gate_asked_more_often_than_the_bound(stream, sizes, share):
    """Unknown tokens, repeated ones, batches of any size: at every prefix."""
    system = taught(learned_share=share)
    asked, start, turn = [], 0, 0
    while start < len(stream):
        part = np.array(stream[start : start + sizes[turn % len(sizes)]])
        made = system.route_batch(part, np.zeros((len(part), 16), np.float32))
        assert np.array_equal(made.asked, np.flatnonzero(made.paths == Way.LEARNED))
        asked += (made.paths == Way.LEARNED).tolist()
        start, turn = start + len(part), turn + 1

    assert all(count <= share * (n + 1) + 1e-9 for n, count in enumerate(np.cumsum(asked), 1))
    assert system.get_performance_stats()["worst_prefix_share"] <= share


def test_the_bound_holds_where_threads_route_texts_of_their_own():
    """And every decision is counted once."""
    system = taught()
    tokens, hidden = text(4000, seed=2)

    def work(part):
        for start in range(part * 1000, part * 1000 + 1000, 100):
            system.route_batch(tokens[None, start : start + 100], hidden[None, start : start + 100])

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = system.get_performance_stats()

    assert found["decisions"] == 4000
    assert found["learned"] <= 0.15 * 4001
    assert found["worst_prefix_share"] <= 0.15


def test_what_the_gate_said_is_said_again_for_the_same_context():
    """The second time from the cache, with the experts and weights of the first."""
    system = VARSystem(gate(), **LEARNED, clock=lambda: 0.0)
    tokens, hidden = text(12, seed=3)
    first = system.route_batch(tokens[None], hidden[None])
    again = system.route_batch(tokens[None], np.zeros_like(hidden)[None])

    assert (first.paths == Way.LEARNED).all()
    assert (again.paths == Way.CACHED).all()
    assert (first.expert_indices == again.expert_indices).all()
    np.testing.assert_array_equal(first.expert_weights, again.expert_weights)
    said = gate().route(hidden, tokens)
    np.testing.assert_array_equal(first.expert_indices, said.experts)
    np.testing.assert_allclose(first.logits, said.logits, rtol=1e-5)


def test_a_cached_decision_is_good_for_a_minute():
    """And not for longer."""
    now = [0.0]
    system = VARSystem(gate(), **LEARNED, clock=lambda: now[0])
    tokens, hidden = np.array([[50, 60]]), np.zeros((1, 2, 16), np.float32)
    paths = []
    for moment in (0.0, 59.9, 60.1):
        now[0] = moment
        paths.append(system.route_batch(tokens, hidden).paths.tolist())
    assert paths == [[Way.LEARNED] * 2, [Way.CACHED] * 2, [Way.LEARNED] * 2]


def test_a_cached_decision_depends_on_four_tokens():
    """The fifth before makes no difference, the fourth does."""
    system = VARSystem(gate(), **LEARNED)
    hidden = np.zeros((1, 5, 16), np.float32)
    system.route_batch(np.array([[50, 51, 52, 53, 54]]), hidden)
    far = system.route_batch(np.array([[99, 51, 52, 53, 54]]), hidden)
    near = system.route_batch(np.array([[50, 99, 52, 53, 54]]), hidden)
    assert far.paths[-1] == Way.CACHED
    assert near.paths[-1] == Way.LEARNED


def test_fast_routes_are_those_of_common_tokens_with_a_confident_route():
    system = taught()
    assert system.fast_routes
    for token, decision in system.fast_routes.items():
        assert system.is_common_token(token)
        assert decision.confidence >= 0.8
        assert decision.path is Way.FAST
        assert decision.full_logits is None
    rare = next(token for token, found in system.token_stats.items() if found.frequency <= 50 and token >= 10)
    assert not system.is_common_token(rare)
    assert system.fast_path_router(rare) is None
    assert rare not in system.fast_routes
    with pytest.raises(KeyError):
        system.fast_routes[rare]


@pytest.mark.parametrize(
    "stricter", [{"frequency_threshold": 10_000}, {"entropy_threshold": 0.0}, {"confidence_threshold": 1.1}]
)
def test_each_fixed_threshold_takes_fast_routes_away(stricter):
    """Special tokens remain, but for the threshold on confidence."""
    left = set(taught(**stricter).fast_routes)
    assert left < set(taught().fast_routes)
    assert all(token < 10 for token in left)


def test_a_margin_of_quality_chooses_the_fast_routes_instead():
    """More of them where it is larger; and what is lost on other text is about what was allowed."""
    tokens, hidden = text(10_000, seed=4)
    said = gate().route(hidden, tokens)
    shares = []
    for margin in (0.002, 0.02, 0.1):
        system = taught(quality_margin=margin)
        made = system.route_batch(tokens, hidden)
        lost = lost_weight(made.expert_indices, said.experts, said.weights) * (made.paths == Way.FAST)
        assert lost.mean() <= margin + 0.01
        shares.append(system.get_performance_stats()["fast_share"])
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_stored_weights_are_better_than_equal_ones():
    """That is why each route has its own."""
    system = taught()
    tokens, hidden = text(5000, seed=5)
    made, said = system.route_batch(tokens, hidden), gate().route(hidden, tokens)
    right = (made.expert_indices == said.experts).all(axis=1) & (made.paths == Way.FAST)
    mine = np.abs(made.expert_weights[right] - said.weights[right]).mean()
    equal = np.abs(0.5 - said.weights[right]).mean()
    assert mine < equal / 3


# --------------------------------------------------------------------------------------------------- a changed gate


def test_a_gate_that_has_changed_meets_no_old_route():
    """Neither table nor cache; and what is forced is not from the old table either."""
    learned = gate()
    system = taught(learned, **LEARNED)
    tokens, hidden = text(300, seed=6)
    system.route_batch(tokens[None], hidden[None])
    learned.weight += 1.0
    made = system.route_batch(tokens[None], hidden[None])

    assert Way.FAST not in made.paths
    # What is cached now was asked of the new gate in this very batch.
    said = learned.route(hidden, tokens)
    assert (made.expert_indices[made.paths == Way.LEARNED] == said.experts[made.paths == Way.LEARNED]).all()
    assert made.paths[0] == Way.LEARNED
    assert system.fast_path_router(0) is None


def test_a_decision_that_was_cached_for_another_gate_is_asked_about_again():
    """Without tables, so that nothing else is in the way."""
    learned = gate()
    system = VARSystem(learned, **LEARNED, clock=lambda: 0.0)
    tokens, hidden = text(40, seed=6)
    system.route_batch(tokens[None], hidden[None])
    assert (system.route_batch(tokens[None], hidden[None]).paths == Way.CACHED).all()
    learned.weight[0, 0] += 1e-3
    assert (system.route_batch(tokens[None], hidden[None]).paths == Way.LEARNED).all()


def test_the_context_hash_is_another_for_another_gate():
    learned = gate()
    system = VARSystem(learned)
    before = system.compute_context_hash([1, 2, 3, 4])
    assert before == system.compute_context_hash([9, 1, 2, 3, 4])
    learned.bias[0, 0] += 1e-3
    assert system.compute_context_hash([1, 2, 3, 4]) != before


def test_tables_of_another_gate_or_another_shape_are_refused():
    system = VARSystem(gate())
    routes = np.tile([0, 1], (10, 1))
    with pytest.raises(InputError, match="another gate"):
        system.use_tables(RouteTables.fit(np.zeros(10, np.int64), routes, num_experts=8, gate=5), 0.5)
    with pytest.raises(InputError, match="number of experts"):
        system.use_tables(RouteTables.fit(np.zeros(10, np.int64), routes[:, :1], num_experts=8), 0.5)


# ------------------------------------------------------------------------------------------------------ the rest


def test_without_tables_what_is_forced_is_what_the_gate_chose_most():
    system = VARSystem(gate(), learned_share=0.5)
    tokens, hidden = np.full(400, 33), np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    made = system.route_batch(tokens + np.arange(400) % 7, hidden)
    assert Way.FORCED in made.paths
    assert made.expert_indices.max() < 8


def test_counters_begin_anew_and_the_cache_stays():
    system = taught(**LEARNED)
    tokens, hidden = text(100, seed=7)
    system.route_batch(tokens, hidden)
    assert system.get_performance_stats()["decisions"] == 100
    entries = len(system.cache)
    system.reset_performance_counters()
    found = system.get_performance_stats()
    assert (found["decisions"], found["learned"], found["cache_entries"]) == (0, 0, entries)
    system.new_text(forget=True)
    assert len(system.cache) == 0


def test_memory_does_not_grow_with_the_contexts_that_come():
    """At most 1,000 entries, of a size that is stated."""
    system = VARSystem(gate(), **LEARNED)
    before = system.nbytes
    drawing = np.random.default_rng(0)
    system.route_batch(drawing.integers(0, 10**6, 20_000), np.zeros((20_000, 16), np.float32))
    assert system.nbytes == before
    assert len(system.cache) == 1000
    assert before / 1000 < 140


def test_texts_side_by_side_are_texts_of_their_own():
    """[b, t] routes as b systems would that begin with each; the stream's own context is left alone."""
    tokens, hidden = text(60, seed=8)
    system = taught(**LEARNED)
    both = system.route_batch(tokens.reshape(2, 30), hidden.reshape(2, 30, 16))
    rows = []
    for row in range(2):
        alone = taught(**LEARNED)
        rows.append(alone.route_batch(tokens[None, row * 30 : row * 30 + 30], hidden[None, row * 30 : row * 30 + 30]))
    np.testing.assert_array_equal(both.expert_indices, np.concatenate([made.expert_indices for made in rows]))
    assert len(both) == 60


def test_learned_and_fast_routers_can_be_asked_alone():
    """Outside of all counting."""
    system = taught()
    tokens, hidden = text(1, seed=9)
    said = system.learned_router(int(tokens[0]), hidden[0])
    assert said.full_logits.shape == (8,)
    assert said.context_hash == system.compute_context_hash(tokens.tolist())
    fast = next(iter(system.fast_routes))
    assert system.fast_path_router(fast).expert_indices.tolist() == system.fast_routes[fast].expert_indices.tolist()
    assert system.get_performance_stats()["decisions"] == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="differ in length: 3 and 2"):
        VARSystem(gate()).route_batch(np.array([1, 2, 3]), np.zeros((2, 16), np.float32))
    with pytest.raises(ConfigError, match="context_window must be at least 1"):
        VARSystem(gate(), context_window=0)


def test_an_empty_batch_is_a_batch():
    made = taught().route_batch(np.zeros(0, np.int64), np.zeros((0, 16), np.float32))
    assert len(made) == 0
    assert made.logits is None
