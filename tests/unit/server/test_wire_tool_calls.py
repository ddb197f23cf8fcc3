"""Tool calls in a stream: every form of API tells the same calls, however the model's server has cut them up."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.unit.backends.openai.test_tool_calls import CUT, piece
from tests.unit.server.examples import answer, asked, events
from workflow_composer.server.api.chat import ChatDialect
from workflow_composer.server.api.messages import MessagesDialect
from workflow_composer.server.api.responses import ResponsesDialect
from workflow_composer.types import Chunk


def written(dialect, chunks):
    """The stream's events."""
    writer = dialect.events(asked(stream=True))
    data = b"".join(writer.piece(chunk) for chunk in (*chunks, Chunk(finish_reason="tool_calls")))
    return events(data + writer.end(answer("")))


def chat_calls(found):
    """By their indexes, as OpenAI's clients join them."""
    calls = {}
    for event in found:
        for choice in event["choices"] if event != "[DONE]" else ():
            for call in choice["delta"].get("tool_calls", ()):
                whole = calls.setdefault(call["index"], [call.get("id"), call["function"].get("name"), ""])
                whole[2] += call["function"]["arguments"]
    return [tuple(calls[index]) for index in sorted(calls)]


def message_blocks(found):
    """Blocks in order; a delta belongs to the block that is open, and one is open at a time."""
    blocks, is_open = [], False
    for event in found:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            is_open, block = True, event["content_block"]
            blocks.append([block.get("id"), block.get("name"), block.get("text", "")])
        elif event["type"] == "content_block_delta":
            assert is_open
            assert event["index"] == len(blocks) - 1
            blocks[-1][2] += event["delta"].get("partial_json", event["delta"].get("text", ""))
        elif event["type"] == "content_block_stop":
            is_open = False
    assert not is_open
    return [tuple(block) for block in blocks]


def response_calls(found):
    """Items by their places, as the deltas and as the whole response have them."""
    calls = {}
    for event in found:
        if event["type"] == "response.output_item.added":
            calls[event["output_index"]] = [event["item"]["call_id"], event["item"]["name"], ""]
        elif event["type"] == "response.function_call_arguments.delta":
            calls[event["output_index"]][2] += event["delta"]
    told = [tuple(calls[index]) for index in sorted(calls)]
    output = found[-1]["response"]["output"]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in output] == told
    return told


FORMS = {
    "chat": (ChatDialect(), chat_calls),
    "messages": (MessagesDialect(), message_blocks),
    "responses": (ResponsesDialect(), response_calls),
}


@pytest.mark.parametrize(("dialect", "joined"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("cut", "calls"), CUT.values(), ids=CUT)
def test_the_calls_are_the_same_however_they_are_cut_up(dialect, joined, cut, calls):
    """Ids, names and arguments, whole and in order."""
    assert joined(written(dialect, [Chunk(tool_calls=tuple(event)) for event in cut])) == calls


def test_text_and_calls_that_come_mixed_are_blocks_one_after_the_other():
    """Anthropic's clients know one open block; a call's end comes before what follows it, and nothing is lost."""
    pieces = [
        Chunk("Let me see."),
        Chunk(tool_calls=(piece("a", "get", '{"x"', 0),)),
        Chunk(" Both."),
        Chunk(tool_calls=(piece("b", "put", '{"y"', 1),)),
        Chunk(tool_calls=(piece(arguments=":1}", index=0), piece(arguments=":2}", index=1))),
        Chunk(" Done."),
    ]
    blocks = message_blocks(written(MessagesDialect(), pieces))
    assert [block for block in blocks if block[1]] == [("a", "get", '{"x":1}'), ("b", "put", '{"y":2}')]
    assert "".join(block[2] for block in blocks if not block[1]) == "Let me see. Both. Done."


@pytest.mark.parametrize("order", list(itertools.permutations(range(6)))[::7])
def test_calls_in_any_mixture_keep_their_arguments(order):
    """Three calls of two pieces each, whose pieces come in any turn that keeps each call's own."""
    calls = [(f"id{n}", f"f{n}", json.dumps({"n": n, "text": "x" * n})) for n in range(3)]
    queues = [[piece(i, name, text[:4], n), piece(arguments=text[4:], index=n)] for n, (i, name, text) in enumerate(calls)]
    chunks = [Chunk(tool_calls=(queues[number % 3].pop(0),)) for number in order]
    for dialect, joined in FORMS.values():
        assert sorted(joined(written(dialect, chunks))) == calls
