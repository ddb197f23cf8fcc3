"""Cloud models that a profile names without describing them, ``cloud`` without any, and a profile without models."""

from __future__ import annotations

import datetime
import io
import pickle
import sys

import pytest

from tests.paths import ROOT
from workflow_composer import ModelOrchestrator
from workflow_composer.config import catalogue
from workflow_composer.config.catalogue import CATALOGUE, CloudModel, clouds
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ProfileError, RoutingError
from workflow_composer.metrics.sink import NullSink

SEED = ROOT.parent / "shared" / "seed_profiles"
VOTE = "mv_cascade_own_k4_gpt-4o_k1"
OWN = {"vllm_endpoints": {"own": "http://localhost:8001/v1"}}


def made(**keys):
    """A profile with one server of its own."""
    return StrategyConfig(profile_name="mine", **{**OWN, **keys})


@pytest.fixture
def on(monkeypatch):
    """Set the day."""
    is_retired = CloudModel.is_retired

    def set_day(year, month, day):
        monkeypatch.setattr(
            CloudModel, "is_retired", lambda self, today=None: is_retired(self, datetime.date(year, month, day))
        )

    return set_day


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "keys",
    [
        {"fallback": ["gpt-6-luna"]},
        {"fallback": {"primary": "own", "secondary": "gpt-6-luna"}},
        {"task_routing": {"*": "gpt-6-luna"}},
        {"task_routing": {"*": "mv_cascade_own_k4_t0.7_gpt-6-luna_k1"}, "routers": ["cascade"]},
        {"tiers": {"a": {"model": "own"}, "b": {"model": "gpt-6-luna"}}},
        {"routers": [{"execution_feedback": {"tiers": ["own", "gpt-6-luna"]}}]},
        {"routers": [{"adaptive": {"router": "execution_feedback", "settings": {"tiers": ["own", "gpt-6-luna"]}}}]},
        {"models": {"gpt-6-luna": {}}},
    ],
    ids="+".join,
)
def test_a_name_of_the_catalogue_means_its_model_wherever_it_is_written(keys):
    """With address, key, prices and length, as if the profile described it."""
    spec, known = made(**keys).resolve("gpt-6-luna")[0], CATALOGUE["gpt-6-luna"]
    assert (spec.backend, spec.model, spec.base_url, spec.local) == ("openai", known.model, known.base_url, False)
    assert (spec.api_key_env, spec.input_price, spec.output_price) == ("OPENAI_API_KEY", 0.10, 0.50)
    assert (spec.cached_input_price, spec.context_length) == (0.01, known.context_length)
    assert spec.capabilities == known.capabilities


def test_an_alias_keeps_the_name_that_is_written():
    """The profile's word stands in metrics; the provider is asked for its own."""
    spec = made(fallback=["claude"]).resolve("claude")[0]
    assert (spec.name, spec.model) == ("claude", "claude-sonnet-5-5")


@pytest.mark.parametrize("name", ["GPT-4o", "openai/gpt-4o", "OpenAI/gpt-4o"])
def test_capitals_and_the_provider_before_a_name_do_not_matter(name):
    """The profile's word stays its name."""
    assert made(fallback=[name]).resolve(name)[0].model == "gpt-4o"


def test_a_misspelt_name_is_told_the_nearest_of_the_catalogue():
    """Where the cloud is forbidden, only one's own names are suggested."""
    with pytest.raises(ProfileError, match=r"did you mean 'claude-3\.5-sonnet'"):
        made(fallback=["claude-3.5-sonet"])
    with pytest.raises(ProfileError, match=r"'claude-3\.5-sonet', which is not a model, role or tier") as caught:
        made(fallback=["claude-3.5-sonet"], allow_cloud=False)
    assert "did you mean" not in caught.value.problems[0]


def test_an_entry_may_be_empty(tmp_path):
    """As YAML reads a key with nothing behind it; of any other model that is an error."""
    path = tmp_path / "p.yaml"
    path.write_text("profile_name: p\nmodels:\n  gpt-4o:\n  claude:\n")
    assert [spec.model for spec in StrategyConfig.load(path).models.values()] == ["gpt-4o", "claude-sonnet-5-5"]
    path.write_text("profile_name: p\nmodels:\n  unheard-of:\n")
    with pytest.raises(ProfileError, match=r"models\.unheard-of"):
        StrategyConfig.load(path)


def test_a_name_of_the_profile_comes_first():
    """A role, a tier or a model of one's own may have any name."""
    config = StrategyConfig(
        profile_name="mine",
        vllm_endpoints={"claude": "http://localhost:8001/v1"},
        models={"gemini": {"backend": "fake"}},
        tiers={"gpt-4o": {"model": "gemini"}},
        fallback=["claude", "gemini", "gpt-4o"],
    )
    assert {spec.backend for spec in config.backend_specs().values()} == {"vllm", "fake"}


def test_a_profile_of_ones_own_servers_does_not_read_the_catalogue(monkeypatch):
    """A request to them should not wait for it."""
    monkeypatch.delitem(sys.modules, catalogue.__name__)
    made(task_routing={"*": "own", "a": "mv_own_k3"}, routers=["cascade"], fallback=["own"], tiers={"7B": {"model": "own"}})
    made(models={"far": {"backend": "openai", "base_url": "https://far.example/v1"}}, task_routing={"*": "cloud"})
    assert catalogue.__name__ not in sys.modules


def test_nothing_is_added_that_nobody_names():
    """A cloud model in the catalogue is no reason to send anything to it."""
    assert list(made(task_routing={"*": "own"}).backend_specs()) == ["own"]


def test_a_request_that_names_a_model_of_the_catalogue_needs_it_in_the_profile():
    """The profile says what may be spent; the error says how to allow it."""
    with pytest.raises(RoutingError, match="no role, model or tier 'gpt-4o'") as caught:
        made().resolve("gpt-4o")
    assert "models: {gpt-4o: {}}" in caught.value.hint


# ------------------------------------------------------------------------------------------------------------ overriding


def test_an_entry_says_only_what_differs():
    """The rest is the catalogue's."""
    spec = made(models={"gpt-4o": {"output_price": 9, "capabilities": ["chat"]}}).models["gpt-4o"]
    assert (spec.input_price, spec.output_price, spec.capabilities) == (2.5, 9.0, ("chat",))
    assert (spec.base_url, spec.api_key_env) == ("https://api.openai.com/v1", "OPENAI_API_KEY")


def test_another_price_of_prompts_is_not_mixed_with_the_catalogues_cached_one():
    """A discount on another price is not this one's."""
    assert made(models={"gpt-4o": {"input_price": 1}}).models["gpt-4o"].cached_input_price is None


def test_an_entry_may_have_another_name():
    """`model` names the catalogue's."""
    spec = made(models={"cheap": {"model": "gpt-6-luna", "api_key_env": "MY_KEY"}}).models["cheap"]
    assert (spec.model, spec.api_key_env, spec.input_price) == ("gpt-6-luna", "MY_KEY", 0.10)
    assert made(models={"gpt-4o": {"api_key": "${MY_KEY}"}}).models["gpt-4o"].api_key_env == "MY_KEY"


def test_another_host_gets_neither_the_providers_key_nor_its_prices():
    """A proxy has its own; a region of the same host has the provider's."""
    proxy = made(models={"gpt-4o": {"base_url": "https://proxy.example/v1"}}).models["gpt-4o"]
    assert (proxy.backend, proxy.model, proxy.context_length) == ("openai", "gpt-4o", 128_000)
    assert "tools" in proxy.capabilities
    assert (proxy.api_key_env, proxy.input_price, proxy.output_price) == (None, None, None)
    same = made(models={"gpt-4o": {"base_url": "https://api.openai.com/v2"}}).models["gpt-4o"]
    assert (same.base_url, same.api_key_env, same.input_price) == ("https://api.openai.com/v2", "OPENAI_API_KEY", 2.5)


@pytest.mark.parametrize(
    "entry",
    [
        {"backend": "openai", "base_url": "https://far.example/v1"},
        {"backend": "vllm", "endpoint": "own"},
        {"backend": "fake"},
        {"endpoint": "own", "backend": "vllm"},
    ],
)
def test_a_whole_entry_is_taken_as_written(entry):
    """Whatever its name."""
    spec = made(models={"gpt-4o": entry}).models["gpt-4o"]
    assert spec.api_key_env is None
    assert spec.input_price is None


@pytest.mark.parametrize("entry", [{}, {"base_url": "https://x.example/v1"}, {"input_price": 1}])
def test_an_entry_of_an_unknown_model_still_needs_its_backend(entry):
    """Nothing is guessed."""
    with pytest.raises(ProfileError, match=r"models\.unheard-of.*backend"):
        made(models={"unheard-of": entry})


def test_what_was_filled_in_is_written_out_and_loads_again():
    """`strategies show` shows it, and a copy of that is a profile."""
    config = made(fallback=["claude"], task_routing={"*": "own"})
    assert config.to_dict()["models"]["claude"]["base_url"] == "https://api.anthropic.com/v1"
    assert StrategyConfig(**config.to_dict()) == config
    assert pickle.loads(pickle.dumps(config)).models == config.models


# ------------------------------------------------------------------------------------------------------------- retirement


def test_a_retired_model_is_answered_by_its_successor_at_its_prices_and_the_operator_is_told(on):
    """The name stays; before that day it means itself, without a word."""
    on(2025, 1, 1)
    config = made(fallback=["claude-3.5-sonnet"])
    assert (config.resolve("claude-3.5-sonnet")[0].model, config.notes) == ("claude-3-5-sonnet-20241022", ())
    on(2026, 12, 1)
    config = made(fallback=["claude-3.5-sonnet"])
    spec = config.resolve("claude-3.5-sonnet")[0]
    assert (spec.name, spec.model, spec.input_price) == ("claude-3.5-sonnet", "claude-sonnet-5-5", 2.0)
    (note,) = config.notes
    assert "2025-10-28" in note
    log = io.StringIO()
    with ModelOrchestrator(config, log=log, metrics=NullSink(), environ={}):
        assert "claude-3-5-sonnet-20241022 was retired on 2025-10-28" in log.getvalue()


def test_an_id_that_the_profile_writes_is_asked_for_retired_or_not(on):
    """The note is for what the package chose."""
    on(2026, 12, 1)
    config = made(models={"old": {"model": "claude-3-5-sonnet-20241022"}})
    assert (config.models["old"].model, config.notes) == ("claude-3-5-sonnet-20241022", ())


# ------------------------------------------------------------------------------------------------------------------ cloud


def test_cloud_without_a_cloud_model_means_one_of_each_provider():
    """Those whose key is not set are skipped, as everywhere."""
    config = made(task_routing={"*": "own", "hard": "cloud"})
    assert [spec.name for spec in config.resolve("cloud")] == [model.name for model in clouds()]


def test_cloud_with_a_cloud_model_means_that_one():
    """Named or described."""
    assert [spec.name for spec in made(task_routing={"*": "cloud"}, fallback=["gpt-4o"]).resolve("cloud")] == ["gpt-4o"]
    far = {"backend": "openai", "base_url": "https://far.example/v1"}
    assert [spec.name for spec in made(task_routing={"*": "cloud"}, models={"far": far}).resolve("cloud")] == ["far"]


# ----------------------------------------------------------------------------------------------------------- no cloud


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"fallback": ["own", "gpt-4o"]}, r"fallback\[1\]: 'gpt-4o'"),
        ({"fallback": {"primary": "claude"}}, r"fallback\.primary: 'claude'"),
        ({"task_routing": {"a": "gemini"}}, r"task_routing\.a: 'gemini'"),
        ({"task_routing": {"a": "cloud"}}, r"task_routing\.a: 'cloud'"),
        (
            {"task_routing": {"a": "mv_cascade_own_k4_gpt-4o_k1"}, "routers": ["cascade"]},
            r"task_routing\.a: 'mv_cascade_own_k4_gpt-4o_k1'",
        ),
        ({"tiers": {"a": {"model": "deepseek-v3"}}}, r"tiers\.a\.model: 'deepseek-v3'"),
        ({"models": {"gpt-4o": {}}}, r"models\.gpt-4o\.backend: 'gpt-4o'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_where_the_cloud_is_forbidden_its_names_are_one_error_each(keys, place):
    """Nothing is added, and nothing is called unknown that is known."""
    with pytest.raises(ProfileError, match=f"{place} needs the cloud, but allow_cloud is false") as caught:
        made(allow_cloud=False, **keys)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("routing", "word"),
    [
        ({"a": "cloud", "*": "own"}, "write own, or remove this line"),
        ({"a": "cloud", "b": "own", "c": "math", "d": "math"}, "write math, or remove this line"),
        ({"a": "cloud", "embeddings": "own"}, "remove this line"),
    ],
)
def test_the_error_of_a_route_to_the_cloud_says_what_to_write(routing, word):
    """Where the other tasks go."""
    servers = {"own": "http://localhost:8001/v1", "math": "http://localhost:8002/v1"}
    with pytest.raises(ProfileError) as caught:
        StrategyConfig(profile_name="p", allow_cloud=False, vllm_endpoints=servers, task_routing=routing)
    assert caught.value.problems[0].endswith(f"; {word}")


# -------------------------------------------------------------------------------------------------------------- no model


@pytest.mark.parametrize("allow_cloud", [True, False])
def test_a_profile_without_models_uses_the_embedded_fleet(allow_cloud):
    """Which needs no key and no network."""
    config = StrategyConfig(profile_name="sandbox", allow_cloud=allow_cloud)
    assert {name: (spec.backend, spec.path) for name, spec in config.models.items()} == {
        name: ("embedded", name) for name in ("small", "medium", "large")
    }
    assert config.route_of("anything") == "large"
    assert [router.name for router in config.routers] == ["cascade", "provider"]
    shipped = StrategyConfig.load("development")
    assert (config.models, config.tiers) == (shipped.models, shipped.tiers)


def test_a_faulty_section_is_no_reason_for_the_embedded_fleet():
    """Its fault is the only one reported."""
    with pytest.raises(ProfileError) as caught:
        StrategyConfig(profile_name="p", models={"m": {"backend": "fake", "path": "sk-abcdefghijklmnopqrstuv"}})
    assert len(caught.value.problems) == 1


# ---------------------------------------------------------------------------------------------------------- the plan's own


@pytest.mark.skipif(not SEED.is_dir(), reason="the profiles of the plan are not here")
class TestThePlansProfiles:
    """As its README says: three load as they stand, and the fourth says what to write."""

    def test_t4_hybrid(self):
        config = StrategyConfig.load(SEED / "t4_hybrid.yaml", environ={})
        assert config.fallback == ("deepseek-v3", "claude-3.5-sonnet")
        assert [spec.name for spec in config.resolve(config.route_of("orchestration"))] == list(config.fallback)
        assert config.resolve("coder")[0].base_url == "http://t4-node-02:8002"

    def test_cloud_only(self):
        config = StrategyConfig.load(SEED / "cloud_only.yaml", environ={})
        assert [spec.name for spec in config.resolve(config.route_of("anything"))] == ["deepseek-v3"]

    def test_development(self):
        config = StrategyConfig.load(SEED / "development.yaml", environ={})
        assert config.debug_routing
        assert all(spec.backend == "embedded" for spec in config.models.values())

    def test_t4_local_only_names_the_line_and_what_to_write(self, tmp_path):
        with pytest.raises(ProfileError) as caught:
            StrategyConfig.load(SEED / "t4_local_only.yaml", environ={})
        (problem,) = caught.value.problems
        assert "t4_local_only.yaml:20: task_routing.orchestration: 'cloud'" in problem
        assert "write generalist, or remove this line" in problem
        lines = (SEED / "t4_local_only.yaml").read_text().splitlines(keepends=True)
        (tmp_path / "without.yaml").write_text("".join(line for line in lines if "orchestration" not in line))
        config = StrategyConfig.load(tmp_path / "without.yaml", environ={})
        assert not config.allow_cloud
        assert all(spec.local for spec in config.backend_specs().values())
