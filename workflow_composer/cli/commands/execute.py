"""``execute``: answer data sets under batch policies or routing strings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click

from workflow_composer.answers.form import Comparison
from workflow_composer.cli.options import (
    column_options,
    columns_of,
    common_options,
    context_option,
    examples,
    finite,
    keep_option,
    run_budget_option,
    shard_option,
    stop_option,
    strategy_option,
    vote_by_option,
)
from workflow_composer.cli.state import State
from workflow_composer.plan import Drawing, Measure, Stopping

_OLD_NAME = "--strategies"
_LISTS = ("--policies", _OLD_NAME, "--routes", "--route", "--datasets")


class _WithLists(click.Command):
    """A command with multi-value options: ``--datasets one two`` or ``--datasets one --datasets two``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option's name before each of its values, as click requires."""
        return super().parse_args(ctx, spread(args))


class _Policies(click.Option):
    """An option whose old name works the same, and is shown nowhere."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Put the values of both names into one list, in the order of the command line."""
        super().add_to_parser(parser, ctx)
        parser.add_option(obj=self, opts=[_OLD_NAME], dest=self.name, action="append")


def spread(arguments: Sequence[str], lists: Sequence[str] = _LISTS) -> list[str]:
    """Repeat the option name before each value of the options in ``lists``.

    >>> spread(["--datasets", "a", "b", "--limit", "3"])
    ['--datasets', 'a', '--datasets', 'b', '--limit', '3']
    """
    found: list[str] = []
    current, values = "", 0
    for position, argument in enumerate(arguments):
        if argument == "--":
            return [*found, *arguments[position:]]
        if argument.startswith("-") and len(argument) > 1:
            current, values = (argument if argument in lists else ""), 0
        elif current and values:
            found.append(current)
            values += 1
        else:
            values += 1
        found.append(argument)
    return found


@click.command(
    cls=_WithLists,
    epilog=examples(
        "execute --routes mv_cascade_small_k8_t0.7_medium_k8_t0.7_large_k1_t0.0 --datasets problems --data-dir data",
        "execute --policies adaptive_k_sampling cost_aware_escalation entropy_aware_escalation \\\n"
        "      --probing-dataset openai_gsm8k:train --datasets openai_gsm8k gneubig_aime-1983-2024 --dry-run",
        "execute --routes small --datasets cases.csv --question-column Problem --label-column Gold",
        "execute --replay answers.jsonl.gz --routes mv_7B_k8_t0.7 --baselines",
    ),
)
@click.option(
    "--policies", cls=_Policies, multiple=True, metavar="NAME...", help="Batch policies; NAME:TIER if one takes a tier."
)
@click.option("--routes", "--route", "routes", multiple=True, metavar="ROUTE...", help="Routing strings or model names.")
@click.option("--datasets", multiple=True, metavar="NAME...", help="Data sets: paths or names; NAME:SPLIT selects a split.")
@column_options("question", "label", "choices", "id")
@click.option(
    "--probing-dataset", metavar="NAME", help="Data set for training the probe, which predicts each tier's success."
)
@click.option("--train-probe", is_flag=True, help="Only train the probe on --probing-dataset; answer nothing else.")
@click.option("--probe", type=click.Path(path_type=Path), help="Use a saved probe instead of training one.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default="data", show_default=True, help="Folder of the data sets."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="results", show_default=True, help="Folder for the results."
)
@click.option("--replay", type=click.Path(path_type=Path), help="Recorded answers (JSONL) instead of model calls.")
@click.option("--dry-run", is_flag=True, help="Print the planned routes and the estimated cost; call no model.")
@click.option("--baselines", is_flag=True, help="Also run every tier alone, greedily and by majority vote.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows of each data set.")
@click.option(
    "--probing-rows",
    type=click.IntRange(min=1),
    default=400,
    show_default=True,
    metavar="N",
    help="Number of rows for training the probe.",
)
@click.option(
    "--k",
    type=click.IntRange(2, 1024),
    default=8,
    show_default=True,
    help="Votes per tier, for policies with a fixed number.",
)
@click.option(
    "--k-max",
    type=click.IntRange(3, 1024),
    default=9,
    show_default=True,
    help="Maximum votes per tier, for adaptive policies.",
)
@click.option(
    "--target",
    type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Required probability that a planned majority is right.",
)
@click.option("--measure", type=click.Choice(get_args(Measure)), help="Measure of a vote's confidence.")
@click.option("--accept", type=float, metavar="X", help="Lowest confidence at which a tier's vote is accepted.")
@click.option("--stopping", type=click.Choice(get_args(Stopping)), help="Rule that ends a vote early.")
@click.option("--level", type=float, metavar="X", help="Parameter of the stopping rule.")
@click.option(
    "--draw",
    type=click.Choice(get_args(Drawing)),
    default="as_needed",
    show_default=True,
    help="Draw the fewest samples that could decide, or all at once (faster, more expensive).",
)
@click.option("--extract", multiple=True, metavar="HOW", help="How to extract final answers: boxed, json:FIELD, ...")
@vote_by_option
@click.option("--compare", type=click.Choice(get_args(Comparison)), help="How to compare answers.")
@context_option
@click.option("--system", metavar="TEXT", help="System message of every request.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Token limit of an answer.")
@stop_option
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    metavar="DOLLARS",
    help="Budget of one row.",
)
@run_budget_option
@shard_option
@keep_option
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Time limit of one row.")
@click.option(
    "--in-flight", type=click.IntRange(1, 10_000), metavar="N", help="Rows in flight. Default: adaptive, up to 512."
)
@click.option("--no-texts", is_flag=True, help="Omit the samples' texts from the results.")
@click.option("--texts", is_flag=True, hidden=True, expose_value=False, help="Keep the samples' texts (the default).")
@strategy_option
@common_options
@click.pass_context
def execute(context: click.Context, /, **options: Any) -> None:
    """Run data sets through cascades and batch policies, and compare them.

    Each policy assigns a routing string to every question of a data set; each row then runs its own cascade. Every
    finished row is written to a journal: after an interruption, the same command resumes. The output folder then contains,
    for each data set and policy, results.jsonl and results.parquet, and for each data set a report (report.md,
    report.html) that compares them; --baselines adds every tier alone to the comparison.

    Data sets are paths, or names of files in the data folder, in any format that docs/datasets.md describes. One line on
    standard error says which columns were taken. Rows with a label are graded; the samples' texts are kept with the
    extracted answers. --run-budget covers all data sets and policies of the command.

    Once 20 answers in a row could not be read, the run asks on a terminal whether to go on, and elsewhere prints a warning.
    A run with more than 5 % unreadable answers is not ranked in the report. Exit codes: 0 done; 1 some rows failed; 2 wrong
    usage or input; 6 the run budget is used up: run the same command with a higher one to resume; 7 more than 5 % of the
    graded answers of a run could not be read, or you ended it for that reason.
    """
    from workflow_composer.batch.run.preparation import Options
    from workflow_composer.cli.commands.execute_run import Execution

    state = context.ensure_object(State)
    _check_usage(options)
    if options["contexts"]:
        from workflow_composer.contexts.library import Library

        options["contexts"] = Library(environ=state.environ).pins(options["contexts"])
    columns = columns_of(options)
    context.exit(Execution(state, Options(**options, columns=columns)).run())


def _check_usage(options: dict[str, Any]) -> None:
    if options["train_probe"]:
        if options["probing_dataset"] is None or options["probe"] is not None or options["dry_run"]:
            raise click.UsageError("--train-probe needs --probing-dataset, and neither --probe nor --dry-run")
        return
    planned = options["policies"] or options["routes"] or options["baselines"] or options["dry_run"]
    if not planned:
        raise click.UsageError("specify --policies or --routes (or --baselines)")
    if not options["datasets"] and options["replay"] is None:
        raise click.UsageError("specify --datasets, or --replay with a recording")
