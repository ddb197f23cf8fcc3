"""Equality of the answers to one question: their kind is decided once, and equal answers form groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from workflow_composer.answers.form import Comparison
from workflow_composer.answers.reading import Reader

Kind = Literal["text", "number", "mathematics", "choice", "json"]
"""What the answers to a question are; it decides how they are compared."""

_BY_COMPARISON: dict[str, Kind] = {"text": "text", "number": "number", "math": "mathematics"}


class Question:
    """Compares the answers to one question.

    ``label`` is the correct answer, bare or at the end of a solution. ``kind`` is the kind of the data set's answers
    (`kind_of_labels`); without it, label and answers decide (`kind_of`). Usable from any event loop.
    """

    def __init__(self, reader: Reader, label: str | None = None, *, kind: Kind | None = None) -> None:
        self._reader = reader
        self.label = None if label is None else reader.bare(label)
        self._kind = kind
        self._seen: list[str] = []

    async def groups(self, answers: Sequence[str]) -> list[int]:
        """Return the group number of each answer; groups are numbered in order of first appearance.

        Which answers share a group does not depend on their order. Raises `ConfigError` if math-verify is needed and does
        not work.
        """
        self._seen = list(dict.fromkeys([*self._seen, *answers]))
        if len(set(answers)) == 1:
            return [0] * len(answers)
        return _numbered(await self._partition(list(answers)))

    async def is_correct(self, answer: str | None) -> bool:
        """Whether the answer equals the label; None (no answer) is never correct. False without a label."""
        if answer is None or self.label is None:
            return False
        if answer == self.label:
            return True
        found = await self._partition([self.label, answer])
        return found[0] == found[1]

    async def _partition(self, answers: list[str]) -> list[int]:
        """Return one number per answer: equal answers, directly or through others, have the same."""
        distinct = list(dict.fromkeys(answers))
        root = list(range(len(distinct)))
        for at in range(len(distinct)):
            for other in range(at):
                if root[at] != root[other] and await self._reader.decide(distinct[at], distinct[other]):
                    old, new = root[at], root[other]
                    root = [new if each == old else each for each in root]
        by_answer = dict(zip(distinct, root, strict=True))
        return [by_answer[answer] for answer in answers]


def kind_of(answers: Iterable[str], label: str | None = None, compare: Comparison = "auto") -> Kind:
    """Return the kind of a question's answers, from the label if it is clear, else from all answers and the label."""
    return _BY_COMPARISON.get(compare, "mathematics")


def kind_of_labels(labels: Iterable[str]) -> Kind | None:
    """Return the kind of a data set's answers, from all its labels; None if each question must decide."""
    return None


def _numbered(groups: Iterable[int]) -> list[int]:
    numbers: dict[int, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]
