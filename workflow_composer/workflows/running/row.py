"""The steps of one row, and what has become of the row."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping

from workflow_composer.workflows.definition.model import Workflow
from workflow_composer.workflows.running.one_question import Spot
from workflow_composer.workflows.running.results import CHEAPER, RowOutcome, RowState, Scope, StepResult
from workflow_composer.workflows.running.steps import output_of, read_by, run_steps, steps_behind
from workflow_composer.workflows.running.world import RowInputs, World

_SHOWN = 5
"""Items that a row's errors name of one step."""
_WORST: tuple[RowState, ...] = ("failed", "stopped", "waiting", "partial", "done")


async def run_row(workflow: Workflow, row: RowInputs, world: World) -> RowOutcome:
    """Run the row's steps and return what became of them. A failure is part of the outcome and raises nothing.

    Steps that read a step of the run without a result in ``world.run_results``, through others too, are not begun.
    """
    plain = Scope(row.inputs, world.run_results)
    if row.fault:
        empty = dict.fromkeys(workflow.output)
        return RowOutcome(row=row.id, state="failed", steps={}, scope=plain, errors=(row.fault,), output=empty)
    pending = _pending(workflow, world.run_results)
    order = [name for name in workflow.order if workflow.steps[name].level == "row" and name not in pending]
    deadline = workflow.row_deadline
    spot = Spot(
        world=world,
        row=row.id,
        purse=world.purse.part(workflow.row_budget),
        folder=workflow.folder,
        ends=math.inf if deadline is None else asyncio.get_running_loop().time() + deadline,
    )
    results = await run_steps(workflow.steps, order, plain, spot)
    scope = Scope(row.inputs, {**world.run_results, **results})
    output, faults = output_of(workflow.output, _with_pending(scope, pending))
    needed = [results[name] for name in steps_behind(workflow.steps, workflow.output) if name in results]
    errors = [f"{name}: {told}" for name, result in results.items() if (told := _error_of(result))]
    return RowOutcome(
        row=row.id,
        state=state_of(needed, faulty=bool(faults)),
        steps=results,
        scope=scope,
        errors=(*errors, *faults),
        output=output,
        pending=pending,
    )


def _pending(workflow: Workflow, ended: Mapping[str, StepResult]) -> frozenset[str]:
    """Return the row's steps that wait for a step of the run."""
    found: set[str] = {name for name, step in workflow.steps.items() if step.level == "run" and name not in ended}
    for name in workflow.order:
        if workflow.steps[name].level == "row" and read_by(workflow.steps[name]) & found:
            found.add(name)
    return frozenset(name for name in found if workflow.steps[name].level == "row")


def _with_pending(scope: Scope, pending: frozenset[str]) -> Scope:
    """Return the names with the steps that wait as not run, so that no output takes their default yet."""
    waiting = {name: StepResult(state="not_run", reason="waits for a step over all rows") for name in pending}
    return Scope(scope.plain, {**scope.results, **waiting})


def state_of(needed: list[StepResult], *, faulty: bool = False) -> RowState:
    """Return the state of a row whose output needs these steps; ``faulty``: a column of it could not be made."""
    states = {_state(result) for result in needed} | ({"partial"} if faulty else set())
    return next((state for state in _WORST if state in states), "done")


def _state(result: StepResult) -> RowState:
    if result.state == "failed":
        return "failed"
    if result.kind == "stopped":
        return "stopped"
    if result.state == "waiting":
        return "waiting"
    return "partial" if result.state == "withheld" or next(_tolerated(result), None) else "done"


def _tolerated(result: StepResult) -> Iterator[StepResult]:
    """Yield what failed of a step, its items and its inner steps, and was taken as null."""
    if result.state == "skipped" and result.kind is not None:
        yield result
    for one in (*result.items, *result.inner.values()):
        yield from _tolerated(one)


_LOW = "cheaper: only its first models were asked, because the budget got low (--redo cheaper asks all)"


def _is_cheaper(result: StepResult) -> bool:
    return bool(result.counts.get(CHEAPER)) or any(map(_is_cheaper, (*result.items, *result.inner.values())))


def _error_of(result: StepResult) -> str:
    """Return what a row's errors say of a step; empty: nothing."""
    if result.origin == "default" and result.state == "done":
        return f"the default stands for it: {result.reason}"
    if result.state in ("failed", "withheld", "not_run") or (result.state == "skipped" and result.kind is not None):
        return result.reason
    told = [_LOW] if _is_cheaper(result) else []
    for at, item in enumerate(result.items, 1):
        if item.kind is not None and item.state in ("skipped", "done"):
            what = "the default stands for item" if item.state == "done" else "item"
            told.append(f"{what} {at} of {len(result.items)}: {item.reason}")
    more = f" (and {len(told) - _SHOWN:,} more)" if len(told) > _SHOWN else ""
    return "; ".join(told[:_SHOWN]) + more
