"""The profiles of the package: they load without any key, and say what they promise."""

import pytest

from tests.paths import PROFILES, ROOT
from workflow_composer.config.catalogue import find
from workflow_composer.config.strategy import PRESETS, StrategyConfig, profiles
from workflow_composer.fleet.file import load_fleet
from workflow_composer.fleet.file import shipped as fleet_file

TASKS = {
    "intent_parsing",
    "code_generation",
    "code_validation",
    "math_statistics",
    "data_analysis",
    "documentation",
    "embeddings",
    "orchestration",
    "biomedical",
    "safety",
    "*",
}


def shipped(name):
    """A profile, with nothing in the environment."""
    return StrategyConfig.load(name, search=[PROFILES], environ={})


def test_presets_are_what_is_shipped():
    """Every file is a preset, and every preset a file."""
    assert set(profiles([PROFILES])) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_shipped_profile_loads_and_routes_every_task(name):
    """It bears its file's name, and each task leads to a model."""
    config = shipped(name)
    assert config.profile_name == name
    assert config.description
    other = {"development": TASKS - {"embeddings"}, "math_cascade": {"math_statistics", "embeddings", "*"}}
    assert set(config.task_routing) == other.get(name, TASKS)
    for task in TASKS:
        route = config.route_of(task)
        assert config.tiers if route == "cascade" else config.resolve(route), task


@pytest.mark.parametrize("name", PRESETS)
def test_a_shipped_profile_explains_itself(name):
    """It begins with what it is for and how it is started; its parts have comments."""
    lines = (PROFILES / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert f"python -m workflow_composer -s {name} " in "\n".join(lines)
    assert not shipped(name).notes
    assert sum(line.lstrip().startswith("#") for line in lines) >= 9
    assert max(map(len, lines)) <= 125


def test_t4_hybrid_is_four_local_servers_with_the_cloud_behind_them():
    """Roles on ports 8001 to 8004; two models of the catalogue take over."""
    config = shipped("t4_hybrid")
    ports = {role: config.servers_of(role)[0].split(":")[-1] for role in config.vllm_endpoints}
    assert ports == {"generalist": "8001/v1", "coder": "8002/v1", "math": "8003/v1", "embeddings": "8004/v1"}
    assert config.allow_cloud
    assert config.fallback == ("deepseek-flash", "claude-sonnet-5-5")
    assert [spec.name for spec in config.resolve(config.route_of("orchestration"))] == [
        "deepseek-flash",
        "claude-sonnet-5-5",
    ]
    assert config.resolve("coder")[0].name == "Qwen/Qwen2.5-Coder-7B-Instruct-AWQ"
    assert [router.name for router in config.routers] == ["cascade", "cascading_provider"]


@pytest.mark.parametrize("name", ["t4_hybrid", "t4_local_only"])
def test_the_servers_of_a_role_are_one_here_and_those_that_a_fleet_has_registered(name):
    """Wherever the scheduler put them."""
    for role in ("generalist", "coder", "math", "embeddings"):
        here, registered = shipped(name).servers_of(role)
        assert here.startswith("http://localhost:800")
        assert registered == f"registry:{role}"


@pytest.mark.parametrize("name", ["t4_hybrid", "t4_local_only"])
def test_local_servers_are_asked_what_they_serve(name):
    """No model id is forced on them, and each second of their GPU has a price."""
    for role in ("generalist", "coder", "math", "embeddings"):
        (spec,) = shipped(name).resolve(role)
        assert (spec.backend, spec.model, spec.gpu_hour_price) == ("vllm", None, 0.35)


@pytest.mark.parametrize("name", ["t4_local_only", "development", "math_cascade"])
def test_profiles_that_promise_it_never_reach_the_cloud(name):
    """Everything that can be called is local, and the cloud forbidden."""
    config = shipped(name)
    assert not config.allow_cloud
    assert config.fallback == ()
    assert all(spec.local for spec in config.backend_specs().values())


def test_t4_local_only_uses_the_local_router():
    """Its tasks go to their local server and to no other."""
    assert [router.name for router in shipped("t4_local_only").routers] == ["cascade", "t4_model"]


def test_cloud_only_has_no_local_model():
    """Every task leads to the cloud, and every model has a key and a price."""
    config = shipped("cloud_only")
    assert not config.vllm_endpoints
    for spec in config.backend_specs().values():
        assert (spec.backend, spec.local) == ("openai", False)
        assert spec.api_key_env
        assert spec.priced


def test_development_is_three_embedded_models_in_three_tiers():
    """Small, medium and large, priced in proportion; the large one answers."""
    config = shipped("development")
    specs = config.backend_specs()
    assert {name: (spec.backend, spec.path) for name, spec in specs.items()} == {
        name: ("embedded", name) for name in ("small", "medium", "large")
    }
    assert [(s.input_price, s.output_price) for s in specs.values()] == [(0.02, 0.02), (0.10, 0.10), (0.40, 0.40)]
    assert list(config.tiers) == ["small", "medium", "large"]
    assert (config.route_of("intent_parsing"), config.route_of("*")) == ("small", "large")


@pytest.mark.parametrize("name", PRESETS)
def test_no_shipped_profile_writes_prompts_down(name):
    """Debugging puts prompts into the log and the metrics; who wants that turns it on."""
    assert not shipped(name).debug_routing


@pytest.mark.parametrize("name", PRESETS)
def test_no_shipped_profile_names_a_retired_model(name):
    """A fallback that the provider no longer answers is none."""
    for spec in shipped(name).models.values():
        known = find(spec.name)
        assert known is None or known.retired_on is None, spec.name


def test_math_cascade_has_the_sizes_of_the_fleet():
    """Each of its roles is one of the shipped fleet file, on the same port and with the same model."""
    config, fleet = shipped("math_cascade"), load_fleet(fleet_file(), {}).settings.roles
    assert list(config.tiers) == ["1.5B", "7B", "72B"]
    for name, model in config.models.items():
        role = fleet[model.endpoint]
        assert (role.model, config.servers_of(role.name)[0]) == (name, f"http://localhost:{role.port}/v1")
    assert fleet["math-1.5b"].on_request
    assert fleet["math-72b"].on_request


def test_t4_feedback_starts_at_home_and_has_a_floor_for_each_task():
    """Local first, then two clouds; only what is routed to the cloud starts there."""
    config = shipped("t4_feedback")
    assert [config.resolve(tier)[0].local for tier in config.tiers] == [True, False, False]
    floors = config.routers[0].settings["task_floors"]
    assert set(floors) == TASKS - {"embeddings"}
    assert {task for task, floor in floors.items() if floor != "7B"} == {"orchestration"}


def test_the_table_of_keys_is_up_to_date():
    """docs/profiles.md is generated from the models."""
    from scripts.generate_profile_docs import PAGE, page

    assert PAGE == ROOT / "docs" / "profiles.md"
    assert page(PAGE.read_text()) == PAGE.read_text(), "run python scripts/generate_profile_docs.py"
