"""Tool calls in pieces, in every way in which servers have been seen to cut them up."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.backends.openai.stream_accumulator import StreamAccumulator, ToolCalls
from workflow_composer.types import Chunk


def piece(identity=None, name=None, arguments=None, index=None, **more):
    """A piece as it stands in a delta."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    found = {"id": identity, "index": index, "function": function or None, **more}
    return {key: value for key, value in found.items() if value is not None}


ONE = [("a", "get", '{"x":1}')]
TWO = [*ONE, ("b", "put", '{"y":2}')]
HALVES = ('{"x"', ":1}")

CUT = {
    "as OpenAI": (
        [[piece("a", "get", "", 0)], [piece(arguments=HALVES[0], index=0)], [piece(arguments=HALVES[1], index=0)]],
        ONE,
    ),
    "two by index": (
        [
            [piece("a", "get", "", 0)],
            [piece(arguments='{"x":1}', index=0)],
            [piece("b", "put", "", 1)],
            [piece(arguments='{"y":2}', index=1)],
        ],
        TWO,
    ),
    "two at once, in turn": (
        [
            [piece("a", "get", "", 0), piece("b", "put", "", 1)],
            [piece(arguments='{"x":1}', index=0), piece(arguments='{"y":2}', index=1)],
        ],
        TWO,
    ),
    "whole calls without an index": ([[piece("a", "get", '{"x":1}')], [piece("b", "put", '{"y":2}')]], TWO),
    "whole calls of one event without an index": ([[piece("a", "get", '{"x":1}'), piece("b", "put", '{"y":2}')]], TWO),
    "every index is 0": ([[piece("a", "get", '{"x":1}', 0)], [piece("b", "put", '{"y":2}', 0)]], TWO),
    "every index is 0, in pieces": (
        [
            [piece("a", "get", "", 0)],
            [piece(arguments='{"x":1}', index=0)],
            [piece("b", "put", "", 0)],
            [piece(arguments='{"y":2}', index=0)],
        ],
        TWO,
    ),
    "the id in every piece": ([[piece("a", "get", HALVES[0], 0)], [piece("a", "", HALVES[1], 0)]], ONE),
    "the id and the name in every piece": ([[piece("a", "get", HALVES[0], 0)], [piece("a", "get", HALVES[1], 0)]], ONE),
    "another id in every piece": ([[piece("a", "get", HALVES[0], 0)], [piece("z", None, HALVES[1], 0)]], ONE),
    "an empty id and name behind the first": ([[piece("a", "get", HALVES[0], 0)], [piece("", "", HALVES[1], 0)]], ONE),
    "a late name": ([[piece("a", index=0)], [piece(name="get", index=0)], [piece(arguments='{"x":1}', index=0)]], ONE),
    "a late id": ([[piece(name="get", index=0)], [piece("a", arguments='{"x":1}', index=0)]], ONE),
    "arguments as an object": ([[piece("a", "get", {"x": 1}, 0)]], [("a", "get", '{"x": 1}')]),
    "by ids alone": (
        [[piece("a", "get", "")], [piece("b", "put", "")], [piece("a", None, '{"x":1}')], [piece("b", None, '{"y":2}')]],
        TWO,
    ),
    "a call without arguments": ([[piece("a", "get", "", 0)], [piece(index=0)]], [("a", "get", "")]),
    "a name alone": ([[piece(name="get", index=0)]], [("call_0", "get", "")]),
    "two at once, by position alone": (
        [
            [piece("a", "get", ""), piece("b", "put", "")],
            [piece(arguments=HALVES[0]), piece(arguments='{"y"')],
            [piece(arguments=HALVES[1]), piece(arguments=":2}")],
        ],
        TWO,
    ),
    "neither id nor index": (
        [[piece(name="get", arguments=HALVES[0])], [piece(arguments=HALVES[1])]],
        [("call_0", "get", '{"x":1}')],
    ),
}


@pytest.mark.parametrize(("events", "calls"), CUT.values(), ids=CUT)
def test_the_calls_are_the_same_however_they_are_cut_up(events, calls):
    """Joined to whole ones, and told piece by piece: each call begins once, with its name, and its arguments follow."""
    joined, told = ToolCalls(), {}
    for event in [*events, None]:
        for delta in joined.hear(event or (), last=event is None):
            assert delta.begins == (delta.number not in told)
            told.setdefault(delta.number, [delta.name, ""])[1] += delta.arguments
    whole = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in joined.whole()]
    assert whole == calls
    assert [tuple(told[number]) for number in sorted(told)] == [(name, arguments) for _, name, arguments in calls]


@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(max_size=30)), min_size=1, max_size=4), st.randoms())
def test_any_calls_cut_anywhere_and_mixed_are_joined(calls, random):
    """With ids and indexes, pieces of different calls may come in any turn."""
    queues = []
    for index, (name, arguments) in enumerate(calls):
        cuts = sorted(random.randrange(len(arguments) + 1) for _ in range(2))
        parts = [arguments[: cuts[0]], arguments[cuts[0] : cuts[1]], arguments[cuts[1] :]]
        queues.append([piece(f"id{index}", name, "", index), *(piece(arguments=part, index=index) for part in parts)])
    heard = StreamAccumulator()
    while waiting := [queue for queue in queues if queue]:
        heard.add(Chunk(tool_calls=(random.choice(waiting).pop(0),)))
    found = heard.sample().tool_calls
    by_id = {call["id"]: (call["function"]["name"], call["function"]["arguments"]) for call in found}
    assert by_id == {f"id{index}": call for index, call in enumerate(calls)}


def test_an_answer_keeps_text_and_reasoning_apart():
    """What the model thought is no part of its answer."""
    heard = StreamAccumulator()
    for chunk in (Chunk(reasoning="Let me "), Chunk(reasoning="see."), Chunk("It is "), Chunk("4", "stop")):
        heard.add(chunk)
    sample = heard.sample()
    assert (sample.text, sample.reasoning, sample.finish_reason) == ("It is 4", "Let me see.", "stop")
    assert json.dumps(sample.text)
