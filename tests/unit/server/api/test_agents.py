"""What coding agents send by default is read, and what models answer is returned as each form of API has it."""

from __future__ import annotations

import json

import pytest

from tests.unit.server.examples import answer, asked, events, read
from workflow_composer.backends.openai.adapting import led, suited
from workflow_composer.server.api.chat import ChatDialect
from workflow_composer.server.api.completions import CompletionsDialect
from workflow_composer.server.api.messages import MessagesDialect
from workflow_composer.server.api.responses import ResponsesDialect
from workflow_composer.types import Chunk, Sample, TokenLogprob, Usage

CHAT, COMPLETIONS, MESSAGES, RESPONSES = ChatDialect(), CompletionsDialect(), MessagesDialect(), ResponsesDialect()
HI = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
THOUGHT = Sample("ans", "stop", reasoning="hm")
HALF = TokenLogprob(
    "\ufffd",
    -0.1,
    (("\ufffd", -0.1), ("\ufffd", -2.0)),
    (("\ufffd", (226, 150)), ("\ufffd", (226, 150)), ("\ufffd", (240, 159))),
)


def whole(dialect, sample, **fields):
    return json.loads(dialect.whole(asked(**fields), answer(sample)))


def streamed(dialect, *chunks, **fields):
    writer = dialect.events(asked(stream=True, **fields))
    written = b"".join(writer.piece(chunk) for chunk in chunks) + writer.end(answer("x"))
    return [one for one in events(written) if one != "[DONE]"]


# ------------------------------------------------------------------------------------------------------- what models say


def test_reasoning_is_in_the_place_of_each_form():
    assert whole(CHAT, THOUGHT)["choices"][0]["message"]["reasoning_content"] == "hm"
    assert [block["type"] for block in whole(MESSAGES, THOUGHT)["content"]] == ["thinking", "text"]
    reasoning, message = whole(RESPONSES, THOUGHT)["output"]
    assert (reasoning["type"], reasoning["content"][0]["text"], message["type"]) == ("reasoning", "hm", "message")


def test_reasoning_comes_in_pieces_before_the_text():
    chunks = (Chunk(reasoning="h"), Chunk(reasoning="m"), Chunk("ans"), Chunk(finish_reason="stop"))
    blocks = [one["content_block"]["type"] for one in streamed(MESSAGES, *chunks) if one["type"] == "content_block_start"]
    assert blocks == ["thinking", "text"]
    said = [one["delta"].get("thinking") for one in streamed(MESSAGES, *chunks) if one["type"] == "content_block_delta"]
    assert said == ["h", "m", None]
    found = streamed(RESPONSES, *chunks)
    kinds = [one["type"] for one in found]
    assert kinds.index("response.reasoning_text.delta") < kinds.index("response.reasoning_text.done")
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")
    assert [item["type"] for item in found[-1]["response"]["output"]] == ["reasoning", "message"]
    deltas = [one["choices"][0]["delta"] for one in streamed(CHAT, *chunks)]
    assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == ["h", "m"]


def test_thinking_that_is_not_to_be_shown_comes_sealed_and_is_read_when_it_comes_back():
    request = read(MESSAGES, {**HI, "thinking": {"type": "adaptive", "display": "omitted"}})
    thinking, text = json.loads(MESSAGES.whole(request, answer(THOUGHT)))["content"]
    assert (thinking["type"], thinking["thinking"], text["type"]) == ("thinking", "", "text")
    assert THOUGHT.reasoning not in thinking["signature"]
    asked_again = {**HI, "messages": [*HI["messages"], {"role": "assistant", "content": [thinking, text]}, *HI["messages"]]}
    assert read(MESSAGES, asked_again).request.messages[1]["reasoning_content"] == THOUGHT.reasoning

    writer = MESSAGES.events(request)
    written = writer.piece(Chunk(reasoning="Both \ud83d")) + writer.piece(Chunk(reasoning="first."))
    found = events(written + writer.piece(Chunk("ok", "stop")) + writer.end(answer("ok")))
    deltas = [one["delta"] for one in found if one["type"] == "content_block_delta"]
    assert [delta["type"] for delta in deltas] == ["signature_delta", "text_delta"]
    block = {"type": "thinking", "thinking": "", "signature": deltas[0]["signature"]}
    again = read(MESSAGES, {**HI, "messages": [*HI["messages"], {"role": "assistant", "content": [block]}, *HI["messages"]]})
    assert again.request.messages[1]["reasoning_content"] == "Both \ud83dfirst."


@pytest.mark.parametrize("signature", ["EqQBCkgIARABGAIi", "wfc-thinking:%%%", "wfc-thinking:/w==", "", None])
def test_a_signature_of_another_service_holds_no_thoughts(signature):
    block = {"type": "thinking", "thinking": "", "signature": signature}
    turn = {"role": "assistant", "content": [block, {"type": "text", "text": "ok"}]}
    found = read(MESSAGES, {**HI, "messages": [*HI["messages"], turn, *HI["messages"]]})
    assert found.request.messages[1] == {"role": "assistant", "content": "ok"}


def test_the_stop_sequence_that_ended_an_answer_is_named():
    sample = Sample("abc", "stop", stop="END")
    found = whole(MESSAGES, sample, stop=("END",))
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "END")
    assert whole(MESSAGES, sample)["stop_reason"] == "end_turn"  # a stop of the server's own
    assert whole(CHAT, sample)["choices"][0]["stop_reason"] == "END"
    assert whole(COMPLETIONS, sample)["choices"][0]["stop_reason"] == "END"
    delta = next(
        one for one in streamed(MESSAGES, Chunk("abc", "stop", stop="END"), stop=("END",)) if one["type"] == "message_delta"
    )
    assert delta["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    assert streamed(CHAT, Chunk("abc", "stop", stop="END"))[-1]["choices"][0]["stop_reason"] == "END"
    assert streamed(COMPLETIONS, Chunk("abc", "stop", stop="END"))[-1]["choices"][0]["stop_reason"] == "END"


@pytest.mark.parametrize(("reason", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_off_is_incomplete_and_says_why(reason, why):
    found = whole(RESPONSES, Sample("a", reason))
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": why})
    last = streamed(RESPONSES, Chunk("a", reason))[-1]
    assert (last["type"], last["response"]["incomplete_details"]) == ("response.incomplete", {"reason": why})


def test_bytes_of_half_characters_are_those_of_the_server():
    tokens = whole(CHAT, Sample("x", "stop", logprobs=(HALF,)), logprobs=True, top_logprobs=2)["choices"][0]["logprobs"][
        "content"
    ]
    assert tokens[0]["bytes"] == [226, 150]
    assert [one["bytes"] for one in tokens[0]["top_logprobs"]] == [[226, 150], [240, 159]]


def test_cached_and_reasoning_tokens_are_told():
    made = answer("x")
    object.__setattr__(made, "usage", Usage(10, 5, 4, 2))
    chat = json.loads(CHAT.whole(asked(), made))["usage"]
    assert (chat["prompt_tokens_details"], chat["completion_tokens_details"]) == (
        {"cached_tokens": 4},
        {"reasoning_tokens": 2},
    )
    message = json.loads(MESSAGES.whole(asked(), made))["usage"]
    assert (message["input_tokens"], message["cache_read_input_tokens"]) == (6, 4)
    response = json.loads(RESPONSES.whole(asked(), made))["usage"]
    assert response["input_tokens_details"] == {"cached_tokens": 4}
    assert response["output_tokens_details"] == {"reasoning_tokens": 2}


# ------------------------------------------------------------------------------------------------------------ Claude Code


def test_results_of_tools_with_images_follow_in_a_users_message():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "a"}, image]}
    tool, user = read(MESSAGES, {**HI, "messages": [{"role": "user", "content": [result]}]}).request.messages
    assert (tool["role"], tool["tool_call_id"]) == ("tool", "t")
    assert tool["content"].startswith("a\n")
    assert user["content"][-1] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}


@pytest.mark.parametrize(
    ("block", "part"),
    [
        ({"source": {"type": "text", "data": "b"}, "title": "t"}, {"type": "text", "text": "t\nb"}),
        ({"source": {"type": "content", "content": [{"type": "text", "text": "b"}]}}, {"type": "text", "text": "b"}),
        (
            {"source": {"type": "base64", "media_type": "application/pdf", "data": "AA"}, "title": "t"},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA", "filename": "t"}},
        ),
    ],
)
def test_a_document_is_a_text_or_a_file(block, part):
    content = [{"type": "document", **block}, {"type": "text", "text": "x"}]
    (found,) = read(MESSAGES, {**HI, "messages": [{"role": "user", "content": content}]}).request.messages
    assert found["content"][0] == part


def test_earlier_thinking_goes_back_to_servers_that_take_it():
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "a"}]
    request = read(MESSAGES, {**HI, "messages": [{"role": "assistant", "content": blocks}, *HI["messages"]]}).request
    assert request.adapts
    assert suited(request.messages, developers=False, thoughts=True)[0]["reasoning_content"] == "hm"
    assert suited(request.messages, developers=False, thoughts=False)[0] == {"role": "assistant", "content": "a"}


def test_tools_of_others_are_left_out_with_the_choice_of_one():
    tools = [{"type": "web_search_20250305", "name": "web_search"}, {"name": "f"}]
    found = read(MESSAGES, {**HI, "tools": tools, "tool_choice": {"type": "tool", "name": "web_search"}})
    assert [tool["function"]["name"] for tool in found.request.tools] == ["f"]
    assert found.request.tool_choice is None
    assert len(found.warnings) == 2


def test_a_form_of_the_answer_is_asked_for_and_a_begun_answer_goes_on():
    schema = {"type": "object", "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    wanted = {"type": "json_schema", "schema": schema}
    assert read(MESSAGES, {**HI, "output_config": {"format": wanted}}).request.response_format == form
    assert read(MESSAGES, {**HI, "output_format": wanted}).request.response_format == form
    begun = read(MESSAGES, {**HI, "messages": [*HI["messages"], {"role": "assistant", "content": "{"}]}).request
    assert begun.extra == {"continue_final_message": True, "add_generation_prompt": False}


# ------------------------------------------------------------------------------------------------------------------ Codex

PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "d",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"},
}
SPACE = {
    "type": "namespace",
    "name": "mcp__files",
    "tools": [{"type": "function", "name": "read", "parameters": {"type": "object"}}],
}


def test_tools_of_any_kind_are_functions_to_the_model_and_themselves_to_the_client():
    body = {"input": "q", "tools": [PATCH, SPACE, {"type": "web_search"}], "tool_choice": "auto"}
    found = read(RESPONSES, body)
    patch, inner = (tool["function"] for tool in found.request.tools)
    assert (patch["name"], patch["parameters"]["required"], inner["name"]) == ("apply_patch", ["input"], "mcp__files__read")
    assert "start: x" in patch["description"]
    assert [warning.split(" are")[0] for warning in found.warnings] == ["tools of type web_search"]
    calls = (
        {"id": "a", "function": {"name": "apply_patch", "arguments": '{"input": "*** Begin"}'}},
        {"id": "b", "function": {"name": "mcp__files__read", "arguments": "{}"}},
    )
    custom, function = json.loads(RESPONSES.whole(found, answer(Sample("", "tool_calls", calls))))["output"]
    assert (custom["type"], custom["name"], custom["input"], custom["call_id"]) == (
        "custom_tool_call",
        "apply_patch",
        "*** Begin",
        "a",
    )
    assert (function["type"], function["name"], function["namespace"]) == ("function_call", "read", "mcp__files")


def test_the_call_of_a_custom_tool_is_streamed_as_such():
    request = read(RESPONSES, {"input": "q", "tools": [PATCH], "stream": True})
    writer = RESPONSES.events(request)
    first = {"id": "a", "index": 0, "function": {"name": "apply_patch", "arguments": '{"input": "*** '}}
    written = writer.piece(Chunk(tool_calls=(first,)))
    written += writer.piece(
        Chunk(tool_calls=({"index": 0, "function": {"arguments": 'Begin"}'}},), finish_reason="tool_calls")
    )
    found = events(written + writer.end(answer("x")))
    (delta,) = (one for one in found if one["type"] == "response.custom_tool_call_input.delta")
    assert delta["delta"] == "*** Begin"
    assert found[-1]["response"]["output"][0]["input"] == "*** Begin"


def test_what_codex_sends_back_is_a_conversation():
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        {"role": "user", "content": "q"},
        {
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
            "encrypted_content": None,
        },
        {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "a", "output": "done"},
        {"type": "web_search_call", "id": "w", "status": "completed"},
    ]
    found = read(
        RESPONSES,
        {
            "instructions": "You are Codex",
            "input": items,
            "reasoning": {"summary": "auto"},
            "client_metadata": {"cwd": "/x"},
        },
    )
    system, user, call, result = led(found.request.messages)
    assert system == {"role": "system", "content": "You are Codex\n\nrules"}
    assert (user["content"], call["reasoning_content"]) == ("q", "hm")
    assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"input": "*** Begin"}
    assert result == {"role": "tool", "tool_call_id": "a", "content": "done"}
    assert "client_metadata" not in found.request.extra


# ------------------------------------------------------------------------------------------------------- lm-eval, LangChain


@pytest.mark.parametrize(("prompt", "answers"), [(["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2], [3]], 3), (["a"], 1)])
def test_prompts_may_be_lists_and_tokens(prompt, answers):
    found = read(COMPLETIONS, {"prompt": prompt, "max_tokens": 0, "n": 1}).request
    assert (found.n, found.max_tokens) == (answers, 0)
    assert found.extra.get("prompt", ["a"]) == prompt
