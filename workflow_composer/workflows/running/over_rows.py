"""Steps of the run: over all rows, or what follows from such steps."""

from __future__ import annotations

from collections.abc import AsyncIterable

from workflow_composer.workflows.definition.model import Step
from workflow_composer.workflows.running.results import RowOutcome, StepResult
from workflow_composer.workflows.running.world import World


async def run_over_rows(step: Step, rows: AsyncIterable[RowOutcome], world: World) -> StepResult:
    """Run a step of the run and return its result; ``rows`` are read, in their order, only if it is a `Reduce`.

    With ``group_by`` the value is a list with an object for each group, in the order of first appearance: ``group`` (the
    key), ``rows`` (their number) and ``value`` (None where the group failed).
    """
    raise NotImplementedError
