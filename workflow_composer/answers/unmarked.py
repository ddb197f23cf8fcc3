r"""The final answer of a text without a mark: the last number, or all of a short text. Pure, in linear time.

Models without instructions for the format mostly end like this: "..., so she makes 9 * $2 = $18 every day." With a label,
its kind decides: a number is searched for a number, and all of a short text is taken for words. Without a label, as in
votes, the text decides: taking equal answers for different ones does less harm than the reverse, so a short text is reduced
to its number only if it has exactly one number and is neither a name nor a formula.
"""

from __future__ import annotations

import re

from workflow_composer.answers.notation import JOINED_UNITS, notation

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
