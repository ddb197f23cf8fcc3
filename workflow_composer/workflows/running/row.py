"""The steps of one row, each as soon as what it reads is there."""

from __future__ import annotations

from workflow_composer.workflows.definition.model import Workflow
from workflow_composer.workflows.running.results import RowOutcome
from workflow_composer.workflows.running.world import RowInputs, World


async def run_row(workflow: Workflow, row: RowInputs, world: World) -> RowOutcome:
    """Run the row's steps and return what became of them. A failure is part of the outcome and raises nothing."""
    raise NotImplementedError
