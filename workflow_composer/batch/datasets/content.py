"""What a row asks: its question or messages, its right answers, its id and its own fields of the request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from workflow_composer.batch.datasets.columns import FALLBACKS, Found
from workflow_composer.batch.datasets.multiple_choice import OfferedChoices, choices_in, put
from workflow_composer.batch.datasets.request_fields import NAMES, own_fields, request_of
from workflow_composer.batch.datasets.values import (
    at_path,
    content_text,
    id_of,
    is_missing,
    labels_of,
    passage_of,
    question_of,
    text_of,
)
from workflow_composer.errors import ConfigError
from workflow_composer.support.installing import install_command
from workflow_composer.types import EMPTY, Message

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 65_536
"""Rows of a table that is built row by row."""

BODY = "body"
"""The column of an OpenAI Batch line that holds the request."""


@dataclass(frozen=True, slots=True)
class RowContent:
    """A row's content. ``question`` is its text; with ``messages`` it stands for them in plans and tables.

    ``labels`` are the right answers, any of which counts; for multiple choice, letters. ``own`` are fields of `LLMRequest`.
    """

    id: str | None
    question: str
    labels: tuple[str, ...] = ()
    messages: tuple[Message, ...] | None = None
    own: Mapping[str, Any] = field(default_factory=lambda: EMPTY)

    @property
    def prompt(self) -> str | tuple[Message, ...]:
        """What is sent: the messages or the question."""
        return self.messages or self.question


class Taking:
    """Takes from rows what they ask, from the columns that were found."""

    def __init__(self, found: Found, names: Iterable[str] = ()) -> None:
        self.found = found
        self._has_own = not NAMES.difference(found.names).isdisjoint(names)
        self._is_batch = found.question == BODY
        self._used = frozenset(found.names)

    @property
    def is_plain(self) -> bool:
        """Whether question and label are columns of texts that are taken as they are."""
        found = self.found
        is_deep = "." in found.question or "." in found.label
        return not (
            found.before or found.classes or found.after or found.choices or self._is_batch or self._has_own or is_deep
        )

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that `take` reads, if they exist."""
        more = (BODY, "method", "url") if self._is_batch else (*NAMES, "task_type", "model", "context")
        return (*self.found.names, *more)

    @property
    def identity(self) -> str:
        """What is taken, for a digest; that of a plain question and label is the one that journals have."""
        found = self.found
        plain = f"Columns(question={found.question!r}, label={found.label!r}, id={found.id!r})"
        return (
            plain
            if self.is_plain
            else f"{plain} {found.before!r} {found.after!r} {found.choices!r} {found.form} {found.classes}"
        )

    def take(self, row: Mapping[str, Any], where: str) -> RowContent:
        """Return what a row asks. Raises `InputError` for an invalid value."""
        if self._is_batch:
            return self._request(row, where)
        found = self.found
        prompt = self._prompt(row, where)
        choices = choices_in(row, found.choices) if found.choices else OfferedChoices()
        if found.after and isinstance(prompt, str) and (more := text_of(row.get(found.after))):
            prompt = f"{prompt}\n\n{more}"
        if found.before and (passage := passage_of(row.get(found.before))):
            prompt = f"{passage}\n\n{prompt}" if isinstance(prompt, str) else _with_system(passage, prompt)
        labels = labels_of(at_path(row, found.label), found.label, where) if found.label else ()
        if found.classes:
            labels = tuple(each for label in labels for each in _class_and_number(label, found.classes))
        if choices:
            labels = self._letters(labels, choices, where)
        own = own_fields(row, where, self._used if isinstance(prompt, tuple) else self._used | {"n"})
        key = id_of(at_path(row, found.id)) if found.id else None
        if isinstance(prompt, str):
            return RowContent(key, put(prompt, choices, where) if choices else prompt, labels, None, own)
        messages = _with_choices(prompt, choices, where) if choices else prompt
        return RowContent(key, _text(messages), labels, messages, own)

    def _prompt(self, row: Mapping[str, Any], where: str) -> str | tuple[Message, ...]:
        """Return the question; of a row that lacks its column, that of another usual one."""
        name = self.found.question
        value = row.get(name)
        if value is None and (value := at_path(row, name)) is None and name in FALLBACKS:
            name = next((each for each in FALLBACKS if not is_missing(row.get(each))), name)
            value = row.get(name)
        return question_of(value, name, where, missing=value is None and name not in row)

    def _letters(self, labels: tuple[str, ...], choices: OfferedChoices, where: str) -> tuple[str, ...]:
        form = self.found.form
        if form is None:
            return labels
        letters = (form.required(label, choices, self.found.label, where) for label in labels)
        return tuple(dict.fromkeys(letter for letter in letters if letter is not None))

    def _request(self, row: Mapping[str, Any], where: str) -> RowContent:
        messages, own = request_of(row, where)
        labels = labels_of(at_path(row, self.found.label), self.found.label, where) if self.found.label else ()
        return RowContent(id_of(row.get(self.found.id)), _text(messages), labels, messages, own)


def _class_and_number(label: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Return a class's name and its number, both of which are right answers; nothing for -1, which marks a missing label."""
    number = label.removesuffix(".0")
    if number.isdigit() and int(number) < len(classes):
        return classes[int(number)], number
    return () if number == "-1" else (label,)


def _with_system(text: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the messages behind a system message, if they have none."""
    has_one = messages[0].get("role") in ("system", "developer")
    return messages if has_one else ({"role": "system", "content": text}, *messages)


def _with_choices(messages: tuple[Message, ...], choices: OfferedChoices, where: str) -> tuple[Message, ...]:
    *before, last = messages
    return (*before, {**last, "content": put(content_text(last), choices, where)})


def _text(messages: tuple[Message, ...]) -> str:
    """Return the text of the messages of the user, which stands for them where a question is wanted."""
    said = [content_text(message) for message in messages if message.get("role") == "user"]
    return next(filter(None, reversed(said)), "") or "(no text)"


def tables_of(rows: Iterable[RowContent]) -> Iterator[pa.Table]:
    """Yield rows as tables of `BATCH` rows with the columns question and label."""
    pa = arrow_library()
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        questions, labels = [row.question for row in batch], [row.labels[0] if row.labels else None for row in batch]
        yield pa.table({"question": pa.array(questions, pa.string()), "label": pa.array(labels, pa.string())})


def arrow_library() -> Any:
    """Return the module pyarrow. Raises `ConfigError` if it is not installed."""
    try:
        import pyarrow as pa
    except ImportError:
        raise ConfigError(
            "Parquet data sets, plans and result files need pyarrow, which is not installed",
            hint=install_command("batch"),
        ) from None
    return pa
