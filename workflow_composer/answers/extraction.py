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
from typing import Any, NamedTuple

from workflow_composer.answers.notation import JOINED_UNITS, notation
from workflow_composer.errors import ConfigError

# ---------------------------------------------------------------------------------------------------------------- unmarked
#
# The final answer of a text without a mark: the last number, or all of a short text. Pure, in linear time.
#
# Models without instructions for the format mostly end like this: "..., so she makes 9 * $2 = $18 every day." With a label,
# its kind decides: a number is searched for a number, and all of a short text is taken for words. Without a label, as in
# votes, the text decides: taking equal answers for different ones does less harm than the reverse, so a short text is
# reduced to its number only if it has exactly one number and is neither a name nor a formula.


SHORT = 6
"""Words. A longer text is a sentence rather than an answer."""

_LETTERS_OF_A_WORD = 20
_EDGES = "*_`\"'()[]{},;:!?. "
_VALUE = r"(?:\d{1,3}(?:(?:,|\{,\})\d{3})++(?!\d)|\d++)(?:\.\d++)?|\.\d++"
_NUMBER = re.compile(
    # Skips the numbers of list items and the parts of a date, a version, a time or a name.
    r"^[-*#>\t ]*+\d{1,3}[.)][ \t]+(?=\S)"
    r"|(?<![a-z0-9_^\\])(?<!\d[.,/:|-])(?<![a-z)]-)(?<![\^_}]\{)"
    rf"(?P<number>[-\u2212\u2013]?(?:\\?[$\u20ac\u00a3\u00a5\u20b9])?[-\u2212\u2013]?"
    rf"(?:\\[dtc]?frac\{{\d++\}}\{{\d++\}}|(?:\d++ )?\d++/\d++|{_VALUE})"
    r"(?:[ ]?\\?%|[ ](?:thousand|million|billion|trillion)\b)?)"
    rf"(?!(?!(?:{JOINED_UNITS})\b)[a-z0-9_])(?![.,/:|-]\d|\^\{{?\d)",
    re.IGNORECASE | re.MULTILINE | re.ASCII,
)
_NAME = re.compile(r"(?:[A-Z][\w-]*+ ){1,3}\d++")
_PASSES = re.compile(
    r"(?:(?:I|we)(?:['\u2019][a-z]+)? |(?:sorry|can(?:not|['\u2019]t)|un(?:able|sure|clear|known)|no (?:idea|answer)"
    r"|not (?:sure|known|enough))\b)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{3}")


def numbers(text: str) -> list[str]:
    """Return the standalone numbers, as written.

    >>> numbers("9 * $2 = $18 on 04/02/2021"), numbers("It is -1,450.50."), numbers("V600E at 10:30 in v1.10.2")
    (['9', '$2', '$18'], ['-1,450.50'], [])
    """
    return [found["number"] for found in _NUMBER.finditer(text) if found["number"]]


def unmarked(text: str, label: str | None = None) -> str | None:
    """Return the answer of a text without a mark; ``label`` is the bare correct answer, if known.

    >>> unmarked("She makes 9 * $2 = $18 every day.", "18"), unmarked("Paris.", "Paris"), unmarked("It is 0/1.", "0/1")
    ('$18', 'Paris.', '0/1')
    >>> unmarked("There are 18 apples."), unmarked("Boeing 747"), unmarked("I do not know.")
    ('18', 'Boeing 747', None)
    """
    if label is None:
        return _by_itself(text)
    wanted = notation(label)
    if wanted.number is not None and not wanted.literal:
        return _number(text)
    whole = _short(text, max(SHORT, len(label.split())))
    if wanted.literal and len(label.split()) == 1 and (token := _last_literal(text)):
        return token
    return whole


def to_the_point(answer: str, label: str) -> str:
    """Reduce a marked answer to its number if the label is a number and the answer a sentence with exactly one.

    >>> to_the_point("Each child got 5 books", "5"), to_the_point("18 or 20", "18"), to_the_point("Boeing 747", "Boeing 747")
    ('5', '18 or 20', 'Boeing 747')
    """
    wanted, found = notation(label), notation(answer)
    if wanted.number is None or wanted.literal or found.number is not None or found.literal:
        return answer
    named = numbers(answer) if _WORD.search(answer) else []
    return named[0] if len(named) == 1 else answer


def _by_itself(text: str) -> str | None:
    whole = _short(text, SHORT)
    if whole is None:
        return next(reversed(numbers(text)), None)
    found = numbers(whole)
    if not found and _PASSES.match(whole):
        return None  # "I do not know." must not win a vote
    if len(found) != 1:
        return whole
    return found[0] if notation(found[0]).literal or not _is_bare(whole) else whole


def _number(text: str) -> str | None:
    """Return the last number, or all of a short text with several."""
    whole, found = _short(text, SHORT), numbers(text)
    if whole is not None and len(found) > 1 and "=" not in whole:
        return whole
    return found[-1] if found else None


def _short(text: str, most: int) -> str | None:
    text = text.strip()
    if not text or "\n" in text or len(text) > most * _LETTERS_OF_A_WORD or len(text.split()) > most:
        return None
    return text


def _is_bare(text: str) -> bool:
    """Whether a short text is an answer by itself: a number with its unit, a name, a date, a formula."""
    found = notation(text)
    if found.number is not None or found.literal or _NAME.fullmatch(text.rstrip(".")):
        return True
    return found.is_mathematical and not _WORD.search(text)


def _last_literal(text: str) -> str | None:
    """Return the last word of a text that is a literal."""
    tokens = (token.strip(_EDGES) for token in reversed(text.split()))
    return next((token for token in tokens if notation(token).literal), None)


class Extracted(NamedTuple):
    """A final answer as written, and the method that read it (``boxed``, ``phrase``, ``last_number``, ...)."""

    answer: str
    how: str


Finder = Callable[[str], Extracted | None]
_Way = Callable[[str], str | None]

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
    ways = [(name, _way(name)) for name in names]
    if not ways:
        raise ConfigError("the list of extraction methods is empty", hint=f"available: {_KNOWN}")

    def find(text: str) -> Extracted | None:
        for name, way in ways:
            answer = way(text)
            if answer is not None and (answer := answer.strip()):
                return Extracted(answer, name)
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


def _way(name: str) -> _Way:
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


_WAYS: dict[str, _Way] = {
    "auto": auto,
    "hashes": hashes,
    "boxed": boxed,
    "phrase": phrase,
    "line": line,
    "whole": whole,
}
_KNOWN = ", ".join([*_WAYS, "json:FIELD", "python:MODULE:FUNCTION"])
