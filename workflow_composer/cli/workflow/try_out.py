"""``workflow try``: a few rows, their values, and what the whole table will probably take."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.options import common_options, examples, finite, run_budget_option, strategy_option
from workflow_composer.cli.output import dollars, print_json, print_table
from workflow_composer.cli.state import State
from workflow_composer.types import shortened

if TYPE_CHECKING:
    from workflow_composer.batch.datasets.table import Table
    from workflow_composer.workflows.definition.model import Workflow
    from workflow_composer.workflows.forecast import RowsExpected
    from workflow_composer.workflows.run import WorkflowRun

_WIDEST = 60


@click.command(
    "try",
    epilog=examples(
        "workflow try triage.yaml --input notes.csv --rows 5", "workflow try triage.yaml --input notes.csv --json"
    ),
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--input", "source", metavar="TABLE", required=True, help="The table: a path, or a name in --data-dir.")
@click.option("--rows", type=click.IntRange(1, 10_000), default=5, show_default=True, help="Rows, spread over the table.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default="data", show_default=True, help="Folder of tables given by name."
)
@click.option("--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="Calls at a time. Default: adaptive.")
@run_budget_option
@click.option("--row-budget", type=click.FloatRange(min=0, min_open=True), callback=finite, help="Budget of a row.")
@click.option("--show-private", is_flag=True, help="Show values that are made of private inputs, on a terminal only.")
@strategy_option
@common_options
@click.pass_obj
def try_command(state: State, /, **options: Any) -> int:
    """Do a few rows of a table, show their values, and forecast the whole table.

    Models are called and paid for. The forecast gives calls, tokens, dollars and seconds of each step: the mean of the rows
    tried, for all rows, with the spread that so few rows leave (two standard errors). Nothing is kept.
    """
    from workflow_composer.cli.workflow.running import Trial

    def report(run: WorkflowRun, table: Table, rows: list[Mapping[str, Any]], data: Mapping[str, Any]) -> None:
        _tell(state, run, table, rows, data, show=options["show_private"] and sys.stdout.isatty())

    with tempfile.TemporaryDirectory(prefix="workflow-") as place:
        made = Trial(state, {**options, "target": Path(place) / "tried.jsonl"}, report)
        return made.run()


def _tell(
    state: State, run: WorkflowRun, table: Table, rows: list[Mapping[str, Any]], data: Mapping[str, Any], *, show: bool
) -> None:
    from workflow_composer.workflows.forecast import MEASURES, expected

    found = expected((run.journal.entries(row.id) for row in run.source), table.count())
    hidden = set() if show else private_columns(run.workflow)
    shown = [{name: hidden_value(value) if name in hidden else value for name, value in row.items()} for row in rows]
    if state.json:
        steps = {path: {name: one.data for name, one in parts.items()} for path, parts in found.items()}
        print_json({"tried": len(rows), "rows": shown, "of": table.count(), "forecast": steps, "run": data})
        return
    names = list(shown[0]) if shown else []
    print_table(names, [[_cell(row[name]) for name in names] for row in shown])
    click.echo()
    lines = [[path, *(_spread(parts[name], name) for name in MEASURES)] for path, parts in found.items()]
    print_table(["step", *MEASURES], lines, title=f"all {table.count()} rows, by {len(rows)} tried")


def private_columns(workflow: Workflow) -> set[str]:
    """Return the columns of the output that are made of private inputs."""
    private = {name for name, kind in workflow.inputs.items() if kind == "private"}
    private |= {name for name, step in workflow.steps.items() if step.labels.private or step.labels.out}
    return {column for column, reading in workflow.output.items() if reading.reads & private} | (
        {"_errors"} if private else set()
    )


def hidden_value(value: Any) -> Any:
    """Return how long a private value is, in its place."""
    return value if value is None or value == [] else f"(private, {len(_cell(value))} characters)"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return shortened(" ".join(text.split()), _WIDEST)


def _spread(one: RowsExpected, name: str) -> str:
    def told(value: float) -> str:
        return dollars(value) if name == "dollars" else f"{value:,.0f}"

    if one.least is None or one.most is None or one.least == one.most:
        return told(one.mean)
    return f"{told(one.mean)} ({told(one.least)} to {told(one.most)})"
