"""What is found of servers, keys, SLURM and the embedded engine; and what is left alone."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest

from tests.integration.stub_server import MODEL, Reply, StubServer, silent_sockets
from workflow_composer.backends.catalogue import CATALOGUE
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ProfileError
from workflow_composer.runtime.resources import ResourceDetector, embedded_available, unprobed

CLOUD_MODELS = {
    "with-key": {"backend": "openai", "base_url": "https://a.example/v1", "api_key_env": "KEY_A"},
    "without-key": {"backend": "openai", "base_url": "https://b.example/v1", "api_key_env": "KEY_B"},
    "empty-key": {"backend": "openai", "base_url": "https://c.example/v1", "api_key_env": "KEY_C"},
}
ENVIRON = {"KEY_A": "sk-" + "0123456789abcdef" * 2, "KEY_C": ""}


def profile(endpoints=None, *, allow_cloud=False, **more) -> StrategyConfig:
    """A profile of nothing but these."""
    return StrategyConfig(profile_name="p", allow_cloud=allow_cloud, vllm_endpoints=endpoints or {}, **more)


async def detect(config, environ=None, **options):
    """One look."""
    return await ResourceDetector(config, environ=environ or {}, **options).adetect()


async def test_a_living_server_is_reported_with_what_it_serves(server):
    """Ids, the time it took, and a sentence."""
    server.models[:] = ["a", "b"]
    before = time.time()
    status = await detect(profile({"general": server.url}))
    found = status.endpoints["general"]
    assert (found.name, found.url, found.healthy, found.models) == ("general", server.url, True, ("a", "b"))
    assert 0 < found.latency_ms < 2000
    assert found.detail.startswith("serves a, b; answered in ")
    assert status.vllm_endpoints == {"general": True}
    assert before <= status.probed_at <= time.time()


@pytest.mark.parametrize(
    ("listing", "detail"),
    [
        (Reply.error(500), "status 500"),
        (Reply.error(401), "requires a key"),
        (Reply.redirect("http://elsewhere.example/"), "redirects"),
        (Reply(body=b"<html>hello</html>"), "is it an OpenAI-compatible server?"),
        (Reply(body=b'{"data": 3}'), "is it an OpenAI-compatible server?"),
        (Reply.of({"data": []}), "serves no model"),
        (Reply(hang=True), "no answer within 0.3 s"),
        (Reply.chat("cut", die_after=1), "connection broke"),
    ],
)
async def test_a_sick_server_is_explained(server, listing, detail):
    """Each sickness in words; the others are not affected."""
    server.listing = listing
    with StubServer() as healthy:
        status = await detect(profile({"sick": server.url, "well": healthy.url}), limit=0.3)
    assert status.vllm_endpoints == {"sick": False, "well": True}
    assert detail in status.endpoints["sick"].detail
    assert status.endpoints["sick"].latency_ms is None


async def test_a_server_that_is_down_is_explained(unused_tcp_port):
    """The usual case before one has been started."""
    status = await detect(profile({"down": f"http://127.0.0.1:{unused_tcp_port}/v1"}))
    assert status.endpoints["down"].detail == "connection refused; is the server running?"


async def test_an_unknown_name_is_explained():
    """A node that is not there any more. (The name is too long for the resolver to ask anyone.)"""
    status = await detect(profile({"gone": f"http://{'a' * 63}.{'b' * 63}/v1"}))
    assert not status.endpoints["gone"].healthy
    assert status.endpoints["gone"].detail == "unknown host name"


async def test_an_address_out_in_the_world_is_explained():
    """The policy's refusal is reported, not raised."""
    config = profile({"far": "http://8.8.8.8:8001/v1"}, allow_cloud=True)
    from workflow_composer.backends.http.egress import EgressPolicy

    strict = EgressPolicy(False, EgressPolicy.of(config).local)
    status = await detect(config, egress=strict)
    assert "local_networks" in status.endpoints["far"].detail


def refusing_sockets(count):
    """Sockets with an address on which nobody listens, and which nobody else can take meanwhile."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    return sockets


@pytest.mark.parametrize("kind", ["silent", "refused", "mixed"])
async def test_a_hundred_dead_servers_take_no_longer_than_one(kind):
    """All are asked at once: about two seconds, far from two hundred; the one that lives is found among them."""
    silent = {"silent": 100, "refused": 0, "mixed": 50}[kind]
    sockets = [*silent_sockets(silent), *refusing_sockets(100 - silent)]
    ports = [sock.getsockname()[1] for sock in sockets]
    with StubServer() as alive:
        endpoints = {f"dead{number}": f"http://127.0.0.1:{port}/v1" for number, port in enumerate(ports)}
        started = time.perf_counter()
        status = await detect(profile({**endpoints, "alive": alive.url}))
        seconds = time.perf_counter() - started
    for sock in sockets:
        sock.close()
    assert seconds < 40
    assert [name for name, healthy in status.vllm_endpoints.items() if healthy] == ["alive"]
    assert len(status.endpoints) == 101


async def test_local_models_with_an_address_of_their_own_are_probed_once_each(server):
    """A model behind a role is the role's server; two roles on one server ask it once."""
    models = {
        "own": {"backend": "vllm", "base_url": server.url},
        "behind": {"backend": "vllm", "endpoint": "general"},
        "recorded": {"backend": "replay", "path": "answers.jsonl"},
    }
    status = await detect(profile({"general": server.url}, models=models))
    assert status.vllm_endpoints == {"general": True, "own": True}
    assert status.endpoints["own"].name == "own"
    assert len(server.requests) == 1


async def test_a_server_with_a_key_is_asked_with_it(server):
    """The model behind the role knows the key's variable."""
    models = {"m": {"backend": "vllm", "endpoint": "general", "api_key_env": "KEY_A"}}
    await detect(profile({"general": server.url}, models=models), ENVIRON)
    assert server.requests[0].headers["authorization"] == f"Bearer {ENVIRON['KEY_A']}"


async def test_a_password_in_an_address_is_not_shown(server, monkeypatch):
    """It is sent, and stays out of the report."""
    monkeypatch.setenv("PASSWORD", "hunter2hunter2")
    url = server.url.replace("http://", "http://user:${PASSWORD}@")
    status = await detect(profile({"general": url}))
    assert status.endpoints["general"].healthy
    assert "hunter2" not in repr(status)


async def test_cloud_models_are_reported_by_their_keys_alone():
    """Present and not empty; nothing is sent anywhere to find out."""
    config = profile(allow_cloud=True, models=CLOUD_MODELS)
    status = await detect(config, ENVIRON)
    assert status.cloud_apis == {"with-key": True, "without-key": False, "empty-key": False}
    assert status.endpoints == {}
    assert unprobed(config, ENVIRON).cloud_apis == status.cloud_apis
    assert unprobed(config, ENVIRON).probed_at is None


async def test_without_the_cloud_nothing_outside_is_reported(server, monkeypatch):
    """Nor asked: a proxy in the environment sees nothing."""
    with StubServer() as proxy:
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, proxy.url)
        models = {"m": {"backend": "plugin", "base_url": proxy.url, "api_key_env": "KEY_A"}}
        status = await detect(profile({"general": server.url}, models=models), ENVIRON)
        assert status.cloud_apis == {}
        assert status.vllm_endpoints == {"general": True}
        assert proxy.connections == 0


def programs(folder: Path, **scripts: str) -> dict[str, str]:
    """Write shell scripts into the folder, and return an environment whose PATH is only that."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


UP = "echo Slurmctld\\(primary\\) at head1 is UP; echo Slurmctld\\(backup\\) at head2 is DOWN"
DOWN = "echo Slurmctld\\(primary\\) at head1 is DOWN"


@pytest.mark.parametrize(
    ("scripts", "detail"),
    [
        ({}, ""),
        ({"sbatch": "", "scontrol": UP}, None),
        ({"sinfo": "echo debug"}, None),
        ({"sbatch": "", "scontrol": DOWN}, "is DOWN"),
        ({"sbatch": "", "scontrol": f"{DOWN}; exit 1"}, "scontrol ping"),
        ({"sbatch": "", "scontrol": "exec /bin/sleep 60"}, "did not finish within 1 s"),
        ({"sbatch": "", "scontrol": "/bin/sleep 60; true"}, "did not finish within 1 s"),
        (
            {"sinfo": "echo 'slurm_load_partitions: Unable to contact slurm controller (connect failure)' >&2; exit 1"},
            "contact",
        ),
        (
            {"sbatch": "", "scontrol": "echo 'scontrol: fatal: could not establish a configuration source' >&2; exit 1"},
            "source",
        ),
        ({"sbatch": ""}, "sinfo not found"),
    ],
)
async def test_slurm_is_there_if_its_controller_answers(tmp_path: Path, scripts, detail):
    """By `scontrol ping` on the search path of the given environment, else by `sinfo`; why not is said."""
    environ = programs(tmp_path, **scripts)
    found = await detect(profile(), environ, limit=1.0)
    assert found.slurm_available == (detail is None)
    assert (detail or "") in found.slurm_detail
    assert bool(found.slurm_detail) == bool(detail)
    assert unprobed(profile(), environ).slurm_available == found.slurm_available


async def test_slurms_controller_is_asked_once_a_minute_and_never_without_a_probe(tmp_path: Path):
    """A service that is asked for its state every second starts no process each time."""
    asked = tmp_path / "asked"
    environ = programs(tmp_path, sbatch="", scontrol=f"echo asked >> {asked}\n{UP}")
    assert not unprobed(profile(), environ).slurm_available
    assert not (await ResourceDetector(profile(), environ=environ).adetect(slurm=False)).slurm_available
    assert not asked.exists()
    for _ in range(3):
        assert (await detect(profile(), environ)).slurm_available
    assert asked.read_text().split() == ["asked"]


def test_a_list_of_addresses_is_looked_at_without_an_event_loop(server):
    """By their addresses; what does not answer is there, too."""
    gone = refusing_sockets(1)[0]
    nobody = f"http://localhost:{gone.getsockname()[1]}"
    bare = server.url.removesuffix("/v1")
    found = ResourceDetector([bare, nobody]).detect()
    gone.close()
    assert found.vllm_endpoints == {bare: True, nobody: False}
    assert found.endpoints[bare].models == (MODEL,)
    assert ResourceDetector({"coder": server.url}).detect().vllm_endpoints == {"coder": True}
    assert ResourceDetector(server.url).detect().vllm_endpoints == {server.url: True}
    assert ResourceDetector(profile({"general": server.url})).detect().vllm_endpoints == {"general": True}


def test_without_a_profile_the_keys_are_those_of_the_catalogue(server):
    """Nobody is asked whether they are right."""
    name, model = next(iter(CATALOGUE.items()))
    found = ResourceDetector([server.url], environ={model.api_key_env: ENVIRON["KEY_A"]}).detect().cloud_apis
    assert set(found) == set(CATALOGUE)
    assert found[name]
    assert not all(found.values())


async def test_the_synchronous_look_works_where_an_event_loop_runs(server):
    """As in a notebook's cell."""
    assert ResourceDetector([server.url]).detect().vllm_endpoints == {server.url: True}


@pytest.mark.parametrize("wrong", ["http://8.8.8.8:8001", "localhost:8001", "ftp://localhost"])
def test_only_ones_own_servers_are_looked_at(wrong):
    """A list of addresses is no permission to leave one's own machines."""
    with pytest.raises(ProfileError, match=r"vllm_endpoints"):
        ResourceDetector([wrong])


def models(**fields):
    return {"m": {"backend": "vllm", "endpoint": "general", **fields}}


@pytest.mark.parametrize(
    ("served", "owner", "wanted", "healthy"),
    [
        (["a", "b"], "vllm", "b", True),
        (["a"], "vllm", "b", False),
        (["llama3.2:latest"], "library", "llama3.2", True),
        (["llama3.2:1b"], "library", "llama3.2", False),
        (["model.gguf"], "llamacpp", "b", True),
        (["a.gguf", "c.gguf"], "llamacpp", "b", False),
    ],
)
async def test_a_server_without_the_profiles_model_is_reported(server, served, owner, wanted, healthy):
    """With what it serves; ollama knows names without a tag, and llama.cpp's only model answers to any name."""
    server.listing = Reply.of({"data": [{"id": name, "owned_by": owner} for name in served]})
    for config in (
        profile({"general": server.url}, models=models(model=wanted)),
        profile(models={"general": {"backend": "vllm", "base_url": server.url, "model": wanted}}),
    ):
        found = (await detect(config)).endpoints["general"]
        assert (found.healthy, found.models) == (healthy, tuple(served))
        assert (f", not {wanted}" in found.detail) != healthy


async def test_one_of_two_models_of_a_role_that_is_missing_is_named(server):
    """The other one still answers."""
    server.models[:] = ["a"]
    config = profile(
        {"general": server.url}, models={n: {"backend": "vllm", "endpoint": "general", "model": n} for n in "ab"}
    )
    found = (await detect(config)).endpoints["general"]
    assert found.healthy
    assert "serves a, not b" in found.detail


async def test_the_embedded_engine_is_looked_for_without_loading_it():
    """Loading takes memory and time that a look around must not cost."""
    loaded = "mistralrs" in sys.modules
    status = await detect(profile())
    assert status.embedded_available == embedded_available()
    assert ("mistralrs" in sys.modules) == loaded


async def test_a_bare_server_address_gets_the_usual_path(server):
    """`http://node:8000` means `http://node:8000/v1`."""
    status = await detect(profile({"general": server.url.removesuffix("/v1")}))
    assert status.endpoints["general"].models == (MODEL,)
