"""A table of people for whom keys are made: one row per key, as `keys new --from` reads it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_composer.errors import InputError
from workflow_composer.server.auth.keys import PERIODS, Period

COUNTS = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrent", "most_calls")
_LISTS = ("models", "strategies")
COLUMNS = ("name", "user", "team", "budget", "per", "expires", *COUNTS, *_LISTS)
LONGEST_LABEL = 100


@dataclass(frozen=True, slots=True)
class Person:
    """A row: the key's name, its limits as `Key.new` takes them, and its lifetime as text. ``line`` is that of the file."""

    line: int
    name: str
    limits: Mapping[str, Any] = field(default_factory=dict)
    expires: str = ""


def read_people(path: Path) -> list[Person]:
    """Read a CSV file with a header; columns are `COLUMNS`, of which only ``name`` is required.

    Lists are separated by semicolons or spaces. Raises `InputError` with line and column.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8", hint="save it as CSV in UTF-8") from None
    head = text.partition("\n")[0]
    mark = max(",;\t", key=head.count)  # spreadsheets of some countries write semicolons
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True)
    names = [(name or "").strip().lower() for name in rows.fieldnames or ()]
    wrong = [name for name in names if name not in COLUMNS]
    if "name" not in names or wrong or len(set(names)) < len(names):
        problem = (
            f"unknown column {wrong[0]!r}" if wrong else "no column 'name'" if "name" not in names else "a column twice"
        )
        raise InputError(f"{path}: {problem}", hint=f"columns: {', '.join(COLUMNS)}")
    rows.fieldnames = names
    try:
        found = list(_people(path, rows))
    except csv.Error as error:
        raise InputError(f"{path}: line {rows.line_num}: {error}") from None
    if not found:
        raise InputError(f"{path} has no rows")
    seen: dict[str, int] = {}
    for person in found:
        if person.name in seen:
            raise InputError(f"{path}: line {person.line}: {person.name!r} is also in line {seen[person.name]}")
        seen[person.name] = person.line
    return found


def _people(path: Path, rows: csv.DictReader[str]) -> Iterator[Person]:
    for row in rows:
        where = f"{path}: line {rows.line_num}"
        if None in row or any(value is None for value in row.values()):
            raise InputError(f"{where} does not have as many fields as the header")
        cells = {name: value.strip() for name, value in row.items()}
        if not any(cells.values()):
            continue
        try:
            yield Person(rows.line_num, name_of(cells["name"], "name"), _limits(cells), cells.get("expires", ""))
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None


def _limits(cells: Mapping[str, str]) -> dict[str, Any]:
    limits: dict[str, Any] = {name: whole(cells[name], name) for name in COUNTS if cells.get(name)}
    limits |= {name: name_of(cells[name], name) for name in ("user", "team") if cells.get(name)}
    limits |= {name: tuple(cells[name].replace(";", " ").split()) for name in _LISTS if cells.get(name)}
    return limits | budgets_of(cells.get("budget", "").replace(";", " ").split(), cells.get("per") or "month")


def name_of(text: str, column: str) -> str:
    """Return a label. Raises ValueError."""
    if not text.strip() or not text.isprintable() or len(text) > LONGEST_LABEL:
        raise ValueError(f"{column} must be 1 to {LONGEST_LABEL} printable characters")
    return text


def whole(text: str, column: str) -> int:
    """Return a limit. Raises ValueError."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) < 2**53:
        raise ValueError(f"{column} must be a whole number above 0, not {text!r}")
    return int(text)


def budgets_of(texts: list[str], usual: str) -> dict[str, Any]:
    """Return the fields of `Key` for budgets such as ``5`` or ``5/day``; ``usual`` is the period of those without one.

    Raises ValueError.
    """
    found: dict[Period, float] = {}
    for text in texts:
        dollars, slash, named = text.partition("/")
        period = next((period for period in PERIODS if period == (named if slash else usual)), None)
        if period is None:
            raise ValueError(f"the period of the budget {text!r} must be day, month or total")
        try:
            amount = float(dollars.lstrip("$"))
        except ValueError:
            amount = 0.0
        if not 0.0 < amount <= 1e12:
            raise ValueError(f"the budget {text!r} must be dollars above 0, such as 5 or 5/day")
        if period in found:
            raise ValueError(f"there are two budgets per {period}")
        found[period] = amount
    if not found:
        return {}
    (period, amount), *more = found.items()
    return {"budget": amount, "period": period, "budgets": tuple(more)}
