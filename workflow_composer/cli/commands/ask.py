"""``ask``: a prompt over the columns of a table, and the table with the answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from workflow_composer.cli.options import (
    context_option,
    debug_option,
    examples,
    finite,
    run_budget_option,
    strategy_option,
)
from workflow_composer.cli.state import State

_FIELDS = "--json"
_FLAG = "--json-summary"


class _WithFields(click.Command):
    """A command whose ``--json`` takes any number of fields: with none it is the flag that other commands have."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option's name before each field, as click requires."""
        found = spread_fields(args, os.path.exists)
        if _FIELDS in found:
            ctx.ensure_object(State).json_is_fields = True
        return super().parse_args(ctx, found)


def spread_fields(arguments: Sequence[str], is_file: Any = lambda name: False) -> list[str]:
    """Repeat ``--json`` before each of its fields; a file after it is the table, and ``--json`` alone is a flag.

    >>> spread_fields(["t.csv", "--json", "gene", "year:number", "-o", "out.csv"])
    ['t.csv', '--json', 'gene', '--json', 'year:number', '-o', 'out.csv']
    >>> spread_fields(["t.csv", "--choices", "a,b", "--json"])
    ['t.csv', '--choices', 'a,b', '--json-summary']
    """
    found: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*found, argument, *rest]
        if argument != _FIELDS:
            found.append(argument)
            continue
        fields = []
        while rest and not rest[0].startswith("-") and not is_file(rest[0]):
            fields.append(rest.pop(0))
        found += [part for field in fields for part in (_FIELDS, field)] or [_FLAG]
    return found


_MONEY = click.FloatRange(min=0, min_open=True)


@click.command(
    cls=_WithFields,
    epilog=examples(
        'ask abstracts.csv --prompt "Classify: {{ title }}\\n{{ abstract }}" --choices case,trial,review -o labelled.csv',
        "ask abstracts.csv --prompt-file extract.txt --schema variant.schema.json -o variants.parquet --try 5",
        'ask abstracts.csv --prompt "{{ abstract }}" --json gene year:number -o genes.jsonl --run-budget 5',
    ),
)
@click.argument("source", metavar="TABLE")
@click.option("--prompt", metavar="TEMPLATE", help="The prompt, with {{ column }} where values belong; \\n is a line break.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="Read the prompt from a file.")
@click.option("--system", metavar="TEXT", help="System message; follows the context.")
@click.option("--choices", multiple=True, metavar="A,B,...", help="The answer is one of these; may be repeated instead.")
@click.option("--schema", type=click.Path(path_type=Path), help="JSON Schema of the answer; its properties become columns.")
@click.option(
    _FIELDS,
    "json_fields",
    multiple=True,
    metavar="[FIELD...]",
    help="Fields of the answer, each a column: NAME, NAME:FORM.",
)
@click.option(_FLAG, "json_summary", is_flag=True, hidden=True, help="What --json without a field means.")
@click.option(
    "-o",
    "--output",
    "target",
    required=True,
    type=click.Path(path_type=Path),
    help="The new table: .csv, .tsv, .jsonl, .parquet.",
)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default="data", show_default=True, help="Folder of tables given by name."
)
@click.option("--keep", multiple=True, metavar="COLUMN,...", help="Columns to keep. Default: all.")
@click.option("--column", metavar="NAME", default="answer", show_default=True, help="Name of the answer's column.")
@click.option("--prefix", metavar="TEXT", default="", help="Put this before the names of all new columns.")
@click.option("--label-column", metavar="COLUMN", help="Column with the right answer: adds a confusion matrix.")
@click.option(
    "--try", "sample", type=click.IntRange(min=1), metavar="N", help="Ask N rows, print them, then ask whether to go on."
)
@click.option("--again", is_flag=True, help="Set the output's earlier answers aside and ask every row anew.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows.")
@click.option("-t", "--task", "task_type", metavar="TASK", help="Task type, as in the profile's task_routing.")
@click.option("-m", "--model", metavar="NAME", help="Role, tier, model or routing string to use instead of the task's.")
@context_option
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Token limit of an answer.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    callback=finite,
    metavar="T",
    help="Sampling temperature. Default: 0 on your own servers.",
)
@click.option(
    "--retries",
    "form_retries",
    type=click.IntRange(min=0),
    metavar="N",
    help="How often a model is asked again. Default: 2.",
)
@click.option("--timeout", type=_MONEY, callback=finite, metavar="SECONDS", help="Time limit of a row, including retries.")
@click.option("--budget", type=_MONEY, callback=finite, metavar="DOLLARS", help="Budget of a row.")
@run_budget_option
@click.option(
    "--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="Rows in flight. Default: adaptive, up to 512."
)
@click.option("--formulas", is_flag=True, help="Write cells that a spreadsheet would run as formulas unchanged (CSV).")
@click.option("--no-texts", is_flag=True, help="Keep neither prompts nor the votes' samples in the journal.")
@strategy_option
@debug_option
@click.pass_context
def ask(context: click.Context, /, source: str, target: Path, json_summary: bool, **options: Any) -> None:
    """Ask a prompt for every row of a table, and write the table with the answers.

    The prompt is a template over the columns: {{ title }}, {{ row["Article Title"] }}, {% if abstract %} ... {% endif %}.
    Names are checked, and every prompt is filled in, before the first call. --choices, --schema and --json say what an
    answer must be: fences, talk around an answer and the like are mended; for an answer without the form the model is asked
    again, and then the next tier. Without them the answer is free text.

    The output has all columns of the table and the new ones, in the order of the rows. A row without an answer has empty
    cells and the reason in `_error`. Answers are written to OUTPUT.journal as they arrive: after an interruption, run the
    same command again; it resumes and retries failed rows. The price is printed before the start. With --label-column a
    confusion matrix is printed at the end, and the wrong rows go to OUTPUT.report.md. --json alone prints the summary as
    JSON.

    Exit codes: 0 done; 1 some rows failed; 2 wrong usage or input; 6 the run budget is used up: run the same command with a
    higher --run-budget to resume; 7 too many answers cannot be read.
    """
    from workflow_composer.cli.commands.ask_run import AskSession, opened_run

    state = context.ensure_object(State)
    state.json = state.json or json_summary
    run = opened_run(source, options)
    context.exit(AskSession(state, run, target, options).run())
