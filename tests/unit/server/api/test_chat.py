"""Chat completions: every field is honoured, carried, refused or warned of; answers have OpenAI's shapes."""

from __future__ import annotations

import json

import pytest

from tests.unit.server.examples import answer, asked, events, read, refused
from workflow_composer.server.api.chat import ChatDialect
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import Chunk, Sample, TokenLogprob

CHAT = ChatDialect()
HI = {"messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("max_tokens", 5, 5),
        ("max_tokens", 5.0, 5),
        ("temperature", 0, 0),
        ("temperature", 2, 2),
        ("top_p", 0.5, 0.5),
        ("stop", "END", "END"),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", [], None),
        ("seed", -(2**40), -(2**40)),
        ("logprobs", True, True),
        ("top_logprobs", 0, 0),
        ("tools", [TOOL], (TOOL,)),
        ("tools", [], None),
        ("tool_choice", "none", "none"),
        (
            "tool_choice",
            {"type": "function", "function": {"name": "add"}},
            {"type": "function", "function": {"name": "add"}},
        ),
        ("response_format", {"type": "json_object"}, {"type": "json_object"}),
        ("n", 128, 128),
    ],
)
def test_a_field_of_the_request_is_honoured(field, value, expected):
    found = read(CHAT, {**HI, field: value})
    assert getattr(found.request, field) == expected
    assert found.request.extra == {}
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_tokens", value) for value in (0, -1, 1.5, "5", True, 2**31)),
        *(("max_completion_tokens", value) for value in (0, "5", [])),
        *(("temperature", value) for value in (-0.1, 2.1, "1", True, 10**400)),
        *(("top_p", value) for value in (1.01, {})),
        *(("stop", value) for value in (1, [1], {})),
        *(("seed", value) for value in (0.5, "1", 2**63)),
        *(("logprobs", value) for value in (1, "true")),
        *(("top_logprobs", value) for value in (-1, 101)),
        *(("tools", value) for value in ({}, [1], [{}], [{"type": 1}], [{"type": "function", "function": "f"}])),
        *(("tool_choice", value) for value in (1, [])),
        *(("response_format", value) for value in ("json", [])),
        *(("n", value) for value in (0, 129, "1")),
        *(("metadata", value) for value in ("x", [])),
        *(("model", value) for value in (1, "a\nb", "x" * 513, "task:")),
        *(("stream", value) for value in (1, "true")),
        ("stream_options", {"include_usage": True}),  # without stream
        ("messages", []),
        ("messages", "hi"),
        ("messages", [1]),
        ("messages", [{"role": "nobody", "content": "x"}]),
        ("messages", [{"role": [], "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": 1}]),
        ("messages", [{"role": "user", "content": [{"text": "no type"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": 1}]}]),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_name(field, value):
    failure = refused(CHAT, {**HI, field: value})
    assert failure.status == 400
    assert failure.param is not None
    place = "task" if value == "task:" else field.split(".")[0]
    assert failure.param.startswith(place) or place in failure.param
    assert field in failure.message or "task" in failure.message


@pytest.mark.parametrize("options", [{"include_usage": 1}, {"surprise": True}, []])
def test_an_option_of_streams_that_cannot_be_honoured_is_refused(options):
    assert "stream_options" in str(refused(CHAT, {**HI, "stream": True, "stream_options": options}).param)


def test_a_request_without_messages_is_refused():
    assert refused(CHAT, {"model": "auto"}).param == "messages"


def test_usage_at_a_streams_end_comes_only_where_it_was_asked_for():
    assert read(CHAT, {**HI, "stream": True, "stream_options": {"include_usage": True}}).include_usage
    assert not read(CHAT, {**HI, "stream": True, "stream_options": {"include_usage": False}}).include_usage
    assert not read(CHAT, {**HI, "stream": True}).include_usage


def test_both_limits_of_tokens_are_one_and_the_newer_name_counts_with_a_warning():
    assert read(CHAT, {**HI, "max_completion_tokens": 5}).request.max_tokens == 5
    assert read(CHAT, {**HI, "max_completion_tokens": 5, "max_tokens": 5}).request.max_tokens == 5
    found = read(CHAT, {**HI, "max_completion_tokens": 5, "max_tokens": 6})
    assert found.request.max_tokens == 5
    assert found.warnings[0].startswith("max_tokens ")


def test_fields_of_openais_own_service_are_warned_of():
    found = read(CHAT, {**HI, "store": True})
    assert [warning.split()[0] for warning in found.warnings] == ["store"]
    assert found.request.extra == {}
    assert read(CHAT, {**HI, "store": False}).warnings == ()


def test_messages_reach_the_model_as_they_are():
    messages = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "name": "ann",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    assert list(read(CHAT, {"messages": messages}).request.messages) == messages


def test_the_address_is_the_model_or_a_task():
    assert read(CHAT, {**HI, "model": "auto"}).request.model is None
    assert read(CHAT, {**HI, "model": "mv_small_k8_t0.7"}).request.model == "mv_small_k8_t0.7"
    assert read(CHAT, {**HI, "model": "task:code"}).request.task_type == "code"


def test_an_answer_has_a_choice_for_each_sample_that_was_asked_for():
    samples = (Sample("one", "length"), Sample("two"), Sample("three"))
    found = json.loads(CHAT.whole(asked(n=2), answer(*samples)))
    assert found["object"] == "chat.completion"
    assert found["id"] == "chatcmpl-req-1"
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in found["choices"]] == [
        (0, "one", "length"),
        (1, "two", "stop"),
    ]
    assert found["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert found["choices"][0]["logprobs"] is None


def test_log_probabilities_are_given_only_where_they_were_asked_for():
    sample = Sample("é", "stop", logprobs=(TokenLogprob("é", -0.5, (("é", -0.5), ("e", -2.0))),))
    wanted = json.loads(CHAT.whole(asked(logprobs=True), answer(sample)))["choices"][0]["logprobs"]["content"]
    assert wanted[0]["token"] == "é"
    assert wanted[0]["bytes"] == [195, 169]
    assert [top["token"] for top in wanted[0]["top_logprobs"]] == ["é", "e"]
    assert json.loads(CHAT.whole(asked(), answer(sample)))["choices"][0]["logprobs"] is None


def test_tool_calls_take_the_place_of_an_empty_text():
    message = json.loads(CHAT.whole(asked(), answer(Sample("", "tool_calls", (CALL,)))))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_a_stream_opens_with_the_role_and_ends_with_its_mark():
    writer = CHAT.events(asked(stream=True, include_usage=True))
    data = writer.piece(Chunk(text="a", model="m")) + writer.piece(Chunk(text="b", finish_reason="stop"))
    first, a, b, usage, done = events(data + writer.end(answer("ab")))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (a["choices"][0]["delta"], a["choices"][0]["finish_reason"]) == ({"content": "a"}, None)
    assert b["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 10)
    assert done == "[DONE]"
    assert {one["id"] for one in (first, a, b, usage)} == {"chatcmpl-req-1"}
    assert {one["model"] for one in (first, a, b, usage)} == {"m"}


def test_a_stream_without_a_piece_still_opens_and_ends():
    first, done = events(CHAT.events(asked(stream=True)).end(answer("")))
    assert first["model"] == "small-7b"
    assert done == "[DONE]"


def test_reasoning_is_a_field_of_its_own():
    """Whole and piece by piece, as vLLM writes it."""
    whole = json.loads(CHAT.whole(asked(), answer(Sample("4", "stop", reasoning="2 + 2"))))
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}
    _, piece = events(CHAT.events(asked(stream=True)).piece(Chunk(reasoning="2 + 2")))
    assert piece["choices"][0]["delta"] == {"reasoning_content": "2 + 2"}


def test_half_a_surrogate_pair_is_written_as_an_escape():
    """A model's server may cut a character in two."""
    body = CHAT.whole(asked(), answer("ok \ud83d"))
    assert b"\\ud83d" in body
    assert json.loads(body)["choices"][0]["message"]["content"] == "ok \ud83d"


def test_log_probabilities_come_with_their_piece():
    token = TokenLogprob("a", -0.5)
    _, piece = events(CHAT.events(asked(stream=True, logprobs=True)).piece(Chunk(text="a", logprobs=(token,))))
    assert piece["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5


def test_an_error_in_a_stream_is_one_event():
    (found,) = events(CHAT.events(asked(stream=True)).failed(HttpFailure(502, "broke", code="stream_interrupted")))
    assert found["error"]["code"] == "stream_interrupted"


def test_metadata_travels_to_the_server_without_what_was_for_this_service():
    found = read(CHAT, {**HI, "metadata": {"trace": "x", "task_type": "math"}})
    assert found.request.metadata == {"trace": "x", "task_type": "math"}
    assert found.request.extra == {"metadata": {"trace": "x"}}
    assert read(CHAT, {**HI, "metadata": {"task_type": "math"}}).request.extra == {}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"guided_json": {"type": "object"}}, {"structured_outputs": {"json": {"type": "object"}}}),
        (
            {"guided_choice": ["a"], "guided_whitespace_pattern": " "},
            {"structured_outputs": {"choice": ["a"], "whitespace_pattern": " "}},
        ),
        ({"guided_regex": "a", "structured_outputs": {"regex": "b"}}, {"structured_outputs": {"regex": "b"}}),
        ({"guided_decoding_backend": "outlines"}, {}),
    ],
)
def test_older_names_of_structured_outputs_are_sent_under_todays(sent, expected):
    found = read(CHAT, {**HI, **sent})
    assert found.request.extra == expected
    assert all(any(warning.startswith(name) for warning in found.warnings) for name in sent if name != "structured_outputs")
