"""Bodies of requests, in every form of the API: nothing is dropped in silence, and nothing but a refusal is raised."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.server.failures import HttpFailure
from workflow_composer.server.wire import decode
from workflow_composer.server.wire_chat import ChatDialect
from workflow_composer.server.wire_completions import CompletionsDialect
from workflow_composer.server.wire_embeddings import read_embeddings
from workflow_composer.server.wire_messages import MessagesDialect
from workflow_composer.server.wire_responses import ResponsesDialect

MESSAGES = [{"role": "user", "content": "hello"}]
LEAST = {
    "chat": {"messages": MESSAGES},
    "completions": {"prompt": "hello"},
    "messages": {"messages": MESSAGES, "max_tokens": 9},
    "responses": {"input": "hello"},
}
DIALECTS = {one.name: one for one in (ChatDialect(), CompletionsDialect(), MessagesDialect(), ResponsesDialect())}
FORMS = pytest.mark.parametrize("form", DIALECTS)

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    [
        "model", "messages", "prompt", "input", "n", "stream", "stream_options", "max_tokens", "max_completion_tokens",
        "max_output_tokens", "temperature", "top_p", "stop", "stop_sequences", "seed", "logprobs", "top_logprobs", "tools",
        "tool_choice", "response_format", "text", "metadata", "system", "instructions", "reasoning", "store", "user",
        "service_tier", "thinking", "logit_bias", "suffix", "best_of", "dimensions", "encoding_format", "top_k", "echo",
    ]
)  # fmt: skip


def read(form, **fields):
    """What a dialect reads of its least body and these fields."""
    return DIALECTS[form].read({**LEAST[form], **fields}, {})


def attempt(work):
    """What it gives, or the failure that it raises; anything else comes through."""
    try:
        return work(), None
    except HttpFailure as failure:
        return None, failure


@FORMS
@given(body=st.dictionaries(names, values, max_size=6), whole=st.booleans())
def test_any_body_is_read_or_refused_by_name(form, body, whole):
    """Whatever JSON comes, there is a request or a failure with a status from 400 to 499."""
    asked, failure = attempt(lambda: DIALECTS[form].read({**LEAST[form], **body} if whole else body, {}))
    assert asked.request.messages if failure is None else 400 <= failure.status < 500


@given(st.dictionaries(names, values, max_size=6))
def test_any_embeddings_body_is_read_or_refused(body):
    asked, failure = attempt(lambda: read_embeddings(body, {}))
    assert asked.texts if failure is None else 400 <= failure.status < 500


@FORMS
@given(name=st.text(min_size=1, max_size=12), value=values.filter(lambda one: one is not None))
def test_a_field_that_nobody_here_knows_goes_on_to_the_model(form, name, value):
    """It is the model's server that knows whether it is one."""
    name = f"x_{name}"
    assert read(form, **{name: value}).request.extra[name] == value


CARRIED = [
    ("chat", {"max_tokens": 5}, {"max_tokens": 5}),
    ("chat", {"max_completion_tokens": 5}, {"max_tokens": 5}),
    ("chat", {"temperature": 0.5, "top_p": 0.9, "seed": 3}, {"temperature": 0.5, "top_p": 0.9, "seed": 3}),
    ("chat", {"stop": ["a", "b"]}, {"stop": ("a", "b")}),
    ("chat", {"logprobs": True, "top_logprobs": 4}, {"logprobs": True, "top_logprobs": 4}),
    ("chat", {"tools": [TOOL], "tool_choice": "auto"}, {"tools": (TOOL,), "tool_choice": "auto"}),
    ("chat", {"response_format": SCHEMA}, {"response_format": SCHEMA}),
    ("chat", {"n": 3}, {"n": 3}),
    ("chat", {"logit_bias": {"5": -1}, "top_k": 3}, {"extra": {"logit_bias": {"5": -1}, "top_k": 3}}),
    ("completions", {"max_tokens": 5, "n": 2}, {"max_tokens": 5, "n": 2, "kind": "completion"}),
    ("completions", {"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
    ("completions", {"echo": True}, {"extra": {"echo": True}}),
    ("messages", {"stop_sequences": ["x"], "top_k": 4}, {"stop": ("x",), "extra": {"top_k": 4}, "max_tokens": 9}),
    ("responses", {"max_output_tokens": 7, "top_logprobs": 2}, {"max_tokens": 7, "logprobs": True, "top_logprobs": 2}),
    ("responses", {"reasoning": {"effort": "low"}}, {"extra": {"reasoning_effort": "low"}}),
]


@pytest.mark.parametrize(("form", "fields", "expected"), CARRIED)
def test_what_a_request_can_hold_is_carried(form, fields, expected):
    request = read(form, **fields).request
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("form", "fields", "param"),
    [
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("chat", {"n": 0}, "n"),
        ("chat", {"n": True}, "n"),
        ("chat", {"temperature": "hot"}, "temperature"),
        ("chat", {"stream": "yes"}, "stream"),
        ("chat", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("chat", {"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ("chat", {"tools": [3]}, "tools[0]"),
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("completions", {"suffix": "x"}, "suffix"),
        ("completions", {"best_of": 3}, "best_of"),
        ("messages", {"max_tokens": None}, "max_tokens"),
        ("messages", {"thinking": {"type": "enabled"}}, "thinking"),
        ("responses", {"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ("responses", {"previous_response_id": "r"}, "previous_response_id"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(form, fields, param):
    with pytest.raises(HttpFailure) as caught:
        read(form, **fields)
    assert caught.value.status == 400
    assert caught.value.param == param


def test_what_says_nothing_to_a_model_is_left_out_with_a_warning():
    asked = read("chat", service_tier="flex")
    assert "service_tier" not in asked.request.extra
    assert asked.warnings[0].startswith("service_tier ")


@pytest.mark.parametrize(
    ("given_fields", "expected"),
    [
        ({}, {"model": None, "task_type": "*"}),
        ({"model": "auto"}, {"model": None, "task_type": "*"}),
        ({"model": "task:code_generation"}, {"model": None, "task_type": "code_generation"}),
        ({"model": "mv_small_k4_t0.7"}, {"model": "mv_small_k4_t0.7", "task_type": "*"}),
        ({"metadata": {"task_type": "biomedical"}}, {"model": None, "task_type": "biomedical"}),
    ],
)
@FORMS
def test_the_model_is_the_routing_address_in_every_form(form, given_fields, expected):
    request = read(form, **given_fields).request
    assert {name: getattr(request, name) for name in expected} == expected


@FORMS
def test_task_budget_and_time_may_come_as_headers(form):
    headers = {
        "x-workflow-composer-task": "safety",
        "x-workflow-composer-budget": "0.25",
        "x-workflow-composer-timeout": "9",
    }
    request = DIALECTS[form].read(LEAST[form], headers).request
    assert (request.task_type, request.budget, request.timeout) == ("safety", 0.25, 9.0)
    with pytest.raises(HttpFailure):
        DIALECTS[form].read(LEAST[form], {"x-workflow-composer-budget": "-1"})


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b'{"a": "\xed\xa0\x80"}'],
)
def test_bytes_that_are_no_object_of_json_are_a_bad_request(body):
    with pytest.raises(HttpFailure) as caught:
        decode(body)
    assert caught.value.status == 400


@given(st.dictionaries(st.text(max_size=9), values, max_size=4))
def test_json_is_read_as_it_was_written(data):
    assert decode(json.dumps(data).encode()) == json.loads(json.dumps(data))
