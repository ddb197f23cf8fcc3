"""The fleet file: what it means, where it is found, and every fault with its line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from workflow_composer.errors import FleetError, ProfileError
from workflow_composer.fleet.file import load_fleet, search_path, shipped

GOOD = """\
roles:
  coder:
    model: Org/Coder
    port: 8002
    replicas: 2
  math:
    model: ./weights
    port: 8010
"""


@pytest.fixture
def write(tmp_path):
    """Writes a fleet file beside a folder ``weights``; returns its path."""
    (tmp_path / "weights").mkdir()

    def write(text: str) -> Path:
        path = tmp_path / "fleet.yaml"
        path.write_text(text)
        return path

    return write


def faults(path: Path, environ: dict[str, str] | None = None) -> list[str]:
    """Every fault of the file, without the file's name."""
    with pytest.raises(ProfileError) as caught:
        load_fleet(path, environ or {})
    assert all(line.startswith(f"{path}:") for line in caught.value.problems)
    return [line.removeprefix(f"{path}:") for line in caught.value.problems]


def one_fault(path: Path, environ: dict[str, str] | None = None) -> str:
    (fault,) = faults(path, environ)
    return fault


# ------------------------------------------------------------------------------------------------------------------ meaning


def test_servers_are_named_by_role_and_number_and_have_ports_in_a_row(write):
    fleet = load_fleet(write(GOOD), {})

    assert fleet.servers() == ("coder", "coder-2", "math")
    assert fleet.server_names("coder") == ("coder", "coder-2")
    assert [fleet.find(server)[1] for server in fleet.servers()] == [8002, 8003, 8010]
    assert fleet.find("coder-2")[0].name == "coder"


def test_a_role_stands_for_all_its_servers_and_a_server_for_itself(write):
    fleet = load_fleet(write(GOOD), {})

    assert fleet.servers(("coder",)) == ("coder", "coder-2")
    assert fleet.servers(("coder-2", "math", "coder-2")) == ("coder-2", "math")


def test_an_unknown_role_is_answered_with_the_nearest_one(write):
    fleet = load_fleet(write(GOOD), {})

    for name in ("codr", "coder-3"):
        with pytest.raises(FleetError, match=f"no role '{name}'") as caught:
            fleet.servers((name,))
        assert "did you mean 'coder'" in caught.value.hint


def test_a_models_folder_is_relative_to_the_file_and_served_under_the_name_that_was_written(write, tmp_path):
    role = load_fleet(write(GOOD), {}).role("math")

    assert (role.model, role.served, role.local_model) == (str(tmp_path / "weights"), "./weights", True)


def test_a_models_id_stays_an_id_unless_there_is_such_a_folder(write, tmp_path):
    assert load_fleet(write(GOOD), {}).role("coder").model == "Org/Coder"

    (tmp_path / "Org" / "Coder").mkdir(parents=True)

    role = load_fleet(write(GOOD), {}).role("coder")
    assert (role.model, role.served) == (str(tmp_path / "Org" / "Coder"), "Org/Coder")


def test_served_name_is_the_id_that_requests_name(write):
    role = load_fleet(write(GOOD + "    served_name: sums\n"), {}).role("math")
    assert (role.served, role.aliases) == ("sums", ())


@pytest.mark.parametrize(
    ("written", "aliases"),
    [
        ("model: Qwen/Qwen2.5-7B-Instruct-AWQ", ("Qwen2.5-7B-Instruct-AWQ",)),
        ("model: bge-m3", ()),
        ("model: a/b\n    aliases: [c, d]", ("c", "d")),
        ("model: a/b\n    aliases: []", ()),
        ("model: a/b\n    served_name: c\n    aliases: [b]", ("b",)),
    ],
)
def test_a_model_is_served_under_its_short_name_as_well(write, written, aliases):
    """So that a request without the organisation's name is answered."""
    text = f"roles:\n  one:\n    {written}\n    port: 8001\n"
    assert load_fleet(write(text), {}).role("one").aliases == aliases


def test_the_shipped_fleet_serves_each_model_under_its_short_name():
    roles = load_fleet(ROOT / "config" / "fleet.yaml", {}).settings.roles.values()
    assert [role.aliases for role in roles] == [(role.model.rpartition("/")[2],) for role in roles]


def test_registry_state_and_python_are_relative_to_the_file(write, tmp_path):
    fleet = load_fleet(write("registry: r\nstate: s\npython: env/bin/python\n" + GOOD), {})

    assert (fleet.registry.directory, fleet.states.directory) == (tmp_path / "r", tmp_path / "s")
    assert fleet.python == str(tmp_path / "env/bin/python")


def test_the_environment_names_other_folders_than_the_file(write, tmp_path):
    places = {"WORKFLOW_COMPOSER_REGISTRY": "/r", "WORKFLOW_COMPOSER_FLEET_STATE": "/s"}
    fleet = load_fleet(write("registry: r\nstate: s\n" + GOOD), places)

    assert (str(fleet.registry.directory), str(fleet.states.directory)) == ("/r", "/s")


def test_logs_are_relative_to_the_working_directory(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")

    assert str(load_fleet(write("logs: l\n" + GOOD), {}).logs) == "/l"
    assert str(load_fleet(write(GOOD), {}).logs) == "/logs"


def test_the_python_is_the_files_or_the_environments_or_the_running_one(write):
    variable = {"WORKFLOW_COMPOSER_VLLM_PYTHON": "/opt/python"}

    assert load_fleet(write("python: python9\n" + GOOD), variable).python == "python9"
    assert load_fleet(write(GOOD), variable).python == "/opt/python"
    assert load_fleet(write(GOOD), {}).python == sys.executable


def test_the_webhook_is_filled_in_and_never_shown(write):
    text = GOOD + "monitor: {alerts: {webhook: 'https://example.org/hook?${KEY}'}}\n"
    webhook = load_fleet(write(text), {"KEY": "v=1"}).settings.monitor.alerts.webhook

    assert webhook == "https://example.org/hook?v=1"
    assert "v=1" not in repr(webhook)


# ----------------------------------------------------------------------------------------------------------------- finding


def test_the_shipped_file_is_valid_and_has_the_four_roles_and_two_on_request():
    fleet = load_fleet(shipped(), {})

    assert {name: role.port for name, role in fleet.settings.roles.items()} == {
        "generalist": 8001,
        "coder": 8002,
        "math": 8003,
        "embeddings": 8004,
        "math-1.5b": 8005,
        "math-72b": 8006,
    }
    assert fleet.to_start() == ("generalist", "coder", "math", "embeddings")
    assert fleet.to_start(("math-72b", "math")) == ("math-72b", "math")
    assert len(fleet.servers()) == 6


def test_a_fleet_of_roles_on_request_starts_nothing_unasked(write):
    fleet = load_fleet(write("roles: {x: {model: m, port: 1, on_request: true, replicas: 2}}\n"), {})

    assert fleet.to_start() == ()
    assert fleet.to_start(("x",)) == ("x", "x-2")


def test_the_working_directorys_file_comes_before_the_users_and_that_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    found = []
    for place in reversed(search_path(environ)[:3]):
        found.append(load_fleet(None, environ).path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("roles: {x: {model: m, port: 1}}\n")
    found.append(load_fleet(None, environ).path)

    own = [tmp_path / place for place in ("home/workflow-composer/fleet.yaml", "fleet.yaml", "config/fleet.yaml")]
    assert found == [shipped(), *own]


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(FleetError, match=r"no fleet file at .*/nix\.yaml"):
        load_fleet(tmp_path / "nix.yaml", {})


# ------------------------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rolez: {}\n" + GOOD, "1: rolez: unknown key; .*did you mean 'roles'"),
        (GOOD + "    modle: x\n", r"9: roles\.math\.modle: unknown key; allowed: model, .*did you mean 'model'"),
        (GOOD + "    name: x\n", r"9: roles\.math\.name: unknown key; remove it; the role is named 'math'"),
        (GOOD + "    task: chat\n", r"9: roles\.math\.task: found 'chat'; allowed: generate, pooling"),
        (GOOD + "    dtype: float8\n", r"9: roles\.math\.dtype: found 'float8'; allowed: auto, half, bfloat16, float32"),
        ("slurm: {options: ['--comment=mine']}\n" + GOOD, r"1: slurm\.options\[0\]: the option '--comment'"),
        ("slurm: {options: ['--nice', '-Mother']}\n" + GOOD, r"1: slurm\.options\[1\]: the option '-M'; .*login node"),
        (GOOD + "    replicas: 0\n", r"9: roles\.math\.replicas: found 0; allowed: a number of at least 1"),
        (GOOD + "    memory_gb: lots\n", r"9: roles\.math\.memory_gb: found 'lots'; allowed: a number"),
        (GOOD + "    port: 1\n", r"9: roles\.math\.port: duplicate key, first in line 8"),
        (GOOD + "slurm: {partitoin: x}\n", r"9: slurm\.partitoin: unknown key; .*did you mean 'partition'"),
        (GOOD + "monitor:\n  alerts:\n    web_hook: x\n", r"11: monitor\.alerts\.web_hook: unknown key; allowed: command"),
        (GOOD + "monitor: {alerts: {emails: []}}\n", r"9: monitor\.alerts\.emails: unknown key; .*did you mean 'email'"),
        ("roles: {x: {port: 1}}\n", r"1: roles\.x: the key 'model' is missing; Model to serve"),
        ("roles: {a b: {model: m, port: 1}}\n", r"1: roles\.a b: invalid role name 'a b'"),
        ("roles: {}\n", r"1: roles: no roles"),
        ("roles: {x: {model: ./nix, port: 1}}\n", r"1: roles\.x\.model: no such folder: /.*/nix"),
        ("roles: {x: {model: m, port: 65535, replicas: 2}}\n", r"1: roles\.x\.port: the last of 2 .* port 65536"),
        ("roles: {x: {model: m, port: 1}, y: {model: m, port: 1}}\n", r"1: .*port 1 is already used by role 'x'"),
        (GOOD.replace("8010", "8003"), r"8: roles\.math\.port: port 8003 is already used by role 'coder'"),
        (GOOD.replace("math:", "coder-2:"), r"6: roles\.coder-2: role 'coder' already has a replica named 'coder-2'"),
        (GOOD + "    arguments: [--seed, 1]\n", r"9: roles\.math\.arguments\[1\]: found 1, which YAML reads as a number"),
        (GOOD + "    arguments: [--seed=1, --port=1]\n", r"9: .*arguments\[1\]: the option '--port'; use .* port"),
        (GOOD + "    arguments: [--max_model_len=1]\n", r"9: .*: the option '--max-model-len'; use .* max_model_len"),
        (GOOD + "    arguments: [--api-key, x]\n", r"9: .*: the option '--api-key'; use .* api_key_env, since"),
        (GOOD + "    arguments: [--uds=/x]\n", r"9: .*: the option '--uds'; fleet servers listen on a TCP port"),
        (GOOD + "    environment: {VLLM_API_KEY: x}\n", r"9: .*environment\.VLLM_API_KEY: .*not shown.*api_key_env"),
        (GOOD + "    environment: {A: '${B}'}\n", r"9: .*\$\{NAME\} is not expanded here; use it only in monitor"),
        (GOOD + "    api_key_env: lower\n", r"9: .*api_key_env: .*the name of an environment variable"),
        (GOOD + "monitor: {alerts: {webhook: 'ftp://x'}}\n", r"9: .*webhook: invalid URL \(not shown"),
        (GOOD + "monitor: {alerts: {webhook: '${NOT}'}}\n", r"9: .*webhook: the environment variable NOT is not set"),
        ("- a\n", r" has a list at the top; a fleet file must be a mapping of keys, such as 'roles: "),
    ],
)  # fmt: skip
def test_a_fault_names_its_line_its_key_and_what_is_allowed(write, text, fault):
    found = one_fault(write(text))
    assert re.match(fault, found), found


def test_every_fault_is_reported_at_once_in_the_order_of_the_file(write):
    text = "roles:\n  a:\n    port: 0\n    modle: x\n  b:\n    model: ./nix\n    port: 3\n    tsk: x\nslurm: 3\n"

    lines = [int(fault.split(":")[0]) for fault in faults(write(text))]

    assert lines == [2, 3, 4, 6, 8, 9]


def test_a_secret_in_the_file_is_refused_and_not_repeated(write):
    fault = one_fault(write(GOOD + "    environment: {HF_TOKEN: hf_abcdefghijklmnopqrst}\n"))

    assert "the value looks like a secret" in fault
    assert "abcdef" not in fault
