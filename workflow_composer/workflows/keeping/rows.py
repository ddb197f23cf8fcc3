"""The rows of a run: each with the inputs that the workflow reads, and an id by which its answers are found again."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from workflow_composer.batch.asking.table_output import plain
from workflow_composer.storage.lines import WrittenNumber, kind
from workflow_composer.support.fast_dataclass import quick
from workflow_composer.types import EMPTY
from workflow_composer.workflows.definition.model import InputType, Step, Workflow
from workflow_composer.workflows.keeping.keys import digest_of_data

ID_DIGITS = 16


class RunTable(Protocol):
    """The rows that a run reads, several times; ``paths`` are its files, ``is_typed`` says that cells have types."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The columns, at least those of the first row."""
        ...

    @property
    def paths(self) -> Sequence[Path]:
        """The files that must not be overwritten."""
        ...

    @property
    def is_typed(self) -> bool:
        """Whether cells have types of their own, as in JSON."""
        ...

    @property
    def rows(self) -> Callable[[], Iterator[Any]]:
        """Returns the rows from the beginning: each with ``number``, ``where`` and ``values``."""
        ...


@quick
@dataclass(frozen=True, slots=True)
class RunRow:
    """A row: its number from 0, its place for messages (file and line), its id, and its inputs as JSON data.

    ``fault`` says what is wrong with the inputs, without their values; the row then fails before anything is asked.
    """

    number: int
    where: str
    id: str
    inputs: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    fault: str = ""


class RowSource:
    """Reads rows anew for every pass. Keeps eight bytes a row: its digest.

    Row ids are digests of the inputs that steps or outputs read (or of the workflow's ``key`` column) with the number of the
    occurrence; rows may be inserted, removed and shuffled, and other columns may change.
    """

    def __init__(self, workflow: Workflow, rows: Callable[[], Iterator[Any]], *, typed: bool = False) -> None:
        self._workflow, self._table_rows, self._typed = workflow, rows, typed
        self._read = [workflow.key] if workflow.key is not None else sorted(inputs_read(workflow))
        self._digests = array("Q")
        for row in rows():
            self._digests.append(self._digest(self._inputs(row)[0], row))
        self._several = _several(self._digests)

    def __len__(self) -> int:
        return len(self._digests)

    def __iter__(self) -> Iterator[RunRow]:
        return self.rows()

    def rows(self, wanted: Callable[[int], bool] = lambda number: True) -> Iterator[RunRow]:
        """Yield the wanted rows in order."""
        seen: Counter[int] = Counter()
        for row, digest in zip(self._table_rows(), self._digests, strict=True):
            occurrence = 0
            if digest in self._several:
                occurrence = seen[digest]
                seen[digest] += 1
            if wanted(row.number):
                inputs, fault = self._inputs(row)
                yield RunRow(row.number, row.where, _row_id(digest, occurrence), inputs, fault)

    def _digest(self, inputs: Mapping[str, Any], row: Any) -> int:
        found = [inputs.get(name, plain(row.values.get(name))) for name in self._read]
        return int(digest_of_data(found, ID_DIGITS), 16)

    def _inputs(self, row: Any) -> tuple[dict[str, Any], str]:
        found: dict[str, Any] = {}
        faults: list[str] = []
        for name, wanted in self._workflow.inputs.items():
            found[name], fault = input_value(row.values.get(name), wanted, typed=self._typed)
            if fault:
                faults.append(f"{name}: {fault}")
        return found, "; ".join(faults)


def _several(digests: Sequence[int]) -> frozenset[int]:
    """Return those that occur more than once."""
    found, before = set(), None
    for digest in sorted(digests):
        if digest == before:
            found.add(digest)
        before = digest
    return frozenset(found)


def _row_id(digest: int, occurrence: int) -> str:
    first = f"{digest:0{ID_DIGITS}x}"
    return first if not occurrence else digest_of_data([first, occurrence], ID_DIGITS)


def inputs_read(workflow: Workflow) -> frozenset[str]:
    """Return the inputs that a step or an output reads."""
    found: set[str] = set()
    for _, step in workflow.every_step():
        found |= _reads(step)
    for reading in (*workflow.output.values(), *workflow.tables.values()):
        found |= reading.reads
    return frozenset(found & workflow.inputs.keys())


def _reads(step: Step) -> frozenset[str]:
    return step.reads | step.needs


def input_value(value: Any, wanted: InputType, *, typed: bool = False) -> tuple[Any, str]:
    """Return a cell as an input of this type, and what is wrong with it, without its value.

    ``typed``: cells have types of their own, so that a text is JSON only if it is written as an object or a list.

    >>> input_value("00731", "text"), input_value(" 12 ", "number"), input_value('{"a": 1}', "json")
    (('00731', ''), (12, ''), ({'a': 1}, ''))
    >>> input_value("1", "json"), input_value("1", "json", typed=True), input_value("[1]", "json", typed=True)
    ((1, ''), ('1', ''), ([1], ''))
    >>> input_value("twelve", "number")
    (None, 'a number is needed, found a text')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, ""
    if wanted == "number":
        return _number(value)
    if wanted == "json":
        return _json(value, typed=typed)
    return _text(value), ""


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, WrittenNumber):
        return value.written
    if isinstance(value, (date, time, Decimal)):
        return plain(value)
    return value if isinstance(value, (dict, list, tuple)) else json.dumps(plain(value), ensure_ascii=False)


def _number(value: Any) -> tuple[Any, str]:
    if isinstance(value, WrittenNumber):
        value = float(value)
    if isinstance(value, (str, Decimal)):
        value = _parsed_number(str(value).strip())
        if value == "":
            return None, ""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None, f"a number is needed, found {kind(value)}"
    return value, ""


def _parsed_number(text: str) -> Any:
    """Return the number that a text writes; the text itself if it is none."""
    for read in (int, float):
        try:
            return read(text) if text.isascii() and "_" not in text else text
        except ValueError:
            continue
    return text


def _json(value: Any, *, typed: bool) -> tuple[Any, str]:
    if not isinstance(value, str) or (typed and value.lstrip()[:1] not in ("{", "[")):
        return plain(value), ""
    if not value.strip():
        return None, ""
    try:
        return json.loads(value), ""
    except (ValueError, RecursionError):
        return value, ""
