"""A run of a workflow from Python: `ModelOrchestrator.run_workflow`, and what it returns."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workflow_composer.batch.asking.table_output import JOURNAL
from workflow_composer.batch.run.run_batch import Shown, whole_number
from workflow_composer.batch.run.runner import RunBudget
from workflow_composer.errors import InputError
from workflow_composer.workflows.building import WorkflowBuilder
from workflow_composer.workflows.definition.model import Workflow
from workflow_composer.workflows.keeping.written import written_row
from workflow_composer.workflows.opening import opened
from workflow_composer.workflows.run import ModelSource, RunOptions, WorkflowRun, nothing_served

if TYPE_CHECKING:
    from workflow_composer.batch.run.tally import Tally
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.workflows.keeping.outcomes import OutcomeSpool
    from workflow_composer.workflows.keeping.versions import ServedModels
    from workflow_composer.workflows.step_kinds import StepKind


class KnownModels(ModelSource, Protocol):
    """Who answers, and knows what plugins offer: a `ModelOrchestrator`."""

    @property
    def step_kinds(self) -> Mapping[str, StepKind]:
        """The kinds of steps that plugins offer, by name."""
        ...


AnyWorkflow = str | Path | Workflow | WorkflowBuilder
"""A workflow: its file's path, one that is built, or its builder."""
TableOrRows = str | Path | Iterable[Mapping[str, Any]]
"""The path of a table, or rows as mappings of columns to JSON data."""


class OutputRows(Sequence[dict[str, Any]]):
    """The rows of an output, read from a temporary file that is deleted with this object. For one thread at a time."""

    def __init__(self, spool: OutcomeSpool, number: int, columns: Sequence[str]) -> None:
        self._spool, self._number, self._columns = spool, number, columns
        weakref.finalize(self, spool.close)

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(self._number))]
        number = at + self._number if at < 0 else at
        if not 0 <= number < self._number:
            raise IndexError(f"there are {self._number} rows")
        return written_row(self._spool, number, self._columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowResult:
    """A run of a workflow. Iterating yields a dict for each row, in order: the output's columns, ``_state`` and ``_errors``.

    ``state`` is done, failed (some rows are), waiting (for people), or "stopped: budget" or "stopped: deadline"; ``counts``
    has the rows by state. ``cost`` (dollars) is that of all runs of the journal, ``cost_now`` and ``calls`` are of this
    one; ``kept`` answers came from the journal. ``journal`` and ``output`` are files, None where there is none.
    ``rows`` are the output's rows, ``tables`` those of the workflow's further tables. ``report`` is all that
    ``workflow run --json`` prints, step by step.
    """

    state: str
    counts: Mapping[str, int]
    cost: float
    cost_now: float
    calls: int
    kept: int
    seconds: float
    journal: Path | None
    output: Path | None
    rows: Sequence[dict[str, Any]]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    report: Mapping[str, Any]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        counted = ", ".join(f"{number} {state}" for state, number in self.counts.items() if number)
        return f"WorkflowResult({self.state!r}: {counted or 'no rows'}, calls={self.calls}, cost={self.cost})"


async def run_workflow(
    models: KnownModels,
    workflow: AnyWorkflow,
    rows: TableOrRows,
    *,
    output: str | Path | None = None,
    journal: str | Path | None = None,
    budget: Mapping[str, float] | None = None,
    concurrency: int | None = None,
    labels: Mapping[str, str] | None = None,
    progress: bool | Callable[[Tally], None] = False,
    served: Callable[[StrategyConfig], Awaitable[ServedModels]] = nothing_served,
) -> WorkflowResult:
    """Run a workflow over rows, or go on with a run: an answer in the journal is asked again only if its question differs.

    ``output`` is a table to write (.csv, .tsv, .jsonl, .parquet). ``journal`` keeps the answers, in a file whose name ends
    with ``.journal`` (None: the one beside the output; without either, nothing is kept). ``budget`` is ``{"row": dollars,
    "run": dollars}``, in place of the workflow's own; ``concurrency`` the most calls at a time (None: adaptive).
    ``labels`` has the rows' columns of right answers by step or output column; the report's ``accuracy`` then says at which
    step rows go wrong. ``progress``: True shows it on standard error, a function is called with the tally after each row.
    ``served``: see `WorkflowRun`; it is asked if answers are kept.

    A step's failure is part of its row, and raises nothing. Raises `InputError` for wrong arguments or rows, or if the
    journal is in use, `WorkflowFileError` with all faults of the workflow, and any exception of ``progress``. However the
    run ends, the journal has all answers.
    """
    limits, most = RunBudget.of(budget), whole_number("concurrency", concurrency, 1)
    options = RunOptions(concurrency=most, run_budget=limits.run, row_budget=limits.row, labels=dict(labels or {}))
    target, kept = (None if path is None else Path(path) for path in (output, journal))
    if kept is not None and not kept.name.endswith(JOURNAL):
        raise InputError(f"the journal {kept} has another ending", hint=f"name it {kept.name}{JOURNAL}")
    made, table = await asyncio.to_thread(opened, workflow, rows, models.config, models.step_kinds)
    show = Shown(sys.stderr, what="rows") if progress is True else progress or (lambda tally: None)
    with ExitStack() as stack:
        place = kept
        if kept is None and target is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="workflow-"))) / f"run{JOURNAL}"
        served = nothing_served if place is not kept else served
        run = stack.enter_context(WorkflowRun(made, table, target, models, options, journal=place, served=served))
        report = await run.run(progress=show)
        if isinstance(show, Shown):
            show.end()
        spool, tables = run.take_outcomes()
        found = OutputRows(spool, len(run.source), tuple(made.output))
    nothing_kept = kept is None and target is None
    data = report.data | ({"journal": ""} if nothing_kept else {})
    return WorkflowResult(
        state=report.state,
        counts={state: data[state] for state in ("done", "partial", "failed", "waiting", "stopped")},
        cost=report.cost,
        cost_now=report.cost_now,
        calls=report.calls,
        kept=report.kept,
        seconds=report.seconds,
        journal=None if nothing_kept else Path(report.journal),
        output=target,
        rows=found,
        tables=tables,
        report=data,
    )
