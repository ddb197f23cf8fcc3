"""Multiple choice: the choices of a row, how they are put to the model, and labels as letters."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from workflow_composer.batch.datasets.values import at_path, is_missing, literal
from workflow_composer.errors import InputError

LETTERS = string.ascii_uppercase
"""How choices are named to the model."""

ASKED = 'End your reply with "Answer: " and the letter of the right choice.'
"""The sentence below the choices."""

_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_NUMBERED = re.compile(r"\s*\(?([A-Za-z])[).:]\s*(?=\S)")
_MARK = re.compile(r"(?:^|(?<=[\s,;]))\(?([A-Za-z])\s?[).:]\s*(?=\S)")
_MOST = len(LETTERS)

Way = Literal["letter", "name", "index", "index from 1", "text"]


class LabelForm:
    """How a data set writes the right choice: the same in all its rows."""

    def __init__(self, way: Way) -> None:
        self.way = way

    def __str__(self) -> str:
        return self.way

    def letter(self, label: str, choices: OfferedChoices) -> str | None:
        """Return the right choice's letter; None if the label names no choice."""
        at = _at(self.way, label.strip(), choices)
        return None if at is None else LETTERS[at]

    def required(self, label: str, choices: OfferedChoices, column: str, where: str) -> str | None:
        """Return the letter; None for -1, which marks a missing label. Raises `InputError` if it names no choice."""
        if label.strip() == "-1":
            return None
        if (found := self.letter(label, choices)) is None:
            raise InputError(
                f"{where}: {column!r} is {label!r}, which is none of the {len(choices)} choices",
                hint="write the choice's letter, index or text, the same way in every row",
            )
        return found


class OfferedChoices(tuple[str, ...]):
    """The texts of a row's choices in order. ``names`` are the data's own, such as "1" to "4"; empty if they have none."""

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, texts: Sequence[Any], names: Sequence[Any] = ()) -> OfferedChoices:
        """Return the choices."""
        found = cls(str(text).strip() for text in texts)
        found.names = tuple(str(name).strip() for name in names)
        return found


def choices_in(row: Mapping[str, Any], columns: Sequence[str]) -> OfferedChoices:
    """Return the choices of a row, from one column or from one for each; empty if it has none."""
    if len(columns) > 1:
        there = [(column, value) for column in columns if not is_missing(value := at_path(row, column))]
        names = [re.sub(r"^.*?(\d+|[A-Za-z])$", r"\1", column).upper() for column, _ in there]
        return OfferedChoices.of([value for _, value in there], names)
    return _choices(at_path(row, columns[0])) if columns else OfferedChoices()


def _choices(value: Any) -> OfferedChoices:
    """Return choices from a list of texts or objects, an object of names and texts, or two lists of texts and names."""
    if isinstance(value, str) and isinstance(value := literal(value), str):
        return _marked(value)
    if isinstance(value, Mapping):
        return _named(value)
    if not isinstance(value, (list, tuple)):
        return OfferedChoices()
    if value and all(isinstance(each, Mapping) for each in value):
        texts = [each.get("text", each.get("value", "")) for each in value]
        return OfferedChoices.of(texts, [each.get("label", each.get("key", "")) for each in value])
    marks = [match[1].upper() if isinstance(each, str) and (match := _NUMBERED.match(each)) else "" for each in value]
    is_marked = bool(marks) and "".join(marks) == LETTERS[: len(value)]
    return OfferedChoices.of([_NUMBERED.sub("", each, count=1) for each in value] if is_marked else value)


def _named(value: Mapping[str, Any]) -> OfferedChoices:
    texts, names = value.get("text"), value.get("label")
    if isinstance(texts, (list, tuple)):
        return OfferedChoices.of(texts, names if isinstance(names, (list, tuple)) and len(names) == len(texts) else ())
    there = {name: text for name, text in value.items() if not is_missing(text)}
    return OfferedChoices.of(list(there.values()), list(there))


def _marked(text: str) -> OfferedChoices:
    """Return the choices that a text marks with letters in order, in lines or one behind the other; none without marks."""
    marks: list[re.Match[str]] = []
    for mark in _MARK.finditer(text.strip()):
        if len(marks) < _MOST and mark[1].upper() == LETTERS[len(marks)]:
            marks.append(mark)
    if len(marks) < 2 or marks[0].start():
        return OfferedChoices()
    ends = [*(mark.start() for mark in marks[1:]), None]
    return OfferedChoices.of(
        [text.strip()[mark.end() : end].rstrip(" ,;\n\t") for mark, end in zip(marks, ends, strict=True)]
    )


def form_of_labels(sample: Sequence[tuple[str, Sequence[str]]]) -> LabelForm | None:
    """Return how the labels of some rows write the right choice; None without labels or choices.

    Each item is a label and its row's choices. The first way that fits all of them counts; else the one that fits most.
    """
    known = [(label.strip(), choices) for label, choices in sample if choices and label.strip() not in ("", "-1")]
    if not known:
        return None
    ways: tuple[Way, ...] = ("name", "letter", "index", "index from 1", "text")
    fits = {way: sum(_at(way, label, choices) is not None for label, choices in known) for way in ways}
    return LabelForm(max(ways, key=lambda way: (fits[way], -ways.index(way))))


def _at(way: Way, label: str, choices: Sequence[str]) -> int | None:
    """Return the position of the choice that a label names; None if it names none."""
    if way == "text":
        same = [at for at, text in enumerate(choices) if text.casefold() == label.casefold()]
        return same[0] if same else None
    if way == "name":
        names = choices.names if isinstance(choices, OfferedChoices) else ()
        return names.index(label) if label in names else None
    if way == "letter":
        match = _LETTER.fullmatch(label)
        at = LETTERS.index(match[1].upper()) if match else _MOST
    else:
        number = label.removesuffix(".0")  # pandas writes whole numbers so if a label is missing in some row
        at = int(number) - (way == "index from 1") if number.isascii() and number.isdigit() and len(number) < 4 else _MOST
    return at if 0 <= at < len(choices) else None


def put(question: str, choices: Sequence[str], where: str) -> str:
    """Return the question with its choices, A. to Z., and how to answer. Raises `InputError` for more choices."""
    if len(choices) > _MOST:
        raise InputError(f"{where}: {len(choices)} choices", hint=f"at most {_MOST} can be put to a model")
    lines = (f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
    return "\n".join((question.rstrip(), *lines, "", ASKED))
