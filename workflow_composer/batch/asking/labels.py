"""Answers beside the right ones: a confusion matrix and the rows that are wrong, as text and as a short report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_SHOWN = 50
_LARGEST = 20
_LONGEST = 200
_UNREAD = "(unreadable)"


class Labelled(NamedTuple):
    """An answer with its label: the row (from 1), the answer that the label means, the answer, and the model's text.

    ``answer`` is None if none could be read.
    """

    row: int
    label: str
    answer: str | None
    correct: bool
    text: str


@dataclass(slots=True)
class LabelCounts:
    """How often each label got each answer, and the first wrong rows."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[Labelled] = field(default_factory=list)
    right: int = 0

    @classmethod
    def of(cls, answers: Iterable[Labelled]) -> LabelCounts:
        """Count answers."""
        found = cls()
        for one in answers:
            found.counts[one.label, _shown(one.answer)] += 1
            found.right += one.correct
            if not one.correct and len(found.wrong) < _SHOWN:
                found.wrong.append(one)
        return found

    @property
    def graded(self) -> int:
        """The number of answers with a label."""
        return self.counts.total()

    @property
    def names(self) -> list[str]:
        """Labels and answers, the most frequent first."""
        seen: Counter[str] = Counter()
        for (label, answer), count in self.counts.items():
            seen[label] += count
            seen[answer] += count
        return [name for name, _ in seen.most_common()]

    def matrix(self) -> tuple[list[str], list[list[str]]] | None:
        """Return header and rows of the confusion matrix: a row for each label, a column for each answer.

        None if there are too many different answers for a matrix.
        """
        names = self.names
        if not 1 < len(names) <= _LARGEST:
            return None
        labels = [name for name in names if any(label == name for label, _ in self.counts)]
        answers = [name for name in names if any(answer == name for _, answer in self.counts)]
        rows = [[label, *(str(self.counts[label, answer] or "·") for answer in answers)] for label in labels]
        return ["label \\ answer", *answers], rows

    def report(self, title: str, facts: Sequence[str], *, without: int) -> str:
        """Return the report in Markdown; ``without`` rows have no answer."""
        lines = [f"# {_one_line(title)}", "", *(f"- {fact}" for fact in facts), ""]
        lines += [f"{self.right} of {self.graded} answers equal their label ({self.right / max(self.graded, 1):.1%})."]
        if without:
            lines += [f"{without} rows have no answer; they are not counted."]
        if (matrix := self.matrix()) is not None:
            lines += ["", "## Confusion matrix", "", *_table(*matrix)]
        wrong = self.graded - self.right
        if wrong:
            shown = f" (the first {_SHOWN})" if wrong > _SHOWN else ""
            cells = [[str(one.row), one.label, _shown(one.answer), one.text] for one in self.wrong]
            lines += ["", f"## Wrong rows{shown}", "", *_table(["row", "label", "answer", "the model's text"], cells)]
        return "\n".join(lines) + "\n"


def _shown(answer: str | None) -> str:
    return _UNREAD if answer is None else answer


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [list(header), ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(_one_line, line))} |" for line in lines]


def _one_line(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return flat if len(flat) <= _LONGEST else flat[: _LONGEST - 1] + "…"
