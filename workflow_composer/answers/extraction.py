r"""Extraction of the final answer from a text. Pure, linear in the length of any text, and never raises.

Each extraction method is a function from the text to the answer as written, or None. `finder` combines the methods named
in `AnswerForm.extract`.
"""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from workflow_composer.errors import ConfigError

Finder = Callable[[str], str | None]

_HASHES = "####"
_TOKEN = re.compile(r"\\(?:boxed|fbox)\b\s{0,9}(\{?)|\\[^\w]|[{}]")
_BARE = re.compile(r"([^\s{}$\\]+)")
_PHRASE = re.compile(r"\banswers?\b[*_]{0,3}\s{0,9}(?:(?:is|was|are)\b|[:=])[*_]{0,3}\s{0,9}[:=]?", re.IGNORECASE)
_LAST_LINE = re.compile(r"A:[ \t]*(\S.*)")
_SENTENCE_END = re.compile(r"[.?][*_]{0,3}(?:\s|$)|,? because\b")
_BRACES = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}]', re.DOTALL)
_BRACE = re.compile(r"[{}]")


def finder(names: Sequence[str]) -> Finder:
    """Return a function that tries these extraction methods in order until one finds an answer.

    Raises `ConfigError` for an unknown method and for a function that cannot be imported.
    """
    ways = [_way(name) for name in names]
    if not ways:
        raise ConfigError("the list of extraction methods is empty", hint=f"available: {_KNOWN}")

    def find(text: str) -> str | None:
        for way in ways:
            answer = way(text)
            if answer is not None and (answer := answer.strip()):
                return answer
        return None

    return find


def hashes(text: str) -> str | None:
    r"""Return the text after the last ``####`` on its line.

    >>> hashes("16 - 7 = 9.\n#### 9\n")
    '9'
    """
    _, mark, behind = text.rpartition(_HASHES)
    return behind.lstrip(" \t").partition("\n")[0].strip() or None if mark else None


def boxed(text: str) -> str | None:
    r"""Return the content of the last closed ``\boxed{...}``, which may contain braces; or the word after ``\boxed``.

    >>> boxed(r"so $x = \boxed{\frac{1}{2}}$."), boxed(r"\boxed 7"), boxed(r"\boxed{7")
    ('\\frac{1}{2}', '7', None)
    """
    last = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if last < 0:
        return None
    return _last_box(text, last) or _last_box(text, 0)


def _last_box(text: str, place: int) -> str | None:
    """Return the content of the last closed box that starts at ``place`` or later."""
    found, found_at = None, -1
    opened: list[int] = []  # where the content of each open brace starts; -1 for a brace that is not a box
    for token in _TOKEN.finditer(text, place):
        mark, content, start = token[0], None, -1
        if mark == "{":
            opened.append(-1)
        elif mark == "}":
            start = opened.pop() if opened else -1
            content = text[start : token.start()].strip() if start > found_at else None
        elif token[1]:
            opened.append(token.end())
        elif token[1] is not None and (bare := _BARE.match(text, token.end())):
            content, start = bare[1], bare.start()
        if content:
            found, found_at = content, start
    return found


def phrase(text: str) -> str | None:
    r"""Return what follows the last "answer is" or "answer:", up to the end of the sentence; or a last line ``A: ...``.

    >>> phrase("The answer is 3.5 dollars. I hope it is right."), phrase("**Answer:** 7"), phrase("so\nA: 18")
    ('3.5 dollars', '7', '18')
    """
    last = deque(_PHRASE.finditer(text), maxlen=1)
    if not last:
        marked = _LAST_LINE.fullmatch(line(text) or "")
        return marked[1] if marked else None
    rest = text[last[0].end() :].lstrip(" \t\r\n*_").partition("\n")[0]
    end = _SENTENCE_END.search(rest)
    return (rest[: end.start()] if end else rest).strip(" \t*_:") or None


def tagged(text: str) -> str | None:
    """Return the content of the last ``<answer>...</answer>``.

    >>> tagged("<answer>Paris</answer>"), tagged("<answer>Paris")
    ('Paris', None)
    """
    _, mark, inside = text.rpartition("</answer>")[0].rpartition("<answer>")
    return inside.strip() or None if mark else None


def auto(text: str) -> str | None:
    r"""Return the answer in ``<answer>``, else after ``####``, else in ``\boxed{}``, else in a phrase.

    A ``####`` line is a heading if a box follows it, or if it has no digit and a phrase follows it.

    >>> auto("#### 18"), auto(r"#### Conclusion" + "\n" + r"It is \boxed{5}."), auto("#### Result\nThe answer is 5.")
    ('18', '5', '5')
    """
    if (inside := tagged(text)) is not None:
        return boxed(inside) or inside
    head, mark, behind = text.rpartition(_HASHES)
    if not mark:
        return boxed(text) or phrase(text)
    marked = hashes(text)
    if marked is None or not any(map(str.isdecimal, marked)):
        marked = phrase(behind.partition("\n")[2]) or marked
    return boxed(behind) or marked or boxed(head) or phrase(head)


def line(text: str) -> str | None:
    """Return the last line that is not blank."""
    return text.rstrip().rpartition("\n")[2].strip() or None


def whole(text: str) -> str | None:
    """Return the whole text."""
    return text.strip() or None


def json_field(name: str, text: str) -> str | None:
    """Return a field of a JSON object: the whole text, or the last object in it that has the field.

    Numbers are returned as written, lists and objects as JSON.

    >>> json_field("answer", 'I think: {"answer": 1.50, "sure": true}'), json_field("answer", '{"answer": null}')
    ('1.50', None)
    """
    for start, end in reversed(_objects(text)):
        if text.find(name, start, end) < 0:
            continue
        try:
            value = json.loads(text[start:end], parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError):
            continue
        if name in value:
            return _written(value[name])
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


def _written(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return None


def _way(name: str) -> Finder:
    kind, colon, rest = name.partition(":")
    if name in _WAYS:
        return _WAYS[name]
    if kind == "json" and rest:
        return partial(json_field, rest)
    if kind == "python" and colon:
        return partial(_by_function, function_at(rest), name)
    raise ConfigError(f"unknown extraction method {name!r}", hint=f"available: {_KNOWN}")


def function_at(place: str) -> Callable[..., Any]:
    """Import the function at ``MODULE:FUNCTION``. Raises `ConfigError` if there is none."""
    module, _, name = place.partition(":")
    try:
        function = getattr(import_module(module), name)
    except Exception as error:
        hint = "write python:MODULE:FUNCTION, with a module on Python's import path"
        raise ConfigError(f"cannot import the function {place!r}: {error!r}", hint=hint) from error
    if not callable(function):
        raise ConfigError(f"{place!r} is not a function")
    return function  # type: ignore[no-any-return]  # checked just now


def _by_function(function: Callable[[str], Any], name: str, text: str) -> str | None:
    """Return what the user's function finds; if it raises, log the error and return None."""
    try:
        answer = function(text)
        return None if answer is None else str(answer)
    except Exception:
        logging.getLogger(__name__).warning("%s failed; no answer was extracted", name, exc_info=True)
        return None


_WAYS: dict[str, Finder] = {
    "auto": auto,
    "hashes": hashes,
    "boxed": boxed,
    "phrase": phrase,
    "line": line,
    "whole": whole,
}
_KNOWN = ", ".join([*_WAYS, "json:FIELD", "python:MODULE:FUNCTION"])
