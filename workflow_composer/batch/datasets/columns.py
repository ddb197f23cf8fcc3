"""The columns of a data set that hold the question, the label and the row's id, and their valid values."""

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
"""Column names in order of preference, case-insensitive."""

TEXT, NUMBER = "text", "number"

NONE = ""
"""As the name of a label or id column: use no such column, even if the data have one."""

_SHOWN = 12

Fields = tuple[str | None, str, str | None]
"""A row's id, question and label."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Column names. None: search by name (`QUESTIONS`, `LABELS`, `IDS`). ``""``: use no such column."""

    question: str | None = None
    label: str | None = None
    id: str | None = None

    def among(self, present: Mapping[str, str], where: str, known: Columns | None = None) -> Columns:
        """Return the columns with every name resolved: each is one of ``present`` (name -> type), or ``""``.

        ``known`` names take precedence over the usual ones. Raises `InputError` if a named column is missing or has the
        wrong type, or if no column holds the question.
        """
        known = known or Columns()
        texts = [name for name, holds in present.items() if holds == TEXT]
        gradable = [name for name, holds in present.items() if holds in (TEXT, NUMBER)]
        for named, fit in ((self.question, texts), (self.label, gradable), (self.id, list(present))):
            if named and named not in present:
                raise InputError(f"{where}: no column {named!r}; found {_listed(present)}", hint="choose one of these")
            if named and named not in fit:
                raise InputError(
                    f"{where}: column {named!r} has type {present[named]}, not text", hint="choose a text column"
                )
        question = self.question or _first((known.question, *QUESTIONS), texts)
        if not question:
            raise InputError(
                f"{where}: no question column; found {_listed(present)}",
                hint=f"rename the column that holds the question to one of {', '.join(QUESTIONS)}",
            )
        label = _first((known.label, *LABELS), gradable) if self.label is None else self.label
        return Columns(question, label, _first((known.id, *IDS), list(present)) if self.id is None else self.id)

    def fields(self, found: Any, where: str) -> Fields:
        """Return a row's fields from a mapping of column names to values. Raises `InputError` for an invalid value."""
        assert self.question is not None, "resolved by `among`"
        return (
            id_of(found.get(self.id)),
            question_of(found.get(self.question), self.question, where, missing=self.question not in found),
            label_of(found.get(self.label), self.label or NONE, where),
        )


def question_of(value: Any, column: str, where: str, *, missing: bool = False) -> str:
    """Return the value if it is a non-blank text that UTF-8 can encode. Raises `InputError` otherwise."""
    if missing:
        raise InputError(f"{where}: no {column!r} in this row", hint="every row needs a question")
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{where}: {column!r} is {kind(value)}; it must be a non-empty string", hint="write the question as a string"
        )
    return _whole(value, column, where)


def label_of(value: Any, column: str, where: str) -> str | None:
    """Return texts and numbers as text, None without a label. Raises `InputError` for a list or an object."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None  # pandas writes NaN for a missing value
    if isinstance(value, str):
        return _whole(value, column, where) if value.strip() else None
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (list, dict, tuple)):
        raise InputError(
            f"{where}: {column!r} is {kind(value)}, not a string or a number",
            hint="choose another label column, or none",
        )
    return str(value)


def id_of(value: Any) -> str | None:
    """Return texts and integers as text; None for anything else (the row's number is then its id)."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode() or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _whole(text: str, column: str, where: str) -> str:
    """Return the text. Raises `InputError` for a lone surrogate, which is valid JSON but cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(f"{where}: {column!r} contains the lone surrogate {half}", hint="remove it") from None
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
