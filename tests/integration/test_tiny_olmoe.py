"""A model that is really trained, for half a minute: its routes, tables in the place of its gates, its experts in a file."""

import itertools
import sys

import pytest

torch = pytest.importorskip("torch", reason="pip install '.[moe]'")
pytest.importorskip("transformers", reason="pip install '.[moe]'")

from tests.paths import ROOT  # noqa: E402  # needs torch
from workflow_composer.moe.models.recording import RouteRecorder, effect, predict, rows_of  # noqa: E402  # needs torch
from workflow_composer.moe.models.transformers_moe import TableRouting  # noqa: E402  # needs torch
from workflow_composer.moe.offload.offloaded_model import OffloadedModel, TableForecaster  # noqa: E402  # needs torch
from workflow_composer.moe.routing.tables import RouteTables  # noqa: E402  # needs torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny():
    """The training script, as a module."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import train_tiny_olmoe
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return train_tiny_olmoe


@pytest.fixture(scope="module")
def trained(tiny):
    """Model, tokenizer and tables."""
    recipe = tiny.Recipe(hidden=48, inner=32, layers=2, heads=2, steps=120, batch=8)
    tokenizer = tiny.build_tokenizer(recipe.seed)
    model = tiny.train(recipe, tokenizer)
    model.set_experts_implementation("eager")
    with RouteRecorder(model) as recorder:
        predict(model, rows_of(tiny.encode(tokenizer, tiny.training_texts(1001), 40_000), 128))
    routes = recorder.routes()
    tables = {
        layer: RouteTables.fit(
            routes.tokens,
            routes.experts[layer],
            routes.weights[layer],
            num_experts=16,
            sequences=routes.sequences,
            context=6,
            min_count=2,
        )
        for layer in routes.layers
    }
    return model, tokenizer, tables


def test_training_is_the_same_again_from_its_seed(tiny):
    """And another seed's is another."""
    tokenizer = tiny.build_tokenizer(7)
    first, again, other = (
        tiny.train(tiny.Recipe(hidden=16, inner=8, layers=1, heads=2, steps=3, batch=2, seed=seed), tokenizer).state_dict()
        for seed in (7, 7, 8)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_texts_that_are_measured_are_in_no_training_text(tiny):
    """Nor are the problems on which settings were chosen among the fresh ones."""
    taught = list(itertools.islice(tiny.training_texts(tiny.Recipe.seed), 20_000))
    prose, stories = [text for text in taught if "####" not in text], {text for text in taught if "####" in text}
    assert prose
    assert not any(piece in page for page in tiny.texts("prose") for piece in prose)
    # Of stories it is the templates that must differ: two with the same numbers are rare in any case.
    own = {f"{story.question}\n{story.answer}": story.template for story in drawn(tiny, tiny.Recipe.seed, held_out=False)}
    assert stories <= set(own)
    fresh = {f"{story.question}\n{story.answer}": story.template for story in drawn(tiny, tiny.FRESH_SEED, held_out=True)}
    assert {fresh[text] for text in tiny.texts("fresh")}.isdisjoint(own.values())
    assert set(tiny.texts("fresh")).isdisjoint(tiny.texts("problems"))


def drawn(tiny, seed, *, held_out):
    """Twenty thousand problems."""
    return itertools.islice(tiny.problems(seed, held_out=held_out), 20_000)


def test_tables_keep_a_trained_models_perplexity_within_a_few_percent_at_their_share(tiny, trained):
    """On held-out problems; and far closer to it than with tables alone that know nothing but single tokens."""
    model, tokenizer, tables = trained
    text = rows_of(tiny.encode(tokenizer, tiny.texts("fresh"), 4000), 128)
    untouched = predict(model, text)
    with TableRouting(model, tables, share=0.15, width=6) as routing:
        found = effect(predict(model, text), untouched)
    assert found.increase < 0.05
    assert found.interval[0] < found.increase < found.interval[1]
    assert found.agreement > 0.9
    for count in routing.counts().values():
        assert 0.05 < count["learned_share"] <= 0.15
        assert count["worst_prefix_share"] <= 0.15
    assert predict(model, text).loss == untouched.loss


def test_out_of_its_domain_the_bound_holds_all_the_same(tiny, trained):
    """Whatever the text is: source code is where the tables know least."""
    model, tokenizer, tables = trained
    with TableRouting(model, tables, share=0.15, width=6) as routing:
        predict(model, rows_of(tiny.encode(tokenizer, tiny.texts("source"), 4000), 128))
    assert all(count["worst_prefix_share"] <= 0.15 for count in routing.counts().values())


def test_a_trained_models_experts_are_fetched_ahead(tiny, trained, tmp_path):
    """Most of what a table expects is used, and the text it makes is the whole model's."""
    model, tokenizer, tables = trained
    prompt = torch.tensor([tiny.encode(tokenizer, tiny.texts("problems"), 20)])
    how = {"max_new_tokens": 40, "do_sample": False}
    expected = model.generate(prompt, **how)
    with OffloadedModel(model, tmp_path / "experts", slots=6, forecaster=TableForecaster(tables)) as offloaded:
        made = model.generate(prompt, **how)
    assert torch.equal(made, expected)
    counts = offloaded.store.counts.values()
    assert sum(count.useless for count in counts) < 0.5 * sum(count.fetched for count in counts)
