"""What a server is and which of its models chat, by the answers of each kind of server."""

from __future__ import annotations

import pytest

from tests.integration.local_servers import VLLM, LlamaCpp, LMStudio, LocalServer, Model, Ollama, SGLang
from tests.integration.stub_server import Reply, StubServer, silent_sockets
from workflow_composer.backends.http.client import Client
from workflow_composer.backends.http.egress import EgressPolicy, endpoint_of
from workflow_composer.runtime import servers_found
from workflow_composer.runtime.servers_found import ServedModel, inspect_server


async def inspect(url, key=None):
    """Ask a server of this machine."""
    async with Client(EgressPolicy(allow_cloud=False, local=frozenset({endpoint_of(url)}))) as client:
        return await inspect_server(url, client=client, api_key=key)


async def test_ollama_says_what_each_model_can_do():
    """The embedding model is first, and only the loaded one has a context."""
    models = ("nomic-embed-text:latest=embedding", "qwq:32b=thinking", Model("llama3.1:8b", context=4096, loaded=True))
    with Ollama(*models) as server:
        found = await inspect(server.url)
    assert (found.kind, found.error) == ("ollama", None)
    embeds, thinks, chats = found.models
    assert (embeds.name, embeds.aliases) == ("nomic-embed-text:latest", ("nomic-embed-text",))
    assert (embeds.embedding, embeds.chats, thinks.embedding, thinks.thinks) == (True, False, False, True)
    assert (chats.chats, chats.thinks, chats.loaded, chats.context_length) == (True, False, True, 4096)
    assert (thinks.loaded, thinks.context_length) == (False, None)
    assert embeds.named("nomic-embed-text")


async def test_models_of_ollamas_cloud_are_known(monkeypatch):
    """By what ollama says of them, or by their tags."""
    models = ("a=cloud", "gpt-oss:120b-cloud", "glm-5:cloud", "cloud:7b", "cloudy:latest", "x/mycloud")
    with Ollama(*models) as server:
        found = await inspect(server.url)
        assert [model.name for model in found.models if model.remote] == ["a", "gpt-oss:120b-cloud", "glm-5:cloud"]
        monkeypatch.setattr(servers_found, "_DESCRIBED", 1)
        assert [model.remote for model in (await inspect(server.url)).models] == [True, True, True, False, False, False]


async def test_an_old_ollama_says_the_architecture():
    """Without capabilities."""
    with Ollama("all=embedding", "llama2:7b") as server:
        server.old = True
        embeds, chats = (await inspect(server.url)).models
    assert (embeds.embedding, embeds.chats) == (True, False)
    assert (chats.embedding, chats.chats) == (None, None)


@pytest.mark.parametrize("kind", [Ollama, LMStudio])
async def test_a_server_without_models_is_no_broken_one(kind):
    """The list of ollama is null."""
    with kind() as server:
        found = await inspect(server.url)
    assert (found.models, found.error) == ((), None)
    assert found.kind == {Ollama: "ollama", LMStudio: "lm-studio"}[kind]


async def test_lm_studio_says_which_embed():
    """And how long the context of a loaded model is."""
    with LMStudio("text-embedding-x=embedding", Model("qwen3-8b", loaded=True, context=4096), "phi-4") as server:
        found = await inspect(server.url)
    embeds, loaded, other = found.models
    assert found.kind == "lm-studio"
    assert (embeds.embedding, loaded.embedding, other.embedding) == (True, False, False)
    assert (loaded.context_length, other.context_length) == (4096, 131072)
    assert (loaded.loaded, other.loaded) == (True, False)


async def test_llama_cpp_divides_its_context():
    """The context of one slot."""
    with LlamaCpp(Model("qwen.gguf", context=2048)) as server:
        found = await inspect(server.url)
    assert (found.kind, found.models) == ("llama.cpp", (ServedModel("qwen.gguf", context_length=2048, loaded=True),))
    with LlamaCpp("bge-m3", Model("gemma", loaded=True)) as router:
        embeds, chats = (await inspect(router.url)).models
    assert (embeds.embedding, chats.embedding) == (True, None)
    assert (embeds.loaded, chats.loaded, chats.context_length) == (False, True, None)


@pytest.mark.parametrize("kind", [VLLM, SGLang])
async def test_vllm_and_sglang_know_what_their_model_does(kind):
    """Whatever its name is."""
    for model, embeds in (("m=embedding", True), ("m", False)):
        with kind(model) as server:
            (found,) = (await inspect(server.url)).models
        assert (found.embedding, found.chats, found.context_length) == (embeds, not embeds, 8192)


async def test_an_old_vllm_leaves_it_to_the_name():
    """All its paths were there, whatever the model."""
    with VLLM("bge-m3=embedding") as server:
        server.old = True
        (found,) = (await inspect(server.url)).models
    assert found.embedding is True
    with VLLM("qwen") as server:
        server.old = True
        (found,) = (await inspect(server.url)).models
    assert found.embedding is None


async def test_names_of_the_same_weights_are_aliases():
    """And adapters are models of their own."""
    with VLLM("Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen") as server:
        (found,) = (await inspect(server.url)).models
        assert (found.name, found.aliases) == ("Qwen/Qwen2.5-7B-Instruct-AWQ", ("qwen",))
        rows = [{"id": "lora", "owned_by": "vllm", "root": "/models/l", "parent": "base"}]
        rows += [{"id": "base", "owned_by": "vllm", "root": "/models/m", "parent": None}]
        server.pages = lambda: {"/v1/models": {"object": "list", "data": rows}}
        assert [model.name for model in (await inspect(server.url)).models] == ["base", "lora"]


@pytest.mark.parametrize(
    ("name", "embeds", "chats"),
    [
        ("BAAI/bge-m3", True, False),
        ("text-embedding-3-small", True, False),
        ("intfloat/e5-mistral-7b-instruct", True, False),
        ("Qwen3-Reranker-4B", True, False),
        ("whisper-large-v3", None, False),
        ("Qwen/Qwen2.5-7B-Instruct", None, None),
        ("bert-and-ernie-chat", True, False),
        ("roberta-flash", None, None),
        ("gpt-oss-20b", None, None),
        ("mistral-e50", None, None),
    ],
)
async def test_elsewhere_the_name_decides(name, embeds, chats):
    """Where it can; a chat model is never said to be one by its name."""
    with LocalServer(name) as server:
        found = await inspect(server.url)
    assert found.kind == "openai-compatible"
    assert (found.models[0].embedding, found.models[0].chats) == (embeds, chats)


async def test_a_key_is_sent_where_it_is_needed():
    """And its lack is named."""
    with LMStudio("m", key="k") as server:
        assert "requires a key" in (await inspect(server.url)).error
        assert (await inspect(server.url, "k")).kind == "lm-studio"


async def test_a_server_that_loads_says_so():
    """With status 503, meanwhile."""
    with LlamaCpp("m") as server:
        server.ready = False
        assert (await inspect(server.url)).error.endswith("503 instead of a list of models: Loading model")


@pytest.mark.parametrize(
    "listing",
    [
        Reply(body=b"<html>"),
        Reply.of([]),
        Reply.of({"data": 3}),
        Reply.of({"models": []}),
        Reply.of({"data": None}, status=500),
        Reply(body=b"[" * 100_000),
        Reply.redirect("http://elsewhere.example/v1/models"),
        Reply.chat("cut", die_after=1),
    ],
)
async def test_what_is_no_list_is_an_error(listing):
    """Of whatever form."""
    with StubServer() as server:
        server.listing = listing
        found = await inspect(server.url)
    assert found.models == ()
    assert found.error


async def test_odd_rows_are_left_out_and_odd_fields_are_unknown():
    """Nothing that a server sends breaks off the look, or reaches the terminal as it is."""
    odd = [None, 3, {}, {"id": 3}, {"id": "a\x1b[2J"}, {"id": "x" * 600}, {"id": ""}]
    rows = [*odd, {"id": "m", "owned_by": ["x"], "max_model_len": "9", "root": {}, "parent": 0, "meta": 3, "aliases": 3}]
    for owner in ("vllm", "llamacpp", "sglang", "x"):
        with StubServer() as server:
            server.listing = Reply.of({"data": [*rows, {"id": owner, "owned_by": owner, "context_length": True}]})
            found = await inspect(server.url)
        assert [model.name for model in found.models] == ["m", owner]
        assert {model.context_length for model in found.models} == {None}


async def test_a_silent_server_ends_in_time(monkeypatch):
    """The error names the limit."""
    monkeypatch.setattr(servers_found, "QUERY_SECONDS", 0.2)
    (silent,) = silent_sockets(1)
    with silent:
        found = await inspect(f"http://127.0.0.1:{silent.getsockname()[1]}/v1")
    assert found.error == "no answer within 0.2 s"


async def test_an_address_that_the_policy_refuses_gets_no_byte():
    """The client decides."""
    with Ollama("m") as server:
        async with Client(EgressPolicy(allow_cloud=False, local=frozenset())) as client:
            found = await inspect_server(server.url, client=client)
        assert "keeps data local" in found.error
        assert server.connections == 0
