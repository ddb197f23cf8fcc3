"""Experts in a file, fetched when or before they are needed."""

import threading
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install '.[moe]'")

from tests.unit.moe.conftest import VOCABULARY, tiny_model  # noqa: E402  # needs torch
from workflow_composer.errors import ConfigError  # noqa: E402  # needs torch
from workflow_composer.moe.models.gates import cache_argument, gates  # noqa: E402  # needs torch
from workflow_composer.moe.models.recording import RouteRecorder  # noqa: E402  # needs torch
from workflow_composer.moe.offload.expert_cache import ExpertCache, Keep  # noqa: E402  # needs torch
from workflow_composer.moe.offload.expert_store import ExpertFile, ExpertStore, Link  # noqa: E402  # needs torch
from workflow_composer.moe.offload.offloaded_model import (  # noqa: E402  # needs torch
    LinearPredictor,  # needs torch
    OffloadedModel,
    TableForecaster,
)
from workflow_composer.moe.offload.prefetch import most_used  # noqa: E402  # needs torch
from workflow_composer.moe.routing.tables import RouteTables  # noqa: E402  # needs torch


def some_ids(rows=1, length=12, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length)))


def one_by_one(model, ids):
    """Logits of a text read token by token with a key-value cache."""
    found, cache, name = [], None, cache_argument(model)
    with torch.inference_mode():
        for at in range(ids.shape[1]):
            out = model(input_ids=ids[:, at : at + 1], use_cache=True, **{name: cache})
            cache = out[name]
            found.append(out.logits)
    return torch.cat(found, dim=1)


def recorded(model, ids):
    with RouteRecorder(model) as recorder, torch.inference_mode():
        model(input_ids=ids, use_cache=False)
    return recorder.routes()


def tables_of(routes, experts=6):
    return {
        layer: RouteTables.fit(
            routes.tokens, routes.experts[layer], routes.weights[layer], num_experts=experts, sequences=routes.sequences
        )
        for layer in routes.layers
    }


@pytest.mark.parametrize("keep", list(Keep))
@pytest.mark.parametrize("slots", [2, 3, 6])
def test_outputs_are_those_of_the_whole_model_bit_for_bit(model, tmp_path, keep, slots):
    """In every architecture, however small the memory, whatever is kept; and the model has its weights back at the end."""
    model.set_experts_implementation("eager")
    ids = some_ids(2, 9)
    pinned = most_used(recorded(model, ids), 1) if keep is Keep.PINNED else None
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
    before = {name: value.clone() for name, value in model.state_dict().items()}
    alone = one_by_one(model, ids[:1])
    with OffloadedModel(model, tmp_path / "experts", slots=slots, keep=keep, pinned=pinned), torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, expected)
        assert torch.equal(one_by_one(model, ids[:1]), alone)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, expected)


def test_bfloat16_experts_go_through_the_file_unchanged(tmp_path):
    model = tiny_model("olmoe").to(torch.bfloat16)
    model.set_experts_implementation("eager")
    expected = one_by_one(model, some_ids())
    with OffloadedModel(model, tmp_path / "experts", slots=3):
        assert torch.equal(one_by_one(model, some_ids()), expected)


def test_memory_is_that_of_the_places_whatever_the_file_holds(tmp_path):
    model = tiny_model("olmoe")
    one = sum(p[0].numel() * 4 for p in model.model.layers[0].mlp.experts.parameters())
    with OffloadedModel(model, tmp_path / "experts", slots=3) as offloaded:
        assert sum(p.numel() for p in model.model.layers[0].mlp.experts.parameters()) == 0
        assert offloaded.store.bytes_in_memory == 3 * 3 * one
    assert (tmp_path / "experts").stat().st_size == 3 * 6 * one


def test_predictions_turn_waits_into_hits(tmp_path):
    """Tables learned from the same text know its routes; with time between tokens all experts are there when asked for."""
    model, ids = tiny_model("olmoe"), some_ids(1, 10)
    tables = tables_of(recorded(model, ids))

    def hit_rate(forecaster):
        with OffloadedModel(model, tmp_path / "experts", slots=4, keep=Keep.LRU, forecaster=forecaster) as offloaded:
            one_by_one(model, ids)
        counts = offloaded.store.counts.values()
        assert all(count.uses == count.hits + count.late + count.demanded for count in counts)
        return sum(count.hits + count.late for count in counts) / sum(count.uses for count in counts)

    assert hit_rate(TableForecaster(tables)) > hit_rate(None) + 0.1


def test_a_linear_predictor_finds_most_of_the_routes_it_was_fitted_to():
    """The model's router is nearly a function of the hidden state before attention; far above chance, which is a third."""
    model, ids = tiny_model("olmoe"), some_ids(24, 12)
    routes = recorded(model, ids)
    fitted = LinearPredictor.fit(model, [ids])
    seen = {}
    from workflow_composer.moe.offload.offloaded_model import watch_layers

    end = watch_layers(model, lambda layer, hidden: seen.__setitem__(layer, fitted.likely(layer, hidden, 2).numpy()))
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False)
    end()
    for layer in gates(model):
        hits = (seen[layer][:, :, None] == routes.experts[layer][:, None, :]).any(1).mean()
        assert hits > 0.5
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)


def test_a_predictor_of_layers_ahead_has_one_for_each_layer_that_has_such(tmp_path):
    model = tiny_model("olmoe")
    fitted = LinearPredictor.fit(model, [some_ids(4, 8)], ahead=2)
    assert list(fitted.weights) == [0]


def store_of(tmp_path, layers=1, **options):
    model = tiny_model("olmoe", layers=layers)
    experts = {layer: model.model.layers[layer].mlp.experts for layer in range(layers)}
    return ExpertStore(ExpertFile(tmp_path / "experts", experts), **options)


def test_a_transfer_takes_what_the_link_says(tmp_path):
    store = store_of(tmp_path, slots=3)
    store.link = Link(store.file.bytes_of(0) / 0.05)
    start = time.perf_counter()
    store.begin(0, [0, 1])
    store.acquire(0, 1)
    assert time.perf_counter() - start >= 0.1, "one after the other"
    assert store.counts[0].waited >= 0.1
    store.close()


def test_what_is_needed_goes_ahead_of_what_is_expected(tmp_path):
    """Behind the transfer that is under way, and ahead of the others, of whichever layer."""
    store = store_of(tmp_path, layers=2, slots=6)
    order, begun, go, copy = [], threading.Event(), threading.Event(), store._copy

    def held(key, slot):
        order.append(key)
        begun.set()
        assert go.wait(60)
        copy(key, slot)

    store._copy = held
    store.want(1, [0, 1, 2, 3])
    assert begun.wait(60)
    store.begin(0, [4])
    go.set()
    store.acquire(0, 4)
    store.close()
    assert order[:2] == [(1, 0), (0, 4)]


def test_an_expert_in_use_is_not_evicted(tmp_path):
    store = store_of(tmp_path, slots=2)
    store.begin(0, [0, 1])
    kept = store.acquire(0, 0)[0]
    expected = store.file.read(0, 0)[0].clone()
    store.acquire(0, 1)
    store.want(0, [2, 3])
    store.release(0, 1)
    store.begin(0, [2])
    store.acquire(0, 2)
    assert torch.equal(kept, expected)
    store.close()


def test_a_thread_that_fails_is_heard_of_where_its_expert_is_awaited(tmp_path):
    """And not waited for for ever."""
    store = store_of(tmp_path, slots=2)
    store.file.read = lambda *key: (_ for _ in ()).throw(OSError("the file is gone"))
    store.begin(0, [1])
    with pytest.raises(OSError, match="the file is gone"):
        store.acquire(0, 1)
    store.close()


def test_the_least_recently_and_the_least_often_used_go_first():
    for keep, gone in ((Keep.LRU, 0), (Keep.LFU, 1)):
        cache = ExpertCache(2, keep)
        for expert in (0, 0, 1):
            cache.use(expert)
            cache.place(expert)
        cache.place(2)
        assert gone not in cache
        assert len(cache) == 2


def test_pinned_experts_stay():
    cache = ExpertCache(2, Keep.PINNED, pinned=[5])
    cache.place(5)
    for expert in range(4):
        cache.place(expert)
    assert 5 in cache
    assert 3 in cache


def test_protected_experts_are_no_victims():
    cache = ExpertCache(2, Keep.LRU)
    cache.place(0)
    cache.place(1)
    assert cache.place(2, protected={0, 1}) is None
    assert cache.place(2, protected={0}) is not None
    assert 1 not in cache


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="too few to pin"):
        ExpertCache(2, Keep.PINNED, pinned=[0, 1])


def test_a_forecast_for_one_token_is_what_the_table_predicts(tmp_path):
    """Known contexts of every length, unknown ones, and a token that was never seen."""
    model, ids = tiny_model("olmoe"), some_ids(6, 12)
    routes = recorded(model, ids)
    tables = {
        layer: RouteTables.fit(
            routes.tokens, routes.experts[layer], num_experts=6, sequences=routes.sequences, context=4, min_count=1
        )
        for layer in routes.layers
    }
    forecaster = TableForecaster(tables)
    contexts = np.concatenate([routes.contexts(4), np.array([[1, 2, 3, 4], [-1, -1, -1, 999]])])
    for context in contexts:
        expected = {layer: table.predict(context[None])[0][0].tolist() for layer, table in tables.items()}
        assert forecaster.for_token(context[None]) == expected
