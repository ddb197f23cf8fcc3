"""What a model's server says it lacks is told from other errors, and remembered where no client can have said it."""

from __future__ import annotations

import json

import pytest

from tests.integration.stub_backends import call, collect, local_backend, posts
from tests.integration.stub_server import Reply
from workflow_composer.errors import BadRequest, ServerFailed, Unsupported

TOOLS = ({"type": "function", "function": {"name": "f"}},)
PARSER = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'


@pytest.fixture
async def local(server):
    backend = local_backend(server.url, model="m")
    yield backend
    await backend.close()


@pytest.mark.parametrize(
    ("reply", "field"),
    [
        (Reply.error(400, PARSER), "tools"),
        (Reply.error(400, "registry.ollama.ai/library/x:latest does not support tools"), "tools"),
        (Reply.error(500, "tools param requires --jinja flag"), "tools"),
        (Reply.error(400, "Function calling is not enabled for this model"), "tools"),
        (Reply.error(400, "m is not a multimodal model"), "messages"),
        (Reply.error(500, "image input is not supported - hint: provide the mmproj"), "messages"),
        (Reply.error(400, "Failed to deserialize: unknown variant `image_url`, expected `text`"), "messages"),
        (Reply.error(400, "This model does not support logprobs"), "logprobs"),
        (Reply.error(400, "no", code="unsupported_parameter", param="seed"), "seed"),
        (Reply.error(400, "'response_format' of type 'json_schema' is not supported with this model"), "response_format"),
    ],
)
async def test_what_a_model_lacks_is_told_from_other_errors(server, local, reply, field):
    server.script(reply)
    with pytest.raises(Unsupported) as caught:
        await local.complete(call(tools=TOOLS))
    assert caught.value.field == field


async def test_other_errors_keep_their_code_and_field(server, local):
    server.script(
        Reply.error(400, "filtered", code="content_filter", param="prompt"), Reply.error(400, "temperature is too high")
    )
    with pytest.raises(BadRequest) as caught:
        await local.complete(call())
    assert (caught.value.code, caught.value.field) == ("content_filter", "prompt")
    with pytest.raises(BadRequest):
        await local.complete(call(temperature=1.9))


async def test_what_is_certain_is_remembered_for_requests_that_ask_for_it(server, local):
    server.script(Reply.error(400, PARSER))
    for _ in range(2):
        with pytest.raises(Unsupported):
            await local.complete(call(tools=TOOLS))
    assert len(posts(server)) == 1
    assert (await local.complete(call())).samples


async def test_what_a_client_may_have_written_is_not_remembered(server, local):
    server.script(Reply.error(400, "cannot do this: a model that does not support tools"))
    with pytest.raises(Unsupported):
        await local.complete(call(tools=TOOLS))
    assert (await local.complete(call(tools=TOOLS))).samples


@pytest.mark.parametrize(
    "event",
    [
        b'{"error": "boom"}',
        b'{"object": "error", "message": "boom", "code": 500}',
        b'{"type": "error", "error": {"message": "boom"}}',
        b'{"detail": "boom"}',
        b'{"message": "boom", "code": "500"}',
        b'{"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"message": "boom"}}]}',
    ],
)
async def test_an_error_is_a_failure_in_any_shape_and_place(server, local, event):
    whole = Reply.stream("a", "b")
    for place in (0, 2, len(whole.events)):
        server.script(Reply(events=(*whole.events[:place], event, *whole.events[place:])))
        with pytest.raises(ServerFailed):
            await collect(local, call())
    server.script(Reply(body=event))
    with pytest.raises(ServerFailed):
        await local.complete(call())


async def test_a_stream_that_nobody_asked_for_is_an_answer(server, local):
    events = b"".join(b"data: " + event + b"\n\n" for event in (*Reply.stream("a", "b").events, b"[DONE]"))
    server.script(Reply(body=events, headers={"Content-Type": "text/event-stream"}), Reply(body=events))
    assert (await local.complete(call())).samples[0].text == "ab"
    assert "".join(chunk.text for chunk in await collect(local, call())) == "ab"


async def test_developers_messages_lead_and_ids_of_requests_travel(server, local):
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "q"}, {"role": "developer", "content": "b"}]
    the_call = call(headers={"x-request-id": "abc"}, kind="chat")
    object.__setattr__(the_call, "request", type(the_call.request).of(messages, headers={"x-request-id": "abc"}))
    await local.complete(the_call)
    (sent,) = posts(server)
    assert json.loads(sent.body)["messages"] == [{"role": "system", "content": "a\n\nb"}, messages[1]]
    assert sent.headers["x-request-id"] == "abc"
