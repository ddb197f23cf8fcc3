"""Responses that go on from earlier ones: what the model's server is sent, for whom, and for how long."""

from __future__ import annotations

import json

import openai
import pytest

from tests.integration.service import echoing, serving
from tests.integration.stub_server import Reply
from tests.integration.test_service_batches import client_of, keys_file
from workflow_composer.server.auth.callers import marked
from workflow_composer.server.auth.keys import Key
from workflow_composer.server.conversations import Conversations
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import LLMRequest, Sample

TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service with one worker, and the server behind it."""
    with echoing() as stub, serving(tmp_path_factory.mktemp("conversations"), stub) as service:
        yield client_of(service), stub


def told(stub) -> list[tuple[str, str]]:
    """Roles and texts that the model's server was sent last."""
    return [(one["role"], one["content"]) for one in stub.requests[-1].json["messages"]]


def ended(client, *, stream: bool, **fields):
    """A response, whole or streamed to its end."""
    if not stream:
        return client.responses.create(model="auto", **fields)
    return list(client.responses.create(model="auto", stream=True, **fields))[-1].response


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_goes_on_from_an_earlier_one(served, stream):
    client, stub = served
    first = ended(client, stream=stream, input="one", instructions="be brief")
    second = ended(client, stream=stream, input="two", previous_response_id=first.id)
    assert told(stub) == [("user", "one"), ("assistant", "one"), ("user", "two")]
    assert second.previous_response_id == first.id
    ended(client, stream=stream, input="three", instructions="be long", previous_response_id=second.id)
    said = [("user", "one"), ("assistant", "one"), ("user", "two"), ("assistant", "two"), ("user", "three")]
    assert told(stub) == [("system", "be long"), *said]
    ended(client, stream=stream, input="another way", previous_response_id=first.id)
    assert told(stub) == [("user", "one"), ("assistant", "one"), ("user", "another way")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_s_output_goes_on_from_its_call(served, stream):
    client, stub = served
    usual = stub.answer
    delta = {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **CALL}]}, "finish_reason": "tool_calls"}]}
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    whole = {"id": "c", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    stub.answer = lambda request: Reply(events=(json.dumps(delta).encode(),)) if stream else Reply.of(whole)
    try:
        first = ended(client, stream=stream, input="add", tools=[TOOL])
    finally:
        stub.answer = usual
    output = {"type": "function_call_output", "call_id": "c1", "output": "4"}
    ended(client, stream=stream, input=[output], previous_response_id=first.id)
    user, assistant, tool = stub.requests[-1].json["messages"]
    assert (user["content"], assistant["tool_calls"], tool["content"]) == ("add", [CALL], "4")
    assert tool["tool_call_id"] == "c1"


def test_what_is_not_known_is_refused_by_name(served):
    client, _ = served
    unkept = client.responses.create(model="auto", input="one", store=False)
    for identity in (unkept.id, "resp_req-0", "nothing"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.create(model="auto", input="two", previous_response_id=identity)
        assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


def test_nobody_goes_on_from_another_key_s_response(tmp_path):
    option, keys = keys_file(tmp_path, ann={}, bob={})
    with echoing() as stub, serving(tmp_path, stub, options=tuple(option)) as service:
        ann, bob = (client_of(service, keys[name]) for name in ("ann", "bob"))
        first = ann.responses.create(model="auto", input="a secret")
        with pytest.raises(openai.NotFoundError) as caught:
            bob.responses.create(model="auto", input="what was it?", previous_response_id=first.id)
        assert caught.value.code == "previous_response_not_found"
        ann.responses.create(model="auto", input="go on", previous_response_id=first.id)
        assert told(stub)[0] == ("user", "a secret")


def test_several_workers_say_that_they_keep_none(tmp_path):
    with echoing() as stub, serving(tmp_path, stub, options=("--workers", "2")) as service:
        client = client_of(service)
        first = client.responses.create(model="auto", input="one")
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="auto", input="two", previous_response_id=first.id)
        assert (caught.value.param, caught.value.code) == ("previous_response_id", "unsupported_parameter")


def kept(conversations: Conversations, key: Key, number: int, text: str) -> str:
    """Keep a conversation of one text; the response's ID."""
    request_id = marked(key, f"req-{number}")
    request = LLMRequest.of(text, request_id=request_id)
    conversations.keep(request, Sample("answer", "stop"), instructed=False)
    return f"resp_{request_id}"


def test_the_oldest_conversations_are_forgotten_first_and_their_room_is_free_again():
    key, _ = Key.new("ann")
    conversations = Conversations(most=100, characters=40_000)
    ids = [kept(conversations, key, number, "x" * 9_000) for number in range(50)]
    known = []
    for identity in ids:
        try:
            known.append(conversations.of(identity, key)[0]["content"])
        except HttpFailure:
            known.append(None)
    assert [text is not None for text in known] == [False] * 47 + [True] * 3
    few = Conversations(most=2)
    ids = [kept(few, key, number, "x") for number in range(3)]
    with pytest.raises(HttpFailure):
        few.of(ids[0], key)
    assert few.of(ids[2], key)[-1]["content"] == "answer"
