"""The reader: extracts final answers from texts and compares them."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from functools import lru_cache
from threading import Lock
from typing import Protocol

from workflow_composer.answers.extraction import Extracted, finder, first_turn
from workflow_composer.answers.finding.marks import boxed, hashes
from workflow_composer.answers.finding.phrases import is_talk
from workflow_composer.answers.finding.undressing import choice, plain, says_something, undressed
from workflow_composer.answers.finding.unmarked import is_letter, to_the_point, unmarked
from workflow_composer.answers.form import ANY_FORM, AnswerForm
from workflow_composer.answers.notation import Notation, formula, is_closed, notation, words
from workflow_composer.answers.reasoning import without_reasoning
from workflow_composer.errors import ConfigError

LONGEST = 2000
"""Characters; a longer answer is neither a number nor a formula, and is compared as text only."""
LONGEST_LIMIT = 3600
_REMEMBERED = 16384
_LETTERS_OF_A_WORD = 4
_TALKS = frozenset({"phrase", "hashes"})
_FEW = 2
_LETTER = re.compile(r"\b[A-J]\b")


class Said(Protocol):
    """One answer of a model."""

    @property
    def text(self) -> str:
        """The whole text."""

    @property
    def cut_off(self) -> bool:
        """Whether a length limit truncated it."""


class Reader:
    """Extracts and compares answers as an `AnswerForm` says. Made by `reader`; usable from any thread and event loop.

    Two answers are equal if their normalized texts are (`notation` removes case, space and LaTeX wrappers); or if both are
    plain numbers with the same value and no different units; or, for ``math``, and for ``auto`` if they contain LaTeX or
    algebra, if math-verify finds them equal. For ``auto``, literals (a date, a genotype, a version:
    `workflow_composer.answers.notation`) are equal only if their texts are. Equality is symmetric, but not always
    transitive: "5 km" and "5 miles" each equal "5".

    ``timed_out`` counts the comparisons stopped at the form's limit or when memory ran out; their answers count as
    different.
    """

    def __init__(self, form: AnswerForm) -> None:
        self.form = form
        self.timed_out = 0
        self._find = finder(form.extract)
        self._takes_unmarked = form.extract[-1] == "auto"
        self._compare = form.compare
        self._mathematics = form.compare in {"auto", "math"} and _mathematics_is_installed()
        self._known: OrderedDict[tuple[str, str], bool] = OrderedDict()
        self._lock = Lock()
        if form.compare not in {"auto", "number", "text", "math"}:
            raise ConfigError(f"unknown comparison method {form.compare!r}", hint="available: auto, number, text, math")
        if form.compare == "math" and not self._mathematics:
            from workflow_composer.answers.mathematics import MISSING

            raise ConfigError("comparing answers with 'math' requires math-verify", hint=MISSING)
        if not 0 < form.limit <= LONGEST_LIMIT:
            raise ConfigError(
                f"the limit of a comparison must be above 0 and at most {LONGEST_LIMIT} seconds, not {form.limit!r}"
            )

    def read(self, text: str, label: str | None = None) -> str | None:
        r"""Return the final answer, or None if none is found.

        Reasoning is removed first. What is written around an answer is taken off: fences, display math, bullets, emphasis, a
        reason; full-width characters become ASCII. If ``auto`` is the last method and no mark is found, the answer is the
        last number, a letter, or all of a short text; a label decides which. A text without a letter or a digit holds none.
        Linear in the length of the text; never raises.

        >>> reader().read(r"So 9 * 2 = 18. The answer is $\boxed{18}$."), reader().read("9 * 2 = 18, so she has 18 left.")
        ('18', '18')
        """
        found = self.extract(text, label)
        return None if found is None else found.answer

    def extract(self, text: str, label: str | None = None) -> Extracted | None:
        r"""Like `read`; also names the method that read the answer.

        >>> reader().extract("9 * 2 = 18, so she has 18 left.", "18")
        Extracted(answer='18', how='last_number', complete=False)
        """
        text = without_reasoning(text)
        if not any(map(str.isalnum, text)):
            return None
        if not self._takes_unmarked:
            return self._find(text)
        text = plain(text)
        found = self._find(text)
        wanted = None if label is None else self.bare(label)
        if found is not None:
            fitted = found._replace(answer=_fitted(found.answer, wanted))
            if found.how not in _TALKS or wanted is None or _may_answer(fitted.answer, wanted):
                return fitted
        last = unmarked(first_turn(text), wanted)
        if last is None:
            return None if found is None else fitted
        return Extracted(_fitted(last[0], wanted), last[1])

    def read_said(self, said: Said, label: str | None = None) -> str | None:
        """Like `read` for a model's answer. One that was cut off is read only if its final answer is complete."""
        found = self.extract_said(said, label)
        return None if found is None else found.answer

    def extract_said(self, said: Said, label: str | None = None) -> Extracted | None:
        """Like `extract` for a model's answer.

        One that was cut off by its length or by a filter has a final answer only if that is complete: in a closed box or
        tag, on a ``####`` line that ends, in a sentence that ends before the text does.
        """
        found = self.extract(said.text, label)
        return None if found is None or (said.cut_off and not found.complete) else found

    def same(self, a: str, b: str) -> bool | None:
        r"""Whether two answers are equal by cheap rules; None if only math-verify can decide (`decide`).

        >>> reader().same("$1,450.00", "1450 dollars"), reader().same(r"\frac12", "0.5"), reader().same("two", "2")
        (True, True, False)
        """
        if a == b:
            return True
        if self._compare == "text" or max(len(a), len(b)) > LONGEST:
            return words(a) == words(b)
        one, other = notation(a), notation(b)
        if one.text == other.text and one.text:
            return True
        literal = self._compare == "auto" and (one.literal or other.literal)
        if one.number is not None and other.number is not None and not literal:
            return one.number == other.number and (one.unit == other.unit or not one.unit or not other.unit)
        if literal or not self._mathematics or not self._may_be_equal(one, other):
            return False
        return None if is_closed(a) and is_closed(b) else False

    async def decide(self, a: str, b: str) -> bool:
        """Whether two answers are equal, by math-verify if needed.

        Raises `ConfigError` if math-verify is needed and does not work.
        """
        quick = self.same(a, b)
        if quick is not None:
            return quick
        pair = (formula(a), formula(b))
        key = pair if pair[0] <= pair[1] else pair[::-1]
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        from workflow_composer.answers.mathematics import shared

        found = await asyncio.wrap_future(shared().submit(*key, self.form.limit))
        with self._lock:
            self.timed_out += found is None
            self._known[key] = bool(found)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return bool(found)

    def bare(self, label: str) -> str:
        r"""Return a label's answer: the label is that answer, or a solution that ends with it.

        The end of a solution is marked by ``####``, ``\boxed{}`` or as the form says.
        """
        label = plain(label)
        marked = hashes(label) or boxed(label) or self._find(label)
        return _taken_off(marked.answer if marked else label)

    def _may_be_equal(self, one: Notation, other: Notation) -> bool:
        """Whether math-verify may find them equal; never for two words, which it would parse as products of letters."""
        if self._compare == "auto":
            return one.is_mathematical and other.is_mathematical
        return self._compare == "math" and not (_is_wordy(one) and _is_wordy(other))


def reader(form: AnswerForm = ANY_FORM) -> Reader:
    """Return the reader for this form; always the same object.

    Raises `ConfigError` for an unknown extraction method, for a function that cannot be imported, and if the form requires
    math-verify and it is not installed. Without math-verify, ``auto`` compares LaTeX and algebra as text.
    """
    return _made(form)


_made = lru_cache(maxsize=64)(Reader)


def _taken_off(answer: str) -> str:
    found = undressed(answer)
    return found if says_something(found) else answer.strip()


def _fitted(answer: str, wanted: str | None) -> str:
    """Return the part of an answer that a label asks for: the letter or the text of a choice, a number."""
    picked = choice(answer)
    if picked is not None:
        if wanted is None:
            return picked.letter if picked.is_plain or (not picked.rest and answer[-1:].isupper()) else answer
        if is_letter(wanted):
            return picked.letter
        if picked.rest and choice(wanted) is None:
            answer = picked.rest
    return to_the_point(answer, wanted)


def _may_answer(answer: str, wanted: str) -> bool:
    """Whether a phrase's answer is of the label's kind; if not, it talks about the answer, and the text is searched."""
    if is_letter(wanted):
        return choice(answer) is not None or _LETTER.search(answer) is not None or len(answer.split()) <= _FEW
    one = notation(wanted)
    if one.number is None or one.literal or any(map(str.isnumeric, answer)):
        return True
    return len(answer.split()) <= _FEW and not is_talk(answer)


def _is_wordy(answer: Notation) -> bool:
    return not answer.is_mathematical and len(answer.text) >= _LETTERS_OF_A_WORD


def _mathematics_is_installed() -> bool:
    from workflow_composer.answers.mathematics import installed

    return installed()
