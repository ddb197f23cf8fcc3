"""What a run begins with: a workflow, whatever it is given as, and the rows of a table or of a program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.batch.asking.table_output import plain
from workflow_composer.batch.datasets.table import Table, TableRow, read_table
from workflow_composer.errors import InputError, WorkflowFileError, nearest
from workflow_composer.types import EMPTY
from workflow_composer.workflows.building import WorkflowBuilder
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.definition.model import Workflow
from workflow_composer.workflows.programs.presence import refuse_missing

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.workflows.step_kinds import StepKind


def loaded(
    file: Path, table: Table | GivenRows | None, config: StrategyConfig, kinds: Mapping[str, StepKind] = EMPTY
) -> Workflow:
    """Load a workflow and check it against a profile and a table. Rows of JSON lines may have more columns than the first.

    ``kinds`` as for `load_workflow`. Raises `WorkflowFileError`.
    """
    try:
        columns = None if table is None else list(table.names)
        return refuse_missing(load_workflow(file, config=config, columns=columns, kinds=kinds))
    except WorkflowFileError:
        if table is None:
            raise
        every = dict.fromkeys(name for row in table.rows() for name in row.values)
        if every.keys() <= set(table.names):
            raise
        columns = [*dict.fromkeys([*table.names, *every])]
        return refuse_missing(load_workflow(file, config=config, columns=columns, kinds=kinds))


class GivenRows:
    """Mappings as a table. ``names`` are the keys of all of them. Raises `InputError` for what is no mapping of names."""

    name = "rows"
    paths: Sequence[Path] = ()
    is_typed = True

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
            raise InputError(f"rows is a {type(rows).__name__}", hint="give a list of mappings, or the path of a table")
        self._rows: list[dict[str, Any]] = []
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
                hint = "give a list of mappings from columns to values; for a DataFrame, frame.to_dict('records')"
                raise InputError(f"row {number} is a {type(row).__name__}, not a mapping of columns", hint=hint)
            self._rows.append(dict(row))
        self.names = tuple(dict.fromkeys(name for row in self._rows for name in row))

    def count(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def rows(self) -> Iterator[TableRow]:
        """Yield the rows in order."""
        return (TableRow(number, f"row {number + 1}", values) for number, values in enumerate(self._rows))

    def check(self, inputs: Iterable[str]) -> None:
        """Raise `InputError` if a value of these columns is no JSON data, a date, a decimal or bytes."""
        for number, row in enumerate(self._rows, 1):
            for name in inputs:
                try:
                    json.dumps(plain(row.get(name)))
                except (TypeError, ValueError, RecursionError):
                    found = type(row[name]).__name__
                    hint = "give texts, numbers, truth values, lists and mappings; of NumPy's values, value.tolist()"
                    raise InputError(f"row {number}: {name!r} is a {found}, not JSON data", hint=hint) from None


def opened(
    workflow: Any,
    rows: str | Path | Iterable[Mapping[str, Any]],
    config: StrategyConfig,
    kinds: Mapping[str, StepKind] = EMPTY,
) -> tuple[Workflow, Table | GivenRows]:
    """Return a workflow (of a path, a `WorkflowBuilder` or itself), checked against a profile and its rows, and the rows.

    Nothing is called. Raises `InputError` for rows that cannot be read; for the workflow `WorkflowFileError` and
    `ProfileNotFound`.
    """
    table = read_table(rows, asks=False) if isinstance(rows, (str, Path)) else GivenRows(rows)
    if isinstance(workflow, WorkflowBuilder):
        made = workflow.build(config, columns=_columns(table), kinds=kinds)
    elif isinstance(workflow, Workflow):
        made = workflow
        _require(made, _columns(table))
    elif isinstance(workflow, (str, Path)):
        made = loaded(Path(workflow), table if table.names else None, config, kinds)
    else:
        hint = "give the path of its file, a WorkflowBuilder, or what its build() returns"
        raise InputError(f"{type(workflow).__name__} is no workflow", hint=hint)
    if isinstance(table, GivenRows):
        table.check(made.inputs)
    return made, table


def _columns(table: Table | GivenRows) -> list[str] | None:
    """Return the columns of all rows; None where there is no row to tell."""
    if isinstance(table, GivenRows) or not table.is_typed:
        return list(table.names) or None
    return list(dict.fromkeys([*table.names, *(name for row in table.rows() for name in row.values)]))


def _require(workflow: Workflow, columns: Sequence[str] | None) -> None:
    for name in workflow.inputs:
        if columns is not None and name not in columns:
            hint = nearest(name, columns) or f"the rows have: {', '.join(map(repr, columns[:12]))}"
            raise InputError(f"workflow {workflow.name}: the rows have no column {name!r}", hint=hint)
