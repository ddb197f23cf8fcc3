r"""Marks around a final answer: ``<answer>``, ``####``, ``\boxed{}``, JSON. Pure, linear, and never raises."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from workflow_composer.answers.finding.undressing import says_something


class Mark(NamedTuple):
    """A marked answer as written, where its mark starts and ends, and whether it would stay if the text went on."""

    answer: str
    start: int
    end: int
    complete: bool


# -------------------------------------------------------------------------------------------------------------- hashes, tags

_HASHES = "####"
_TAG = re.compile(
    r"<(?P<close>/?)(?P<name>answer|final[_ ]?answer|final|result)>"
    r"|<\|(?P<edge>begin|end)_of_box\|>|<\|(?P<box>/?)answer\|>",
    re.IGNORECASE,
)


def hashes(text: str) -> Mark | None:
    r"""Return the text after the last ``####`` on its line.

    >>> hashes("16 - 7 = 9.\n#### 9\n").answer, hashes("####\n18")
    ('9', None)
    """
    start = text.rfind(_HASHES)
    if start < 0:
        return None
    begin = start + len(_HASHES)
    line, newline, _ = text[begin:].lstrip(" \t").partition("\n")
    answer = line.strip().rstrip("#").rstrip()
    return Mark(answer, start, begin + len(line), bool(newline)) if answer else None


def tagged(text: str) -> Mark | None:
    """Return the content of the last ``<answer>...</answer>`` with an answer in it; one at the end may lack its closing tag.

    >>> tagged("<answer>Paris</answer>").answer, tagged("<answer>Paris").complete
    ('Paris', False)
    """
    if "<" not in text:
        return None
    found: Mark | None = None
    opened: re.Match[str] | None = None
    for tag in _TAG.finditer(text):
        closes = tag["close"] == "/" or tag["edge"] == "end" or tag["box"] == "/"
        if closes and opened is not None:
            answer = text[opened.end() : tag.start()].strip()
            found = Mark(answer, opened.start(), tag.end(), complete=True) if says_something(answer) else found
        opened = None if closes else tag
    if opened is not None and (opened["name"] or "").lower() not in {"final", "result"}:
        answer = text[opened.end() :].strip()
        if says_something(answer) and "\n\n" not in answer:
            return Mark(answer, opened.start(), len(text), complete=False)
    return found


# -------------------------------------------------------------------------------------------------------------------- boxes

_TOKEN = re.compile(r"(?P<box>(?:\\{1,4}b|\x08)oxed\b|\\{1,4}f(?:rame)?box\b)\s{0,9}(?P<brace>\{?)|\\[^\w]|[{}]")
_BARE = re.compile(r"([^\s{}$\\]+)")
_BETWEEN = re.compile(
    r"[\s$]*+(?:\\[)\]])?[\s$.]*+(?:(?:,|;|&|\u3001|\uff0c|\b(?:and|or|und|oder|et|ou|y)\b|\u548c|\u6216|\u53ca"
    r"|\\text\s?\{\s*(?:and|or)\s*\}|\\q?quad|\\[,;: ])[\s$]*+){1,4}+(?:\\[(\[])?[\s$]*+"
    r"(?P<variable>[a-zA-Z](?:_\{?\w\}?)?\s*=\s*)?[\s$]*+"
)
_LONGEST_BETWEEN = 60
_LONG = 1000
_MOST_LOOKS = 12
_MEMBER = re.compile(r"(?P<variable>[a-zA-Z](?:_\{?\w\}?)?)\s*=\s*\$?\s*\Z")


class _Box(NamedTuple):
    content: str
    start: int
    end: int


def boxed(text: str) -> Mark | None:
    r"""Return the content of the last ``\boxed{...}``, which may contain braces, or the word after ``\boxed``.

    Boxes in a row (``\boxed{1}$ and $\boxed{2}``) are one answer. None if the last box never closes.

    >>> boxed(r"so $x = \boxed{\frac{1}{2}}$.").answer, boxed(r"\boxed 7").answer, boxed(r"\boxed{7")
    ('\\frac{1}{2}', '7', None)
    >>> boxed(r"The roots are $\boxed{3}$, $\boxed{5}$ and $\boxed{7}$.").answer
    '3, 5, 7'
    """
    if "oxed" not in text and "box" not in text:
        return None
    boxes = _boxes(text)
    if not boxes:
        return None
    joined = [boxes[-1]]
    for before in reversed(boxes[:-1]):
        if not _in_a_row(text, before, joined[-1]):
            break
        joined.append(before)
    answers = dict.fromkeys(box.content for box in reversed(joined))
    return Mark(", ".join(answers), joined[-1].start, joined[0].end, complete=True)


def _boxes(text: str) -> Sequence[_Box]:
    """Return the closed boxes with an answer, in order of their starts; none if the last box in the text is open."""
    found: list[_Box] = []
    looks = 0  # into long boxes; nested ones that say nothing would each be looked through
    opened: list[tuple[int, int]] = []  # where an open brace's command starts (-1: not a box) and where its content starts
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark == "{":
            opened.append((-1, token.end()))
        elif mark == "}":
            start, begin = opened.pop() if opened else (-1, -1)
            looks += start >= 0 and not found and token.start() - begin > _LONG
            if start >= 0 and looks <= _MOST_LOOKS and (not found or start > found[-1].start):
                _add(found, text[begin : token.start()].strip(), start, token.end())
        elif token["brace"]:
            opened.append((token.start(), token.end()))
        elif token["box"] and (bare := _BARE.match(text, token.end())):
            _add(found, bare[1].rstrip(".,;:"), token.start(), bare.end())
    last_open = max((start for start, _ in opened), default=-1)
    return () if found and last_open > found[-1].start else found


def _add(found: list[_Box], content: str, start: int, end: int) -> None:
    if says_something(content):
        found.append(_Box(content, start, end))


def _in_a_row(text: str, one: _Box, other: _Box) -> bool:
    between = text[one.end : other.start] if 0 <= other.start - one.end <= _LONGEST_BETWEEN else ""
    found = _BETWEEN.fullmatch(between)
    if found is None:
        return False
    if found["variable"]:
        before = _MEMBER.search(text, max(0, one.start - 12), one.start)
        return before is not None and before["variable"] == found["variable"].rstrip("= \t\n")
    return True


# --------------------------------------------------------------------------------------------------------------------- JSON

_BRACES = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}]', re.DOTALL)
_BRACE = re.compile(r"[{}]")
_LONGEST_OBJECT = 4000
_ANSWER_FIELDS = (
    "final_answer",
    "answer",
    "finalAnswer",
    "final answer",
    "Answer",
    "Final Answer",
    "FinalAnswer",
    "result",
    "label",
    "choice",
)


def json_field(name: str, text: str) -> Mark | None:
    """Return a field of a JSON object: the whole text, or the last object in it that has the field.

    Numbers are returned as written, lists and objects as JSON.

    >>> json_field("answer", 'I think: {"answer": 1.50, "sure": true}').answer, json_field("answer", '{"answer": null}')
    ('1.50', None)
    """
    found = _field((name,), text)
    return found if found is not None and found.answer else None


def answer_field(text: str) -> Mark | None:
    r"""Return the answer of a JSON object that ends the text, by the usual names of such a field; an empty one for null.

    >>> answer_field('```json\n{"steps": "3 * 6", "answer": 18}\n```').answer
    '18'
    """
    if not text.rstrip("` \t\n").endswith("}") or '"' not in text:
        return None
    return _field(_ANSWER_FIELDS, text) or _only_field(text.strip("` \t\njson"))


def field_anywhere(text: str) -> Mark | None:
    """Return the answer in the last JSON object of a text that has it under one of the usual names."""
    return _field(_ANSWER_FIELDS, text) if '"' in text and "{" in text else None


def _only_field(text: str) -> Mark | None:
    """Return the value of a JSON object that is the whole text and has one field."""
    if len(text) > _LONGEST_OBJECT or not text.startswith("{"):
        return None
    try:
        value = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        return None
    only = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    return Mark(only, 0, len(text), complete=True) if isinstance(only, str) else None


def _field(names: Sequence[str], text: str) -> Mark | None:
    places = [found.start() for found in re.finditer(f'"(?:{"|".join(map(re.escape, names))})"', text)]
    if not places:
        return None
    for start, end in reversed(_objects(text)):
        if bisect_left(places, start) == bisect_left(places, end):
            continue
        try:
            value = json.loads(text[start:end], parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError):
            continue
        for name in names:
            if name in value:
                written = _written(value[name])
                return Mark(written or "", start, end, complete=True)
    return None


def _objects(text: str) -> list[tuple[int, int]]:
    """Return the spans of outermost balanced braces, ignoring braces in quotes."""
    spans: list[tuple[int, int]] = []
    opened: list[int] = []
    place = 0
    while token := (_BRACES if opened else _BRACE).search(text, place):
        place = token.end()
        if token[0] == "{":
            opened.append(token.start())
        elif token[0] == "}" and opened:
            start = opened.pop()
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, place))
    return spans


def _written(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return None
