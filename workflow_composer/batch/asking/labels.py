"""Answers beside the right ones: a confusion matrix and the rows that are wrong, as text and as a short report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SHOWN = 50
_LARGEST = 20
_LONGEST = 200
_UNREAD = "(unreadable)"


@dataclass(slots=True)
class LabelCounts:
    """How often each label got each answer. ``wrong``: the first wrong rows, each (row from 1, label, answer, its text)."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[tuple[int, str, str, str]] = field(default_factory=list)
    right: int = 0
    failed: int = 0

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]], name: Any) -> LabelCounts:
        """Count the lines of a journal that have a label; ``name(label)`` is the answer that a label means."""
        found = cls()
        for line in lines:
            if "error" in line:
                found.failed += 1
            elif line.get("label") is not None:
                found._add(line, name(line["label"]))
        return found

    def _add(self, line: Mapping[str, Any], label: str) -> None:
        answer = _UNREAD if line["answer"] is None else line["answer"]
        self.counts[label, answer] += 1
        if line["correct"]:
            self.right += 1
        elif len(self.wrong) < _SHOWN:
            self.wrong.append((line["index"] + 1, label, answer, line.get("text", "")))

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

    def report(self, title: str, facts: Sequence[str]) -> str:
        """Return the report in Markdown."""
        lines = [f"# {_one_line(title)}", "", *(f"- {fact}" for fact in facts), ""]
        lines += [f"{self.right} of {self.graded} answers equal their label ({self.right / max(self.graded, 1):.1%})."]
        if self.failed:
            lines += [f"{self.failed} rows have no answer; they are not counted."]
        if (matrix := self.matrix()) is not None:
            lines += ["", "## Confusion matrix", "", *_table(*matrix)]
        wrong = self.graded - self.right
        if wrong:
            shown = f" (the first {_SHOWN})" if wrong > _SHOWN else ""
            cells = [[str(row), label, answer, text] for row, label, answer, text in self.wrong]
            lines += ["", f"## Wrong rows{shown}", "", *_table(["row", "label", "answer", "the model's text"], cells)]
        return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [list(header), ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(_one_line, line))} |" for line in lines]


def _one_line(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return flat if len(flat) <= _LONGEST else flat[: _LONGEST - 1] + "…"
