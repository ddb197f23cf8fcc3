"""Data sets: tables whose rows are questions, found by path or by their name on the Hugging Face hub.

In names, write ``_`` for ``/`` (``openai_gsm8k``); ``NAME:SPLIT`` selects a split. ``docs/datasets.md`` describes the file
names that are searched and the columns that are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.batch.datasets.columns import Columns
from workflow_composer.batch.datasets.content import BATCH
from workflow_composer.batch.datasets.table import Table, read_table
from workflow_composer.support.fast_dataclass import quick
from workflow_composer.types import EMPTY, Message

if TYPE_CHECKING:
    import pyarrow as pa


@quick
@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number in the data set from 0, its id (by default the number), question and label.

    ``others`` are further right answers; any of them counts. ``messages`` are sent in place of the question; ``own`` are
    the row's own fields of `LLMRequest`; ``columns`` are those that are kept with the answer.
    """

    row: int
    id: str
    question: str
    label: str | None
    others: tuple[str, ...] = ()
    messages: tuple[Message, ...] | None = None
    own: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    columns: Mapping[str, Any] = field(default_factory=lambda: EMPTY)

    @property
    def labels(self) -> tuple[str, ...]:
        """All right answers; none without a label."""
        return () if self.label is None else (self.label, *self.others)

    @property
    def prompt(self) -> str | tuple[Message, ...]:
        """What is sent: the messages or the question."""
        return self.messages or self.question


def find(
    name: str | Path,
    data_dir: Path | None = None,
    split: str | None = None,
    *,
    columns: Columns | None = None,
    keep: Sequence[str] = (),
) -> DataSet:
    """Return the data set at a path, or named ``name`` (or ``NAME:SPLIT``) in a folder.

    ``columns`` names columns that do not have their usual names; ``keep`` are columns that rows carry along. Raises
    `InputError` if no file exists (with near names), or if the first rows are invalid.
    """
    return DataSet(read_table(name, columns=columns, data_dir=data_dir, split=split), keep=keep)


class DataSet:
    """The rows of a table as questions with labels. Attributes and faults as those of `Table`."""

    def __init__(self, table: Table, *, keep: Sequence[str] = ()) -> None:
        table.require(keep)
        self.table = table
        self._keep = tuple(keep)
        self.name, self.split, self.paths = table.name, table.split, table.paths
        self.columns, self.digest = table.columns, table.digest
        self.count, self.sha256, self.check, self.describe = table.count, table.sha256, table.check, table.describe

    def __repr__(self) -> str:
        return f"DataSet({self.name}{':' + self.split if self.split else ''}, {len(self.paths)} files)"

    def rows(self, start: int = 0) -> Iterator[Row]:
        """Yield the rows in order, beginning at number ``start``."""
        for row, asked in self.table.asked(start, every=bool(self._keep)):
            key = str(row.number) if asked.id is None else asked.id
            first, *others = asked.labels or (None,)
            more = tuple(filter(None, others))
            columns = {name: row.values.get(name) for name in self._keep} if self._keep else EMPTY
            yield Row(row.number, key, asked.question, first, more, asked.messages, asked.own, columns)

    def chunks(self, size: int = BATCH) -> Iterator[pa.Table]:
        """Yield the same rows as tables of at most ``size`` rows with the columns ``question`` and ``label`` (string).

        A missing label is null; of several, the first counts. Raises `ConfigError` if pyarrow is not installed.
        """
        for table in self.table.arrow_tables():
            for first in range(0, table.num_rows, size):
                yield table.slice(first, size)
