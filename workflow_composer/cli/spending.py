"""What is said where the budget of a run counts."""

from __future__ import annotations

import click

from workflow_composer.batch.run.budget import Budget
from workflow_composer.batch.tally import Tally
from workflow_composer.cli.output import dollars
from workflow_composer.errors import RunBudgetReached


def tell_spent_before(budget: Budget, spent: float) -> None:
    """Say on standard error what earlier runs have spent of the budget of this one, where they have."""
    if budget.run is not None and spent:
        click.echo(f"earlier runs have spent {dollars(spent)} of the run's {dollars(budget.run)}", err=True)


def raise_if_over(budget: Budget, tally: Tally) -> None:
    """Raise `RunBudgetReached` where the run's budget has ended it."""
    if tally.stopped_by and budget.run is not None:
        raise RunBudgetReached(
            f"the run's budget of {dollars(budget.run)} is used up: {dollars(budget.spent)} spent, "
            f"{tally.done} of {tally.total} rows done",
            hint="run the same command with a higher --run-budget to go on",
        )
