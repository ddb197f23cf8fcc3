"""One of several words, a truth value or a number, read out of a short reply. Pure.

Only what loses nothing is read: the word in another case, with a point, in quotes or bold type, after a label ("Answer:"),
or before its reason. A reply that names several words without choosing one has no value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from workflow_composer.answers.form import AnswerForm
from workflow_composer.answers.json_text import FENCES, TALK, blocks, json_values
from workflow_composer.answers.reading import reader

CASE = "case and punctuation"
NUMBER = "number as text"

_EDGES = " \t\r\n*_`'\"\u201c\u201d\u2018\u2019\u00ab\u00bb()[]{}<>.,:;!|#\\$\u3002\uff1a"
_LABEL = re.compile(r"^[ \t>*_#\-]*[^\W\d_][\w \t/()*-]{0,40}[:\uff1a=][ \t*_]*(\S.*?)\s*$", re.MULTILINE)
_SPANS = re.compile(r"\*\*([^*\n]{1,200})\*\*|`([^`\n]{1,200})`|\"([^\"\n]{1,200})\"|\u201c([^\u201d\n]{1,200})\u201d")
_NEGATION = re.compile(
    r"\b(?:not|no|nor|never|neither|without|rather|instead|unlike|except|cannot|either|unsure|or|nicht|kein\w*|ne|pas)\b"
    r"|n['\u2019]t\b",
    re.IGNORECASE,
)
_REASON = re.compile(r"\s*(?:because|since|as|given|due|this|the|it|there|they|based|so)\b", re.IGNORECASE)
_TURN = re.compile(r"\b(?:wait|actually|correction|or rather|on second thought|or perhaps|or maybe)\b", re.IGNORECASE)
_SHORT = 300
_SEVERAL = "\0several"
_COMMON = frozenset({"yes", "no", "true", "false", "none", "not", "other", "some", "all", "any", "one", "it", "is"})
"""Words that a sentence may contain without choosing them."""
_LONGEST_NUMBER = 400
_MARKED = AnswerForm(("hashes", "boxed", "phrase"))

_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?|[+-]?\.\d+", re.ASCII)
_NUMBERS = re.compile(rf"(?<![\w.,/:-])(?:{_NUMBER.pattern})(?![\w/:]|[.,-]\d)", re.ASCII)


def bare(text: str) -> str:
    """Return a word without case, surrounding punctuation and repeated space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().strip(_EDGES).split())


def _loosened(word: str) -> str:
    return " ".join(re.split(r"[\s_-]+", word))


class Choices:
    """The words that may be answered, each with its value. If two words differ in case only, the case decides."""

    def __init__(self, words: Mapping[str, Any], *, mentions: bool = True) -> None:
        self.values = dict(words)
        self._mentions = mentions and not any(bare(word) in _COMMON for word in words)
        self._bare = _unique((bare(word), word) for word in words)
        self._loose = _unique((_loosened(bare(word)), word) for word in words)

    def same(self, text: str) -> str | None:
        """Return the word that the whole text is, in whatever case and punctuation."""
        if text in self.values:
            return text
        short = bare(text)
        return self._bare.get(short) or self._loose.get(_loosened(short))

    def read(self, text: str) -> tuple[str, tuple[str, ...]] | None:
        """Return the word that a reply chooses, and what was mended; None if it chooses none, or several."""
        text = text.strip()
        if text in self.values:
            return text, ()
        if (word := self.same(text)) is not None:
            return word, (CASE,)
        for block in blocks(text):
            if (word := self.same(block)) is not None:
                return word, (FENCES,)
        word = self._in_json(text) or self._marked(text)
        if word is None:
            word = self._leading(text) or self._mentioned(text)
        return None if word is None or word == _SEVERAL else (word, (TALK,))

    def _in_json(self, text: str) -> str | None:
        for found in json_values(text):
            value = found.value
            while isinstance(value, (dict, list)) and len(value) == 1:
                value = next(iter(value.values())) if isinstance(value, dict) else value[0]
            if isinstance(value, (str, int, float)) and (word := self.same(str(value).lower())) is not None:
                return word
        return None

    def _marked(self, text: str) -> str | None:
        """Return the word that is marked as the answer; `_SEVERAL` for different ones, or one that is denied."""
        answer = reader(_MARKED).read(text)
        if answer is not None and (word := self.same(answer) or self._leading(answer)) is not None:
            return word
        lines = [line for line in text.splitlines() if line.strip()]
        labelled = (found[1] for found in _LABEL.finditer(text))
        edges = (lines[0], lines[-1]) if lines else ()
        for parts in (labelled, edges, self._emphasised(text)):
            named = {self.same(part.removeprefix("not ")): part.startswith("not ") for part in parts}
            named.pop(None, None)
            if named:
                ((word, denied),) = named.items() if len(named) == 1 else ((None, True),)
                return _SEVERAL if denied else word
        return None

    def _emphasised(self, text: str) -> Iterable[str]:
        for found in _SPANS.finditer(text):
            denied = _NEGATION.search(text, max(0, found.start() - 30), found.start())
            yield f"not {found[found.lastindex or 0]}" if denied else found[found.lastindex or 0]

    def _leading(self, text: str) -> str | None:
        """Return the word with which the text begins, if a reason or remark follows it."""
        start = text.lstrip(_EDGES)
        found = self._pattern.match(start)
        if found is None:
            return None
        after = start[found.end() :].lstrip("*_`'\"\u201d) \t")
        others = {self.same(one[0]) for one in self._pattern.finditer(after)} - {None, self.same(found[0])}
        if not after or _TURN.search(after) or after[0] not in ",.;:(\n-\u2013\u2014":
            return None
        if others and after[0] == "," and not _REASON.match(after[1:]):
            return None
        return self.same(found[0])

    def _mentioned(self, text: str) -> str | None:
        """Return the only word that a short text mentions, unless something in it may deny it."""
        if not self._mentions or len(text) > _SHORT:
            return None
        named = {self.same(found[0]) for found in self._pattern.finditer(text)}
        rest = self._pattern.sub(" ", text)
        return named.pop() if len(named) == 1 and not _NEGATION.search(rest) else None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """The words, longest first; a single letter in its own case only, because "a" is an article."""
        parts = sorted((bare(word) or word for word in self.values), key=len, reverse=True)
        single = [f"{word}(?![ ]+\\w)" if word in "AI" else re.escape(word) for word in self.values if len(word) == 1]
        words = [re.sub(r"(?:\\?[ _-])+", r"[\\s_-]+", re.escape(part)) for part in parts if len(part) > 1]
        either = "|".join([*(f"(?i:{word})" for word in words), *single]) or r"(?!)"
        return re.compile(rf"(?<!\w)(?:{either})(?!\w)")


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return a mapping without the keys that stand for several words."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for key, word in pairs:
        if key in found:
            twice.add(key)
        found[key] = word
    return {key: word for key, word in found.items() if key and key not in twice}


def number_of(text: str) -> int | float | None:
    """Return the number that the whole text is; None if it is none.

    >>> number_of("12"), number_of("1,450.50"), number_of("12 mg")
    (12, 1450.5, None)
    """
    short = unicodedata.normalize("NFKC", text).replace("\u2212", "-").strip()
    if len(short) > _LONGEST_NUMBER or not _NUMBER.fullmatch(short):
        return None
    short = short.replace(",", "")
    if not any(mark in short for mark in ".eE"):
        return int(short)
    number = float(short)
    return number if number - number == 0 else None


def number_in(text: str) -> tuple[int | float, tuple[str, ...]] | None:
    """Return the number of a reply: all of it, the marked answer, or the only number in it."""
    exact = number_of(text)
    if exact is not None:
        return exact, () if text.strip().isascii() and "," not in text else (CASE,)
    for part in (*blocks(text), text.strip(_EDGES)):
        if (found := number_of(part.strip(_EDGES))) is not None:
            return found, (TALK,)
    only = _only_number(reader(_MARKED).read(text) or "")
    only = _only_number(text) if only is None else only
    return None if only is None else (only, (TALK,))


def _only_number(text: str) -> int | float | None:
    even = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    numbers = {number_of(found[0]) for found in _NUMBERS.finditer(even)}
    return numbers.pop() if len(numbers) == 1 else None
