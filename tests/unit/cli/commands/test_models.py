"""models: the catalogue of cloud models, an entry to copy, and the models of a profile."""

from __future__ import annotations

import yaml

from workflow_composer.config.catalogue import CATALOGUE
from workflow_composer.config.strategy import StrategyConfig

PROFILE = b"""
profile_name: mine
vllm_endpoints: {own: "http://localhost:8001/v1"}
models:
  mine: {backend: vllm, endpoint: own, gpu_hour_price: 0.35}
fallback: [claude, claude-3.5-sonnet]
task_routing: {"*": own}
"""


def test_the_catalogue_is_listed_for_programs(command):
    """Every model with everything known of it; of keys only whether they are set."""
    command.environ["OPENAI_API_KEY"] = "sk-secret-0123456789abcdef"
    done = command("models", "list", "--json")
    assert list(done.json) == list(CATALOGUE)
    assert "sk-secret" not in done.out
    assert done.json["gpt-4o"]["key_set"]
    assert not done.json["claude-sonnet-5-5"]["key_set"]
    assert done.json["claude-3.5-sonnet"]["retired_on"] == "2025-10-28"
    assert done.json["claude-3.5-sonnet"]["successor"] == "claude-sonnet-5-5"


def test_the_catalogue_is_listed_for_people(command):
    """One line for each model: names, price, the day of the price, key, retirement."""
    lines = command("models").out.splitlines()
    assert len(lines) == len(CATALOGUE) + 1
    (line,) = (line for line in lines if line.startswith("deepseek-v3 "))
    for part in ("deepseek-chat", "0.28", "0.42", "2025-12-09", "DEEPSEEK_API_KEY (not set)", "retired 2026-07-24"):
        assert part in line


def test_an_entry_can_be_copied_into_a_profile(command):
    """What `show` prints is YAML that loads, with the same prices."""
    shown = command("models", "show", "gemini").out
    config = StrategyConfig(profile_name="copy", **yaml.safe_load(shown))
    known = CATALOGUE["gemini-3.8-flash"]
    assert config.models[known.name].output_price == known.output_price
    assert known.source in shown


def test_a_name_that_is_not_there_is_an_error_with_the_nearest(command):
    """Exit code 2."""
    done = command("models", "show", "cladue")
    assert (done.code, "did you mean 'claude'" in done.err) == (2, True)


def test_with_a_strategy_its_models_are_listed_as_they_apply(command):
    """Those of the catalogue filled in, one's own with their servers."""
    path = command.write("mine.yaml", PROFILE)
    done = command("-s", path, "models", "list", "--json")
    assert list(done.json) == ["mine", "claude", "claude-3.5-sonnet"]
    assert (done.json["mine"]["local"], done.json["mine"]["key_set"]) == (True, None)
    assert done.json["claude"]["input_price"] == CATALOGUE["claude-sonnet-5-5"].input_price
    lines = command("-s", path, "models", "list")
    assert "http://localhost:8001/v1" in lines.out
    assert "ANTHROPIC_API_KEY (not set)" in lines.out
    assert "note: claude-3.5-sonnet: claude-3-5-sonnet-20241022 was retired" in lines.err
