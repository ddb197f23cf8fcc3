"""The reader: finds the final answers in texts and says which are the same."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import lru_cache
from threading import Lock
from typing import Protocol

from workflow_composer.answers.extraction import boxed, finder, hashes
from workflow_composer.answers.form import ANY_FORM, AnswerForm
from workflow_composer.answers.notation import Notation, formula, is_closed, notation, words
from workflow_composer.answers.reasoning import without_reasoning
from workflow_composer.answers.unmarked import to_the_point, unmarked
from workflow_composer.errors import ConfigError

LONGEST = 2000
"""Characters; a longer answer is no number and no formula, and is compared as text only."""
LONGEST_LIMIT = 3600
_REMEMBERED = 16384
_LETTERS_OF_A_WORD = 4


class Said(Protocol):
    """One answer of a model; ``cut_off``: its length ended it before the model did."""

    @property
    def text(self) -> str:
        """All of it."""

    @property
    def cut_off(self) -> bool:
        """Whether it lacks its end."""


class Reader:
    """Reads and compares answers as one `AnswerForm` says. Made by `reader`; may be used from any thread and event loop.

    Two answers are the same where they are written alike, but for case, space and LaTeX's dress (`notation`); or where both
    are plain numbers of the same value, and not of different units; or, for ``math`` and (where LaTeX or algebra is in
    them) ``auto``, where math-verify says that they are equal. For ``auto``, what names something (a date, a genotype, a
    version: `workflow_composer.answers.literals`) has no value and is the same only where it is written alike. Sameness is
    symmetric; it is not transitive in all cases: "5 km" and "5 miles" are each the same as "5".

    ``timed_out`` counts the comparisons that were given up, at the form's limit or for want of memory; such answers count
    as not the same.
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
            raise ConfigError(f"there is no way {form.compare!r} to compare answers", hint="known: auto, number, text, math")
        if form.compare == "math" and not self._mathematics:
            from workflow_composer.answers.mathematics import MISSING

            raise ConfigError("comparing answers as mathematics needs math-verify", hint=MISSING)
        if not 0 < form.limit <= LONGEST_LIMIT:
            raise ConfigError(f"a comparison may take from 0 to {LONGEST_LIMIT} seconds, not {form.limit!r}")

    def read(self, text: str, label: str | None = None) -> str | None:
        r"""The final answer as it is written, or None where there is none to be found. Reasoning is left out first.

        Where ``auto`` comes last and no mark is found, the last number or all of a short text is the answer; the label,
        where there is one, tells which. Takes time linear in the text and never raises.

        >>> reader().read(r"So 9 * 2 = 18. The answer is $\boxed{18}$."), reader().read("9 * 2 = 18, so she has 18 left.")
        ('18', '18')
        """
        text = without_reasoning(text)
        answer = self._find(text)
        if not self._takes_unmarked:
            return answer
        wanted = None if label is None else self._bare(label)
        if answer is None:
            return unmarked(text, wanted)
        return answer if wanted is None else to_the_point(answer, wanted)

    def read_said(self, said: Said, label: str | None = None) -> str | None:
        """The same of a model's answer; one that was cut off has no final answer."""
        return None if said.cut_off else self.read(said.text, label)

    def same(self, a: str, b: str) -> bool | None:
        r"""Whether two answers are the same by cheap rules; None where only mathematics can tell (`decide`).

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
        """Whether two answers are the same, with mathematics where it is needed.

        Raises `ConfigError` where math-verify is needed and does not work.
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

    async def grade(self, answer: str | None, label: str) -> bool:
        r"""Whether an answer that was read is what the label says; no answer is never right.

        A label is a bare answer or a worked solution that ends with one, marked by ``####``, ``\boxed{}`` or as this form
        says.
        """
        if answer is None:
            return False
        return await self.decide(answer, self._bare(label))

    def _bare(self, label: str) -> str:
        return hashes(label) or boxed(label) or self._find(label) or label.strip()

    def _may_be_equal(self, one: Notation, other: Notation) -> bool:
        """Whether it is worth asking mathematics: never about two words, which it would take for products of letters."""
        if self._compare == "auto":
            return one.is_mathematical and other.is_mathematical
        return self._compare == "math" and not (_is_wordy(one) and _is_wordy(other))


def reader(form: AnswerForm = ANY_FORM) -> Reader:
    """The reader for this form, always the same one.

    Raises `ConfigError` for an unknown way to find answers, for a function that cannot be imported, and where the form
    needs math-verify and it is not installed. Without math-verify, ``auto`` compares LaTeX and algebra as text.
    """
    return _made(form)


_made = lru_cache(maxsize=64)(Reader)


def _is_wordy(answer: Notation) -> bool:
    return not answer.is_mathematical and len(answer.text) >= _LETTERS_OF_A_WORD


def _mathematics_is_installed() -> bool:
    from workflow_composer.answers.mathematics import installed

    return installed()
