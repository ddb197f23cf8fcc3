"""Anthropic's messages: what they say in OpenAI's words, and the answers in theirs."""

from __future__ import annotations

import json

import pytest

from tests.unit.server.examples import answer, asked, events, read, refused
from workflow_composer.server.api.messages import MessagesDialect
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import Chunk, Sample, Usage

MESSAGES = MessagesDialect()
HI = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
CACHES = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
CACHED = {"type": "ephemeral"}


def saying(*blocks, role="user"):
    return {"max_tokens": 9, "messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", 1, {"temperature": 1}),
        ("top_p", 0.2, {"top_p": 0.2}),
        ("stop_sequences", ["a"], {"stop": ("a",)}),
        ("top_k", 5, {"extra": {"top_k": 5}}),
        ("model", "large", {"model": "large"}),
        ("thinking", {"type": "disabled"}, {"extra": {}}),
        ("tool_choice", {"type": "auto"}, {"tool_choice": "auto", "extra": {}}),
        ("tool_choice", {"type": "none"}, {"tool_choice": "none"}),
        (
            "tool_choice",
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "extra": {"parallel_tool_calls": False}},
        ),
        ("tool_choice", {"type": "tool", "name": "f"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        (
            "tools",
            [{"name": "f", "description": "d", "strict": True, "input_schema": {"type": "object", "properties": {}}}],
            {
                "tools": (
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "parameters": {"type": "object", "properties": {}},
                            "description": "d",
                            "strict": True,
                        },
                    },
                )
            },
        ),
    ],
)
def test_a_field_is_honoured_or_carried(field, value, expected):
    found = read(MESSAGES, {**HI, field: value})
    assert {name: getattr(found.request, name) for name in expected} == expected
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HI["messages"]}, "max_tokens"),
        ({**HI, "max_tokens": 0}, "max_tokens"),
        ({**HI, "messages": []}, "messages"),
        ({**HI, "messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({**HI, "messages": [{"role": "user", "content": "x", "surprise": 1}]}, "messages[0].surprise"),
        ({**HI, "messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        (saying(), "messages[0].content"),  # a message of nothing would be lost
        ({**HI, "messages": [{**HI["messages"][0], "output_config": {"format": {}}}]}, "messages[0].output_config"),
        (saying({"type": "text"}), "messages[0].content[0]"),
        (saying({"type": "thinking"}, role="assistant"), "messages[0].content[0]"),
        (saying({"type": "hologram"}), "messages[0].content[0]"),
        (saying({"type": "document", "source": {}}), "messages[0].content[0].source"),
        (saying({"type": "text", "text": "a", "surprise": 1}), "messages[0].content[0].surprise"),
        (saying({"type": "image", "source": {"type": "file", "file_id": "f"}}), "messages[0].content[0].source"),
        (
            saying({"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image", "source": {}}]}),
            "messages[0].content[0].content[0].source",
        ),
        ({**HI, "system": 1}, "system"),
        ({**HI, "system": [{"type": "text"}]}, "system"),
        ({**HI, "thinking": {"type": "sometimes"}}, "thinking.type"),
        ({**HI, "thinking": {"type": "enabled", "budget": 1}}, "thinking.budget"),
        ({**HI, "output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({**HI, "thinking": True}, "thinking"),
        ({**HI, "mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({**HI, "container": "c"}, "container"),
        ({**HI, "tools": [{"description": "no name"}]}, "tools[0]"),
        ({**HI, "tools": [{"name": "f", "surprise": 1}]}, "tools[0].surprise"),
        ({**HI, "tool_choice": {"type": []}}, "tool_choice.type"),
        ({**HI, "tool_choice": {"type": "auto", "surprise": 1}}, "tool_choice.surprise"),
        ({**HI, "stop_sequences": [1]}, "stop_sequences"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(body, param):
    failure = refused(MESSAGES, body)
    assert (failure.status, failure.param) == (400, param)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({**HI, "service_tier": "auto"}, "service_tier"),
        ({**HI, "metadata": {"user_id": "u"}}, "metadata.user_id"),
        ({**HI, "cache_control": CACHED}, "cache_control"),
        ({**HI, "system": [{"type": "text", "text": "a", "cache_control": CACHED}]}, "cache_control"),
        ({**HI, "tools": [{"name": "f", "cache_control": CACHED}]}, "cache_control"),
        ({**HI, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools of type web_search_20250305"),
        ({**HI, "tools": [{"name": "f", "defer_loading": True}]}, "tools: defer_loading"),
        ({**HI, "thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
        ({**HI, "output_config": {"effort": "low"}}, "output_config.effort"),
        ({**HI, "messages": [{**HI["messages"][0], "output_config": {"effort": "low"}}]}, "output_config.effort"),
        ({**HI, "context_management": {"edits": []}}, "context_management"),
        ({**HI, "client_metadata": {"session": "x"}}, "client_metadata"),
        (saying({"type": "text", "text": "a"}, {"type": "server_tool_use", "id": "s"}), "blocks of type server_tool_use"),
        (saying({"type": "text", "text": "a", "cache_control": CACHED}), "cache_control"),
        (saying({"type": "tool_result", "tool_use_id": "c", "content": "boom", "is_error": True}), "tool_result.is_error"),
    ],
)
def test_what_is_left_out_is_warned_of(body, word):
    (warning,) = read(MESSAGES, body).warnings
    assert warning.startswith(word)


@pytest.mark.parametrize(
    "text", ["x-anthropic-billing-header: cc_version=2; cch=0a1b2;", "x-anthropic-billing-header: c\n\nBe brief."]
)
def test_what_claude_code_tells_about_itself_in_front_of_its_prompt_is_not_passed_on(text):
    """Its hash changes with every request, so a server's cache would know no prompt's beginning again."""
    blocks = [{"type": "text", "text": text}, {"type": "text", "text": "Be right. x-anthropic-billing-header: kept"}]
    for system in (blocks, "\n\n".join(block["text"] for block in blocks)):
        found = read(MESSAGES, {**HI, "system": system})
        first, *_ = found.request.messages
        brief = ["Be brief."] if "brief" in text else []
        assert first == {"role": "system", "content": "\n\n".join([*brief, blocks[1]["text"]])}
        (warning,) = found.warnings
        assert warning.startswith("x-anthropic-billing-header")
    assert read(MESSAGES, {**HI, "system": "x-anthropic-billing-header: c"}).request.messages == tuple(HI["messages"])


def test_a_warning_is_given_once():
    blocks = [{"type": "text", "text": "a", "cache_control": CACHED}] * 3
    assert len(read(MESSAGES, saying(*blocks)).warnings) == 1


def test_a_conversation_with_tools_and_images_is_said_in_openais_words():
    body = {
        "max_tokens": 9,
        "system": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "add"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "ok"},
                    {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "and this?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
                    {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "3"}]},
                ],
            },
        ],
    }
    assert list(read(MESSAGES, body).request.messages) == [
        {"role": "system", "content": "be\n\nbrief"},
        {"role": "user", "content": "add"},
        {
            "role": "assistant",
            "content": "ok",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "and this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            ],
        },
    ]


def test_an_answer_has_anthropics_shape():
    found = json.loads(MESSAGES.whole(asked(), answer("yes")))
    assert found == {
        "id": "msg_req-1",
        "type": "message",
        "role": "assistant",
        "model": "small-7b",
        "stop_sequence": None,
        "usage": {**CACHES, "input_tokens": 7, "output_tokens": 3},
        "content": [{"type": "text", "text": "yes"}],
        "stop_reason": "end_turn",
    }


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("length", "max_tokens"), ("content_filter", "refusal"), ("stop", "end_turn"), (None, "end_turn")],
)
def test_why_the_model_stopped_is_told_in_anthropics_words(reason, expected):
    assert json.loads(MESSAGES.whole(asked(), answer(Sample("a", reason))))["stop_reason"] == expected


@pytest.mark.parametrize("broken", ["{", "[" * 100_000], ids=["half", "deep"])
def test_arguments_that_are_no_json_are_shown_as_they_are(broken):
    call = {**CALL, "function": {"name": "add", "arguments": broken}}
    found = json.loads(MESSAGES.whole(asked(), answer(Sample("", "tool_calls", (CALL, call)))))
    assert [block["input"] for block in found["content"]] == [{"a": 1}, {"arguments": broken}]
    assert found["stop_reason"] == "tool_use"


def test_a_stream_has_a_block_for_the_text_and_for_each_tool_call():
    writer = MESSAGES.events(asked(stream=True))
    pieces = [
        Chunk(text="he", model="m"),
        Chunk(text="llo"),
        Chunk(tool_calls=({"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}},)),
        Chunk(tool_calls=({"index": 0, "function": {"arguments": '{"a"'}},)),
        Chunk(tool_calls=({"index": 0, "function": {"arguments": ":1}"}},)),
        Chunk(tool_calls=({"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}},)),
        Chunk(finish_reason="tool_calls", usage=Usage(1, 1)),
    ]
    found = events(b"".join(map(writer.piece, pieces)) + writer.end(answer("hello")))
    assert [(one["type"], one.get("index")) for one in found] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert found[5]["content_block"] == {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
    assert "".join(one["delta"]["partial_json"] for one in found if one.get("index") == 1 and "delta" in one) == '{"a":1}'
    assert found[-2]["delta"]["stop_reason"] == "tool_use"
    assert found[-2]["usage"] == {**CACHES, "input_tokens": 7, "output_tokens": 3}


def test_a_stream_without_a_piece_has_one_empty_block():
    found = events(MESSAGES.events(asked(stream=True)).end(answer("")))
    assert [one["type"] for one in found] == [
        *("message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop")
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((400, "invalid_request_error"), (401, "authentication_error"), (429, "rate_limit_error")),
        *((503, "overloaded_error"), (500, "api_error"), (502, "api_error")),
    ],
)
def test_errors_have_anthropics_types(status, kind):
    failure = HttpFailure(status, "no")
    expected = {"type": "error", "error": {"type": kind, "message": "no"}}
    assert json.loads(MESSAGES.failure(failure)) == expected
    written = MESSAGES.events(asked()).failed(failure)
    assert written.startswith(b"event: error\n")
    assert events(written) == [expected]
