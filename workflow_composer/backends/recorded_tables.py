"""Recorded answers as people publish them: tables, read as if they were the lines of a recording.

A table has a question in each row and the answers of one or more models beside it. *Wide*: one column per model, such as
``gpt-4_response``, with the grade in ``gpt-4`` or ``gpt-4_correct`` (the form of RouteLLM's files); or one column per model
that holds an object (``{"solution": …, "is_correct": …}``, the form of OpenAI's GSM8K solutions). *Long*: one answer per
row, with the columns of a recording (docs/recordings.md) or their usual other names, and possibly without a ``model``.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workflow_composer.errors import ConfigError, InputError
from workflow_composer.storage.lines import LONGEST, opened
from workflow_composer.support.installing import install_command

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, and its values by column."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PARQUET = ".parquet"
_PACKED = (".gz", ".bz2", ".xz")

_QUESTIONS = ("question", "prompt", "problem", "query", "input", "instruction")
_ANSWERS = ("response", "answer", "output", "completion", "solution", "generation", "text", "prediction")
_GRADES = ("correct", "is_correct", "right", "passed", "score", "grade", "label")
_MODELS = ("model", "model_name", "model_id", "system")
_RIGHT_ONE = "expected final reference ref correct gold golden true target right best label ground_truth canonical"
_NOT_A_MODEL = frozenset(_RIGHT_ONE.split())
"""What precedes ``_answer`` where a column holds the right answer and not a model's."""

_COUNTS = {"tokens": ("tokens", "completion_tokens", "output_tokens"), "prompt_tokens": ("prompt_tokens", "input_tokens")}
_NUMBERS = {"cost": ("cost", "cost_usd"), "score": ("score",)}
_ANSWER_COLUMN = re.compile(rf"(?P<stem>.+?)[_.|:\s-]+(?P<kind>{'|'.join(_ANSWERS)})", re.IGNORECASE)
_TRUE = frozenset({"true", "1", "1.0", "yes", "y", "right", "correct"})
_FALSE = frozenset({"false", "0", "0.0", "no", "n", "wrong", "incorrect"})
_NULLS = frozenset({"", "null", "none", "nan", "na", "n/a"})
_SHOWN = 12


class _Place(NamedTuple):
    """The columns of one model's answers; ``model`` is None if a column names the model. Missing columns are None."""

    answer: str
    grade: str | None
    model: str | None
    extra: Mapping[str, str]


def is_table(path: Path) -> bool:
    """Whether a file of recorded answers is a table by its name."""
    return _ending(path) in {*_DELIMITERS, _PARQUET}


def _ending(path: Path) -> str:
    return next((end for end in reversed(path.suffixes) if end.lower() not in _PACKED), "").lower()


def converted(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a table's answers as the lines of a recording.

    Raises `InputError` if no column holds the question or an answer, or at a value that cannot be read.
    """
    yield from _answers(_rows(path), path)


def is_wide(line: bytes) -> bool:
    """Whether a line of JSON is a row of a wide table and not a line of a recording."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(data, dict) or {"model", "answer"} & data.keys():
        return False
    columns = tuple(_flat(data))
    return _named(columns, _QUESTIONS) is not None and bool(_wide(columns))


def converted_lines(path: Path, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the answers in the lines of a wide table, as `converted` does."""
    rows = ((f"{path}:{number}", _flat(json.loads(line))) for number, line in enumerate(lines, 1) if line.strip())
    yield from _answers(rows, path)


# --------------------------------------------------------------------------------------------------------------- reading


def _rows(path: Path) -> Iterator[Row]:
    ending = _ending(path)
    if ending == _PARQUET:
        yield from _parquet_rows(path)
        return
    csv.field_size_limit(LONGEST)
    with opened(path) as plain:
        reader = csv.DictReader(io.TextIOWrapper(plain, "utf-8", newline=""), delimiter=_DELIMITERS[ending], strict=True)
        try:
            for values in reader:
                if None in values or None in values.values():
                    raise InputError(
                        f"{path}:{reader.line_num}: more or fewer fields than the header",
                        hint="quote a field that holds a separator or a line break",
                    )
                yield f"{path}:{reader.line_num}", values
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(
                f"{path}:{reader.line_num + 1}: not valid CSV: {error}", hint="save it again as UTF-8"
            ) from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError:
        hint = install_command("batch")
        raise ConfigError("Parquet files need pyarrow, which is not installed", hint=hint) from None
    try:
        with ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(1024):
                for values in batch.to_pylist():
                    yield f"{path}, row {number}", _flat(values)
                    number += 1
    except pa.ArrowException as error:
        told = str(error).splitlines()[0]
        raise InputError(f"{path} is not a Parquet file or is damaged: {told}", hint="write it again") from None


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with those of an object under ``column_key``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update({f"{name}_{key}": inner for key, inner in value.items()})
        else:
            found[name] = value
    return found


# ---------------------------------------------------------------------------------------------------------------- finding


def _answers(rows: Iterable[Row], path: Path) -> Iterator[dict[str, Any]]:
    question, model = "", None
    places: tuple[_Place, ...] = ()
    samples: Counter[tuple[str, str]] = Counter()
    for where, values in rows:
        if not places:
            question, places, model = _found(tuple(values), path)
        for place in places:
            line = _line(values, where, question, place, model)
            if line is not None:
                key = line["model"], line["question"].strip()
                line["sample"] = samples[key]
                samples[key] += 1
                yield line


def _found(columns: tuple[str, ...], path: Path) -> tuple[str, tuple[_Place, ...], str | None]:
    """Return the column of the question, those of the answers, and the one that names the model, if any."""
    listed = ", ".join(columns[:_SHOWN]) + (", …" if len(columns) > _SHOWN else "")
    question = _named(columns, _QUESTIONS)
    if question is None:
        hint = f"name the column that holds the question one of {', '.join(_QUESTIONS)}"
        raise InputError(f"{path}: no column holds the question; found {listed}", hint=hint)
    model = _named(columns, _MODELS)
    if model is None and (wide := _wide(tuple(name for name in columns if name != question))):
        return question, wide, None
    answer = _named(tuple(name for name in columns if name != question), _ANSWERS)
    if answer is None:
        hint = "name a model's column MODEL_response, or the only one answer or response"
        raise InputError(f"{path}: no column holds a model's answers; found {listed}", hint=hint)
    extra = {name: column for name, spellings in {**_COUNTS, **_NUMBERS}.items() if (column := _named(columns, spellings))}
    only = None if model else path.name.partition(".")[0]
    return question, (_Place(answer, _named(columns, _GRADES), only, extra),), model


def _wide(columns: tuple[str, ...]) -> tuple[_Place, ...]:
    """Return the answers of each model that has a column of its own."""
    known = {name.lower(): name for name in columns}
    places: dict[str, _Place] = {}
    for name in columns:
        found = _ANSWER_COLUMN.fullmatch(name)
        if found is None or found["stem"].lower() in _NOT_A_MODEL or found["stem"] in places:
            continue
        stem = found["stem"]
        names = (stem, *(f"{stem}{mark}{kind}" for kind in _GRADES for mark in "_.|"))
        grade = next((known[each.lower()] for each in names if each.lower() in known), None)
        extra = {
            field: known[column]
            for field, spellings in {**_COUNTS, **_NUMBERS}.items()
            for spelling in spellings
            if (column := f"{stem}_{spelling}".lower()) in known and known[column] != grade
        }
        places[stem] = _Place(name, grade, stem, extra)
    return tuple(places.values())


def _named(columns: tuple[str, ...], spellings: tuple[str, ...]) -> str | None:
    known = {name.lower().strip(): name for name in columns}
    return next((known[name] for name in spellings if name in known), None)


# ----------------------------------------------------------------------------------------------------------------- values


def _line(values: Mapping[str, Any], where: str, question: str, place: _Place, model: str | None) -> dict[str, Any] | None:
    """Return one answer of a row; None if the row has no answer of this model."""
    asked, answer = values.get(question), values.get(place.answer)
    if not isinstance(asked, str) or not asked.strip():
        raise InputError(f"{where}: {question} is empty or no text", hint="every row needs a question")
    correct = None if place.grade is None else _grade(values.get(place.grade), f"{where}: {place.grade}")
    if answer is None or (answer == "" and correct is None):
        return None
    named = place.model if model is None else str(values.get(model) or "")
    if not named:
        raise InputError(f"{where}: {model} is empty", hint="every answer needs the name of its model")
    line: dict[str, Any] = {
        "question": asked,
        "model": named,
        "sample": 0,
        "answer": answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False),
        "correct": correct,
        "tokens": 0,
    }
    for name, column in place.extra.items():
        number = _number(values.get(column), f"{where}: {column}")
        if number is not None:
            line[name] = int(number) if name in _COUNTS else number
    return line


def _grade(value: Any, where: str) -> bool | None:
    """Return a grade in one of its usual forms."""
    if value is None or isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text in _NULLS:
        return None
    raise InputError(f"{where} is {value!r}, which is neither right nor wrong", hint="write true, false or nothing")


def _number(value: Any, where: str) -> float | None:
    if value is None or str(value).strip().lower() in _NULLS:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where} is {value!r}, not a number", hint="write a number, or nothing") from None
