"""The OpenAI-compatible backend: what it sends, what it makes of answers, when it stops."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.integration.stub_backends import KEY, PROMPT, backend_of, call, cloud_backend, collect, local_backend, posts
from tests.integration.stub_server import MODEL, Reply, StubServer
from workflow_composer.backends.base import Backend
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import (
    AuthenticationFailed,
    BadRequest,
    CallTimeout,
    EgressDenied,
    ModelNotFound,
    RateLimited,
    ServerFailed,
    Unsupported,
)
from workflow_composer.types import LLMRequest, ModelCall, Relay, Sample, TokenLogprob, Usage

# ------------------------------------------------------------------------------------------------------------ the request


async def test_every_field_of_a_request_reaches_the_server(server, local):
    """Nothing is dropped on the way, and `extra` is passed through."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    fields = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "top_logprobs": 2,
    }
    request = LLMRequest.of(
        "hi", system="be brief", stop=("a", "b"), tools=(tool,), logprobs=True, extra={"min_p": 0.1}, **fields
    )
    await local.complete(ModelCall(request, samples=2))
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    expected = {"messages": messages, "stop": ["a", "b"], "tools": [tool], "logprobs": True, "min_p": 0.1, "n": 2}
    assert posts(server)[0].json == {"model": MODEL, **fields, **expected}


async def test_fields_that_are_not_set_are_not_sent(server, local):
    """A server's own defaults stay in force."""
    await local.complete(call())
    assert posts(server)[0].json == {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}


async def test_the_temperature_of_the_call_comes_before_that_of_the_request(server, local):
    """A tier's temperature is the plan's; None leaves the request's own."""
    request = LLMRequest.of("hi", temperature=0.1)
    await local.complete(ModelCall(request, temperature=0.7))
    await local.complete(ModelCall(request))
    assert [sent.json["temperature"] for sent in posts(server)] == [0.7, 0.1]


async def test_what_json_cannot_say_is_a_bad_request(server, local):
    """And nothing is sent."""
    for extra in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(BadRequest, match="cannot encode the request as JSON"):
            await local.complete(call(extra=extra))
    assert posts(server) == []


async def test_only_needed_headers_are_sent_whatever_the_environment_holds(server, monkeypatch):
    """Organisation, project and custom headers of an OpenAI account go to no other server."""
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Custom: custom-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "env-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.example/v1")
    backend = local_backend(server.url)
    await backend.complete(call())
    await backend.close()
    sent = posts(server)[0].headers
    assert "secret" not in json.dumps(sent)
    assert sent["authorization"] == "Bearer EMPTY"
    assert sent["user-agent"] == "workflow-composer"


# ----------------------------------------------------------------------------------------------------------------- the key


async def test_the_key_is_read_when_a_call_is_made(server):
    """A key that is set or changed later is used without a restart; surrounding white space is not part of it."""
    environ = {"STUB_KEY": KEY}
    backend = cloud_backend(server.url, environ)
    await backend.complete(call())
    environ["STUB_KEY"] = "second\n"
    await backend.complete(call())
    assert [sent.headers["authorization"] for sent in posts(server)] == [f"Bearer {KEY}", "Bearer second"]
    await backend.close()


@pytest.mark.parametrize(
    "environ", [{}, {"STUB_KEY": ""}, {"STUB_KEY": " "}, {"STUB_KEY": "k\u00e9y"}, {"STUB_KEY": "a\nb"}]
)
async def test_without_a_usable_key_nothing_is_sent(server, environ):
    """The error names the variable."""
    backend = cloud_backend(server.url, environ)
    with pytest.raises(AuthenticationFailed, match="STUB_KEY"):
        await backend.complete(call())
    with pytest.raises(AuthenticationFailed, match="STUB_KEY"):
        await collect(backend, call())
    with pytest.raises(AuthenticationFailed, match="STUB_KEY"):
        await backend.embed(["a"], timeout=1.0)
    health = await backend.health(timeout=1.0)
    assert not health.healthy
    assert "STUB_KEY" in health.detail
    assert server.connections == 0
    await backend.close()


# --------------------------------------------------------------------------------------------------------------- the model


async def test_a_server_is_asked_once_which_model_it_serves(server, local):
    """Also where many calls start at once."""
    await asyncio.gather(*(local.complete(call()) for _ in range(20)))
    await local.complete(call())
    assert sum(request.path.endswith("/models") for request in server.requests) == 1


async def test_a_server_restarted_with_another_model_is_asked_again(server, local):
    """A 404 for the model is no reason to fail where the server now serves another."""
    await local.complete(call())
    server.models[:] = ["new-model"]
    server.script(Reply.error(404, "The model `stub-model` does not exist."))
    assert (await local.complete(call())).model == "new-model"


async def test_a_server_that_lost_its_model_is_asked_once_only(server, local):
    """The same answer to the same question ends the call."""
    server.script(Reply.error(404), Reply.error(404))
    with pytest.raises(ModelNotFound):
        await local.complete(call())
    assert len(posts(server)) == 1


async def test_a_named_model_is_not_looked_up(server):
    """`model` in the profile is what is sent."""
    backend = local_backend(server.url, model="mine")
    await backend.complete(call())
    await backend.close()
    assert [request.json["model"] for request in server.requests] == ["mine"]


async def test_a_server_without_models_is_said_to_have_none(server, local):
    """Rather than being sent a request without a model."""
    server.models.clear()
    with pytest.raises(ModelNotFound, match="serves no model"):
        await local.complete(call())


# -------------------------------------------------------------------------------------------------------------- the answer


async def test_an_answer_is_read_in_full(server, local):
    """Choices by index, finish reasons, tool calls, log-probabilities best first, usage, the server's model name."""
    tool_call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    top = [{"token": "b", "logprob": -2.0}, {"token": "a", "logprob": -0.1}]
    server.script(
        Reply.of(
            {
                "model": "served",
                "choices": [
                    {"index": 1, "message": {"content": None, "tool_calls": [tool_call]}, "finish_reason": "tool_calls"},
                    {
                        "index": 0,
                        "message": {"content": "b"},
                        "finish_reason": "stop",
                        "logprobs": {"content": [{"token": "b", "logprob": -2.0, "top_logprobs": top}]},
                    },
                ],
                "usage": {"prompt_tokens": 11, "completion_tokens": 4},
            }
        )
    )
    completion = await local.complete(call(samples=2))
    assert completion.samples == (
        Sample("b", "stop", (), (TokenLogprob("b", -2.0, (("a", -0.1), ("b", -2.0))),)),
        Sample("", "tool_calls", (tool_call,), None),
    )
    assert (completion.usage, completion.model) == (Usage(11, 4), "served")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"<html>gateway</html>"),
        Reply(body=b"[]"),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"choices": [{"message": null}]}'),
        Reply(body=b'{"choices": [{"message": {"content": 5}}]}'),
        Reply(body=b'{"choices": "none"}'),
        Reply(body=b"\xff\xfe"),
        Reply(body=b"garbage", headers={"Content-Encoding": "gzip"}),
        Reply.of({"error": {"message": "engine died", "code": None}}),
        Reply.of({"object": "error", "message": "engine died", "code": 500}),
    ],
)
async def test_what_is_no_answer_is_a_failure_of_the_server(server, local, reply):
    """Status 200 alone makes no answer."""
    server.script(reply)
    with pytest.raises(ServerFailed):
        await local.complete(call())


async def test_connections_are_used_again(server, local):
    """Answers and complete streams leave their connection open for the next call."""
    for _ in range(3):
        await local.complete(call())
        await collect(local, call())
    await local.embed(["a"], timeout=60)
    await local.health(timeout=60)
    assert server.connections == 1


# --------------------------------------------------------------------------------------------------------- several samples


async def test_samples_are_one_call_where_the_server_can(server, local):
    """The prompt is then counted once."""
    completion = await local.complete(call(samples=4))
    assert (len(completion.samples), len(posts(server)), completion.usage) == (4, 1, Usage(5, 12))


async def test_samples_that_a_server_leaves_out_are_drawn_singly(server, local):
    """Each with a seed of its own, as one call would have; all are billed. The server is not asked again for several."""
    server.script(Reply.chat("only one"))
    completion = await local.complete(call(samples=3, seed=10))
    assert [sample.text for sample in completion.samples] == ["only one", "an answer", "an answer"]
    assert completion.usage == Usage(15, 9)
    await local.complete(call(samples=2, seed=10))
    bodies = [request.json for request in posts(server)]
    assert [body.get("n") for body in bodies] == [3, None, None, None, None]
    assert sorted(body["seed"] for body in bodies) == [10, 10, 11, 11, 12]


async def test_a_server_that_refuses_several_samples_is_asked_singly(server, local):
    """The refusal is not the request's fault; the single calls show."""
    server.script(Reply.error(400, "n must be 1 when using greedy sampling"))
    assert len((await local.complete(call(samples=3))).samples) == 3
    assert len((await local.complete(call(samples=2))).samples) == 2
    assert [request.json.get("n") for request in posts(server)] == [3, None, None, None, None, None]


async def test_a_request_that_is_bad_by_itself_stays_bad(server, local):
    """With several samples, too."""
    server.script(*[Reply.error(400, "temperature must be non-negative")] * 4)
    with pytest.raises(BadRequest, match="temperature must be non-negative"):
        await local.complete(call(samples=3))


async def test_one_failed_sample_stops_the_others(server):
    """No call goes on whose answer nobody awaits."""
    backend = proxied("http://api.deepseek.com/v1", server)
    server.script(Reply(hang=True), Reply(hang=True), Reply.error(429))
    with pytest.raises(RateLimited):
        await backend.complete(call(samples=3))
    assert server.wait_for(lambda stub: stub.disconnects == 2)
    await backend.close()


async def test_providers_known_to_give_one_answer_are_asked_in_parallel(server):
    """DeepSeek ignores `n`."""
    backend = proxied("http://api.deepseek.com/v1", server)
    assert len((await backend.complete(call(samples=3))).samples) == 3
    assert [request.json.get("n") for request in posts(server)] == [None] * 3
    await backend.close()


@pytest.mark.parametrize(
    "field", [{"seed": 1}, {"logprobs": True}, {"top_logprobs": 1}, {"response_format": {"type": "text"}}]
)
async def test_fields_that_a_provider_ignores_are_not_dropped_in_silence(server, field):
    """Anthropic documents some as ignored; sending them would promise what is not kept."""
    backend = proxied("http://api.anthropic.com/v1", server)
    for attempt in (backend.complete(call(**field)), collect(backend, call(**field))):
        with pytest.raises(Unsupported, match=next(iter(field))):
            await attempt
    await backend.complete(call(temperature=0.5))
    assert len(posts(server)) == 1
    await backend.close()


def proxied(url, server):
    """A cloud model whose provider the stub server stands for, as the environment's proxy."""
    return cloud_backend(url, {"STUB_KEY": KEY, "http_proxy": server.url.removesuffix("/v1")})


# ------------------------------------------------------------------------------------------------------------- governance


async def test_a_refused_host_is_refused_by_every_method(server):
    """The client library wraps errors; this one comes through as it is. Nothing is sent."""
    models = {"model": {"backend": "vllm", "base_url": server.url, "model": "m"}}
    config = StrategyConfig(profile_name="p", allow_cloud=False, models=models)
    backend = backend_of("model", config, egress=EgressPolicy(False, frozenset()))
    for attempt in (backend.complete(call()), collect(backend, call()), backend.embed(["a"], timeout=1)):
        with pytest.raises(EgressDenied, match="keeps data local"):
            await attempt
    health = await backend.health(timeout=60)
    assert not health.healthy
    assert "keeps data local" in health.detail
    assert server.connections == 0
    await backend.close()


async def test_a_redirect_is_not_followed_by_any_method(server, local):
    """It would carry the prompt elsewhere; the error says what to do."""
    with StubServer() as elsewhere:
        for attempt in (local.complete(call()), collect(local, call()), local.embed(["a"], timeout=60)):
            server.script(Reply.redirect(elsewhere.url))
            with pytest.raises(ModelNotFound, match="redirects are not followed"):
                await attempt
        server.listing = Reply.redirect(elsewhere.url)
        health = await local.health(timeout=60)
        assert (health.healthy, elsewhere.connections) == (False, 0)
        assert "redirects" in health.detail


# --------------------------------------------------------------------------------------------------- embeddings and health


async def test_vectors_come_in_the_order_of_the_texts(server, local):
    """Whatever order the server gives them in."""
    rows = [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1]}]
    server.script(Reply.of({"model": "e", "data": rows, "usage": {"prompt_tokens": 4}}))
    found = await local.embed(["a", "b"], timeout=60)
    assert (found.vectors, found.model, found.usage) == (((1.0,), (2.0,)), "e", Usage(4, 0))


async def test_missing_vectors_are_a_failure(server, local):
    """Two texts, two vectors."""
    server.script(Reply.of({"data": [{"index": 0, "embedding": [1.0]}]}))
    with pytest.raises(ServerFailed, match="expected 2 vectors"):
        await local.embed(["a", "b"], timeout=60)


async def test_no_texts_need_no_call(server, local):
    """Nothing in, nothing out."""
    assert (await local.embed([], timeout=60)).vectors == ()
    assert server.connections == 0


async def test_embedding_ends_in_time(server, local):
    """As completing does."""
    server.script(Reply(hang=True))
    with pytest.raises(CallTimeout):
        await local.embed(["a"], timeout=0.3)


async def test_health_says_what_is_served(server, local):
    """With the time the answer took."""
    health = await local.health(timeout=60)
    assert (health.healthy, health.models, health.name) == (True, (MODEL,), "model")
    assert health.latency_ms > 0


async def test_a_local_server_without_the_model_is_not_healthy(server):
    """It could not answer a request for it."""
    backend = local_backend(server.url, model="another")
    health = await backend.health(timeout=60)
    await backend.close()
    assert not health.healthy
    assert health.detail == "serves stub-model, not another"


async def test_a_cloud_list_may_leave_out_the_model(cloud):
    """Aliases and fine-tuned models are not listed and can be called."""
    assert (await cloud.health(timeout=60)).healthy


async def test_the_backend_is_one(local, cloud):
    """It satisfies the seam and knows where its bytes stay."""
    assert isinstance(local, Backend)
    assert (local.local, cloud.local) == (True, False)


@pytest.mark.parametrize("name", [5, ["m"], {"a": 1}, True, "", None])
async def test_a_name_that_a_server_gives_itself_and_that_is_none_is_passed_over(server, local, name):
    """What goes into headers and figures is a text."""
    choice = {"index": 0, "message": {"content": "4"}, "finish_reason": "stop"}
    server.script(Reply.of({"choices": [choice], "model": name}))
    assert (await local.complete(call())).model == MODEL
    chunk = {"choices": [{"index": 0, "delta": {"content": "4"}, "finish_reason": "stop"}], "model": name}
    server.script(Reply(events=(json.dumps(chunk).encode(),)))
    assert [piece.model for piece in await collect(local, call())] == [name if name == "" else None]


@pytest.mark.parametrize("claim", ["abc", None, [], True, 3.5, float("nan")])
async def test_log_probabilities_that_cannot_be_are_unknown(server, local, claim):
    """Whatever judges by them takes the answer for one without; the answer itself stands."""
    tokens = [{"token": "4", "logprob": -0.1, "top_logprobs": []}, {"token": "!", "logprob": claim, "top_logprobs": []}]
    choice = {"index": 0, "message": {"content": "4!"}, "finish_reason": "stop", "logprobs": {"content": tokens}}
    server.script(Reply.of({"choices": [choice]}))
    (sample,) = (await local.complete(call(logprobs=True))).samples
    assert (sample.text, sample.logprobs) == ("4!", None)


@pytest.mark.parametrize("size", [3, 3000], ids=["small", "large"])
@pytest.mark.parametrize(
    "spoiled",
    [
        {},
        {"usage": None},
        {"usage": {"prompt_tokens": -5}},
        {"error": {"message": "no memory"}},
        {"object": "error", "message": "no"},
        {"data": []},
        {"data": [{"embedding": ["x"]}] * 9},
    ],
    ids=str,
)
async def test_many_vectors_are_read_as_few(server, local, size, spoiled):
    """Large responses are decoded apart, with the same result or error."""
    rows = [{"object": "embedding", "index": 8 - at, "embedding": [at + 0.5, 2] + [0.25] * size} for at in range(9)]
    server.script(Reply.of({"object": "list", "model": "m", "data": rows, "usage": {"prompt_tokens": 7}, **spoiled}))
    if set(spoiled) <= {"usage"}:
        found = await local.embed(["t"] * 9, timeout=5.0)
        assert [vector[:3] for vector in found.vectors] == [(8 - at + 0.5, 2.0, 0.25) for at in range(9)]
        assert found.model == "m"
    else:
        with pytest.raises(ServerFailed):
            await local.embed(["t"] * 9, timeout=5.0)


@pytest.mark.parametrize("relayed", [False, True])
@pytest.mark.parametrize("content", ["word " * 60_000, [{"type": "text", "text": "word " * 60_000}]], ids=["text", "parts"])
async def test_a_long_answer_is_read_as_a_short_one(server, local, content, relayed):
    """It is decoded apart; a relayed one's bytes are the server's."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    server.script(Reply.of({"model": "m", "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 9}}))
    call = ModelCall(LLMRequest.of("q", relay=Relay()) if relayed else LLMRequest.of("q"))
    done = await local.complete(call)
    assert done.samples[0].text == "word " * 60_000
    assert done.usage.completion_tokens == 9
    if relayed:
        assert json.loads(call.request.relay.body)["choices"] == [choice]
