"""What a valid profile means: each key, names and what they stand for, frozen values, printing and copying."""

import copy
import doctest
import pickle
from pathlib import Path

import pydantic
import pytest
import yaml

from workflow_composer.config import strategy
from workflow_composer.config.strategy import ModelSpec, RouterSpec, StrategyConfig
from workflow_composer.errors import ProfileError, RoutingError

FULL = """\
profile_name: lab
description: Everything at once.
allow_cloud: true
debug_routing: true
vllm_endpoints:
  zeta: http://gpu-1:8001/v1
  coder: http://gpu-2:8002/v1
local_networks: [192.0.2.0/24]
task_routing: {code: coder, hard: strong, talk: cloud, "*": zeta}
fallback: [far, near]
models:
  big-coder: {backend: vllm, endpoint: coder, gpu_hour_price: 0.35, capabilities: [chat, tools]}
  near: {backend: openai, base_url: "https://near.example/v1", input_price: 1, output_price: 2.5, context_length: 8000}
  far: {backend: openai, base_url: "https://far.example/v1", model: far-1, api_key_env: FAR_KEY}
  other: {backend: openai, base_url: "https://other.example/v1"}
  tape: {backend: replay, path: answers.jsonl}
tiers:
  weak: {model: zeta, cost: 0.1}
  strong: {model: near, cost: 3}
  strongest: {model: far, cost: 7}
routers:
  - t4_model
  - cascading_provider: {max_fallbacks: 1, places: [a, {b: c}]}
  - provider
timeouts: {connect: 1, first_token: 2, total: 3e1}
retries: {attempts: 2, base_delay: 0.5, max_delay: 4}
circuit_breaker: {failures: 7, cooldown: 9}
"""


@pytest.fixture
def lab(tmp_path):
    """The profile above, loaded from a file."""
    path = tmp_path / "lab.yaml"
    path.write_text(FULL)
    return StrategyConfig.from_yaml(path, environ={})


def made(**keys):
    """A profile made in Python."""
    return StrategyConfig(profile_name="mine", **keys)


def test_examples_in_the_docstrings_run():
    """What the documentation shows is what happens."""
    result = doctest.testmod(strategy)
    assert result.attempted
    assert not result.failed


def test_plain_keys_are_read(lab):
    """Each simple key arrives as it was written."""
    assert (lab.profile_name, lab.description) == ("lab", "Everything at once.")
    assert (lab.allow_cloud, lab.debug_routing) == (True, True)
    assert dict(lab.vllm_endpoints) == {"zeta": "http://gpu-1:8001/v1", "coder": "http://gpu-2:8002/v1"}
    assert lab.local_networks == ("192.0.2.0/24",)
    assert (lab.timeouts.connect, lab.timeouts.first_token, lab.timeouts.total) == (1.0, 2.0, 30.0)
    assert (lab.retries.attempts, lab.retries.base_delay, lab.retries.max_delay) == (2, 0.5, 4.0)
    assert (lab.circuit_breaker.failures, lab.circuit_breaker.cooldown) == (7, 9.0)


def test_model_keys_are_read(lab):
    """Each key of a model arrives; the catalogue's key becomes its name."""
    near, far = lab.models["near"], lab.models["far"]
    assert (near.name, near.base_url) == ("near", "https://near.example/v1")
    assert (near.input_price, near.output_price, near.context_length) == (1.0, 2.5, 8000)
    assert (far.model, far.api_key_env) == ("far-1", "FAR_KEY")
    assert (lab.models["big-coder"].gpu_hour_price, lab.models["big-coder"].capabilities) == (0.35, ("chat", "tools"))


def test_defaults_hold_where_a_key_is_absent():
    """The shortest profile has the documented defaults."""
    config = made(models={"m": {"backend": "fake"}})
    assert config.allow_cloud
    assert not config.debug_routing
    assert (config.vllm_endpoints, config.task_routing, list(config.models), config.tiers) == ({}, {}, ["m"], {})
    assert (config.fallback, config.local_networks, config.description) == ((), (), "")
    assert [router.name for router in config.routers] == ["cascading_provider"]
    assert (config.timeouts.connect, config.timeouts.first_token, config.timeouts.total) == (2.0, 60.0, 300.0)
    assert (config.retries.attempts, config.retries.base_delay, config.retries.max_delay) == (3, 0.25, 8.0)
    assert (config.circuit_breaker.failures, config.circuit_breaker.cooldown) == (5, 30.0)


def test_order_comes_from_the_file(lab):
    """Routers, fallbacks, tiers, roles and models keep the order they are written in."""
    assert [router.name for router in lab.routers] == ["t4_model", "cascading_provider", "provider"]
    assert lab.fallback == ("far", "near")
    assert list(lab.tiers) == ["weak", "strong", "strongest"]
    assert list(lab.vllm_endpoints) == ["zeta", "coder"]
    assert list(lab.models) == ["big-coder", "near", "far", "other", "tape"]


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
def test_fallback_may_be_a_mapping_of_primary_and_secondary(order):
    """Primary comes before secondary, wherever each stands."""
    models = {name: {"backend": "fake"} for name in "ab"}
    keys = {"secondary": order[1], "primary": order[0]}
    assert made(models=models, fallback=keys).fallback == tuple(order)
    assert made(models=models, fallback={"primary": "b"}).fallback == ("b",)


def test_routers_take_settings(lab):
    """A router's settings stand below its name; a router without any has none."""
    assert lab.routers[0] == RouterSpec(name="t4_model")
    assert lab.routers[1].settings["max_fallbacks"] == 1
    assert made(routers=[{"provider": None}]).routers == (RouterSpec(name="provider"),)


def test_a_model_is_called_by_its_own_name_unless_the_server_is_asked():
    """The default of `model` is the catalogue's key; for a vLLM server it stays open."""
    assert ModelSpec(name="gpt-4o", backend="openai").model == "gpt-4o"
    assert ModelSpec(name="x", backend="vllm").model is None
    assert ModelSpec(name="x", backend="vllm", model="y").model == "y"


@pytest.mark.parametrize(
    ("backend", "local"),
    [("vllm", True), ("embedded", True), ("replay", True), ("fake", True), ("openai", False), ("plugged", False)],
)
def test_only_backends_known_to_stay_at_home_are_local(backend, local):
    """A backend the package does not know counts as one that sends data out."""
    assert ModelSpec(name="x", backend=backend).local is local


# ------------------------------------------------------------------------------------------------- what names stand for


def test_route_of_falls_back_to_the_wildcard(lab):
    """A listed task has its route, any other the wildcard's."""
    assert (lab.route_of("code"), lab.route_of("unheard of"), lab.route_of("*")) == ("coder", "zeta", "zeta")
    assert made(models={"m": {"backend": "fake"}}).route_of("code") is None


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("coder", ["big-coder"]),  # a role that a model claims
        ("zeta", ["zeta"]),  # a role that none claims
        ("near", ["near"]),
        ("weak", ["zeta"]),  # a tier of a role
        ("strong", ["near"]),
        ("cloud", ["far", "near"]),  # the cloud members of fallback, in its order
    ],
)
def test_resolve_finds_roles_models_tiers_and_the_cloud(lab, target, names):
    """Every kind of name leads to its models."""
    assert [spec.name for spec in lab.resolve(target)] == names


def test_cloud_is_the_whole_cloud_catalogue_where_fallback_has_none():
    """Without cloud models in the fallback, all of the catalogue stand for the cloud."""
    url = "https://api.example/v1"
    models = {
        "here": {"backend": "fake"},
        "a": {"backend": "openai", "base_url": url},
        "b": {"backend": "openai", "base_url": url},
    }
    assert [spec.name for spec in made(models=models, fallback=["here"]).resolve("cloud")] == ["a", "b"]
    assert made().resolve("cloud") == ()


def test_resolve_suggests_the_nearest_name(lab):
    """An unknown name is a routing error with a suggestion."""
    with pytest.raises(RoutingError, match="did you mean 'coder'"):
        lab.resolve("codr")


def test_a_role_stands_for_the_first_model_that_claims_it():
    """Two models behind one server: the role stands for the first of the file."""
    models = {"one": {"backend": "vllm", "endpoint": "r"}, "two": {"backend": "vllm", "endpoint": "r", "model": "lora"}}
    config = made(vllm_endpoints={"r": "http://h:1/v1"}, models=models)
    assert [spec.name for spec in config.resolve("r")] == ["one"]
    assert list(config.backend_specs()) == ["one", "two"]


def test_role_model_and_tier_may_share_a_name_for_the_same_thing():
    """A model `r` behind role `r`, and a tier `r` of model `r`, are one thing."""
    config = made(
        vllm_endpoints={"r": "http://h:1/v1"},
        models={"r": {"backend": "vllm", "endpoint": "r"}},
        tiers={"r": {"model": "r", "cost": 1}},
    )
    assert list(config.backend_specs()) == ["r"]
    assert config.resolve("r")[0].base_url == "http://h:1/v1"


def test_everything_callable_is_complete(lab):
    """Specs carry the URL of their role; a role without a model can be called under its own name."""
    specs = lab.backend_specs()
    assert list(specs) == ["big-coder", "near", "far", "other", "tape", "zeta"]
    assert specs["big-coder"].base_url == "http://gpu-2:8002/v1"
    assert (specs["zeta"].backend, specs["zeta"].base_url, specs["zeta"].model) == ("vllm", "http://gpu-1:8001/v1", None)
    assert lab.models["big-coder"] == specs["big-coder"]


def test_a_tiers_cost_is_the_price_of_a_model_that_has_none(lab):
    """The cost fills both prices, for a model and for a role; a price of the model's own stays."""
    specs = lab.backend_specs()
    assert (specs["far"].input_price, specs["far"].output_price) == (7.0, 7.0)
    assert (specs["zeta"].input_price, specs["zeta"].output_price) == (0.1, 0.1)
    assert (specs["near"].input_price, specs["near"].output_price) == (1.0, 2.5)
    assert specs["other"].input_price is None


def test_a_gpu_price_counts_as_a_price():
    """A model paid by GPU time is not charged by token, too."""
    models = {"m": {"backend": "embedded", "path": "small", "gpu_hour_price": 0.35}}
    spec = made(models=models, tiers={"t": {"model": "m", "cost": 4}}).resolve("t")[0]
    assert (spec.gpu_hour_price, spec.input_price) == (0.35, None)


@pytest.mark.parametrize(
    ("backend", "mode"), [("vllm", "raw"), ("openai", "raw"), ("embedded", "processed"), ("replay", None), ("fake", None)]
)
def test_what_a_backends_log_probabilities_are_is_known_where_it_can_be(backend, mode):
    """Certificates are bound to it; a server that is started otherwise says so."""
    places = {"vllm": {"base_url": "http://h:1/v1"}, "openai": {"base_url": "https://h.example/v1"}, "replay": {"path": "x"}}
    entry = {"backend": backend, **places.get(backend, {"path": "small"} if backend == "embedded" else {})}
    assert made(models={"m": entry}).models["m"].logprobs_mode == mode
    other = "processed" if mode == "raw" else "raw"
    assert made(models={"m": {**entry, "logprobs_mode": other}}).models["m"].logprobs_mode == other


def test_a_tier_that_names_a_role_prices_the_model_behind_it():
    """The cost reaches the catalogue model that claims the role."""
    models = {"m": {"backend": "vllm", "endpoint": "r"}}
    config = made(vllm_endpoints={"r": "http://h:1/v1"}, models=models, tiers={"t": {"model": "r", "cost": 4}})
    assert config.backend_specs()["m"].input_price == 4.0


# ---------------------------------------------------------------------------------------------------- several servers


def test_a_role_may_have_one_server_a_list_of_them_or_those_of_the_registry():
    """All are asked for in one form; only a single URL is the model's own."""
    endpoints = {
        "one": "http://h:1/v1",
        "listed": ["http://h:2/v1", "registry:coder"],
        "alone": ["http://h:3/v1"],
        "found": "registry:coder",
    }
    config = made(vllm_endpoints=endpoints)
    assert config.servers_of("one") == ("http://h:1/v1",)
    assert config.servers_of("listed") == ("http://h:2/v1", "registry:coder")
    assert config.servers_of("found") == ("registry:coder",)
    assert config.servers_of("none") == config.servers_of(None) == ()
    assert {name: spec.base_url for name, spec in config.backend_specs().items()} == {
        "one": "http://h:1/v1",
        "listed": None,
        "alone": "http://h:3/v1",
        "found": None,
    }


def test_several_servers_are_printed_as_they_were_written(tmp_path):
    """And load again as the same profile; the registry's folder is relative to the file."""
    path = tmp_path / "p.yaml"
    path.write_text(
        "profile_name: p\nregistry: ${PLACE}/registry\n"
        "vllm_endpoints: {a: ['http://${HOST}:1/v1', 'registry:a'], b: 'registry:b', c: 'http://h:2/v1'}\n"
    )
    config = StrategyConfig.from_yaml(path, environ={"HOST": "gpu-7", "PLACE": "shared"})
    assert config.servers_of("a") == ("http://gpu-7:1/v1", "registry:a")
    assert config.registry == str(tmp_path / "shared" / "registry")
    written = config.to_dict()
    assert written["vllm_endpoints"] == {
        "a": ["http://${HOST}:1/v1", "registry:a"],
        "b": "registry:b",
        "c": "http://h:2/v1",
    }
    assert written["registry"] == "${PLACE}/registry"
    (tmp_path / "q.yaml").write_text(yaml.safe_dump(written))
    assert StrategyConfig.from_yaml(tmp_path / "q.yaml", environ={"HOST": "gpu-7", "PLACE": "shared"}) == config


def test_roles_of_the_registry_are_named_as_in_the_fleet():
    """The profile's rule and the fleet's are one."""
    from workflow_composer.backends.replicas.registry import ROLE
    from workflow_composer.config.profile_models import REGISTERED_ROLE

    assert REGISTERED_ROLE.pattern == ROLE.pattern


# ----------------------------------------------------------------------------------------------- variables and paths


def test_variables_are_filled_in_and_shown_as_written(tmp_path):
    """URLs and paths get the variable's value; what is printed keeps its name."""
    path = tmp_path / "p.yaml"
    path.write_text(
        "profile_name: p\n"
        "vllm_endpoints: {r: 'http://${HOST}:${PORT}/v1'}\n"
        "models:\n"
        "  m: {backend: openai, base_url: 'https://me:${PASSWORD}@api.example/v1', api_key: '${THE_KEY}'}\n"
        "  t: {backend: replay, path: '${DATA}/answers.jsonl'}\n"
    )
    environ = {"HOST": "gpu-7", "PORT": "8001", "PASSWORD": "hunter2", "DATA": "/data"}
    config = StrategyConfig.from_yaml(path, environ=environ)
    assert config.vllm_endpoints["r"] == "http://gpu-7:8001/v1"
    assert config.resolve("r")[0].base_url == "http://gpu-7:8001/v1"
    assert config.models["m"].base_url == "https://me:hunter2@api.example/v1"
    assert config.models["m"].api_key_env == "THE_KEY"
    assert config.models["t"].path == "/data/answers.jsonl"
    for text in (
        repr(config),
        str(config),
        yaml.safe_dump(config.to_dict()),
        repr(config.resolve("m")),
        repr(config.resolve("r")),
    ):
        assert "hunter2" not in text
        assert "gpu-7" not in text
    assert config.to_dict()["models"]["m"]["base_url"] == "https://me:${PASSWORD}@api.example/v1"


def test_a_profile_loads_without_the_keys_of_its_models():
    """A key is needed when the model is called, not when the profile loads."""
    model = {"backend": "openai", "base_url": "https://api.example/v1", "api_key": "${SURELY_NOT_SET_ANYWHERE}"}
    assert made(models={"m": model}).models["m"].api_key_env == "SURELY_NOT_SET_ANYWHERE"


def test_paths_are_relative_to_the_profile(tmp_path, monkeypatch):
    """A path is found from any working directory; a bare checkpoint's name stays a name."""
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / "p.yaml").write_text(
        "profile_name: p\n"
        "models:\n"
        "  tape: {backend: replay, path: answers.jsonl}\n"
        "  near: {backend: embedded, path: ./weights}\n"
        "  shipped: {backend: embedded, path: small}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = StrategyConfig.from_yaml(Path("deep/p.yaml"))
    assert config.models["tape"].path == str(folder / "answers.jsonl")
    assert config.models["near"].path == str(folder / "weights")
    assert config.models["shipped"].path == "small"
    assert config.to_dict()["models"]["near"]["path"] == "./weights"


# --------------------------------------------------------------------------------------- frozen, printed, copied, located


def test_nothing_can_be_changed(lab):
    """Attributes, parts and mappings at every depth are read-only."""
    with pytest.raises(pydantic.ValidationError):
        lab.allow_cloud = False
    with pytest.raises(pydantic.ValidationError):
        lab.models["near"].base_url = "http://elsewhere"
    for mapping in (
        lab.models,
        lab.tiers,
        lab.vllm_endpoints,
        lab.task_routing,
        lab.backend_specs(),
        lab.routers[1].settings,
        lab.routers[1].settings["places"][1],
    ):
        with pytest.raises(TypeError, match="mappingproxy"):
            mapping["new"] = 1
    assert lab.routers[1].settings["places"] == ("a", {"b": "c"})


def test_the_caller_keeps_no_handle_on_what_is_inside():
    """Changing the data that a profile was made from does not change it."""
    routes = {"*": "m"}
    config = made(models={"m": {"backend": "fake"}}, task_routing=routes)
    routes["*"] = "elsewhere"
    assert config.route_of("any") == "m"


def test_to_dict_is_plain_and_loads_again(lab, tmp_path):
    """What is printed is a profile, and the same one."""
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(lab.to_dict(), sort_keys=False))
    assert StrategyConfig.from_yaml(path, environ={}) == lab


def test_pickles_and_copies_are_equal(lab):
    """A profile travels to another process, with its places."""
    again = pickle.loads(pickle.dumps(lab))
    assert again == lab == copy.deepcopy(lab) == copy.copy(lab)
    assert again.where("fallback", 0) == lab.where("fallback", 0)
    assert lab != made()
    assert lab != "lab"


def test_where_names_file_line_and_key(lab):
    """Every key has its place; an absent one has the place of what would hold it."""
    assert lab.where("models", "far", "backend") == f"{lab.source}:14: models.far.backend"
    assert lab.where("routers", 1) == f"{lab.source}:23: routers[1]"
    assert lab.where("routers", 1, "cascading_provider", "max_fallbacks").startswith(f"{lab.source}:23: routers[1].casc")
    assert lab.where("models", "far", "path") == f"{lab.source}:14: models.far.path"
    assert made().where("routers", 0) == "<StrategyConfig>: routers[0]"


def test_where_finds_a_fallback_given_as_a_mapping(tmp_path):
    """`fallback[0]` stands where `primary` does."""
    path = tmp_path / "p.yaml"
    path.write_text("profile_name: p\nmodels:\n  m: {backend: fake}\nfallback:\n  primary: m\n")
    assert StrategyConfig.from_yaml(path).where("fallback", 0) == f"{path}:5: fallback[0]"


def test_python_data_is_checked_like_a_file():
    """Faults of a profile made in Python come all at once, too."""
    with pytest.raises(ProfileError) as caught:
        made(alow_cloud=True, models={"m": {"backend": "openai"}, 3: {"backend": "fake"}}, fallback=["n"])
    assert len(caught.value.problems) == 4
    assert all(line.startswith("<StrategyConfig>: ") for line in caught.value.problems)


def test_parts_made_in_python_are_taken():
    """Models and routers may be given as values."""
    spec = ModelSpec(name="m", backend="replay", path="/a.jsonl", capabilities=["chat"])
    config = made(models={"m": spec}, routers=(RouterSpec(name="provider", settings={"a": 1}), RouterSpec(name="other")))
    assert config.models["m"] == spec
    assert [router.name for router in config.routers] == ["provider", "other"]
    assert config.routers[0].settings == {"a": 1}
