"""What is looked at on a person's machine, and in which order the models are offered."""

from __future__ import annotations

import time

import pytest

from tests.integration.local_servers import LMStudio, LocalServer, Model, Ollama
from workflow_composer.backends.catalogue import CATALOGUE
from workflow_composer.backends.replicas.registry import REGISTRY_VARIABLE, Entry, ServerRegistry
from workflow_composer.runtime import surroundings
from workflow_composer.runtime.surroundings import LeftOut, Wanted, look_around


@pytest.fixture(autouse=True)
def nothing_usual(monkeypatch):
    """The usual ports of the machine that runs the tests are its own business."""
    monkeypatch.setattr(surroundings, "USUAL_PORTS", {})


def environ(tmp_path, **variables):
    """An environment without keys."""
    return {"PATH": str(tmp_path), REGISTRY_VARIABLE: str(tmp_path / "registry"), **variables}


async def test_models_that_answer_at_once_are_offered_first(tmp_path):
    """Then those that have to be loaded, then those that think."""
    models = ("e=embedding", "t=thinking", "cold", Model("warm", loaded=True))
    with Ollama(*models) as server:
        found = await look_around(environ(tmp_path), Wanted([server.url]))
    assert [offer.model for offer in found.offers] == ["warm", "cold", "t"]
    assert [offer.model for offer in found.embeddings] == ["e"]


async def test_the_environment_names_servers(tmp_path, monkeypatch):
    """`OLLAMA_HOST` as ollama reads it; a base URL of OpenAI's clients if it is one's own."""
    with Ollama("a") as one, LMStudio("b") as two:
        variables = {
            "OLLAMA_HOST": f"0.0.0.0:{one.port}",
            "OPENAI_BASE_URL": two.url,
            "OPENAI_API_BASE": "https://far.example/v1",
        }
        found = await look_around(environ(tmp_path, **variables))
        assert {(offer.model, offer.kind) for offer in found.offers} == {("a", "ollama"), ("b", "lm-studio")}
        monkeypatch.setattr(surroundings, "USUAL_PORTS", {one.port: "x"})
        again = await look_around(environ(tmp_path, OLLAMA_HOST=f"127.0.0.1:{one.port}"))
        assert len(again.servers) == 1


async def test_registered_servers_are_offered_by_their_role(tmp_path):
    """Ready ones."""
    registry = ServerRegistry(tmp_path / "registry")
    with LocalServer("m") as server:
        for role, state in (("coder", "ready"), ("math", "starting")):
            entry = Entry(
                server=role, role=role, host=server.host, port=server.port, model="m", state=state, started=1.0, updated=0.0
            )
            registry.publish(entry)
        found = await look_around(environ(tmp_path))
    assert [(offer.model, offer.place) for offer in found.offers] == [("m", "registry:coder")]


async def test_what_cannot_answer_is_named_with_a_remedy(tmp_path):
    """An address that nobody listens at, one without a model, one that wants a key, and a service of this package."""
    with Ollama() as empty, LocalServer("m", key="k") as closed, LocalServer("auto", "task:x") as own:
        urls = [empty.url, closed.url, own.url, "localhost:1", "ftp://nonsense", "http://203.0.113.7:8000"]
        found = await look_around(environ(tmp_path), Wanted(urls))
    assert found.offers == ()
    texts = {one.what: f"{one.why}; {one.remedy}" for one in found.left_out}
    assert "ollama pull" in texts[f"127.0.0.1:{empty.port}"]
    assert "--api-key-env" in texts[f"127.0.0.1:{closed.port}"]
    assert "a service of workflow_composer" in texts[f"127.0.0.1:{own.port}"]
    assert "connection refused" in texts["localhost:1"]
    assert "not an HTTP address" in texts["ftp://nonsense"]
    assert "public address" in texts["203.0.113.7:8000"]


async def test_other_programs_on_usual_ports_are_no_news(tmp_path, monkeypatch):
    """Only what a model server says counts."""
    with LocalServer("m") as other, LocalServer("m") as loading:
        other.pages = dict
        loading.ready = False
        monkeypatch.setattr(surroundings, "USUAL_PORTS", {other.port: "x", loading.port: "y", 1: "z"})
        found = await look_around(environ(tmp_path))
    assert [one.what for one in found.left_out] == [f"localhost:{loading.port}"]


async def test_one_cloud_model_is_offered_for_each_key(tmp_path):
    """None without a key, and no retired one; the cloud is never contacted."""
    assert (await look_around(environ(tmp_path))).clouds == ()
    variables = {model.api_key_env: "k" for model in CATALOGUE.values()}
    found = await look_around(environ(tmp_path, **variables))
    assert {offer.key_env for offer in found.clouds} <= set(variables)
    assert len({offer.key_env for offer in found.clouds}) == len(found.clouds) > 2
    assert not any(offer.cloud.is_retired() for offer in found.clouds)
    assert set(found.keys) == set(variables)


@pytest.mark.parametrize(("users", "left"), [((), True), (("4711",), False)])
async def test_a_strangers_server_gets_no_byte(tmp_path, monkeypatch, users, left):
    """Unless it is named as one's own."""
    monkeypatch.setattr(surroundings, "_listening", lambda port: {4711})
    with LocalServer("m") as server:
        found = await look_around(environ(tmp_path), Wanted([server.url], users=users))
        assert (server.connections == 0) is left
    assert bool(found.left_out) is left
    if left:
        assert found.left_out[0] == LeftOut(
            f"localhost:{server.port}",
            "a server of uid 4711, another user of this machine",
            "if it is yours, add --local-user 4711",
        )
    else:
        assert found.offers[0].user == "4711"


async def test_the_look_ends_although_a_server_goes_on(tmp_path, monkeypatch):
    """All that one server is asked has one limit."""
    monkeypatch.setattr(surroundings, "LOOK_SECONDS", 0.2)
    with Ollama("m") as server:
        server.freeze()
        started = time.monotonic()
        found = await look_around(environ(tmp_path), Wanted([server.url]))
        server.thaw()
    assert time.monotonic() - started < 60
    assert "no answer within 0.2 s" in found.left_out[0].why


async def test_the_key_of_a_kind_of_server_goes_to_its_ports_only(tmp_path, monkeypatch):
    """And its variable comes into the offer."""
    with LocalServer("m", key="k") as server, LocalServer("other") as other:
        monkeypatch.setattr(surroundings, "USUAL_PORTS", {server.port: "vLLM", other.port: "Jan"})
        found = await look_around(environ(tmp_path, VLLM_API_KEY="k"))
        assert {offer.model: offer.key_env for offer in found.offers} == {"m": "VLLM_API_KEY", "other": None}
        assert not any("authorization" in request.headers for request in other.requests)
        assert (await look_around(environ(tmp_path))).left_out[0].why.endswith("requires a key")


async def test_a_server_that_sends_prompts_on_to_a_cloud_is_no_own_one(tmp_path, monkeypatch):
    """Ollama says so; a proxy lists the clouds' models. A proxy that a person names is the person's choice."""
    with Ollama("gpt-oss:120b-cloud", "b") as ollama, LocalServer("openai/gpt-4o", "mine") as proxy:
        monkeypatch.setattr(surroundings, "USUAL_PORTS", {ollama.port: "ollama", proxy.port: "x"})
        found = await look_around(environ(tmp_path))
        assert {offer.model for offer in found.offers} == {"b", "mine"}
        assert [one.what for one in found.left_out] == ["gpt-oss:120b-cloud", "openai/gpt-4o"]
        named = await look_around(environ(tmp_path), Wanted([proxy.url], usual=False))
        assert {offer.model for offer in named.offers} == {"openai/gpt-4o", "mine"}
