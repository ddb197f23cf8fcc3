"""What comes over the network: any JSON gives a request or a typed refusal, and no field is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.server.examples import answer, asked, events, read
from workflow_composer.server.api.chat import ChatDialect
from workflow_composer.server.api.completions import CompletionsDialect
from workflow_composer.server.api.embeddings import AskedEmbeddings, read_embeddings
from workflow_composer.server.api.forms import FOREIGN, Form
from workflow_composer.server.api.json_wire import Asked, event, openai_failure, usage_of
from workflow_composer.server.api.messages import MessagesDialect
from workflow_composer.server.api.responses import ResponsesDialect
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import Chunk

CHAT, COMPLETIONS, MESSAGES, RESPONSES = ChatDialect(), CompletionsDialect(), MessagesDialect(), ResponsesDialect()
DIALECTS = [CHAT, COMPLETIONS, MESSAGES, RESPONSES]
LEAST = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "completions": {"prompt": "hi"},
    "messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
    "responses": {"input": "hi"},
}

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
WORDS = [
    *(
        "user",
        "assistant",
        "system",
        "tool",
        "text",
        "image",
        "message",
        "function",
        "auto",
        "any",
        "custom",
        "url",
        "base64",
    ),
    *("tool_use", "tool_result", "function_call", "function_call_output", "input_text", "input_image", "json_schema"),
]
KEYS = [
    *("role", "content", "type", "text", "source", "id", "name", "input", "tool_use_id", "call_id", "arguments", "output"),
    *("function", "format", "effort", "image_url", "url", "data", "media_type", "task_type", "input_schema", "is_error"),
]
ANY = st.recursive(
    LEAVES | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = [
    *("messages", "prompt", "input", "model", "max_tokens", "max_completion_tokens", "max_output_tokens", "temperature"),
    *("top_p", "stop", "stop_sequences", "seed", "n", "stream", "stream_options", "logprobs", "top_logprobs", "tools"),
    *("tool_choice", "response_format", "text", "reasoning", "metadata", "system", "instructions", "thinking", "include"),
    *("store", "suffix", "best_of", "encoding_format", "dimensions", "user", "previous_response_id", "cache_control"),
]
BODIES = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), ANY, max_size=6)
HEADERS = st.dictionaries(
    st.sampled_from(["x-workflow-composer-task", "x-workflow-composer-budget", "x-workflow-composer-timeout"]),
    st.text(max_size=6) | st.sampled_from(["1", "nan", "inf", "-1", "1e400"]),
)


def outcome(work: Callable[[], Any]) -> Any:
    """What comes of it: a value, or a refusal; anything else that is raised fails the test."""
    try:
        return work()
    except HttpFailure as failure:
        return failure


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_any_json_gives_a_request_or_a_typed_refusal(dialect):
    """Found by it before: an unhashable role, a number of 400 digits."""

    @given(BODIES, st.booleans(), HEADERS)
    @example({"input": [{"type": "message", "role": [], "content": "a"}]}, False, {})
    @example({"input": [{"role": "user", "content": [{"type": {}, "text": "a"}]}]}, False, {})
    @example({"tool_choice": {"type": []}}, True, {})
    @example({"temperature": 10**400}, True, {})
    @example({"max_tokens": 10**400, "seed": 10**400}, True, {})
    def check(body, complete, headers):
        body = {**LEAST[dialect.name], **body} if complete else body
        found = outcome(lambda: read(dialect, body, headers))
        if isinstance(found, HttpFailure):
            assert 400 <= found.status < 500
            assert json.loads(dialect.failure(found))["error"]["message"]
            return
        assert isinstance(found, Asked)
        assert found.request.messages
        assert json.loads(dialect.whole(found, answer("yes")))["model"] == "small-7b"

    check()


@given(BODIES, HEADERS)
def test_any_json_gives_embeddings_or_a_typed_refusal(body, headers):
    found = outcome(lambda: read_embeddings(json.dumps(body).encode(), headers))
    assert isinstance(found, AskedEmbeddings) or found.status == 400


@given(st.binary(max_size=60) | BODIES.map(lambda body: json.dumps(body).encode()[:-1]))
@example(b"")
@example(b"[" * 200_000)
@example(b'{"a":' * 100_000)
@example(b'"\\ud800"')
@example(b'{"a":"\xff"}')
@example(b"1e999")
def test_what_is_no_json_object_is_a_refusal(body):
    found = outcome(lambda: Form({}, example={}).read(body))
    assert isinstance(found, tuple) or (found.status == 400 and found.message.startswith("the request body"))


NAMES = st.from_regex(r"x_[a-z]{1,8}", fullmatch=True)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_field_that_only_a_server_knows_is_carried_as_it_is(dialect):
    @given(NAMES, ANY.filter(lambda value: value is not None))
    def check(name, value):
        assert read(dialect, {**LEAST[dialect.name], name: value}).request.extra == {name: value}

    check()


@pytest.mark.parametrize("dialect", [COMPLETIONS, MESSAGES, RESPONSES], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_a_chats_field_does_not_slip_into_another_form(dialect, name):
    """It would stand beside, or in the place of, what the dialect itself says to the model's server."""
    found = outcome(lambda: read(dialect, {name: 5, **LEAST[dialect.name]}))
    if isinstance(found, HttpFailure):
        assert found.param == name
    else:  # a field of this form, too
        assert name not in found.request.extra


def test_nulls_are_as_if_they_were_not_there():
    for dialect in DIALECTS:
        body = dict.fromkeys([*FIELDS, "x_new"])
        bare = read(dialect, {**body, **LEAST[dialect.name]})
        assert bare.request == read(dialect, LEAST[dialect.name]).request
        assert bare.warnings == ()


def test_an_event_is_one_block_whatever_its_text_is():
    written = event({"text": "a\n\ndata: b\r\n"}, "name")
    assert written.startswith(b"event: name\n")
    assert events(written) == [{"text": "a\n\ndata: b\r\n"}]


def test_an_error_has_openais_four_fields():
    found = json.loads(openai_failure(HttpFailure(429, "slow", type="rate_limit_error", code="c", param="p")))
    assert found == {"error": {"message": "slow", "type": "rate_limit_error", "param": "p", "code": "c"}}


def test_usage_counts_all_tokens():
    assert usage_of(answer("x")) == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_the_pieces_of_a_stream_are_whole_events_that_hold_all_the_text(dialect):
    @given(st.lists(st.text(), max_size=5))
    def check(pieces):
        writer = dialect.events(asked(stream=True))
        written = b"".join(writer.piece(Chunk(text=piece, model="m")) for piece in pieces) + writer.end(answer("x"))
        found = [one for one in events(written) if isinstance(one, dict)]
        deltas = {
            "chat": lambda one: one["choices"][0]["delta"].get("content", ""),
            "completions": lambda one: one["choices"][0]["text"],
            "messages": lambda one: one["delta"]["text"] if one["type"] == "content_block_delta" else "",
            "responses": lambda one: one["delta"] if one["type"] == "response.output_text.delta" else "",
        }
        assert "".join(map(deltas[dialect.name], found)) == "".join(pieces)

    check()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (None, "*")),
        ({"model": "auto"}, (None, "*")),
        ({"model": "task:code_generation"}, (None, "code_generation")),
        ({"model": "mv_small_k4_t0.7"}, ("mv_small_k4_t0.7", "*")),
        ({"metadata": {"task_type": "biomedical"}}, (None, "biomedical")),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_the_model_is_the_routing_address_in_every_form(dialect, fields, expected):
    request = read(dialect, {**LEAST[dialect.name], **fields}).request
    assert (request.model, request.task_type) == expected


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_task_budget_and_time_may_come_as_headers_in_every_form(dialect):
    told = {"task": "safety", "budget": "0.25", "timeout": "9"}
    request = read(dialect, LEAST[dialect.name], {f"x-workflow-composer-{k}": v for k, v in told.items()}).request
    assert (request.task_type, request.budget, request.timeout) == ("safety", 0.25, 9.0)
