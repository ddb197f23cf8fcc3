"""OpenAI's responses: what they say in the words of chats, and the answers in theirs."""

from __future__ import annotations

import json

import pytest

from tests.unit.server.examples import answer, asked, events, read, refused
from workflow_composer.server.api.responses import ResponsesDialect
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import Chunk, Sample, TokenLogprob

RESPONSES = ResponsesDialect()
HI = {"input": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
SCHEMA = {"name": "s", "schema": {"type": "object"}, "strict": True}
LOGPROBS = "message.output_text.logprobs"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("max_output_tokens", 5, {"max_tokens": 5}),
        ("temperature", 0.4, {"temperature": 0.4}),
        ("top_p", 0.4, {"top_p": 0.4}),
        ("top_logprobs", 2, {"logprobs": True, "top_logprobs": 2}),
        ("top_logprobs", 0, {"logprobs": False, "top_logprobs": None}),
        ("include", [LOGPROBS], {"logprobs": True}),
        ("include", [], {"logprobs": False}),
        ("metadata", {"a": "b"}, {"metadata": {"a": "b"}}),
        ("parallel_tool_calls", False, {"extra": {"parallel_tool_calls": False}}),
        ("user", "ann", {"extra": {"user": "ann"}}),
        ("reasoning", {"effort": "low", "summary": None}, {"extra": {"reasoning_effort": "low"}}),
        ("reasoning", {"effort": None}, {"extra": {}}),
        ("text", {"verbosity": "low"}, {"extra": {"verbosity": "low"}, "response_format": None}),
        ("text", {"format": {"type": "text"}}, {"response_format": None}),
        ("text", {"format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
        (
            "text",
            {"format": {"type": "json_schema", **SCHEMA}},
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
        ),
        ("tool_choice", "required", {"tool_choice": "required"}),
        ("tool_choice", {"type": "function", "name": "f"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        (
            "tools",
            [{"type": "function", "name": "f", "parameters": {}, "strict": False, "x_new": 1}],
            {"tools": ({"type": "function", "function": {"name": "f", "parameters": {}, "strict": False, "x_new": 1}},)},
        ),
        ("store", False, {"extra": {}}),
        ("background", False, {"extra": {}}),
        ("stream_options", {"include_obfuscation": False}, {"extra": {}}),
    ],
)
def test_a_field_is_honoured_or_carried(field, value, expected):
    found = read(RESPONSES, {**HI, field: value})
    assert {name: getattr(found.request, name) for name in expected} == expected
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("input", [], "input"),
        ("input", 1, "input"),
        ("input", ["a"], "input[0]"),
        ("input", [{"type": "reasoning", "summary": "x"}], "input[0].summary"),
        ("input", [{"type": "item_reference", "id": "x"}], "input[0]"),
        ("input", [{"role": [], "content": "a"}], "input[0]"),
        ("input", [{"role": "user", "content": 1}], "input[0].content"),
        ("input", [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}], "input[0].content[0]"),
        ("input", [{"role": "user", "content": [{"type": [], "text": "a"}]}], "input[0].content[0]"),
        ("input", [{"type": "function_call", "call_id": "c", "name": "f"}], "input[0]"),
        ("previous_response_id", "resp_1", "previous_response_id"),
        ("conversation", {"id": "c"}, "conversation"),
        ("background", True, "background"),
        ("prompt", {"id": "p"}, "prompt"),
        ("max_tool_calls", 3, "max_tool_calls"),
        ("reasoning", {"summary": 1}, "reasoning.summary"),
        ("text", {"surprise": 1}, "text.surprise"),
        ("text", {"format": {"type": "xml"}}, "text.format.type"),
        ("text", "plain", "text"),
        ("stream_options", {"include_usage": True}, "stream_options.include_usage"),
        ("tools", [{"type": "custom"}], "tools[0]"),
        ("tools", [{"type": "namespace", "name": "x", "tools": [1]}], "tools[0].tools[0]"),
        ("tools", [{"type": "function"}], "tools[0]"),
        ("tool_choice", {"type": "allowed_tools"}, "tool_choice"),
        ("instructions", ["x"], "instructions"),
        ("include", "x", "include"),
        ("messages", [{"role": "user", "content": "a"}], "messages"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(field, value, param):
    failure = refused(RESPONSES, {**HI, field: value})
    assert (failure.status, failure.param) == (400, param)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("truncation", "auto"),
        ("safety_identifier", "u"),
        ("include", ["reasoning.encrypted_content"]),
        ("reasoning", {"context": "all_turns"}),
    ],
)
def test_what_is_left_out_is_warned_of(field, value):
    found = read(RESPONSES, {**HI, field: value})
    (warning,) = found.warnings
    assert warning.startswith(field)
    assert found.request.extra == {}


def test_a_conversation_is_said_in_the_words_of_a_chat():
    body = {
        "instructions": "be brief",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "add"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "and?"},
                    {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
                ],
            },
        ],
    }
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    other = {"type": "function", "function": {"name": "g", "arguments": "{}"}}
    assert list(read(RESPONSES, body).request.messages) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": "ok", "tool_calls": [{"id": "c1", **call}, {"id": "c2", **other}]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "and?"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
            ],
        },
    ]


def test_what_tools_return_besides_text_follows_the_results_of_all_calls():
    """Messages of tools hold text only, and nothing may stand between them."""
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    calls = [{"type": "function_call", "call_id": name, "name": "view", "arguments": "{}"} for name in ("c1", "c2")]
    seen = {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "seen"}, picture]}
    bare = {"type": "custom_tool_call_output", "call_id": "c2", "output": [picture]}
    for after in ([], [{"role": "user", "content": "and?"}]):
        found = read(RESPONSES, {"input": [*calls, seen, bare, *after]}).request.messages
        asked, first, second, shown, *rest = found
        assert [call["id"] for call in asked["tool_calls"]] == ["c1", "c2"]
        assert (first["role"], second["role"], shown["role"]) == ("tool", "tool", "user")
        assert first["content"].startswith("seen")
        assert "c2" in second["content"]
        kinds = [part["type"] for part in shown["content"]]
        assert kinds == ["text", "image_url", "text", "image_url"]
        assert rest == after


def test_tools_that_come_within_the_conversation_are_offered_and_called_like_others():
    """Codex sends them so to newer models, in namespaces; of two with one name, the later one is meant."""
    older = {"type": "function", "name": "f", "description": "older"}
    space = {"type": "namespace", "name": "space", "tools": [{"type": "custom", "name": "exec"}, {"type": "web_search"}]}
    more = {
        "type": "additional_tools",
        "id": "at_1",
        "role": "developer",
        "tools": [space, {**older, "description": "newer"}],
    }
    found = read(RESPONSES, {"input": [more, {"role": "user", "content": "go"}], "tools": [older]})
    assert found.request.messages == ({"role": "user", "content": "go"},)
    offered = [tool["function"] for tool in found.request.tools]
    assert [(one["name"], one.get("description")) for one in offered] == [("f", "newer"), ("space__exec", None)]
    (warning,) = found.warnings
    assert "web_search" in warning
    call = {"id": "c", "type": "function", "function": {"name": "space__exec", "arguments": '{"input": "1 + 1"}'}}
    (item,) = json.loads(RESPONSES.whole(found, answer(Sample(text="", tool_calls=(call,)))))["output"]
    assert (item["type"], item["namespace"], item["name"], item["input"]) == ("custom_tool_call", "space", "exec", "1 + 1")


def test_an_answer_has_an_item_for_the_text_and_for_each_call():
    found = json.loads(RESPONSES.whole(asked(max_tokens=5), answer(Sample("yes", "tool_calls", (CALL,)))))
    message, call = found["output"]
    assert (found["object"], found["status"], found["id"]) == ("response", "completed", "resp_req-1")
    assert message["content"] == [{"type": "output_text", "text": "yes", "annotations": [], "logprobs": []}]
    assert (call["type"], call["call_id"], call["name"], call["arguments"]) == ("function_call", "c1", "add", '{"a":1}')
    assert (found["usage"]["input_tokens"], found["usage"]["output_tokens"], found["usage"]["total_tokens"]) == (7, 3, 10)


def test_an_answer_that_was_cut_is_incomplete():
    found = json.loads(RESPONSES.whole(asked(), answer(Sample("yes", "length"))))
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_what_was_asked_is_told_in_the_answer():
    tool = {"type": "function", "function": {"name": "f"}}
    question = asked(temperature=0.2, tools=(tool,), metadata={"a": "b"}, extra={"parallel_tool_calls": False})
    found = json.loads(RESPONSES.whole(question, answer("a")))
    assert (found["temperature"], found["metadata"], found["parallel_tool_calls"]) == (0.2, {"a": "b"}, False)
    assert found["tools"][0]["name"] == "f"


@pytest.mark.parametrize("form", [{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", **SCHEMA}])
def test_the_form_that_was_asked_for_stands_in_the_answer_and_at_the_end_of_the_stream(form):
    """By it LangChain decides whether it reads a stream's text as the form."""
    question = read(RESPONSES, {**HI, "text": {"format": form, "verbosity": "low"}, "reasoning": {"effort": "high"}})
    writer = RESPONSES.events(question)
    streamed = events(writer.piece(Chunk("{}")) + writer.end(answer("{}")))[-1]["response"]
    for found in (json.loads(RESPONSES.whole(question, answer("{}"))), streamed):
        assert found["text"] == {"format": form, "verbosity": "low"}
        assert found["reasoning"] == {"effort": "high", "summary": None}


def test_log_probabilities_that_were_asked_for_are_in_the_answer_and_in_the_stream():
    token = TokenLogprob("a", -0.5, (("a", -0.5),))
    question = asked(logprobs=True, stream=True)
    (item,) = json.loads(RESPONSES.whole(question, answer(Sample("a", "stop", logprobs=(token,)))))["output"]
    written = [
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": item["content"][0]["logprobs"][0]["top_logprobs"]}
    ]
    assert item["content"][0]["logprobs"] == written
    writer = RESPONSES.events(question)
    found = {one["type"]: one for one in events(writer.piece(Chunk(text="a", logprobs=(token,))) + writer.end(answer("a")))}
    assert found["response.output_text.delta"]["logprobs"] == written
    assert found["response.output_text.done"]["logprobs"] == written
    assert found["response.completed"]["response"]["output"][0]["content"][0]["logprobs"] == written
    unasked = json.loads(RESPONSES.whole(asked(), answer(Sample("a", "stop", logprobs=(token,)))))
    assert unasked["output"][0]["content"][0]["logprobs"] == []


def test_a_stream_tells_of_every_item_from_its_beginning_to_its_end():
    writer = RESPONSES.events(asked(stream=True))
    pieces = [
        Chunk(text="he", model="m"),
        Chunk(text="llo"),
        Chunk(tool_calls=({"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a"'}},)),
        Chunk(tool_calls=({"index": 0, "function": {"arguments": ":1}"}},)),
        Chunk(finish_reason="tool_calls"),
    ]
    found = events(b"".join(map(writer.piece, pieces)) + writer.end(answer("hello")))
    assert [one["type"].removeprefix("response.") for one in found] == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    text, call = found[-1]["response"]["output"]
    assert text["content"][0]["text"] == "hello"
    assert (call["call_id"], call["name"], call["arguments"], call["status"]) == ("c1", "f", '{"a":1}', "completed")


def test_a_stream_that_was_cut_ends_incomplete():
    writer = RESPONSES.events(asked(stream=True))
    found = events(writer.piece(Chunk(text="a", finish_reason="length")) + writer.end(answer("a")))
    assert found[-1]["type"] == "response.incomplete"


def test_a_stream_without_a_piece_has_one_empty_text():
    found = events(RESPONSES.events(asked(stream=True)).end(answer("")))
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_an_error_in_a_stream_ends_it_as_failed():
    written = RESPONSES.events(asked(stream=True)).failed(HttpFailure(502, "broke", code="stream_interrupted"))
    *_, error, failed = events(written)
    assert (error["type"], error["code"]) == ("error", "stream_interrupted")
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"] == {"code": "stream_interrupted", "message": "broke"}
