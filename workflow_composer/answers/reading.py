"""The reader: extracts final answers from texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Protocol

from workflow_composer.answers.extraction import Extracted, finder, first_turn
from workflow_composer.answers.finding.marks import boxed, hashes
from workflow_composer.answers.finding.phrases import is_talk
from workflow_composer.answers.finding.undressing import choice, plain, says_something, undressed
from workflow_composer.answers.finding.unmarked import is_letter, to_the_point, unmarked
from workflow_composer.answers.form import ANY_FORM, AnswerForm
from workflow_composer.answers.notation import notation
from workflow_composer.answers.reasoning import without_reasoning
from workflow_composer.errors import ConfigError

if TYPE_CHECKING:
    from workflow_composer.answers.mathematics import Algebra

LONGEST_LIMIT = 3600
_REMEMBERED, _REMEMBERED_LENGTH = 256, 4096
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
    """Extracts answers as an `AnswerForm` says; made by `reader`, usable from any thread and event loop.

    `workflow_composer.answers.equality` compares the answers.
    """

    def __init__(self, form: AnswerForm) -> None:
        self.form = form
        self._find = finder(form.extract)
        self._takes_unmarked = form.extract[-1] == "auto"
        self._mathematics = form.compare in {"auto", "math"} and _mathematics_is_installed()
        if form.compare not in {"auto", "number", "text", "math"}:
            raise ConfigError(f"unknown comparison method {form.compare!r}", hint="available: auto, number, text, math")
        if form.compare == "math" and not self._mathematics:
            from workflow_composer.support.installing import install_command

            raise ConfigError("comparing answers with 'math' requires math-verify", hint=install_command("batch"))
        if not 0 < form.limit <= LONGEST_LIMIT:
            raise ConfigError(
                f"the limit of a comparison must be above 0 and at most {LONGEST_LIMIT} seconds, not {form.limit!r}"
            )

    @cached_property
    def algebra(self) -> Algebra | None:
        """What compares formulas; None if the form does not ask for it or math-verify is not installed."""
        if not self._mathematics:
            return None
        from workflow_composer.answers.mathematics import Algebra

        return Algebra(self.form.limit)

    @property
    def timed_out(self) -> int:
        """How many comparisons were stopped at the form's limit or when memory ran out; their answers count as different."""
        return self.algebra.timed_out if "algebra" in self.__dict__ and self.algebra is not None else 0

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
        return self._remembered(text, label) if len(text) <= _REMEMBERED_LENGTH else self._extracted(text, label)

    @cached_property
    def _remembered(self) -> Callable[[str, str | None], Extracted | None]:
        """`_extracted`, which answers that agree word for word ask for once; a function of the user is always asked."""
        is_pure = not any(name.startswith("python:") for name in self.form.extract)
        return lru_cache(maxsize=_REMEMBERED)(self._extracted) if is_pure else self._extracted

    def _extracted(self, text: str, label: str | None) -> Extracted | None:
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

    def bare(self, label: str) -> str:
        r"""Return a label's answer: the label is that answer, or a solution that ends with it.

        The end of a solution is marked by ``####``, ``\boxed{}`` or as the form says.
        """
        label = plain(label)
        marked = hashes(label) or boxed(label) or self._find(label)
        return _taken_off(marked.answer if marked else label)


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


def _mathematics_is_installed() -> bool:
    from workflow_composer.answers.mathematics import installed

    return installed()
