"""Which columns of a data set hold the question, the label and the row's id; and what is a text in them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflow_composer.errors import InputError
from workflow_composer.storage.lines import kind

QUESTIONS = ("question", "problem", "prompt", "input")
LABELS = ("answer", "solution", "label", "target", "output")
IDS = ("id", "unique_id", "uid", "_id", "question_id", "problem_id")
"""Names of columns, in order of preference. Capitals make no difference."""

TEXT, NUMBER = "text", "number"

NONE = ""
"""As the name of a label or id column: there is none, whatever the data hold."""

_SHOWN = 12

Fields = tuple[str | None, str, str | None]
"""A row's id, question and label."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns. None: to be found by name (`QUESTIONS`, `LABELS`, `IDS`). ``""``: no such column."""

    question: str | None = None
    label: str | None = None
    id: str | None = None

    def among(self, present: Mapping[str, str], where: str, known: Columns | None = None) -> Columns:
        """The same with every name settled: each is one of ``present`` (name -> what it holds), or ``""``.

        ``known`` names come before the usual ones. Raises `InputError` where a named column is not there or holds
        something else than it should, or where none holds a question.
        """
        known = known or Columns()
        texts = [name for name, holds in present.items() if holds == TEXT]
        gradable = [name for name, holds in present.items() if holds in (TEXT, NUMBER)]
        for named, fit in ((self.question, texts), (self.label, gradable), (self.id, list(present))):
            if named and named not in present:
                raise InputError(f"{where}: no column {named!r}; there are {_listed(present)}", hint="name one of these")
            if named and named not in fit:
                raise InputError(f"{where}: column {named!r} holds {present[named]}", hint="name one that holds texts")
        question = self.question or _first((known.question, *QUESTIONS), texts)
        if not question:
            raise InputError(
                f"{where}: no column with the question; there are {_listed(present)}",
                hint=f"name the one that holds it, or rename it to one of {', '.join(QUESTIONS)}",
            )
        label = _first((known.label, *LABELS), gradable) if self.label is None else self.label
        return Columns(question, label, _first((known.id, *IDS), list(present)) if self.id is None else self.id)

    def fields(self, found: Any, where: str) -> Fields:
        """A row's fields, from a mapping of column names to values. Raises `InputError` where the question is no text."""
        assert self.question is not None, "settled by `among`"
        return (
            id_of(found.get(self.id)),
            question_of(found.get(self.question), self.question, where, missing=self.question not in found),
            label_of(found.get(self.label), self.label or NONE, where),
        )


def question_of(value: Any, column: str, where: str, *, missing: bool = False) -> str:
    """The value, where it is a text that can be sent. Raises `InputError` otherwise."""
    if missing:
        raise InputError(f"{where}: no {column!r} in this row", hint="every row needs the column of the question")
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {column!r} is {kind(value)}, not a text", hint="write the question as a text")
    return _whole(value, column, where)


def label_of(value: Any, column: str, where: str) -> str | None:
    """Texts and numbers as text; None where there is no label. Raises `InputError` for what cannot be graded."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None  # pandas writes NaN where a value is missing
    if isinstance(value, str):
        return _whole(value, column, where) if value.strip() else None
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (list, dict, tuple)):
        raise InputError(
            f"{where}: {column!r} is {kind(value)}, not a text or a number",
            hint="name another column for the label, or none",
        )
    return str(value)


def id_of(value: Any) -> str | None:
    """Texts and whole numbers as text; None for anything else, which then goes by the row's number."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode() or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _whole(text: str, column: str, where: str) -> str:
    """The text, unless it holds half of a surrogate pair, which JSON can say and no server can be sent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(f"{where}: {column!r} holds {half}, half of a surrogate pair", hint="take it out") from None
    return text


def _first(wanted: Iterable[str | None], present: Sequence[str]) -> str:
    for name in filter(None, wanted):
        for found in present:
            if found.lower() == name.lower():
                return found
    return NONE


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:_SHOWN] + ["…"] * (len(shown) > _SHOWN)) or "none"
