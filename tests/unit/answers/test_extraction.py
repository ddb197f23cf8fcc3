"""Where the final answer stands in a text."""

from __future__ import annotations

import json
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.answers.hostile import PIECES, anything
from workflow_composer.answers.extraction import auto, finder, phrase
from workflow_composer.answers.finding.marks import boxed, hashes, json_field
from workflow_composer.errors import ConfigError


def said(found):
    """The answer that was found, if any."""
    return found and found.answer


WAYS = ["auto", "hashes", "boxed", "phrase", "json:answer", "line", "whole"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{18}", "18"),
        (r"\boxed{1} and then \boxed{2}.", "2"),
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{\left\{ x : x > \frac{1}{2} \right\}}", r"\left\{ x : x > \frac{1}{2} \right\}"),
        (r"\boxed{\text{so } \boxed{5}", "5"),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"\boxed{a \boxed{b", None),
        (r"\boxed{a} \boxed{\boxed{b", None),
        (r"\boxed{a \boxed{b} \boxed{c", None),
        (r"\fbox{yes}", "yes"),
        (r"\boxed {7}", "7"),
        (r"so $\boxed 7$", "7"),
        (r"\boxed 3.5 metres", "3.5"),
        (r"\boxed{3} \boxed{4", None),
        (r"\boxed{ }", None),
        (r"\boxed{", None),
        ("boxed{3}", None),
        (r"\boxedtext{3}", None),
        ("no box", None),
    ],
)
def test_the_last_closed_box_is_the_answer(text, answer):
    """With whatever braces are inside."""
    assert said(boxed(text)) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 18.", "18"),
        ("The answer is 18", "18"),
        ("The final answer is: $3.50. I hope it is correct.", "$3.50"),
        ("**Answer:** 7", "7"),
        ("Answer: **7**", "7"),
        ("Final Answer:\n\n$x^2$\n", "x^2"),
        ("First the answer is 3. No, the answer was 4.", "4"),
        ("The answers are 3 and 4.", "3 and 4"),
        ("answer = 12", "12"),
        ("so it is\nA: 18", "18"),
        ("A: 18\nno, wait", None),
        ("Banana: 18", None),
        ("That answers it.", None),
        ("The answer", None),
        ("The answer is", None),
        ("25", None),
    ],
)
def test_a_phrase_announces_the_answer(text, answer):
    """The last one counts, up to the end of its sentence."""
    assert said(phrase(text)) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"answer": "18"}', "18"),
        ('{"answer": 18}', "18"),
        ('{"answer": 1.50}', "1.50"),
        ('{"answer": 1e400}', "1e400"),
        ('{"answer": ' + "9" * 5000 + "}", "9" * 5000),
        ('{"answer": true}', "true"),
        ('{"answer": [1, {"b": 2}]}', '["1", {"b": "2"}]'),
        ('{"answer": null}', None),
        ('{"other": 1}', None),
        ('{"answer": {"x": "}"}, "why": "a } b"}', '{"x": "}"}'),
        ('```json\n{"answer": 4}\n```', "4"),
        ('First {"answer": 1}, then {"answer": 2}, and {"other": 3}.', "2"),
        ('{ stray {"answer": 5}', "5"),
        ('stray } {"answer": 6}', "6"),
        ("{'answer': 5}", None),
        ('{"answer": 5', None),
        ('{"answer": "5', None),
        ("[" * 100_000, None),
        ('{"answer":' * 50_000 + "}" * 50_000, None),
    ],
)
def test_a_field_of_the_last_json_object_that_has_it(text, answer):
    """As it is written; nothing where it is null, missing or not JSON."""
    assert said(json_field("answer", text)) == answer


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), st.text())
@settings(deadline=None)
def test_any_json_object_is_found_behind_any_text(fields, prose):
    """Braces and quotes in the prose do not hide it, as long as they are not left open."""
    fields["answer"] = "so {it} is"
    prose = prose.replace("{", "").replace("}", "")
    assert said(json_field("answer", prose + json.dumps(fields))) == "so {it} is"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 18", "18"),
        ("12 + 7 = 19. #### 19", "19"),
        ("A: 3\n#### 4", "4"),
        ("#### 4\nThe answer is good.", "4"),
        (r"#### Step 2" + "\n" + r"so $\boxed{5}$", "5"),
        (r"\boxed{5}" + "\n#### 6", "6"),
        ("#### Conclusion\nThe answer is 5.", "5"),
        ("#### Tuesday", "Tuesday"),
        (r"####" + "\n" + r"\boxed{5}", "5"),
        (r"\boxed{5}" + "\n####", "5"),
        ("The answer is 3, so $\\boxed{4}$.", "4"),
        ("19", None),
    ],
)
def test_auto_takes_the_mark_that_means_it(text, answer):
    """A line of ``####`` is a heading where another mark follows it."""
    assert said(auto(text)) == answer


def test_ways_are_tried_in_order():
    """The first that finds something wins."""
    assert finder(("hashes", "line"))("a\nb\n#### 3\nc") == ("3", "hashes", True)
    assert finder(("hashes", "line"))("a\nb\n") == ("b", "line", False)
    assert finder(("hashes",))("a\nb\n") is None
    assert finder(("whole",))(" a\nb ") == ("a\nb", "whole", False)


def test_a_function_of_ones_own(tmp_path, monkeypatch, caplog):
    """Its answer counts; None, blank or an exception means unreadable, and the log says what was raised."""
    (tmp_path / "my_answers.py").write_text(
        "def find(text):\n    return {'a': ' 1 ', 'b': None, 'c': ' ', 'd': 42}[text]\nvalue = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    find = finder(("python:my_answers:find",))
    assert [found and found.answer for found in map(find, "abcd")] == ["1", None, None, "42"]
    assert not caplog.records
    assert find("e") is None
    assert "KeyError: 'e'" in caplog.text
    for wrong in ("python:my_answers:other", "python:my_answers", "python:my_answers:value", "python:not_there:find"):
        with pytest.raises(ConfigError):
            finder((wrong,))
    del sys.modules["my_answers"]


@pytest.mark.parametrize("names", [(), ("box",), ("json:",), ("json",), ("python:",), ("",)])
def test_an_unknown_way_is_an_error_that_names_the_known_ones(names):
    """Before any text is read."""
    with pytest.raises(ConfigError):
        finder(names)


@pytest.mark.parametrize("way", WAYS)
@given(text=anything)
@settings(deadline=None)
def test_any_text_can_be_read(way, text):
    """An answer is a stripped part of the text (of JSON: what a string in it says), or there is none."""
    found = finder((way,))(text)
    answer = found and found.answer
    assert answer is None or (answer == answer.strip() != "")
    assert answer is None or way == "json:answer" or answer in text


@pytest.mark.parametrize("piece", PIECES)
def test_a_quarter_of_a_megabyte_of_anything_is_read_in_linear_time(piece):
    """Parts of a second where a quadratic reader would take minutes or hours."""
    text = piece * (250_000 // len(piece))
    before = time.process_time()
    for way in WAYS:
        finder((way,))(text)
        finder((way,))('{"' + text)
    assert time.process_time() - before < 5


def test_the_last_mark_of_hashes_counts():
    """As in GSM8K, on its own line only."""
    assert said(hashes("a\n#### 3\nsecond thoughts\n#### 4 \n")) == "4"
    assert hashes("####\n18") is None
