"""``workflow test``: a workflow with scripted or recorded answers instead of models."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from workflow_composer.cli.options import common_options, examples, strategy_option
from workflow_composer.cli.output import print_json
from workflow_composer.cli.state import State
from workflow_composer.errors import InputError

_MOST_SHOWN = 50


@click.command(
    "test",
    epilog=examples(
        "workflow test triage.yaml --answers triage.test.yaml",
        "workflow test triage.yaml --answers triage.test.yaml --input notes.csv --json",
        "workflow test triage.yaml --run triaged.csv --input notes.csv",
    ),
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--answers", "script", type=click.Path(path_type=Path), help="The test: rows, answers by step, expect.")
@click.option(
    "--run",
    "recorded",
    metavar="OUTPUT",
    type=click.Path(path_type=Path),
    help="An earlier run, by its output: its answers stand for the models', its table is expected.",
)
@click.option("--input", "source", metavar="TABLE", help="The table, if the test has no rows of its own; the run's.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default="data", show_default=True, help="Folder of tables given by name."
)
@click.option("--show-private", is_flag=True, help="On a terminal, show differing values that are made of private inputs.")
@strategy_option
@common_options
@click.pass_obj
def test_command(state: State, /, **options: Any) -> int:
    """Run a workflow with scripted or recorded answers instead of models, and compare its table with what is expected.

    No model is called. Routing, forms, checks, retries, conditions, programs and functions are real. The test is a YAML
    file: `rows` (a list of rows), `answers` (for each step a text, a list of texts for its calls in turn, or a mapping from
    a text that the prompt contains to the answer; STEP.judge for the judge of a step) and `expect` (for each row the columns
    that matter).

    With --run, an earlier run answers: a question that is the same has its kept answer, also a program's; a model's question
    that has changed gets what the run was answered at that place, which then passes form and check as a model's answer does.
    What differs from the run's table is printed, and how many answers were given to another question.

    Exit codes: 0 as expected; 1 not; 2 wrong file, table or usage.
    """
    if (options["script"] is None) == (options["recorded"] is None):
        raise click.UsageError("give --answers TEST or --run OUTPUT")
    if options["recorded"] is not None and options["source"] is None:
        raise click.UsageError("--run needs the run's table: --input TABLE")
    with tempfile.TemporaryDirectory(prefix="workflow-") as place:
        target = Path(place) / "tested.jsonl"
        if options["script"] is None:
            return _replayed(state, options, target)
        return _scripted(state, options, target)


def _scripted(state: State, options: Mapping[str, Any], target: Path) -> int:
    from workflow_composer.cli.workflow.running import Rehearsal
    from workflow_composer.cli.workflow.scripted_models import FlowTest

    test = FlowTest.read(options["script"])
    source = options["source"]
    if source is None:
        if not test.rows:
            raise InputError("there are no rows to test", hint="give --input TABLE, or write rows: into the test")
        table = target.with_name("rows.jsonl")
        table.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in test.rows), encoding="utf-8")
        source = str(table)
    found, rows = Rehearsal(state, {**options, "source": source, "target": target}, test).rehearse()
    if state.json:
        print_json({"passed": not found, "differences": found, "rows": rows})
    else:
        for line in found:
            click.echo(line)
        told = "as expected" if test.expect else "done; the test expects nothing of them"
        differ = f"{len(found)} difference{'s' if len(found) > 1 else ''}"
        click.echo(f"{len(rows)} row{'s' if len(rows) > 1 else ''}: {differ if found else told}", err=True)
    return 1 if found else 0


def _replayed(state: State, options: Mapping[str, Any], target: Path) -> int:
    from workflow_composer.cli.workflow.recorded_run import RecordedRehearsal

    show = options["show_private"] and sys.stdout.isatty()
    found = RecordedRehearsal(state, {**options, "target": target}, options["recorded"], show=show).replay()
    if state.json:
        print_json(found.data)
        return 1 if found.differences else 0
    for line in found.differences[:_MOST_SHOWN]:
        click.echo(line)
    if len(found.differences) > _MOST_SHOWN:
        click.echo(f"and {len(found.differences) - _MOST_SHOWN:,} more; --json has all")
    for path, reasons in found.again.items():
        for why, number in reasons.items():
            click.echo(f"{path}: {number} times another question than in the run ({why})", err=True)
    for path, number in found.missing.items():
        click.echo(f"{path}: {number} questions of which the run has no answer", err=True)
    told = f"{len(found.differences)} differences" if found.differences else "as in the run"
    click.echo(f"{found.rows} rows: {told}", err=True)
    return 1 if found.differences else 0
