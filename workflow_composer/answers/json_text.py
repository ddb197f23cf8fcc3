"""JSON in a model's text: found between fences and talk, and read without loss. Pure; linear in the length of the text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

FENCES, TALK, WRITING = "fences", "talk around", "writing of JSON"

MOST_VALUES = 64
"""Of one text only so many JSON values are tried, the last ones."""
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)(?:\n[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"\A\s*(`{1,3})(?:json)?\s*([^`]+?)\s*\1\s*\Z", re.IGNORECASE)
_STRING = r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)'
"""A string; one that is not closed extends to the end, so that it is read only once."""
_TOKEN = re.compile(rf"{_STRING}|[{{}}\[\]]", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
_COMMA = re.compile(rf"({_STRING})|,(?=\s*[}}\]])", re.DOTALL)
_COMMENT = re.compile(rf"({_STRING}|'(?:[^'\\\n]|\\.)*')|//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_KEY = re.compile(rf"({_STRING})|(?<=[{{,\s])([A-Za-z_]\w*)(?=\s*:)", re.DOTALL)
_STRAIGHT = str.maketrans("\u201c\u201d", '""')
_LONGEST_LITERAL = 200_000


class Whole(int):
    """An integer with its text as written."""

    written: str


class Real(float):
    """A float with its text as written: ``1.10`` is wanted as "1.10" if a text is wanted."""

    written: str


class JsonValue(NamedTuple):
    """A JSON value of a text, and what was ignored or mended to read it."""

    value: Any
    mended: tuple[str, ...]


def blocks(text: str) -> list[str]:
    r"""Return the contents of all fenced blocks; one that is not closed extends to the end.

    >>> blocks("Sure:\n```python\nprint(1)\n```\nDone.")
    ['print(1)']
    """
    return [found[2] for found in _FENCE.finditer(text)]


def json_values(text: str) -> list[JsonValue]:
    r"""Return the outermost JSON values of a text: the whole text, else those in fences, else objects and lists in the talk.

    >>> json_values('{"a": 1}')[0].value, json_values("Here:\n```json\n[1, 2,]\n```")[0]
    ({'a': 1}, JsonValue(value=[1, 2], mended=('fences', 'writing of JSON')))
    """
    whole = _value(text)
    if whole is not None:
        return [whole]
    inline = _INLINE.match(text)
    fenced = blocks(text) or ([inline[2]] if inline else [])
    found = [_with(one, FENCES) for block in fenced if (one := _value(block)) is not None]
    if not found:
        around = (_with(one, FENCES) for block in fenced for one in _loose(block))
        found = [*around] or list(_loose(text))
    return found[-MOST_VALUES:]


def _with(found: JsonValue, what: str) -> JsonValue:
    return found._replace(mended=(what, *found.mended))


def _loose(text: str) -> Iterator[JsonValue]:
    """Yield the outermost objects and lists that can be read."""
    for start, end in _spans(text)[-MOST_VALUES:]:
        found = _value(text[start:end])
        if found is not None:
            yield _with(found, TALK)


def _spans(text: str) -> list[tuple[int, int]]:
    """Return the spans of the outermost balanced brackets. A quotation mark counts only within brackets."""
    spans: list[tuple[int, int]] = []
    opened: list[int] = []
    place = 0
    while token := (_TOKEN if opened else _OPENING).search(text, place):
        place = token.end()
        if token[0] in ("{", "["):
            opened.append(token.start())
        elif token[0] in ("}", "]") and opened:
            start = opened.pop()
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, place))
    return spans


def _value(text: str) -> JsonValue | None:
    """Read one JSON value. Trailing commas, comments, names without quotes and Python's writing lose nothing."""
    text = text.strip().lstrip("\ufeff")
    if not text:
        return None
    try:
        return JsonValue(_parsed(text, strict=True), ())
    except (ValueError, RecursionError):
        pass
    if text[0] not in "{[":
        return None
    for written in (_COMMA.sub(lambda comma: comma[1] or "", text), _rewritten(text)):
        try:
            return JsonValue(_parsed(written, strict=False), (WRITING,))
        except (ValueError, RecursionError):
            pass
    return _python(text) or _python(_rewritten(text))


def _rewritten(text: str) -> str:
    """Return the text without comments and trailing commas, and with straight quotation marks, also around names."""
    text = text if '"' in text else text.translate(_STRAIGHT)
    text = _COMMENT.sub(lambda found: found[1] or " ", text)
    text = _COMMA.sub(lambda found: found[1] or "", text)
    return _KEY.sub(lambda found: found[1] or f'"{found[2]}"', text)


def _parsed(text: str, *, strict: bool) -> Any:
    return json.loads(text, strict=strict, parse_int=_whole, parse_float=_real, parse_constant=_refused)


def _python(text: str) -> JsonValue | None:
    if len(text) > _LONGEST_LITERAL:
        return None
    try:
        value = ast.literal_eval(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return JsonValue(value, (WRITING,)) if isinstance(value, (dict, list)) else None


def _whole(written: str) -> Whole:
    number = Whole(written)
    number.written = written
    return number


def _real(written: str) -> Real:
    number = Real(written)
    if number - number != 0:
        raise ValueError(f"{written} is out of range")
    number.written = written
    return number


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def plain(value: Any) -> Any:
    """Return the value with plain numbers, at every depth."""
    if isinstance(value, Whole):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def canonical(value: Any) -> str:
    """Return one text for all writings of a JSON value: keys sorted, whole numbers without a fraction.

    >>> canonical({"b": 1.0, "a": [True, "x"]}) == canonical({"a": [True, "x"], "b": 1}), canonical(1) == canonical(True)
    (True, False)
    """
    return json.dumps(_even(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _even(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # exact up to here
        return int(value)
    if isinstance(value, dict):
        return {str(key): _even(item) for key, item in value.items()}
    return [_even(item) for item in value] if isinstance(value, (list, tuple)) else value
