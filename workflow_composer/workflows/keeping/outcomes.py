"""What became of the rows of a run, on disk until the tables are written: memory does not grow with the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from workflow_composer.batch.run.records import Head
from workflow_composer.storage.lines import Spool
from workflow_composer.workflows.keeping.row_keeper import Lineage
from workflow_composer.workflows.running.results import RowOutcome, Scope, StepResult


@dataclass(frozen=True, slots=True)
class RowDone:
    """A row that has ended: its number from 0, its outcome, its questions by place, and what it has cost in this run."""

    number: int
    outcome: RowOutcome
    lineage: Mapping[str, Lineage] = field(default_factory=dict)
    cost: float = 0.0

    @property
    def head(self) -> Head:
        """The fields that are counted."""
        outcome = self.outcome
        error = None if outcome.state in ("done", "partial") else (outcome.state, "")
        return Head(self.number, error, "", None, self.cost, key=outcome.row)


def packed_result(result: StepResult) -> dict[str, Any]:
    """Return a result as JSON data, without what is as usual."""
    found: dict[str, Any] = {}
    for name, usual in _USUAL.items():
        value = getattr(result, name)
        if name == "items":
            value = [packed_result(item) for item in value]
        elif name == "inner":
            value = {key: packed_result(item) for key, item in value.items()}
        elif name in ("notes", "counts"):
            value = type(usual)(value)
        if value != usual:
            found[name] = value
    return found


def unpacked_result(data: Mapping[str, Any]) -> StepResult:
    """Return the result of `packed_result`."""
    found = dict(data)
    if "items" in found:
        found["items"] = tuple(map(unpacked_result, found["items"]))
    if "inner" in found:
        found["inner"] = {key: unpacked_result(item) for key, item in found["inner"].items()}
    if "notes" in found:
        found["notes"] = tuple(found["notes"])
    return StepResult(**found)


def _usual() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in fields(StepResult):
        found[one.name] = one.default if one.default is not MISSING else None
    return found | {"items": [], "inner": {}, "notes": [], "counts": {}}


_USUAL = _usual()


class OutcomeSpool:
    """Outcomes of rows by their numbers, in a temporary file."""

    def __init__(self, run_results: Mapping[str, StepResult] | None = None) -> None:
        self._spool = Spool()
        self.run_results = dict(run_results or {})

    def put(self, done: RowDone) -> None:
        """Keep what became of a row; a later outcome counts."""
        outcome = done.outcome
        self._spool.put(
            done.number,
            {
                "row": outcome.row,
                "state": outcome.state,
                "errors": outcome.errors,
                "output": outcome.output,
                "plain": outcome.scope.plain,
                "pending": sorted(outcome.pending),
                "steps": {name: packed_result(result) for name, result in outcome.steps.items()},
                "lineage": {place: one.data for place, one in done.lineage.items()},
            },
        )

    def get(self, number: int) -> Mapping[str, Any] | None:
        """Return what is kept of a row, as JSON data."""
        found: Mapping[str, Any] | None = self._spool.get(number)
        return found

    def outcome(self, number: int) -> RowOutcome | None:
        """Return a row's outcome; None: it has none yet."""
        data = self.get(number)
        if data is None:
            return None
        steps = {name: unpacked_result(result) for name, result in data["steps"].items()}
        return RowOutcome(
            row=data["row"],
            state=data["state"],
            errors=tuple(data["errors"]),
            output=data["output"],
            steps=steps,
            scope=Scope(data["plain"], {**self.run_results, **steps}),
            pending=frozenset(data["pending"]),
        )

    def missing(self, rows: int) -> Iterator[int]:
        """Yield the numbers of rows without an outcome."""
        return (number for number in range(rows) if not self._spool.has(number))

    def close(self) -> None:
        """Delete the file."""
        self._spool.close()
