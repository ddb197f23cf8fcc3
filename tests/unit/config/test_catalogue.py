"""The catalogue of cloud models: complete, with a source and a date for each price, and retired models with a successor."""

from __future__ import annotations

import datetime
import doctest
from pathlib import Path

import pytest

from workflow_composer.backends.catalogue import CATALOGUE, CloudModel, clouds, find
from workflow_composer.config import catalogue
from workflow_composer.config.normalize import url_fault

NAMES = ["deepseek-v3", "claude", "claude-3.5-sonnet", "gpt-4o", "gemini", "mistral"]
BEFORE, AFTER = datetime.date(2024, 1, 1), datetime.date(2100, 1, 1)


def test_the_examples_in_the_docstrings_run():
    """What they show is what happens."""
    assert doctest.testmod(catalogue).failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_names_that_people_write_mean_a_model(name):
    """By name, by alias, and by the provider's own id."""
    model = find(name)
    assert isinstance(model, CloudModel)
    assert find(model.model) is model
    assert CATALOGUE[model.name] is model


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=lambda model: model.name)
def test_each_model_is_complete(model):
    """An address over TLS, a key, prices with date and source, a length."""
    assert model.base_url.startswith("https://")
    assert url_fault(model.base_url) is None
    assert not model.base_url.endswith("/")
    assert model.api_key_env.endswith("_API_KEY")
    assert 0 < model.input_price <= model.output_price or "embeddings" in model.capabilities
    assert model.cached_input_price is None or 0 < model.cached_input_price < model.input_price
    assert model.context_length > 0
    assert datetime.date(2025, 1, 1) < model.priced_on <= datetime.date.today()
    assert model.source.startswith("https://")
    assert {"chat", "embeddings"} & set(model.capabilities)


def test_no_name_means_two_models():
    """Names and aliases are one namespace."""
    written = [name for model in CATALOGUE.values() for name in (model.name, *model.aliases)]
    assert len(written) == len(set(written))
    ids = [model.model for model in CATALOGUE.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("model", [m for m in CATALOGUE.values() if m.retired_on], ids=lambda model: model.name)
def test_a_retired_model_has_a_successor_that_is_not_retired_before_it(model):
    """And until that day it answers itself."""
    day = model.retired_on
    assert model.in_service(BEFORE) is model
    assert not model.is_retired(day - datetime.timedelta(days=1))
    assert model.is_retired(day)
    assert model.successor in CATALOGUE
    assert not model.in_service(day).is_retired(day)


def test_the_target_cloud_means_one_model_of_each_provider():
    """None of them retired, ever."""
    hosts = [model.host for model in clouds()]
    assert len(hosts) == len(set(hosts)) == len({model.host for model in CATALOGUE.values()})
    assert not any(model.is_retired(AFTER) for model in clouds())


def test_a_model_without_a_successor_stays_itself(tmp_path):
    """Its calls will fail, and say so."""
    text = Path(catalogue.FILE).read_text().replace('successor = "gpt-6-luna"\n', "")
    (tmp_path / "c.toml").write_text(text)
    model = next(one for one in catalogue._read(tmp_path / "c.toml") if one.name == "gpt-4o")
    assert model.successor is None
    assert model.in_service(AFTER) is model
