r"""Where the final answer stands in a text. Pure, in time linear in the text, whatever it holds; nothing is raised.

Each way of finding it is a function from the text to the answer as written, or None. `finder` makes one of them out of the
names in `AnswerForm.extract`.
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
    """The first of these ways that finds an answer.

    Raises `ConfigError` for an unknown name, and for a function that cannot be imported.
    """
    ways = [_way(name) for name in names]
    if not ways:
        raise ConfigError("no way to find the final answer is named", hint=f"known: {_KNOWN}")

    def find(text: str) -> str | None:
        for way in ways:
            answer = way(text)
            if answer is not None and (answer := answer.strip()):
                return answer
        return None

    return find


def hashes(text: str) -> str | None:
    r"""What follows the last ``####`` on its line.

    >>> hashes("16 - 7 = 9.\n#### 9\n")
    '9'
    """
    _, mark, behind = text.rpartition(_HASHES)
    return behind.lstrip(" \t").partition("\n")[0].strip() or None if mark else None


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` that is closed, whatever braces are inside; or the word behind ``\boxed``.

    >>> boxed(r"so $x = \boxed{\frac{1}{2}}$."), boxed(r"\boxed 7"), boxed(r"\boxed{7")
    ('\\frac{1}{2}', '7', None)
    """
    last = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if last < 0:
        return None
    return _last_box(text, last) or _last_box(text, 0)


def _last_box(text: str, place: int) -> str | None:
    """The content of the box that begins last, of those that begin at ``place`` or later and are closed."""
    found, found_at = None, -1
    opened: list[int] = []  # where the content of each open brace begins; negative where it is no box
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
    r"""What follows the last "answer is", "answer:" up to the sentence's end; or ``A: ...`` as the last line.

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
    """What the last ``<answer>...</answer>`` holds.

    >>> tagged("<answer>Paris</answer>"), tagged("<answer>Paris")
    ('Paris', None)
    """
    _, mark, inside = text.rpartition("</answer>")[0].rpartition("<answer>")
    return inside.strip() or None if mark else None


def auto(text: str) -> str | None:
    r"""``<answer>``, else ``####``, else ``\boxed{}``, else a phrase.

    A ``####`` line is taken for a heading where a box follows it, or where it has no digit and a phrase follows it.

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
    """The last line that is not blank."""
    return text.rstrip().rpartition("\n")[2].strip() or None


def whole(text: str) -> str | None:
    """All of the text."""
    return text.strip() or None


def json_field(name: str, text: str) -> str | None:
    """A field of a JSON object: of the whole text, or of the last object in it that has the field.

    A number comes back as it is written, and a list or an object as JSON.

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
    """Where balanced braces stand that no others enclose; quoted braces do not count within them."""
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
    raise ConfigError(f"there is no way {name!r} to find the final answer", hint=f"known: {_KNOWN}")


def function_at(place: str) -> Callable[..., Any]:
    """The function at ``MODULE:FUNCTION``. Raises `ConfigError` where there is none."""
    module, _, name = place.partition(":")
    try:
        function = getattr(import_module(module), name)
    except Exception as error:
        hint = "write python:MODULE:FUNCTION, with a module that Python can import from here"
        raise ConfigError(f"the function {place!r} cannot be imported: {error!r}", hint=hint) from error
    if not callable(function):
        raise ConfigError(f"{place!r} is not a function")
    return function  # type: ignore[no-any-return]  # checked just now


def _by_function(function: Callable[[str], Any], name: str, text: str) -> str | None:
    """What the user's function finds; where it raises, nothing was found, and the log says why."""
    try:
        answer = function(text)
        return None if answer is None else str(answer)
    except Exception:
        logging.getLogger(__name__).warning("%s failed; the answer counts as unreadable", name, exc_info=True)
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
