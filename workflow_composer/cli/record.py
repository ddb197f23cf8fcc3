"""``record``: ask every tier every question of a data set, and keep the answers with their log-probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from workflow_composer.cli.options import (
    common_options,
    context_option,
    examples,
    finite,
    run_budget_option,
    strategy_option,
)
from workflow_composer.cli.state import State


@click.command(
    epilog=examples(
        "-s development record --datasets problems --data-dir data --limit 500 -o answers.jsonl",
        "calibrate --replay answers.jsonl --alpha 0.1 --delta 0.1 -o certificate.json",
    )
)
@click.option("--datasets", required=True, multiple=True, metavar="NAME", help="Data sets with labels; may be repeated.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default="data", show_default=True, help="Folder of the data sets."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The recording (JSONL).")
@click.option("--tiers", multiple=True, metavar="NAME", help="Tiers or models; may be repeated. Default: all tiers.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows of each data set.")
@click.option("--skip", type=click.IntRange(min=0), default=0, metavar="N", help="Leave the first N rows out.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="Of every answer.")
@click.option(
    "--top-logprobs", type=click.IntRange(0, 20), default=5, show_default=True, help="Alternatives kept beside each token."
)
@click.option("--no-logprobs", is_flag=True, help="Ask for no log-probabilities: some servers have none.")
@context_option
@click.option("--system", metavar="TEXT", help="System message, put in front of every question.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Most tokens of an answer.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    metavar="DOLLARS",
    help="Most for an answer.",
)
@run_budget_option
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Most time for an answer.")
@click.option(
    "--in-flight", type=click.IntRange(1, 10_000), default=16, show_default=True, metavar="N", help="Answers at a time."
)
@strategy_option
@common_options
@click.pass_context
def record(context: click.Context, /, **options: Any) -> None:
    """Record every tier's answers to data sets, graded and with log-probabilities.

    A recording is what `calibrate` learns from, and what `execute --replay` plays back (docs/recordings.md). Every answer is
    kept as soon as it has come: after an interruption the same command goes on where it stopped. What the answers in the
    recording have cost counts for --run-budget; answers that failed are not kept, and count for their own run only. Exit
    codes: 0 done; 1 some answers failed; 2 wrong usage or input; 6 the budget of the run is used up.
    """
    from workflow_composer.cli.recording import Recording

    context.exit(Recording(context.ensure_object(State), **options).run())
