"""Tables in the place of a transformers model's gates."""

import copy
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install '.[moe]'")

from tests.unit.moe.conftest import VOCABULARY, tiny_model  # noqa: E402  # needs torch
from workflow_composer.errors import ConfigError, InputError  # noqa: E402  # needs torch
from workflow_composer.moe.models.gates import cache_argument, gates  # noqa: E402  # needs torch
from workflow_composer.moe.models.recording import RouteRecorder, effect, predict  # noqa: E402  # needs torch
from workflow_composer.moe.models.transformers_moe import TableRouting  # noqa: E402  # needs torch


class Noted:
    """A table that notes the contexts it is asked about, and names the experts that the newest token's number chooses."""

    def __init__(self, experts=6, k=2, confidence=1.0):
        self.experts, self.k, self.confidence = experts, k, confidence
        self.asked = []

    def predict(self, contexts):
        self.asked.append(contexts.copy())
        first = np.maximum(contexts[:, -1], 0) % self.experts
        chosen = np.stack([(first + step) % self.experts for step in range(self.k)], axis=1).astype(np.int16)
        weights = np.tile(np.array([0.6, 0.3], np.float32), (len(contexts), 1))
        return chosen, weights, np.full(len(contexts), self.confidence, np.float32)


def some_ids(rows=3, length=10, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length)))


def logits(model, ids, **more):
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def routed(model, table=None, **more):
    more = {"certain": 0.5, **more}
    return TableRouting(model, {layer: table or Noted() for layer in gates(model)}, **more)


def test_the_model_is_the_same_bit_for_bit_when_routing_is_off_again(model):
    """Outputs, weights, attributes and hooks."""
    ids = some_ids()
    before = logits(model, ids)
    own = {name: set(vars(module)) for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    with routed(model):
        assert not torch.equal(logits(model, ids), before)
    assert torch.equal(logits(model, ids), before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == own
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules() if m is model.model)


def test_the_model_is_restored_when_the_block_raises(model):
    before = logits(model, some_ids())
    with pytest.raises(RuntimeError, match="in between"), routed(model):
        raise RuntimeError("in between")
    assert torch.equal(logits(model, some_ids()), before)


def test_a_gate_that_is_always_asked_gives_the_untouched_models_output(model):
    """With no confidence and a share of one, each token's route is the gate's own."""
    ids = some_ids()
    before = logits(model, ids)
    with routed(model, Noted(confidence=0.0), share=1.0) as routing:
        found = logits(model, ids)
    assert torch.allclose(found, before, atol=1e-5)
    assert all(count["learned"] == ids.numel() for count in routing.counts().values())


def test_tokens_go_where_the_table_says(model):
    ids = some_ids()
    with routed(model), RouteRecorder(model) as recorder:
        logits(model, ids)
    routes = recorder.routes()
    for layer in gates(model):
        assert (routes.experts[layer][:, 0] == routes.tokens % 6).all()


def test_stored_weights_reach_the_experts_as_the_gate_would_give_them(model):
    """Mixtral's always sum to one; the others' only if their configuration says so."""
    with routed(model), RouteRecorder(model) as recorder:
        logits(model, some_ids())
    sums = 1.0 if model.config.model_type == "mixtral" or model.config.norm_topk_prob else 0.9
    for weights in recorder.routes().weights.values():
        assert np.allclose(weights.sum(1), sums, atol=1e-6)


def test_layers_without_a_table_keep_their_gate(model):
    first, *others = sorted(gates(model))
    ids = some_ids()
    with RouteRecorder(model) as untouched:
        logits(model, ids)
    with TableRouting(model, {others[-1]: Noted()}, certain={others[-1]: 0.5}) as routing, RouteRecorder(model) as recorder:
        logits(model, ids)
    assert list(routing.counts()) == [others[-1]]
    assert np.array_equal(recorder.routes().experts[first], untouched.routes().experts[first])


def test_a_layer_without_experts_is_named():
    model = tiny_model("qwen2_moe")
    with pytest.raises(ConfigError, match="layer 1 has no gate"):
        TableRouting(model, {1: Noted()})


def test_a_model_without_gates_is_refused():
    with pytest.raises(ConfigError, match="no gates"):
        gates(torch.nn.Linear(2, 2))


def test_the_innermost_block_routes_and_the_outer_one_comes_back():
    model, ids = tiny_model("olmoe"), some_ids()
    before = logits(model, ids)
    outer, inner = Noted(), Noted(confidence=0.0)
    with routed(model, outer):
        by_outer = logits(model, ids)
        outer.asked.clear()
        with routed(model, inner, share=1.0):
            assert torch.allclose(logits(model, ids), before, atol=1e-5), "what the inner one leaves open is the gate's"
        assert not outer.asked
        assert torch.equal(logits(model, ids), by_outer)
    assert torch.equal(logits(model, ids), before)


def test_a_routing_cannot_be_entered_twice():
    model = tiny_model("olmoe")
    with routed(model) as routing, pytest.raises(ConfigError, match="already active"):
        routing.__enter__()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.15, 0.5])
def test_the_learned_share_stays_under_its_bound_after_every_token(model, share):
    """Whatever is asked for; the counter's own worst prefix is looked at too."""
    with routed(model, Noted(confidence=0.0), share=share) as routing:
        for seed, length in enumerate((7, 1, 1, 3, 12)):
            logits(model, some_ids(2, length, seed))
            for count in routing.counts().values():
                assert count["learned"] <= share * (count["decisions"] + 1)
                assert count["worst_prefix_share"] <= share


def test_a_route_that_was_learned_is_taken_again_for_the_same_context():
    model, ids = tiny_model("olmoe"), some_ids(1, 8)
    with (
        routed(model, Noted(confidence=0.0), share=1.0, remember=True, ttl=1e9) as routing,
        RouteRecorder(model) as recorder,
    ):
        logits(model, ids)
        logits(model, ids)
    count = routing.counts()[0]
    assert (count["learned"], count["cached"]) == (8, 8)
    routes = recorder.routes()
    assert np.array_equal(routes.experts[0][:8], routes.experts[0][8:])


def test_nothing_is_remembered_unless_asked_for():
    """The same text is asked about again, and so is the same context within a call."""
    model, ids = tiny_model("olmoe"), some_ids(1, 8).repeat(2, 1)
    with routed(model, Noted(confidence=0.0), share=1.0) as routing:
        logits(model, ids)
    assert routing.counts()[0]["learned"] == 16


def test_the_budget_goes_to_the_least_confident_tokens_where_no_limit_is_given():
    """Half of the tokens may be asked about: those of the lower half."""
    model, ids = tiny_model("olmoe"), some_ids(4, 25)

    class Varied(Noted):
        def predict(self, contexts):
            experts, weights, _ = super().predict(contexts)
            return experts, weights, (contexts[:, -1] % 10).astype(np.float32)

    with routed(model, Varied(), certain=None, share=0.5) as routing, RouteRecorder(model) as recorder:
        logits(model, ids)
    routes = recorder.routes()
    by_table = routes.experts[0][:, 0] == routes.tokens % 6
    sure = routes.tokens % 10 >= 6
    assert by_table[sure].all()
    assert not by_table[~sure].all()
    assert 0.3 < routing.counts()[0]["learned_share"] <= 0.51


def test_contexts_are_the_tokens_before_within_one_text():
    model, table, ids = tiny_model("olmoe"), Noted(), some_ids(2, 5)
    with routed(model, table, width=3):
        logits(model, ids)
    first = table.asked[0].reshape(2, 5, 3)
    assert first[1, 0].tolist() == [-1, -1, ids[1, 0]]
    assert first[1, 4].tolist() == ids[1, 2:5].tolist()


def test_a_key_value_cache_carries_contexts_on(model):
    """Token by token with a cache, the table sees the contexts of the whole text, and the output is the same."""
    ids, whole, parts = some_ids(2, 9), Noted(), Noted()
    with routed(model, whole):
        expected = logits(model, ids)
    with routed(model, parts), torch.no_grad():
        name = cache_argument(model)
        out = model(input_ids=ids[:, :4], use_cache=True)
        found = [out.logits]
        for at in range(4, 9):
            out = model(input_ids=ids[:, at : at + 1], use_cache=True, **{name: out[name]})
            found.append(out.logits)
    assert torch.allclose(torch.cat(found, dim=1), expected, atol=1e-4)
    layers = len(gates(model))
    last = np.concatenate([asked[:, None] for asked in parts.asked[layers::layers]], axis=1)
    assert np.array_equal(last, whole.asked[0].reshape(2, 9, 4)[:, 4:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_neither_counted_nor_in_a_context_and_changes_nothing(model, side):
    ids = some_ids(1, 6)
    pad = torch.zeros(1, 4, dtype=ids.dtype)
    padded = torch.cat((pad, ids) if side == "left" else (ids, pad), dim=1)
    mask = (padded != 0).long()
    real = slice(4, None) if side == "left" else slice(0, 6)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    plain, table = Noted(), Noted()
    with routed(model, plain):
        expected = logits(model, ids)
    with routed(model, table) as routing, RouteRecorder(model) as recorder:
        found = logits(model, padded, attention_mask=mask, position_ids=position)
    assert torch.allclose(found[:, real], expected, atol=1e-4)
    assert all(count["decisions"] == 6 for count in routing.counts().values())
    assert np.array_equal(table.asked[0][real], plain.asked[0])
    assert recorder.routes().positions.tolist() == list(range(6))


@pytest.mark.parametrize(
    "how", [{}, {"do_sample": True}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
def test_generation_sees_the_contexts_of_the_text_it_makes(how):
    """Greedy, sampled, by beams (whose rows change places), without a cache, with a static one; prompts of two lengths."""
    model, table = tiny_model("olmoe"), Noted()
    ids = some_ids(2, 5)
    ids[1, :2] = 0
    with routed(model, table), torch.no_grad():
        out = model.generate(
            ids, attention_mask=(ids != 0).long(), max_new_tokens=6, return_dict_in_generate=True, output_scores=True, **how
        )
    text = out.sequences.numpy()
    made = {tuple(row) for asked in table.asked for row in asked if row[-1] > 0}
    for row in text:
        words = [-1, -1, -1, *row[row != 0].tolist()]
        for end in range(4, len(words)):
            assert tuple(words[end - 4 : end]) in made


def test_a_context_that_is_not_known_counts_as_absent():
    """A cache that somebody cut behind the routing's back."""
    model, table, ids = tiny_model("olmoe"), Noted(), some_ids(1, 6)
    with routed(model, table), torch.no_grad():
        name = cache_argument(model)
        cache = model(input_ids=ids, use_cache=True)[name]
        cache.crop(-3)
        table.asked.clear()
        model(input_ids=ids[:, 3:4], **{name: cache})
    assert table.asked[0].tolist() == [[-1, -1, -1, ids[0, 3]]]


def test_embeddings_without_token_ids_are_refused():
    model = tiny_model("olmoe")
    with routed(model), pytest.raises(InputError, match="token ids"):
        model(inputs_embeds=torch.zeros(1, 2, 16))


def test_threads_may_run_one_routed_model_at_once():
    """Each gets the output that it would get alone."""
    model = tiny_model("olmoe")
    texts = [some_ids(2, 12, seed) for seed in range(8)]
    with routed(model):
        alone = [logits(model, ids) for ids in texts]
        found = [None] * len(texts)

        def run(at):
            for _ in range(5):
                found[at] = logits(model, texts[at])

        threads = [threading.Thread(target=run, args=(at,)) for at in range(len(texts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


def test_router_logits_can_still_be_asked_for(model):
    """Their softmax has the table's weights at the chosen experts (normalised there where the gate normalises)."""
    with routed(model), torch.no_grad():
        out = model(input_ids=some_ids(), output_router_logits=True)
    probabilities = out.router_logits[0].softmax(-1)
    assert probabilities.topk(2).indices[:, 0].tolist() == (some_ids().flatten() % 6).tolist()


def test_bfloat16_models_get_scores_of_their_own_type(model):
    model = model.to(torch.bfloat16)
    with routed(model):
        assert logits(model, some_ids()).dtype == torch.bfloat16


def test_losses_are_those_of_each_row_by_itself(model):
    """Whatever the batches; a row of nine tokens has eight predictions."""
    rows = some_ids(5, 9)
    together = predict(model, [rows[:2], rows[2:]])
    alone = [predict(model, [row[None]]) for row in rows]
    assert together.losses == pytest.approx([one.loss * one.tokens for one in alone])
    assert together.tokens_per_row.tolist() == [8] * 5
    assert together.loss == pytest.approx(sum(one.losses[0] for one in alone) / 40)


def test_the_interval_of_an_increase_is_that_of_resampled_rows(model):
    """Around the increase, against an independent computation; of nothing at all where nothing has changed."""
    rows = [some_ids(16, 12, seed) for seed in range(4)]
    untouched = predict(model, rows)
    assert effect(untouched, untouched).interval == (0.0, 0.0)
    with routed(model):
        changed = predict(model, rows)
    found = effect(changed, untouched)
    drawing, factors = np.random.default_rng(5), []
    for _ in range(4000):
        picked = drawing.choice(64, 64)
        before, after = (np.exp(one.losses[picked].sum() / (64 * 11)) for one in (untouched, changed))
        factors.append(after / before - 1)
    low, high = found.interval
    assert low < found.increase < high
    assert (low, high) == pytest.approx(np.quantile(factors, [0.025, 0.975]), abs=0.1 * (high - low))


def test_predictions_of_different_texts_are_not_compared(model):
    """An error, not a number."""
    with pytest.raises(InputError, match="different texts"):
        effect(predict(model, [some_ids(2)]), predict(model, [some_ids(3)]))
