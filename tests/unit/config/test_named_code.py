"""Code that a profile or a fleet file names: it runs if a person named the file, and not if it just lay there."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.paths import PROFILES
from workflow_composer import ModelOrchestrator
from workflow_composer.batch.run.lines import sealed
from workflow_composer.cli.main import run
from workflow_composer.cli.state import State
from workflow_composer.config.named_code import ALLOW_CODE_VARIABLE, named_code
from workflow_composer.config.strategy import LOCAL_PRESETS, PRESETS, StrategyConfig, shipped
from workflow_composer.errors import ConfigError, ProfileError
from workflow_composer.fleet.file import load_fleet
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.server.admin.strategy_switcher import Strategies, SwitchAudit

BASE = "profile_name: mine\nmodels: {m: {backend: fake}, n: {backend: fake}}\ntask_routing: {'*': m}\n"
TIERS = "tiers: {{t: {{model: m, accept: {form}}}, u: {{model: n}}}}\nrouters: [cascade, provider]\n"
NAMING = {
    "workflows, whose steps may be programs": "workflows: [flow.yaml]\n",
    "extraction": "routers: [{cascade: {extract: ['python:ran:mark']}}, provider]\n",
    "extraction after another": "routers: [{cascade: {extract: [boxed, 'python:ran:mark']}}, provider]\n",
    "judge": "routers: [{execution_feedback: {audit: {by: 'python:ran:mark'}}}, provider]\n",
    "form": TIERS.format(form="{python: 'ran:Mark'}"),
    "field of a form": TIERS.format(form="{gene: text, kind: {python: 'ran:Mark'}}"),
    "list of a form": TIERS.format(form="[{python: 'ran:Mark'}]"),
    "form as text": TIERS.format(form="'{python: ran:Mark}'"),
    "form as text, escaped": TIERS.format(form="'{\"p\\x79thon\": ran:Mark}'"),
    "optional form": TIERS.format(form="'{python: ran:Mark} or none'"),
    "within a field as text": TIERS.format(form="{kind: '[{python: ran:Mark}] or none'}"),
}
RAN = """
import pathlib, pydantic
pathlib.Path("marker").touch()
def mark(*_): return None
class Mark(pydantic.BaseModel): n: int
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a module on Python's path that leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "ran", raising=False)
    (tmp_path / "ran.py").write_text(RAN)
    (tmp_path / "config" / "strategies").mkdir(parents=True)
    return tmp_path


def opened(strategy, place, **environ):
    with ModelOrchestrator(strategy, metrics=MemorySink(), environ={"XDG_CONFIG_HOME": str(place / "user"), **environ}) as o:
        return o.config


@pytest.mark.parametrize("kind", NAMING)
def test_a_profile_that_was_only_found_runs_no_code(place, kind):
    """By its bare name it is refused with file, line and remedies; by its path, or if that is allowed, it is not."""
    path = place / "config" / "strategies" / "mine.yaml"
    path.write_text(BASE + NAMING[kind])
    with pytest.raises(ProfileError, match=r"config/strategies/mine\.yaml:[45]: .*names code") as caught:
        opened("mine", place)
    assert "-s ./config/strategies/mine.yaml" in str(caught.value)
    assert "--allow-code" in str(caught.value)
    assert not (place / "marker").exists()
    for named, environ in (("./config/strategies/mine.yaml", {}), (path, {}), ("mine", {ALLOW_CODE_VARIABLE: "1"})):
        assert StrategyConfig.load(named, environ=environ).allow_cloud is not None


def test_the_code_of_a_file_that_a_person_named_runs(place):
    """By its path, from the user's own folder, or in Python."""
    text = BASE + NAMING["extraction"]
    (place / "named.yaml").write_text(text)
    own = place / "user" / "workflow-composer" / "strategies"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(text)
    for strategy in ("named.yaml", "./named.yaml", place / "named.yaml", "mine"):
        opened(strategy, place)
    router = {"cascade": {"extract": ["python:ran:mark"]}}
    config = StrategyConfig(profile_name="p", models={"m": {"backend": "fake"}}, routers=[router, "provider"])
    opened(config, place)


@pytest.mark.parametrize(
    "harmless",
    [
        "description: 'python: judges and all'\n",
        "routers: [{cascade: {extract: [whole]}}, provider]\n",
        "tiers: {python: {model: m}, u: {model: n}}\nrouters: [cascade, provider]\n",
        TIERS.format(form="{python: text, other: number}"),
        TIERS.format(form="[python, perl]"),
    ],
)
def test_what_names_no_code_needs_no_leave(place, harmless):
    """The word itself is none."""
    (place / "config" / "strategies" / "mine.yaml").write_text(BASE + harmless)
    assert opened("mine", place).profile_name == "mine"


def test_the_option_allows_it(place, capsys):
    """As a common option of the group and of a command."""
    (place / "config" / "strategies" / "mine.yaml").write_text(BASE + NAMING["form"])
    assert run(["-s", "mine", "route", "q"], State(environ={})) == 2
    assert "names code" in capsys.readouterr().err
    assert run(["--allow-code", "-s", "mine", "route", "q"], State(environ={})) == 0
    assert run(["route", "-s", "mine", "--allow-code", "q"], State(environ={})) == 0


async def test_a_switch_and_a_reload_keep_the_rule(place, tmp_path):
    """The service's operator names a profile; a client of the admin API names one that was found; a file changes."""
    folder = place / "config" / "strategies"
    for name, text in (("mine", BASE), ("other", BASE + NAMING["judge"])):
        (folder / f"{name}.yaml").write_text(text)

    class Participant:
        async def prepare(self, config, plugins):
            pass

        async def commit(self):
            pass

        async def discard(self):
            pass

    def strategies(named):
        config = StrategyConfig.load(named, environ={})
        return Strategies(config, lambda: (Participant(),), SwitchAudit(tmp_path / "audit"), environ={})

    for start in ("mine", "./config/strategies/mine.yaml"):
        with pytest.raises(ProfileError, match="names code"):
            await strategies(start).switch("other", who="w")
    by_name, by_path = strategies("mine"), strategies("./config/strategies/mine.yaml")
    (folder / "mine.yaml").write_text(BASE + NAMING["form"])
    with pytest.raises(ProfileError, match="names code"):
        await by_name.reload(who="w")
    assert (await by_path.reload(who="w")).number == 2


# ------------------------------------------------------------------------------------------------------- shipped names


def test_the_shipped_profiles_that_promise_to_keep_data_local_are_known():
    """Their names are a list, so that a file of their name is recognised without reading them."""
    local = [name for name in PRESETS if not StrategyConfig.from_yaml(PROFILES / f"{name}.yaml").allow_cloud]
    assert sorted(local) == sorted(LOCAL_PRESETS)


@pytest.mark.parametrize("name", LOCAL_PRESETS)
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("models: {m: {backend: openai, base_url: 'https://evil.example/v1'}}\n", "allow_cloud"),
        ("allow_cloud: true\nmodels: {m: {backend: fake}}\n", "allow_cloud"),
        (
            "allow_cloud: false\nlocal_networks: [203.0.113.0/24]\nvllm_endpoints: {a: 'http://203.0.113.7/v1'}\n",
            "local_networks",
        ),
    ],
)
def test_a_file_in_the_working_directory_cannot_undo_a_shipped_promise(place, name, text, key):
    """By the bare name it is an error with the remedy; by its path a person wants it."""
    path = place / "config" / "strategies" / f"{name}.yaml"
    path.write_text(f"profile_name: {name}\n{text}")
    with pytest.raises(ProfileError, match=f"{key}: the shipped profile '{name}' keeps data local") as caught:
        opened(name, place)
    assert f"-s ./config/strategies/{name}.yaml" in caught.value.hint
    assert StrategyConfig.load(f"./config/strategies/{name}.yaml").profile_name == name


def test_a_file_that_keeps_the_promise_replaces_a_shipped_profile_with_a_warning(place):
    """Nobody is left to believe that it is the shipped one."""
    (place / "config" / "strategies" / "development.yaml").write_text("allow_cloud: false\n" + BASE)
    with pytest.warns(UserWarning, match="instead of the shipped profile development"):
        assert StrategyConfig.load("development").profile_name == "mine"
    said = []
    StrategyConfig.load("development", report=said.append)
    assert len(said) == 1


def test_the_users_own_folder_and_a_checkout_may_have_shipped_names(place, monkeypatch):
    """The first is the user's decision, the second is where the shipped ones lie."""
    own = place / "user" / "workflow-composer" / "strategies"
    own.mkdir(parents=True)
    (own / "development.yaml").write_text("allow_cloud: true\n" + BASE)
    assert opened("development", place).allow_cloud
    monkeypatch.chdir(PROFILES.parents[1])
    assert shipped().samefile("config/strategies")
    assert not StrategyConfig.load("t4_local_only").allow_cloud


# ----------------------------------------------------------------------------------------------------------- fleet files


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"python": "./bin/python"}, "python"),
        ({"monitor": {"alerts": {"command": ["./alert"]}}}, "monitor.alerts.command"),
        ({"roles": {"a": {"model": "m", "port": 8001, "environment": {"LD_PRELOAD": "./x.so"}}}}, "environment.LD_PRELOAD"),
        ({"roles": {"a": {"model": "m", "port": 8001, "arguments": ["--trust-remote-code"]}}}, r"arguments\[0\]"),
        ({"roles": {"a": {"model": "m", "port": 8001, "arguments": ["--middleware=x.y"]}}}, r"arguments\[0\]"),
    ],
)
def test_a_fleet_file_that_was_only_found_names_no_programs(place, more, key):
    """The same rule: it is refused when found, and taken when named or allowed."""
    path = place / "config" / "fleet.yaml"
    path.write_text(json.dumps({"roles": {"a": {"model": "m", "port": 8001}}, **more}))
    with pytest.raises(ProfileError, match=f"{key}: names code") as caught:
        load_fleet(environ={})
    assert "--fleet ./config/fleet.yaml" in str(caught.value)
    assert load_fleet(path, {}).settings.roles
    assert load_fleet(environ={ALLOW_CODE_VARIABLE: "1"}).settings.roles
    shutil.move(path, place / "elsewhere.yaml")
    assert load_fleet(place / "elsewhere.yaml", {}).settings.roles


def test_a_fleet_file_without_programs_is_found_as_before(place):
    """Servers, options and harmless variables need no leave."""
    role = {"model": "m", "port": 8001, "environment": {"HF_HOME": "/data"}, "arguments": ["--max-num-seqs=8"]}
    (place / "config" / "fleet.yaml").write_text(json.dumps({"roles": {"a": role}}))
    assert load_fleet(environ={}).path == place / "config" / "fleet.yaml"


def test_depth_is_bounded():
    """What is nested too deeply counts as code; a text is read as often as forms are."""
    text = "x"
    for _ in range(40):
        text = [text]
    assert list(named_code(text))
    assert not list(named_code("[[[[x]]]]"))
    assert issubclass(ProfileError, ConfigError)


def test_a_kept_run_runs_its_code_only_if_that_is_allowed(place, capsys):
    """Whoever gives away a folder of results could name `os.system`, to which each answer would be passed."""
    (place / "p.yaml").write_text(BASE + "tiers: {t: {model: m}, u: {model: n}}\nrouters: [cascade, provider]\n")
    (place / "rows.jsonl").write_text('{"id": "1", "question": "1 + 1", "answer": "2"}\n')
    done = ["execute", "-s", "./p.yaml", "--datasets", "rows.jsonl", "--policies", "plain", "--output", "results"]
    assert run(done, State(environ={})) == 0
    (journal,) = place.glob("results/**/journal.jsonl")
    header, rest = journal.read_bytes().split(b"\n", 1)
    about = json.loads(header)[1]
    (place / "ran_by_a_run.py").write_text(RAN)  # a name of its own: readers are cached
    about["run"]["votes"]["form"]["extract"] = ["python:ran_by_a_run:mark"]
    journal.write_bytes(sealed(about) + rest)
    assert run(["regrade", "results"], State(environ={})) == 2
    assert "names code to run" in capsys.readouterr().err
    assert not (place / "marker").exists()
    assert run(["regrade", "results", "--extract", "whole"], State(environ={})) == 0
    assert not (place / "marker").exists()
    assert run(["regrade", "results", "--allow-code", "-o", "again"], State(environ={})) == 0
    assert (place / "marker").exists()
