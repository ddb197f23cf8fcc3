"""The results of a batch: the journal's records in the order of the data set, as JSON lines and as Parquet.

Both are streamed and keep 8 bytes per row in memory. Files are replaced atomically: each is written under another name and
then renamed.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from workflow_composer.batch.datasets.content import arrow_library
from workflow_composer.batch.run.lines import fields_of, head_of, header_of, record_of, whole_lines
from workflow_composer.batch.run.records import RowRecord
from workflow_composer.errors import InputError, WorkflowComposerError
from workflow_composer.storage.lines import encoded, unreadable
from workflow_composer.storage.replacing import replacing

if TYPE_CHECKING:
    import pyarrow as pa

JSONL, PARQUET = "results.jsonl", "results.parquet"

COLUMNS = (
    "row", "id", "route", "answer", "confidence", "accepted", "tier", "tiers", "correct", "prompt_tokens",
    "completion_tokens", "cost", "seconds", "error", "read_by", "question", "label", "columns", "cost_known",
)  # fmt: skip
"""The columns of both files, in order."""

_GIVEN = ("question", "label", "columns")
"""Columns with the row's own content, of any type."""

_readable = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

_ROWS_AT_A_TIME = 1024
_GROUP_ROWS, _GROUP_BYTES = 32_768, 64 << 20
"""A Parquet row group is closed when it reaches this many rows or bytes."""


@dataclass(frozen=True, slots=True)
class Written:
    """The number of rows in the result files, and of failed rows.

    ``unreadable`` rows have an answer that could not be read; ``cut_off`` of them reached their token limit. ``graded``
    rows have a label, and ``correct`` of them are right. The cost of ``unpriced`` rows is not, or only partly, known.
    """

    rows: int = 0
    errors: int = 0
    unreadable: int = 0
    cut_off: int = 0
    graded: int = 0
    correct: int = 0
    unpriced: int = 0


def records(journal: Path, rows: int | None = None) -> Iterator[RowRecord]:
    """Yield the last record of every row of a journal, in the order of the data set; skip rows without a record.

    ``rows``: only the first rows, because an earlier run may have had a higher limit.

    The journal is not locked: if a run is still writing, its new records are skipped too. Raises `InputError` if the file
    cannot be read, is damaged, or is not a journal.
    """
    return map(record_of, _last_lines(journal, rows))


def write_results(journal: Path, folder: Path, *, rows: int | None = None) -> Written:
    """Write ``results.jsonl`` and ``results.parquet`` into a folder, replacing older ones; ``rows`` as in `records`.

    Raises `ConfigError` if pyarrow is not installed, `InputError` for the journal as `records` does, and
    `WorkflowComposerError` if a file cannot be written (older files then stay).
    """
    arrow_library()
    counts: Counter[str] = Counter()
    every = map(fields_of, _last_lines(journal, rows))
    with (
        _in_place_of(folder / JSONL) as lines,
        _in_place_of(folder / PARQUET) as columns,
        _Table(columns) as table,
    ):
        while block := list(islice(every, _ROWS_AT_A_TIME)):
            found = [_row(fields) for fields in block]
            lines.writelines(map(encoded, found))
            table.add([_flat(row) for row in found])
            for row in found:
                _count(row, counts)
    return Written(**counts)


def _count(row: dict[str, Any], counts: Counter[str]) -> None:
    failed, unreadable = row["error"] is not None, row["error"] is None and row["answer"] is None
    counts["rows"] += 1
    counts["errors"] += failed
    counts["unreadable"] += unreadable
    counts["cut_off"] += unreadable and any(tier["cut_off"] for tier in row["tiers"])
    counts["graded"] += row["correct"] is not None
    counts["correct"] += row["correct"] is True
    counts["unpriced"] += not row["cost_known"]


def schema() -> pa.Schema:
    """Return the Parquet schema of the columns."""
    pa = arrow_library()
    text, count, number, truth = pa.string(), pa.int64(), pa.float64(), pa.bool_()
    votes = pa.list_(pa.struct([("answer", text), ("count", count)]))
    tier = {
        "name": text,
        "model": text,
        "samples": count,
        "votes": votes,
        "unreadable": count,
        "confidence": number,
        "accepted": truth,
        "reason": text,
        "prompt_tokens": count,
        "completion_tokens": count,
        "cost": number,
        "seconds": number,
        "right": pa.list_(truth),
        "texts": pa.list_(text),
        "cut_off": count,
        "fixed": truth,
        "cost_known": truth,
    }
    types = {
        "row": count,
        "id": text,
        "route": text,
        "answer": text,
        "confidence": number,
        "accepted": truth,
        "tier": text,
        "tiers": pa.list_(pa.struct(list(tier.items()))),
        "correct": truth,
        "prompt_tokens": count,
        "completion_tokens": count,
        "cost": number,
        "seconds": number,
        "error": pa.struct([("type", text), ("message", text)]),
        "read_by": text,
        "question": text,
        "label": text,
        "columns": text,
        "cost_known": truth,
    }
    return pa.schema([(name, types[name]) for name in COLUMNS])


def _row(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the result files: plain data with all columns."""
    fields["tier"] = fields.pop("deciding") or None
    fields["columns"] = fields["columns"] or None
    for tier in fields["tiers"]:
        del tier["said"], tier["candidate"]
        tier["votes"] = [{"answer": answer, "count": count} for answer, count in tier["votes"]]
        _cost_of(tier)
    _cost_of(fields)
    if fields["error"] is not None:
        fields["error"] = dict(zip(("type", "message"), fields["error"], strict=True))
    return {name: fields[name] for name in COLUMNS}


def _cost_of(fields: dict[str, Any]) -> None:
    """Replace ``priced`` by ``cost_known``, and a cost of which nothing is known by None."""
    fields["cost_known"] = known = fields.pop("priced")
    if not known and not fields["cost"]:
        fields["cost"] = None


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row for Parquet, in which messages, lists of labels and kept columns are texts of JSON."""
    given = {name: row[name] for name in _GIVEN if row[name] is not None and not isinstance(row[name], str)}
    return {**row, **{name: json.dumps(value, ensure_ascii=False) for name, value in given.items()}} if given else row


def _last_lines(journal: Path, rows: int | None) -> Iterator[bytes]:
    try:
        with journal.open("rb") as file:
            for offset in filter(None, _offsets(file, journal)[:rows]):
                file.seek(offset)
                yield file.readline()
    except OSError as error:
        raise unreadable(journal, error) from None


def _offsets(file: BinaryIO, journal: Path) -> array[int]:
    """Return the offset of the last record of each row; 0 if there is none."""
    lines = whole_lines(file, journal)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{journal} is empty", hint="run the batch first")
    offsets = array("Q", bytes(8 * int(header_of(first, journal)["rows"])))
    for line in lines:
        row = head_of(line).row
        if row >= len(offsets):  # rows were added to the data set since the run began
            offsets.extend([0] * (row + 1 - len(offsets)))
        offsets[row] = line.offset
    return offsets


@contextmanager
def _in_place_of(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` once it is complete and on disk."""
    try:
        with replacing(path, private=True) as file:
            yield file
    except OSError as error:
        hint = "free disk space, or give this user write permission; then run the same command again: no answer is lost"
        raise WorkflowComposerError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error


class _Table:
    """A Parquet file, written in row groups of bounded size. A context manager."""

    def __init__(self, file: BinaryIO) -> None:
        from pyarrow.parquet import ParquetWriter

        self._pa = arrow_library()
        self._schema = schema()
        self._writer = ParquetWriter(file, self._schema, compression="zstd")
        self._waiting: list[pa.RecordBatch] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Write rows."""
        try:
            batch = self._pa.RecordBatch.from_pylist(rows, self._schema)
        except UnicodeEncodeError:  # a lone surrogate, which a model may generate and Parquet cannot store
            batch = self._pa.RecordBatch.from_pylist([_encodable(row) for row in rows], self._schema)
        self._waiting.append(batch)
        if sum(map(len, self._waiting)) >= _GROUP_ROWS or sum(each.nbytes for each in self._waiting) >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(self._pa.Table.from_batches(self._waiting, self._schema))
        self._waiting = []


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {name: _encodable(each) for name, each in value.items()}
    return [_encodable(each) for each in value] if isinstance(value, (list, tuple)) else value
