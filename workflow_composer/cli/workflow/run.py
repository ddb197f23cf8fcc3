"""``workflow run``: a workflow over the rows of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from workflow_composer.cli.options import common_options, examples, finite, run_budget_option, strategy_option
from workflow_composer.cli.state import State

_MONEY = click.FloatRange(min=0, min_open=True)


@click.command(
    "run",
    epilog=examples(
        "workflow run triage.yaml --input notes.csv -o triaged.csv --run-budget 20",
        "workflow run triage.yaml --input notes.csv -o triaged.csv --redo summary",
    ),
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--input", "source", metavar="TABLE", required=True, help="The table: a path, or a name in --data-dir.")
@click.option(
    "-o",
    "--output",
    "target",
    required=True,
    type=click.Path(path_type=Path),
    help="The table to write: .csv, .tsv, .jsonl, .parquet. The journal is beside it: OUTPUT.journal.",
)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default="data", show_default=True, help="Folder of tables given by name."
)
@click.option("--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="Calls at a time. Default: adaptive.")
@run_budget_option
@click.option("--row-budget", type=_MONEY, callback=finite, metavar="DOLLARS", help="Budget of a row.")
@click.option("--rows", metavar="1,5-9", help="Ask only for these rows, counted from 1.")
@click.option("--from", "start", metavar="STEP", help="Do this step and all that follow anew.")
@click.option("--only", metavar="STEP", help="Ask for nothing but this step.")
@click.option(
    "--redo",
    metavar="STEP",
    help="Do this step anew; what follows is asked again where its answers differ. `cheaper`: what a low budget made so.",
)
@click.option(
    "--retry",
    type=click.Choice(["invalid", "refused", "cut_off"]),
    multiple=True,
    help="Also ask again what failed for this reason. Faults of servers are always tried again.",
)
@click.option(
    "--label",
    "labels",
    metavar="STEP=COLUMN",
    multiple=True,
    help="The table's column with the right answers of a step or an output column; the report says where rows go wrong.",
)
@click.option("--dry-run", is_flag=True, help="Call nothing: forecast the calls and the price of each step.")
@click.option("--yes", is_flag=True, help="Do not ask before answers that exist are asked for again.")
@strategy_option
@common_options
@click.pass_obj
def run_command(state: State, /, **options: Any) -> int:
    """Run a workflow over the rows of a table, or go on with a run.

    The output has the workflow's output columns, then `_state` and `_errors`: one row for each row of the input, in order.
    The whole file and the table's columns are checked before anything is asked. Answers are written to OUTPUT.journal as
    they arrive: after an interruption, or a change of the file, run the same command again; nothing is asked again but what
    has changed or failed. The journal is readable by its owner only; `workflow forget OUTPUT` removes it.

    Exit codes: 0 done; 1 some rows failed; 2 wrong file, table or usage: nothing was asked; 6 stopped at the budget: run the
    same command with a higher --run-budget to go on; 8 persons must answer: see `workflow answer`; 130 Ctrl-C.
    """
    from workflow_composer.cli.workflow.running import DryRun, RunSession

    return (DryRun if options["dry_run"] else RunSession)(state, options).run()
