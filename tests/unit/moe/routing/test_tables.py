"""Tables of routes: what they learn, how they back off, and what a file of them must be."""

from __future__ import annotations

import numpy as np
import pytest

from workflow_composer.errors import InputError
from workflow_composer.moe.routing.decisions import (
    Eligibility,
    TokenStats,
    entropies,
    learn_threshold,
    lost_weight,
    stats_of,
)
from workflow_composer.moe.routing.hashing import columns_of, suffix_keys
from workflow_composer.moe.routing.tables import NO_TOKEN, RouteTables


def fitted(context=2, **settings):
    """Tokens 0 and 1 go where they always go; 2 goes to (0, 1) after 0 and to (2, 3) after 1."""
    drawing = np.random.default_rng(0)
    tokens = drawing.integers(0, 3, 3000)
    before = np.r_[NO_TOKEN, tokens[:-1]]
    by_token = np.array([[4, 5], [6, 7], [0, 2]])[tokens]
    after = np.where((before == 0)[:, None], [0, 1], [2, 3])
    experts = np.where((tokens == 2)[:, None], after, by_token)
    weights = np.tile([0.8, 0.2], (3000, 1))
    return RouteTables.fit(tokens, experts, weights, num_experts=8, vocabulary=10, context=context, **settings)


def test_a_route_is_that_of_the_longest_context_that_is_known():
    """After 0, after 1, at a beginning, and for a token that never occurred."""
    experts, weights, confidence = fitted().predict(np.array([[0, 2], [1, 2], [NO_TOKEN, 2], [2, 0], [0, 9], [0, 99]]))

    assert [set(row) for row in experts[:2].tolist()] == [{0, 1}, {2, 3}]
    assert set(experts[3].tolist()) == {4, 5}
    assert (confidence[:2] > 0.95).all()
    assert confidence[3] > 0.95
    assert (confidence[[2, 4, 5]] < 0.7).all()
    assert (experts[4] == experts[5]).all()
    np.testing.assert_allclose(weights[0], [0.8, 0.2], atol=0.05)


def test_without_longer_contexts_it_is_the_token_that_counts():
    """And the confidence says how much that is worth."""
    experts, _, confidence = fitted(context=1).predict(np.array([[0, 2], [1, 2]]))
    assert (experts[0] == experts[1]).all()
    assert (confidence < 0.7).all()


def test_rows_are_those_that_a_plain_dictionary_of_contexts_finds():
    """A hundred thousand rows of up to ten tokens, token 0 often among them; other text than was learned from, too."""
    drawing = np.random.default_rng(1)
    text = np.minimum(drawing.geometric(0.3, 300_000) - 1, 40)
    tables = RouteTables.fit(text, drawing.integers(0, 64, (len(text), 1)), num_experts=64, context=10, min_count=2)
    first = tables.vocabulary + 1
    there = dict(zip(zip(tables.orders.tolist(), tables.keys.tolist(), strict=True), range(first, len(tables)), strict=True))
    assert len(there) == len(tables) - first
    assert len(there) > 100_000
    named: dict[tuple[int, ...], int] = {}
    for order, keys in enumerate(suffix_keys(columns_of(text, 10)), 1):
        ends = [text[order - 1 - back : len(text) - back].tolist() for back in range(order)]
        for context, key in zip(zip(*ends, strict=True), keys[order - 1 :].tolist(), strict=True):
            if order > 1 and (order, key) in there:
                named[context] = there[order, key]
    assert sorted(named.values()) == sorted(there.values())

    other = np.minimum(drawing.geometric(0.3, 20_000) - 1, 45)
    for asked in (text[:20_000], other):
        columns = columns_of(asked, 10)
        found = tables.rows(columns)
        for at, context in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            known = (named[context[:order]] for order in range(10, 1, -1) if context[:order] in named)
            assert found[at] == next(known, min(context[0], tables.vocabulary))


def test_confidence_is_the_share_of_the_gates_choice_that_is_met():
    """On text that was not learned from."""
    drawing = np.random.default_rng(3)
    tokens = drawing.integers(0, 20, 20_000)
    noise = drawing.random(20_000) < (tokens % 5) * 0.2
    experts = np.stack([np.where(noise, drawing.integers(0, 4, 20_000), tokens % 4), 4 + tokens % 3], axis=1)
    tables = RouteTables.fit(tokens[:10_000], experts[:10_000], num_experts=8)
    mine, _, confidence = tables.predict(tokens[10_000:, None])
    met = (mine[:, :, None] == experts[10_000:, None, :]).any(axis=1).mean(axis=1)

    for noisy in range(5):
        some = tokens[10_000:] % 5 == noisy
        assert met[some].mean() == pytest.approx(confidence[some].mean(), abs=0.03)


def test_weights_keep_the_scale_of_the_gate():
    """A gate whose chosen experts have less than all of the weight (OLMoE's) is not made louder."""
    tokens = np.zeros(100, np.int64)
    tables = RouteTables.fit(tokens, np.tile([1, 2], (100, 1)), np.tile([0.3, 0.1], (100, 1)), num_experts=4)
    np.testing.assert_allclose(tables.predict(np.array([[0]]))[1], [[0.3, 0.1]], atol=0.02)


def test_texts_do_not_run_into_each_other():
    """No context reaches over an edge."""
    tokens = np.tile([0, 2, 1, 2], 200)
    experts = np.where((tokens == 2)[:, None], [0, 1], [2, 3])
    alone = RouteTables.fit(tokens, experts, num_experts=4, sequences=np.arange(800))
    assert alone.width == 1
    assert len(alone) == 4


def test_contexts_are_bounded_and_rare_ones_are_left_out():
    """Memory has a limit that is set."""
    whole = len(fitted())
    assert whole > 11  # ten tokens, and the row of all others
    assert 11 <= len(fitted(max_contexts=1)) <= 12 < whole
    assert len(fitted(min_count=5000)) == 11
    assert fitted().nbytes < 100 * whole


def test_tables_are_the_same_after_a_file(tmp_path):
    tables = fitted(gate=77)
    tables.save(tmp_path / "tables.npz")
    again = RouteTables.load(tmp_path / "tables.npz", gate=77)

    assert again.digest == tables.digest
    contexts = np.array([[0, 2], [1, 2], [2, 1]])
    for mine, theirs in zip(tables.predict(contexts), again.predict(contexts), strict=True):
        assert (mine == theirs).all()


def test_the_tables_of_another_gate_are_refused(tmp_path):
    fitted(gate=77).save(tmp_path / "tables.npz")
    with pytest.raises(InputError, match="gate 000000000000004d, not of 000000000000004e"):
        RouteTables.load(tmp_path / "tables.npz", gate=78)


def test_a_file_that_is_none_is_refused_in_one_line(tmp_path):
    """Not there, no archive, cut off, and with arrays that do not fit."""
    path = tmp_path / "tables.npz"
    with pytest.raises(InputError, match="cannot read tables"):
        RouteTables.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a routing-table file"):
        RouteTables.load(path)
    fitted().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a routing-table file"):
        RouteTables.load(path)
    path.write_bytes(whole)
    with np.load(path) as data:
        arrays = dict(data)
    np.savez_compressed(path, **{**arrays, "counts": arrays["counts"][:-1]})
    with pytest.raises(InputError, match="damaged tables"):
        RouteTables.load(path)


@pytest.mark.parametrize(
    ("tokens", "experts", "weights", "what"),
    [
        ([0, 1], [[0, 1]], None, r"tokens must have shape \(n,\)"),
        ([-1], [[0, 1]], None, "tokens must be at least 0"),
        ([0], [[0, 4]], None, "experts from 0 to 3"),
        ([0], [[0, 1]], [[0.5]], "weights must be finite"),
        ([0], [[0, 1]], [[0.5, np.nan]], "weights must be finite"),
    ],
)
def test_routes_that_do_not_fit_together_are_refused(tokens, experts, weights, what):
    given = None if weights is None else np.array(weights)
    with pytest.raises(InputError, match=what):
        RouteTables.fit(np.array(tokens), np.array(experts), given, num_experts=4)


# ------------------------------------------------------------------------------------------------------- what is safe


def test_a_threshold_is_learned_that_keeps_the_loss_within_the_margin():
    """The most liberal that does, on the text that it is learned from."""
    drawing = np.random.default_rng(5)
    confidence = drawing.integers(0, 20, 5000) / 20
    loss = (drawing.random(5000) > confidence).astype(float)
    threshold = learn_threshold(confidence, loss, 0.05)
    fast = confidence >= threshold

    assert (loss * fast).mean() <= 0.05
    assert (loss * (confidence >= threshold - 0.05)).mean() > 0.05
    assert learn_threshold(confidence, loss, 1.0) == confidence.min()
    assert learn_threshold(np.array([0.9]), np.array([1.0]), 0.5) == float("inf")


def test_lost_weight_is_what_went_to_experts_that_were_not_guessed():
    lost = lost_weight(np.array([[1, 2], [1, 2], [3, 0]]), np.array([[2, 1], [1, 5], [1, 2]]), np.array([[3.0, 1.0]] * 3))
    np.testing.assert_allclose(lost, [0.0, 0.25, 1.0])


def stats(frequency, spread):
    """So many occurrences of a gate of this clearness."""
    found = TokenStats()
    for _ in range(frequency):
        found.update(np.array([spread, 0.0, 0.0]), 1.0)
    return found


@pytest.mark.parametrize(
    ("token", "frequency", "spread", "common"),
    [(99, 51, 5.0, True), (99, 50, 5.0, False), (99, 51, 1.0, False), (9, 0, 0.0, True), (10, 0, 0.0, False)],
)
def test_a_token_is_common_where_it_is_frequent_and_clear_or_special(token, frequency, spread, common):
    """(frequency > 50 and average entropy < 0.5) or id < 10."""
    assert Eligibility().admits(token, stats(frequency, spread)) == common


def test_statistics_in_batches_are_those_of_one_after_the_other():
    """Averages over all, histories of the latest eight."""
    drawing = np.random.default_rng(2)
    tokens, logits, sure = drawing.integers(0, 5, 200), drawing.normal(size=(200, 3)), drawing.random(200)
    found = stats_of(tokens, logits, sure)
    for token in range(5):
        single = TokenStats()
        for at in np.flatnonzero(tokens == token):
            single.update(logits[at], float(sure[at]))
        assert found[token].frequency == single.frequency
        assert found[token].get_average_entropy() == pytest.approx(single.get_average_entropy())
        assert found[token].get_average_confidence() == pytest.approx(single.get_average_confidence())
        assert list(found[token].confidence_history) == list(single.confidence_history)
        np.testing.assert_array_equal(found[token].router_logits_history, single.router_logits_history)


def test_entropy_is_in_nats_and_of_no_logits_too_large():
    np.testing.assert_allclose(entropies(np.array([[1e4, 0.0], [3.0, 3.0]])), [0.0, np.log(2)], atol=1e-12)
    assert TokenStats().get_average_entropy() == float("inf")
    assert TokenStats().get_average_confidence() == 0.0
