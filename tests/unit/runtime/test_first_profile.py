"""The first profile loads, whatever the model is called, and says in comments what it does."""

from __future__ import annotations

import datetime
from types import SimpleNamespace

import pytest
import yaml

from workflow_composer.backends.catalogue import CATALOGUE
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.runtime.first_profile import FirstProfile, quoted
from workflow_composer.runtime.surroundings import Offer

DAY = datetime.date(2026, 11, 30)
NAMES = (
    "llama3.1:8b",
    "Qwen/Qwen2.5-7B-Instruct-AWQ",
    "/models/m q4.gguf",
    "local",
    "7b",
    "no",
    "a: b",
    "x # y",
    "é🦙",
    "auto",
    '"q"',
)
CLOUD = next(model for model in CATALOGUE.values() if not model.is_retired())


def own(name, **fields):
    """A model of a server of one's own."""
    return Offer(name, "http://localhost:11434/v1", fields.pop("kind", "ollama"), **fields)


def cloud():
    """A model of a cloud."""
    return Offer(CLOUD.name, CLOUD.base_url, "cloud", cloud=CLOUD, key_env=CLOUD.api_key_env)


def load(profile, folder):
    """Write and read the profile."""
    path = folder / "mine.yaml"
    path.write_text(profile.text("python -m workflow_composer", DAY), encoding="utf-8")
    return StrategyConfig.from_yaml(path, environ={})


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_read_back(tmp_path, name):
    """As the model of every task."""
    config = load(FirstProfile("mine", own(name), others=[own("other")]), tmp_path)
    (spec,) = config.resolve(config.route_of("anything"))
    assert (spec.model, spec.base_url, config.allow_cloud) == (name, "http://localhost:11434/v1", False)
    assert (spec.input_price, spec.output_price) == (0, 0)


@pytest.mark.parametrize(
    "text", [*NAMES, "~", "null", "0x1f", "1e3", "- a", "{a}", "on", "2026-11-30", "a\\b", "%TAG", ":x", "x:"]
)
def test_quoted_texts_are_the_same_for_yaml(text):
    """And of one line."""
    assert yaml.safe_load(f"a: {quoted(text)}") == {"a": text}
    assert yaml.safe_load(f"[{quoted(text)}]") == [text]
    assert yaml.safe_load(f"{quoted(text)}: 1") == {text: 1}


def test_users_networks_keys_and_lengths_come_into_it(tmp_path):
    """Each with a comment why."""
    offer = own("m", user="nobody", key_env="MY_KEY")
    profile = FirstProfile(
        "mine", offer, networks=["192.0.2.0/24"], context_length=4096, embeddings=own("bge", user="nobody")
    )
    config = load(profile, tmp_path)
    assert (config.local_users, config.local_networks) == (("nobody",), ("192.0.2.0/24",))
    assert config.models["m"].api_key_env == "MY_KEY"
    assert config.models["m"].context_length == 4096
    assert config.models["bge"].capabilities == ("embeddings",)
    assert config.route_of("embeddings") == "bge"
    assert "runs as the user nobody" in (tmp_path / "mine.yaml").read_text()


def test_a_registered_role_is_found_in_the_registry(tmp_path):
    """Wherever its server runs."""
    config = load(FirstProfile("mine", Offer("m", "registry:coder", "vllm")), tmp_path)
    assert config.servers_of("local") == ("registry:coder",)


def test_a_cloud_model_has_its_price_and_its_date(tmp_path):
    """Alone, and as the fallback of one's own."""
    config = load(FirstProfile("mine", cloud()), tmp_path)
    assert config.allow_cloud
    assert config.models[CLOUD.name].input_price == CLOUD.input_price
    assert str(CLOUD.priced_on) in (tmp_path / "mine.yaml").read_text()
    both = load(FirstProfile("mine", own("m"), fallback=cloud()), tmp_path)
    assert (both.allow_cloud, both.fallback, both.route_of("x")) == (True, (CLOUD.name,), "local")


def test_an_own_model_with_the_name_of_the_cloud_one_is_still_the_own(tmp_path):
    """A server of one's own may serve a model under any name."""
    offer = own(CLOUD.name, served=SimpleNamespace(thinks=False))
    config = load(FirstProfile("mine", offer), tmp_path)
    (spec,) = config.resolve(config.route_of("x"))
    assert (spec.local, spec.base_url) == (True, "http://localhost:11434/v1")
