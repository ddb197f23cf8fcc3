"""What a client sends reaches the model's server as it was, and what that server answers reaches the client as it was."""

from __future__ import annotations

import json

import pytest

from tests.integration.service import Service, chat, echoing, post, serving
from tests.integration.stub_server import Reply

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "object"}}}
FIELDS = [
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "add"}}, "parallel_tool_calls": False},
    {"response_format": SCHEMA},
    {"seed": 7, "stop": ["a", "b"], "logit_bias": {"5": -100}, "temperature": 0.25, "top_p": 0.5, "max_tokens": 9},
    {"logprobs": True, "top_logprobs": 4, "n": 3, "presence_penalty": 0.5, "user": "ann"},
    {"top_k": 5, "structured_outputs": {"json": {"type": "object"}}, "chat_template_kwargs": {"think": [1, None]}},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, PICTURE]}]},
    {"messages": [{"role": "system", "content": "ü \u2028 \"", "name": "x"}, {"role": "user", "content": "hi", "extra": 1}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service over one stub server."""
    with echoing() as stub, serving(tmp_path_factory.mktemp("carried"), stub) as service:
        yield service, stub


def sent(service: Service, stub, body) -> dict:
    """What the model's server got for a body."""
    status, _, answer = service.request("POST", "/v1/chat/completions", body)
    assert status == 200, answer
    return stub.requests[-1].json


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: next(iter(fields)))
def test_every_field_arrives_unchanged_and_none_is_added(served, fields, stream):
    """But for the model's own name, and the usage that is always asked for with a stream."""
    if stream and "n" in fields:
        fields = {**fields, "n": 1}
    body = {**chat("hi"), **fields}
    found = sent(*served, {**body, "stream": True} if stream else body)
    added = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    expected = {**body, **added}
    expected.pop("model")
    if expected.get("n") == 1:
        expected.pop("n")  # which says nothing
    found.pop("model")
    if found.get("n") == 1:
        found.pop("n")
    assert found == expected


def test_a_whole_answer_is_the_server_s_own_bytes(served):
    """Spaces, order and fields that nobody here knows included."""
    service, stub = served
    own = b'{ "id":"cmpl-9",  "object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant",\n'
    own += b'"content":"4","odd":[1]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1},"x":null}'
    real, stub.answer = stub.answer, lambda request: Reply(body=own)
    try:
        _, headers, body = service.ask("hi")
        assert body == own
        assert headers["x-workflow-composer-model"] == "p-0"
    finally:
        stub.answer = real


def test_a_stream_s_cost_and_attempts_follow_behind_its_end(served):
    """As trailers, which its head has announced."""
    service, _ = served
    with service.connect() as connection:
        data = json.dumps(chat("hi", stream=True)).encode()
        connection.sendall(post(data, "Connection: close"))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    begun, _, rest = answer.partition(b"\r\n\r\n")
    (announced,) = (line.partition(b": ")[2] for line in begun.split(b"\r\n") if line.startswith(b"trailer:"))
    sent = dict(line.split(b": ") for line in rest.rpartition(b"\r\n0\r\n")[2].split(b"\r\n") if line)
    assert sent[b"x-workflow-composer-attempts"] == b"1"
    assert {b"x-workflow-composer-cost", b"x-workflow-composer-attempts"} <= sent.keys() <= set(announced.split(b", "))


@pytest.mark.parametrize("model", ["auto", "mv_p-0_k2_t0.7"])
def test_headers_that_the_profile_names_go_on_in_every_form(tmp_path, model):
    """Whatever their case; others, and what a client tells of itself, do not."""
    told = {"X-Tenant": "blue", "x-other": "1", "session-id": "s", "x-codex-turn": "t", "X-Request-Id": "r"}
    bodies = {
        "chat/completions": chat("hi", model=model),
        "messages": {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
        "responses": {"model": model, "input": "hi"},
    }
    if model == "auto":
        bodies |= {
            "completions": {"model": model, "prompt": "hi"},
            "embeddings": {"model": model, "input": ["hi"]},
            "rerank": {"model": model, "query": "a", "documents": ["b"]},
        }
    more = {"forward_headers": ["X-TENANT"], "routers": ["cascade", "cascading_provider"]}
    with echoing() as stub:
        real = stub.answer
        stub.answer = lambda request: Reply.of({"results": []}) if request.path.endswith("rerank") else real(request)
        with serving(tmp_path, stub, **more) as service:
            for path, body in bodies.items():
                status, _, answer = service.request("POST", f"/v1/{path}", body, told)
                assert status == 200, (path, answer)
                got = stub.requests[-1].headers
                assert got["x-tenant"] == "blue", path
                assert not {"x-other", "session-id", "x-codex-turn"} & set(got), path
