"""JSON as models write it: comments, names without quotes, curly quotation marks, the last comma."""

from __future__ import annotations

import time

import pytest

from workflow_composer.answers.json_text import json_values


@pytest.mark.parametrize(
    "text",
    [
        '{ // the variant\n "a": "x//y", "n": 1}',
        '{"a": "x//y", // which\n "n": 1, // the last one, isn\'t it\n}',
        '{"a": "x//y", /* both\n "b": 2 */ "n": 1}',
        '{a: "x//y", n: 1}',
        "{a: 'x//y', n: 1}",
        "{'a': 'x//y', 'n': 1,}",
        "{\u201ca\u201d: \u201cx//y\u201d, \u201cn\u201d: 1}",
        '```json\n{"a": "x//y", // why\n "n": 1}\n```',
    ],
)
def test_other_writings_of_json_are_read(text):
    """Without loss: what looks like a comment within a string stays."""
    (found,) = json_values(text)
    assert found.value == {"a": "x//y", "n": 1}
    assert "writing of JSON" in found.mended


@pytest.mark.parametrize("text", ['{"a": 1, "n"}', "{a b: 1}", '{"a": "x" "n": 1}', "{// only\n", '{"a": NaN}'])
def test_what_is_no_json_stays_unread(text):
    """Nothing is guessed."""
    assert json_values(text) == []


@pytest.mark.parametrize("part", ["{/*", '{"a": // ', "{'", "{a:", "{\u201c", '{"'])
def test_broken_json_takes_linear_time(part):
    """In processor time, for 100 kB."""
    text = part * (100_000 // len(part))
    began = time.process_time()
    json_values(text)
    assert time.process_time() - began < 5
