"""``workflow test``: a workflow with scripted answers instead of models."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from workflow_composer.cli.options import common_options, examples, strategy_option
from workflow_composer.cli.output import print_json
from workflow_composer.cli.state import State
from workflow_composer.errors import InputError


@click.command(
    "test",
    epilog=examples(
        "workflow test triage.yaml --answers triage.test.yaml",
        "workflow test triage.yaml --answers triage.test.yaml --input notes.csv --json",
    ),
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--answers", "script", required=True, type=click.Path(path_type=Path), help="The test: rows, answers by step, expect."
)
@click.option("--input", "source", metavar="TABLE", help="The table, if the test has no rows of its own.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default="data", show_default=True, help="Folder of tables given by name."
)
@strategy_option
@common_options
@click.pass_obj
def test_command(state: State, /, **options: Any) -> int:
    """Run a workflow with scripted answers instead of models, and compare its table with what is expected.

    No model is called. Routing, forms, checks, retries, conditions, programs and functions are real. The test is a YAML
    file: `rows` (a list of rows), `answers` (for each step a text, a list of texts for its calls in turn, or a mapping from
    a text that the prompt contains to the answer; STEP.judge for the judge of a step) and `expect` (for each row the columns
    that matter).

    Exit codes: 0 as expected; 1 not; 2 wrong file, table or usage.
    """
    from workflow_composer.cli.workflow.running import Rehearsal
    from workflow_composer.cli.workflow.scripted_models import FlowTest

    test = FlowTest.read(options["script"])
    with tempfile.TemporaryDirectory(prefix="workflow-") as place:
        source = options["source"]
        if source is None:
            if not test.rows:
                raise InputError("there are no rows to test", hint="give --input TABLE, or write rows: into the test")
            table = Path(place) / "rows.jsonl"
            table.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in test.rows), encoding="utf-8")
            source = str(table)
        found, rows = Rehearsal(
            state, {**options, "source": source, "target": Path(place) / "tested.jsonl"}, test
        ).rehearse()
    if state.json:
        print_json({"passed": not found, "differences": found, "rows": rows})
    else:
        for line in found:
            click.echo(line)
        told = "as expected" if test.expect else "done; the test expects nothing of them"
        differ = f"{len(found)} difference{'s' if len(found) > 1 else ''}"
        click.echo(f"{len(rows)} row{'s' if len(rows) > 1 else ''}: {differ if found else told}", err=True)
    return 1 if found else 0
