"""``workflow diff``: what differs between two runs."""

from __future__ import annotations

from pathlib import Path

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.state import State


@click.command("diff", epilog=examples("workflow diff before.csv after.csv"))
@click.argument("first", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("second", metavar="OTHER", type=click.Path(path_type=Path))
@common_options
@click.pass_obj
def diff_command(state: State, /, first: Path, second: Path) -> int:
    """Compare two runs step by step: rows whose questions, answering models or states differ. Values are not printed.

    RUN and OTHER are the outputs' paths. Rows are matched by their inputs, wherever they stand in the tables.

    Exit codes: 0 the same; 1 something differs; 2 no such run.
    """
    from workflow_composer.cli.output import print_json, print_table
    from workflow_composer.workflows.keeping.earlier_run import EarlierRun, differing

    found = differing(EarlierRun.of(first), EarlierRun.of(second))
    if state.json:
        print_json(found)
    else:
        print_table(["step", "same", "other question", "other model", "other state"], found["table"])
        click.echo(f"rows only in {first}: {found['only_first']}; only in {second}: {found['only_second']}")
    return 1 if found["differs"] else 0
