"""The reader: extracts final answers from texts."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Protocol

from workflow_composer.answers.extraction import Extracted, boxed, finder, hashes, to_the_point, unmarked
from workflow_composer.answers.form import ANY_FORM, AnswerForm
from workflow_composer.answers.reasoning import without_reasoning
from workflow_composer.errors import ConfigError

if TYPE_CHECKING:
    from workflow_composer.answers.mathematics import Algebra

LONGEST_LIMIT = 3600


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
            from workflow_composer.answers.mathematics import MISSING

            raise ConfigError("comparing answers with 'math' requires math-verify", hint=MISSING)
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
        r"""Return the final answer as written, or None if none is found. Reasoning is removed first.

        If ``auto`` is the last method and no mark is found, the answer is the last number or all of a short text; a label
        decides which. Linear in the length of the text; never raises.

        >>> reader().read(r"So 9 * 2 = 18. The answer is $\boxed{18}$."), reader().read("9 * 2 = 18, so she has 18 left.")
        ('18', '18')
        """
        found = self.extract(text, label)
        return None if found is None else found.answer

    def extract(self, text: str, label: str | None = None) -> Extracted | None:
        r"""Like `read`; also names the method that read the answer.

        >>> reader().extract("9 * 2 = 18, so she has 18 left.", "18")
        Extracted(answer='18', how='last_number')
        """
        text = without_reasoning(text)
        found = self._find(text)
        if not self._takes_unmarked:
            return found
        wanted = None if label is None else self.bare(label)
        if found is None:
            last = unmarked(text, wanted)
            return None if last is None else Extracted(last, "last_number" if last != text.strip() else "whole")
        return found if wanted is None else found._replace(answer=to_the_point(found.answer, wanted))

    def read_said(self, said: Said, label: str | None = None) -> str | None:
        """Like `read` for a model's answer; a truncated one has no final answer."""
        found = self.extract_said(said, label)
        return None if found is None else found.answer

    def extract_said(self, said: Said, label: str | None = None) -> Extracted | None:
        """Like `extract` for a model's answer; a truncated one has no final answer."""
        return None if said.cut_off else self.extract(said.text, label)

    def bare(self, label: str) -> str:
        r"""Return a label's answer: the label is that answer, or a solution that ends with it.

        The end of a solution is marked by ``####``, ``\boxed{}`` or as the form says.
        """
        found = hashes(label) or boxed(label)
        if found is None and (marked := self._find(label)) is not None:
            found = marked.answer
        return found or label.strip()


def reader(form: AnswerForm = ANY_FORM) -> Reader:
    """Return the reader for this form; always the same object.

    Raises `ConfigError` for an unknown extraction method, for a function that cannot be imported, and if the form requires
    math-verify and it is not installed. Without math-verify, ``auto`` compares LaTeX and algebra as text.
    """
    return _made(form)


_made = lru_cache(maxsize=64)(Reader)


def _mathematics_is_installed() -> bool:
    from workflow_composer.answers.mathematics import installed

    return installed()
