"""Tables of scores and grades for `calibrate`, in any format and with the names that people give their columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from workflow_composer.batch.datasets.columns import IDS, Columns, listed, plain
from workflow_composer.batch.datasets.table import Table, read_table
from workflow_composer.batch.datasets.values import at_path, is_missing
from workflow_composer.errors import InputError

SCORES = ("score", "confidence", "probability", "prob", "p_correct")
GRADES = ("correct", "is_correct", "right", "is_right", "label")
"""Names of the columns with an answer's score, and with whether it was right, in order of preference."""

_OTHERS = ("group", "tier", "cost")


@dataclass(frozen=True, slots=True)
class PairsTable:
    """A table and its columns: from the names of a pairs file to those of the table."""

    table: Table
    names: Mapping[str, str]

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield line numbers (in Parquet the row's number, from 1) and the values under the names of a pairs file."""
        for row in self.table.rows():
            line = row.where.rpartition(":")[2]
            found = {key: at_path(row.values, name) for key, name in self.names.items()}
            # A missing score or grade is one that is unknown; the other fields are optional.
            yield (
                int(line) if line.isdigit() else row.number + 1,
                {key: None if is_missing(value) else value for key, value in found.items()},
            )

    def describe(self) -> str:
        """Return in one line what is taken, such as ``score: confidence, correct: is_correct``."""
        taken = ", ".join(f"{key}: {self.names.get(key, 'none')}" for key in ("score", "correct", "id", *_OTHERS))
        return "; ".join((taken, *self.table.notes))


def read_pairs(source: Path, columns: Columns) -> PairsTable:
    """Open a table of pairs. ``columns.label`` names the grades; a question identifies its request if there is no id.

    Raises `InputError` if a column is missing or a name looks misspelt.
    """
    table = read_table(source, columns=Columns(label="", id="", choices=""), asks=False)
    there = {plain(name): name for name in reversed(table.names)}
    names = {
        "score": _first(SCORES, there),
        "correct": _named(columns.label, table) or _first(GRADES, there),
        "id": _named(columns.id, table) or _first(IDS, there) or _named(columns.question, table),
        **{name: there.get(name, "") for name in _OTHERS},
    }
    for key in ("score", "correct"):
        if not names[key]:
            hint = f"name it {key}" + (", or name the column: --label-column NAME" if key == "correct" else "")
            raise InputError(f"{source}: no column {key!r}; found {listed(table.names)}", hint=hint)
    wanted = [key for key, name in names.items() if not name]
    for name in table.names:
        if name not in names.values() and (near := get_close_matches(plain(name), wanted, n=1, cutoff=0.7)):
            raise InputError(f"{source}: unknown column {name!r}", hint=f"did you mean {near[0]!r}? Rename or remove it")
    return PairsTable(table, {key: name for key, name in names.items() if name})


def _first(names: tuple[str, ...], there: Mapping[str, str]) -> str:
    return next((there[name] for name in names if name in there), "")


def _named(name: str | None, table: Table) -> str:
    if not name:
        return ""
    if name.partition(".")[0] not in table.names and name not in table.names:
        near = get_close_matches(name, table.names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "choose one of these"
        raise InputError(f"no column {name!r}; found {listed(table.names)}", hint=hint)
    return name
