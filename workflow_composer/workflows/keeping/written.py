"""The tables that a run writes: that of the rows, further ones of steps over all rows, and who made each value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workflow_composer.batch.asking.table_output import OTHER, TableOutput, suffix_of
from workflow_composer.batch.run.journal import unwritable
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import encoded
from workflow_composer.storage.replacing import replacing
from workflow_composer.workflows.definition.model import Reading, Workflow
from workflow_composer.workflows.keeping.outcomes import OutcomeSpool
from workflow_composer.workflows.keeping.rows import RunTable
from workflow_composer.workflows.running.results import Scope, ValueFault

STATE, ERRORS = "_state", "_errors"
_BETWEEN = "; "
_LINES = (".jsonl", ".ndjson")


def lineage_beside(journal: Path) -> Path:
    """Return the file that says where the values of a table come from."""
    return journal.with_name(journal.name + ".lineage")


def further_table(output: Path, name: str) -> Path:
    """Return the path of a further table: beside the rows' table, in the same format."""
    return output.with_name(f"{output.stem}.{name}{output.suffix}")


class WrittenTables:
    """Writes the tables of a run. Raises `InputError` for an output that cannot be it, before anything is asked."""

    def __init__(self, workflow: Workflow, output: Path | None, table: RunTable, journal: Path) -> None:
        self._workflow, self._output = workflow, output
        if output is None:
            return
        suffix_of(output)
        if output.exists():
            if any(map(output.samefile, table.paths)):
                raise InputError(f"{output} is the table itself, or a part of it", hint=f"choose {OTHER}")
            if not journal.exists():
                hint = f"choose {OTHER}, or move the file"
                raise InputError(f"{output} exists and has no journal of a workflow beside it", hint=hint)

    def write(
        self,
        spool: OutcomeSpool,
        rows: int,
        run: Scope,
        journal: Path,
        marks: Mapping[int, Mapping[str, bool]] | None = None,
    ) -> dict[str, str]:
        """Write all tables; return the further ones' paths by name. Raises `WorkflowComposerError`.

        ``marks`` say by row what of it is right.
        """
        self._write_lineage(spool, rows, lineage_beside(journal), marks or {})
        if self._output is None:
            return {}
        columns = [*self._workflow.output, STATE, ERRORS]
        own = frozenset(self._workflow.output)
        whole = suffix_of(self._output) in _LINES
        TableOutput(columns, lambda: self._rows(spool, rows, whole=whole), answers=own | {ERRORS}).write(self._output)
        written = {}
        for name, found in self.further(run).items():
            path = further_table(self._output, name)
            names = list(dict.fromkeys(key for row in found for key in row)) or ["value"]
            TableOutput(names, lambda found=found: found, answers=frozenset(names)).write(path)  # type: ignore[misc]  # bound now
            written[name] = str(path)
        return written

    def further(self, run: Scope) -> dict[str, list[Mapping[str, Any]]]:
        """Return the rows of the further tables by name."""
        return {name: _table_of(reading, run) for name, reading in self._workflow.tables.items()}

    def _rows(self, spool: OutcomeSpool, rows: int, *, whole: bool) -> Iterator[Mapping[str, Any]]:
        for number in range(rows):
            row = written_row(spool, number, self._workflow.output)
            yield row if whole else {**row, ERRORS: _BETWEEN.join(row[ERRORS])}

    def _write_lineage(self, spool: OutcomeSpool, rows: int, path: Path, marks: Mapping[int, Mapping[str, bool]]) -> None:
        try:
            with replacing(path, mode=0o600) as file:
                for number in range(rows):
                    data = spool.get(number)
                    if data is not None:
                        graded = {"graded": marks[number]} if number in marks else {}
                        file.write(encoded(lineage_of(number, data) | graded))
        except OSError as error:
            raise unwritable(path, error, other=OTHER) from error


def written_row(spool: OutcomeSpool, number: int, columns: Iterable[str]) -> dict[str, Any]:
    """Return a row of the output: its columns, its state and the list of its errors."""
    data = spool.get(number)
    if data is None:
        return {**dict.fromkeys(columns), STATE: "stopped", ERRORS: ["not begun"]}
    return {**data["output"], STATE: data["state"], ERRORS: data["errors"]}


def lineage_of(number: int, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the values of a row come from, by step or place, for people: no values."""
    steps: dict[str, Any] = {}
    for name, result in data["steps"].items():
        told = {"state": result["state"], "origin": result.get("origin", "asked")}
        told |= {key: result.get(key, usual) for key, usual in _FACTS.items()}
        steps[name] = told | data["lineage"].get(name, {}) | ({"origin": told["origin"]} if "origin" in result else {})
    inner = {place: facts for place, facts in data["lineage"].items() if place not in steps}
    return {"row": number + 1, "id": data["row"], "state": data["state"], "steps": {**steps, **inner}}


_FACTS = {"model": "", "attempts": 0, "cost": 0.0, "seconds": 0.0}


def _table_of(reading: Reading, run: Scope) -> list[Mapping[str, Any]]:
    """Return the rows of a further table: those of a list of objects, or one for each value."""
    try:
        value = reading.evaluate(run)
    except ValueFault:
        return []
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [one if isinstance(one, dict) else {"value": one} for one in values]
