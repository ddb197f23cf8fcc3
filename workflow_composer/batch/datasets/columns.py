"""The columns of a table that hold the question, the choices, the right answers and the row's id, found by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from workflow_composer.batch.datasets.multiple_choice import LabelForm, choices_in, form_of_labels
from workflow_composer.batch.datasets.values import (
    at_path,
    is_missing,
    labels_of,
    messages_of,
    passage_of,
    prompt_text,
    text_of,
)
from workflow_composer.errors import InputError

QUESTIONS = (
    ("question", "problem", "query", "question_text", "question_stem", "question.stem", "problem_statement"),
    ("prompt", "instruction", "messages", "conversations", "conversation", "turns"),
    ("input", "inputs", "ctx", "goal", "sentence", "sent1", "text"),
)
LABELS = (
    (
        *("final_answer", "expected_answer", "ground_truth", "reward_model.ground_truth"),
        *("gold", "gold_answer", "correct_answer", "reference_answer"),
    ),
    (
        *("answer", "answers", "answerkey", "answer_key", "answer_idx", "answer_index", "label", "target", "cop"),
        *("correct_option", "final_decision"),
    ),
    ("solution", "output", "response", "completion", "reference"),
)
PASSAGES = ("context", "passage", "article")
"""Columns of a text that the question is about; it is put before it."""

FALLBACKS = ("question", "prompt", "messages")
"""Columns that are read in rows which lack the one that was found."""

CHOICES = ("choices", "options", "endings", "question.choices")
IDS = (
    *("id", "unique_id", "uid", "_id", "question_id", "problem_id", "custom_id", "qid", "task_id", "example_id"),
    *("instance_id", "uuid"),
)
"""Column names. All ignore case; a blank or a hyphen in a column's name is an underscore; a point leads into an object.
Of questions and labels the first group that has a column is used, of choices and ids the first name.
"""

SPREAD = (
    *(("A", "B"), ("opa", "opb"), ("option_a", "option_b"), ("option1", "option2"), ("sol1", "sol2")),
    *(("choice1", "choice2"), ("ending0", "ending1")),
)
"""The first two of the columns that hold one choice each."""

TEXT, NUMBER = "text", "number"

NONE = ""
"""As the name of a column of labels, choices or ids: use no such column, even if the data have one."""

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Columns:
    """Column names. None: search by name (`QUESTIONS`, `LABELS`, `IDS`, `CHOICES`). ``""``: use no such column.

    A point leads into an object: ``reward_model.ground_truth``. ``choices`` may name several columns: ``A,B,C,D``.
    """

    question: str | None = None
    label: str | None = None
    id: str | None = None
    choices: str | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The kinds of columns that are named."""
        return tuple(kind for kind in self.__slots__ if getattr(self, kind) is not None)


@dataclass(frozen=True, slots=True)
class Found:
    """What `search` found: resolved names (``""``: none); ``before`` and ``after`` are columns put around the question.

    ``choices`` are one column that holds all, or one column for each.
    """

    question: str
    label: str = NONE
    id: str = NONE
    choices: tuple[str, ...] = ()
    before: str = NONE
    after: str = NONE
    form: LabelForm | None = None
    classes: tuple[str, ...] = ()

    @property
    def columns(self) -> Columns:
        """The names of the columns."""
        return Columns(self.question, self.label, self.id, ",".join(self.choices))

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read, without the parts behind a point."""
        return tuple(filter(None, (self.before, self.question, self.after, self.label, self.id, *self.choices)))

    def describe(self) -> str:
        """Return what was taken, such as ``question: problem, label: none``."""
        parts = [f"question: {' + '.join(filter(None, (self.before, self.question, self.after)))}"]
        if self.choices:
            parts.append(f"choices: {', '.join(self.choices)}")
        parts.append(f"label: {self.label or 'none'}{self._how()}")
        if self.id:
            parts.append(f"id: {self.id}")
        return ", ".join(parts)

    def _how(self) -> str:
        """Return how labels are written, if that was guessed."""
        if self.label and self.form:
            return f" ({self.form})"
        named = [f"{number}: {name}" for number, name in enumerate(self.classes)]
        return f" ({', '.join(named[: _SHOWN // 2] + ['…'] * (len(named) > _SHOWN // 2))})" if named else ""


class Search:
    """Finds the columns of a table. ``present``: names and types; ``sample``: the first rows, with all their columns."""

    def __init__(self, present: Mapping[str, str], sample: Sequence[Mapping[str, Any]], where: str) -> None:
        self._present = present
        self._sample = sample
        self._where = where
        self._plain: dict[str, str] = {}
        for name in present:
            self._plain.setdefault(plain(name), name)

    def find(self, wanted: Columns, known: Columns | None = None, *, asks: bool = True) -> Found:
        """Return the columns; ``known`` names take precedence over the usual ones.

        Raises `InputError` if a named column is missing, if several columns could be meant, or if ``asks`` and no column
        holds the question.
        """
        known = known or Columns()
        choices = self._choices(wanted.choices)
        question = self._named(wanted.question, "--question-column") or self._question(known.question)
        if not question and asks:
            raise InputError(f"{self._where}: no question column; found {listed(self._present)}", hint=self._hint(QUESTIONS))
        after = NONE
        if wanted.question is None and plain(question) == "instruction" and "input" in self._plain:
            after = self._plain["input"]
        before = self._before(question) if wanted.question is None else NONE
        label = self._label(wanted.label, known.label, {question, after, before}, choices)
        form = form_of_labels(self._labels_with_choices(label, choices)) if label and choices else None
        return Found(question, label, self._id(wanted.id, known.id), choices, before, after, form)

    # ----------------------------------------------------------------------------------------------------- the columns

    def _question(self, known: str | None) -> str:
        names = ((known,), *QUESTIONS) if known else QUESTIONS
        return self._first(names, "question", self._is_question, lambda name, row: prompt_text(at_path(row, name)))

    def _label(self, wanted: str | None, known: str | None, taken: set[str], choices: tuple[str, ...]) -> str:
        if wanted is not None:
            return self._named(
                wanted, "--label-column", holds=lambda name: self._present.get(name) in (TEXT, NUMBER, "list", None)
            )

        def is_label(name: str) -> bool:
            return name not in taken and name not in choices and self._is_label(name)

        def said(name: str, row: Mapping[str, Any]) -> Any:
            form = form_of_labels(self._labels_with_choices(name, choices)) if choices else None
            labels = labels_of(at_path(row, name), name, self._where)
            return tuple(form.letter(each, choices_in(row, choices)) for each in labels) if form else labels

        return self._first(((known,), *LABELS) if known else LABELS, "label", is_label, said)

    def _before(self, question: str) -> str:
        """Return the column of the text that questions are about, or of a chat's system message.

        Names of context templates are no such text.
        """
        is_chat = any(messages_of(at_path(row, question)) for row in self._sample)
        if not is_chat and plain(question) not in (*QUESTIONS[0], "instruction"):
            return NONE
        for name in ("system",) if is_chat else PASSAGES:
            values = [value for row in self._sample if not is_missing(value := row.get(self._plain.get(name, NONE)))]
            texts = [text for value in values if (text := passage_of(value))]
            if texts and len(texts) == len(values) and (is_chat or all(len(text.split()) > 2 for text in texts)):
                return self._plain[name]
        return NONE

    def _id(self, wanted: str | None, known: str | None) -> str:
        if wanted is not None:
            return self._named(wanted, "--id-column")
        return next(filter(None, (self._there(name) for name in (known, *IDS) if name)), NONE)

    def _choices(self, wanted: str | None) -> tuple[str, ...]:
        if wanted is not None:
            if wanted and wanted not in self._present and "," in wanted:
                return tuple(self._named(name.strip(), "--choices-column") for name in wanted.split(","))
            return tuple(filter(None, [self._named(wanted, "--choices-column")]))
        for name in CHOICES:
            if (found := self._there(name)) and any(len(choices_in(row, (found,))) > 1 for row in self._sample):
                return (found,)
        for first, second in SPREAD:
            if first in self._present and second in self._present and "text" not in self._plain:
                return tuple(_run(first, second, self._present))
        return ()

    # ------------------------------------------------------------------------------------------------------- searching

    def _first(self, groups: Iterable[Iterable[str]], what: str, fits: Any, said: Any) -> str:
        """Return the first column of the first group that has one. Raises `InputError` if it has several that differ."""
        for group in groups:
            found = [name for each in group for name in self._all(each) if fits(name)]
            found = [name for name in found if self._is_filled(name)] or found
            others = [name for name in found[1:] if self._differ(found[0], name, said)]
            if others:
                names = ", ".join(map(repr, (found[0], *others)))
                raise InputError(
                    f"{self._where}: several columns could be the {what}: {names}",
                    hint=f"choose one: --{what}-column {_quoted(found[0])}",
                )
            if found:
                return found[0]
        return NONE

    def _is_filled(self, name: str) -> bool:
        return any(not is_missing(at_path(row, name)) for row in self._sample)

    def _differ(self, one: str, other: str, said: Any) -> bool:
        """Whether two columns hold different values in some row that has both."""
        for row in self._sample:
            try:
                first, second = said(one, row), said(other, row)
            except InputError:
                return True
            if first and second and first != second:
                return True
        return False

    def _all(self, name: str) -> list[str]:
        """Return the columns of this name: itself, and further ones that a repeated name in a header gave."""
        found = self._there(name)
        return (
            [found, *(each for each in self._present if each.startswith(f"{found}.") and each[len(found) + 1 :].isdigit())]
            if found
            else []
        )

    def _there(self, name: str) -> str:
        """Return the column of that name (or the path into one), as the data write it; empty if there is none."""
        if found := self._plain.get(plain(name)):
            return found
        head, _, rest = name.partition(".")
        if rest and (column := self._plain.get(plain(head))):
            path = f"{column}.{rest}"
            if any(not is_missing(at_path(row, path)) for row in self._sample):
                return path
        return NONE

    def _named(self, name: str | None, option: str, holds: Any = lambda name: True) -> str:
        if not name:
            return NONE
        if not (found := name if name in self._present else self._there(name)):
            near = get_close_matches(name, list(self._present), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose one of these with {option}"
            raise InputError(f"{self._where}: no column {name!r}; found {listed(self._present)}", hint=hint)
        if option == "--question-column" and not self._is_question(found, named=True):
            raise InputError(
                f"{self._where}: column {name!r} has type {self._present[found]}, not text", hint="choose a text column"
            )
        if not holds(found):
            raise InputError(
                f"{self._where}: column {name!r} has type {self._present[found]}, not text", hint="choose a text column"
            )
        return found

    def _is_question(self, name: str, *, named: bool = False) -> bool:
        """Whether the first rows hold texts or messages there; a column that is empty in them fits by its type."""
        if self._present.get(name) == NUMBER:
            return False
        values = [value for row in self._sample if not is_missing(value := at_path(row, name))]
        if not values or named:
            return self._present.get(name, TEXT) == TEXT or bool(values and _asks(values[0]))
        return _asks(values[0]) or (self._present.get(name) == TEXT and not isinstance(values[0], (list, dict)))

    def _is_label(self, name: str) -> bool:
        for row in self._sample:
            if not is_missing(value := at_path(row, name)):
                try:
                    return bool(labels_of(value, name, self._where))
                except InputError:
                    return False
        return self._present.get(name, TEXT) in (TEXT, NUMBER)

    def _labels_with_choices(self, label: str, choices: tuple[str, ...]) -> list[tuple[str, Sequence[str]]]:
        found: list[tuple[str, Sequence[str]]] = []
        for row in self._sample:
            try:
                texts = labels_of(at_path(row, label), label, self._where)
            except InputError:
                continue
            found += [(text, choices_in(row, choices)) for text in texts]
        return found

    def _hint(self, groups: Iterable[Iterable[str]]) -> str:
        known = [name for group in groups for name in group]
        for name in self._present:
            if get_close_matches(plain(name), known, n=1, cutoff=0.75):
                return f"name it: --question-column {_quoted(name)}"
        return "name the column that holds the question: --question-column NAME"


def plain(name: str) -> str:
    """Return a column's name as it is compared: without case, blanks or hyphens."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _asks(value: Any) -> bool:
    return text_of(value) is not None or messages_of(value) is not None


def _run(first: str, second: str, present: Iterable[str]) -> list[str]:
    """Return the columns that continue two: A, B, C, ...; option1, option2, option3, ..."""
    found = [first, second]
    there = set(present)
    while (following := found[-1][:-1] + chr(ord(found[-1][-1]) + 1)) in there:
        found.append(following)
    return found


def _quoted(name: str) -> str:
    return f"'{name}'" if " " in name else name


def listed(names: Iterable[str]) -> str:
    """Return the first names, in quotes, for a message."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:_SHOWN] + ["…"] * (len(shown) > _SHOWN)) or "none"
