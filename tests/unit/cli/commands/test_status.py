"""``status``: what it says of servers, models, SLURM and cloud keys, and whom it asks."""

from __future__ import annotations

import json

import pytest

from tests.integration.stub_server import Reply, StubServer
from workflow_composer.backends.base import BackendContext
from workflow_composer.backends.http.client import Client
from workflow_composer.backends.http.connection import Answer
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.backends.openai.backend import OpenAICompatibleBackend
from workflow_composer.config.strategy import StrategyConfig

KEY = "sk-" + "0123456789abcdef" * 2


@pytest.fixture
def cloud():
    """A server that the profile calls a cloud's."""
    with StubServer() as stub:
        yield stub


@pytest.fixture
def profile(tmp_path, server, cloud):
    """A profile of one server of one's own and one cloud model."""
    path = tmp_path / "mine.yaml"

    def write(*, model="stub-model", allow_cloud=True):
        models = {"own": {"backend": "vllm", "base_url": server.url, "model": model}}
        far = {"backend": "openai", "base_url": cloud.url, "api_key_env": "THE_KEY", "model": "big"}
        models |= {"far": far} if allow_cloud else {}
        data = {"profile_name": "mine", "allow_cloud": allow_cloud, "models": models, "task_routing": {"*": "own"}}
        path.write_text(json.dumps(data))
        return str(path)

    return write


def test_a_model_that_its_server_does_not_serve_is_said(command, profile, server):
    """With the names that it serves."""
    server.models[:] = ["a", "b"]
    done = command("status", "-s", profile(model="c"), real=True)
    assert "serves a, b, not c" in done.out
    assert "other model" in done.out
    found = command("status", "-s", profile(model="c"), "--json", real=True).json["endpoints"]["own"]
    assert (found["healthy"], found["models"]) == (False, ["a", "b"])


def test_a_cloud_is_asked_only_if_told_to_and_without_a_prompt(command, profile, cloud):
    """One question for its models, with the key."""
    command.environ["THE_KEY"] = KEY
    done = command("status", "-s", profile(), real=True)
    assert "key set" in done.out
    assert cloud.connections == 0
    done = command("status", "-s", profile(), "--probe-cloud", real=True)
    assert "key taken" in done.out
    (asked,) = cloud.requests
    assert (asked.method, asked.path, asked.body) == ("GET", "/v1/models", b"")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in done.out + done.err


@pytest.mark.parametrize(("key", "listing"), [(KEY, Reply.error(401, "wrong key")), ("", None)])
def test_a_key_that_is_refused_or_missing_is_said(command, profile, cloud, key, listing):
    """A server is not asked without a key."""
    command.environ["THE_KEY"] = key
    cloud.listing = listing
    found = command("status", "-s", profile(), "--probe-cloud", "--json", real=True).json["clouds"]["far"]
    assert not found["healthy"]
    assert ("401" if key else "THE_KEY is not set") in found["detail"]
    assert len(cloud.requests) == bool(key)


def test_without_the_cloud_there_is_nothing_to_ask(command, profile, cloud):
    """Whatever the command line says."""
    command.environ["THE_KEY"] = KEY
    assert command("status", "-s", profile(allow_cloud=False), "--probe-cloud", "--json", real=True).json["clouds"] == {}
    assert cloud.connections == 0


def test_why_slurm_is_not_available_is_said(command, profile, tmp_path):
    """Its commands alone are no cluster."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho Slurmctld\\(primary\\) at head is DOWN\n")
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    for name in ("scontrol", "sbatch"):
        (tmp_path / name).chmod(0o755)
    command.environ["PATH"] = str(tmp_path)
    assert "head is DOWN" in command("status", "-s", profile(), real=True).out
    found = command("status", "-s", profile(), "--json", real=True).json
    assert (found["slurm_available"], "head is DOWN" in found["slurm_detail"]) == (False, True)


async def test_anthropics_list_of_models_gets_the_headers_that_it_requires(monkeypatch):
    """It is no part of the OpenAI-compatible API, which takes the key as any other does."""
    seen = []

    async def ask(self, url, content=None, *, headers=None, **options):
        seen.append((url, headers))
        return Answer(200, {}, b'{"data": [{"id": "claude"}]}')

    monkeypatch.setattr(Client, "ask", ask)
    spec = {"backend": "openai", "base_url": "https://api.anthropic.com/v1/", "api_key_env": "THE_KEY"}
    config = StrategyConfig(profile_name="p", models={"m": spec})
    context = BackendContext(config, EgressPolicy.of(config), {"THE_KEY": KEY})
    backend = OpenAICompatibleBackend(config.models["m"], context)
    assert (await backend.health(timeout=5)).healthy
    ((url, headers),) = seen
    assert url == "https://api.anthropic.com/v1/models"
    assert headers["x-api-key"] == KEY
    assert headers["anthropic-version"]
