"""``regrade``: read, compare and vote over the kept answers of a run again, without a call."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from workflow_composer.answers.form import Comparison
from workflow_composer.cli.options import allow_code_option, common_options, examples
from workflow_composer.cli.output import percent, print_json
from workflow_composer.cli.state import State
from workflow_composer.plan import Measure

if TYPE_CHECKING:
    from workflow_composer.batch.keeping.kept_runs import KeptRun
    from workflow_composer.batch.keeping.regrading import Counts, Regraded
    from workflow_composer.plan import Voting


@click.command(
    epilog=examples(
        "regrade results/problems --extract boxed --extract line",
        "regrade answers.jsonl --compare text",
        "regrade results/problems/mv_small_k8_t0.7 --accept 0.6 -o stricter",
    )
)
@click.argument("run", type=click.Path(path_type=Path, exists=True), metavar="RUN")
@click.option("--extract", multiple=True, metavar="HOW", help="How to extract final answers: boxed, json:FIELD, ...")
@click.option("--compare", type=click.Choice(get_args(Comparison)), help="How to compare answers.")
@click.option("--measure", type=click.Choice(get_args(Measure)), help="Measure of a vote's confidence.")
@click.option(
    "--accept", type=click.FloatRange(0, 1), metavar="X", help="Lowest confidence at which a tier's vote is accepted."
)
@click.option("--vote-by", type=click.Choice(["answer"]), help="Compare final answers, whatever grouped the votes before.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for the new results. Default: `regraded` in the run's folder, or beside its file.",
)
@allow_code_option
@common_options
@click.pass_context
def regrade(context: click.Context, /, run: Path, output: Path | None, **options: Any) -> None:
    """Read, compare and vote over the kept answers of a run again, without a call.

    RUN is what `execute` (a folder), `generate`, `record` or `ask` (a file) wrote with texts, the default. What is not given
    is as in the run. The new results and reports go into a folder of their own; the run's files are only read. The samples
    are those that were drawn: rows that would now ask a further tier keep the best answer there is, and are counted.

    Exit codes: 0 done; 2 wrong usage, or texts or labels were not kept.
    """
    from workflow_composer.batch.keeping.kept_runs import REGRADED, kept_runs
    from workflow_composer.batch.keeping.regrading import regrade as read_again
    from workflow_composer.batch.keeping.regrading import regrade_recording, regraded_reports
    from workflow_composer.config.named_code import check_code_of

    state = context.ensure_object(State)
    folder = output or (run / REGRADED if run.is_dir() else run.with_name(f"{run.stem}.{REGRADED}"))
    kept = kept_runs(run)
    for each in () if options["extract"] else kept:  # whoever gives a run to others decides what it names
        check_code_of({"extract": each.voting.form.extract}, str(each.path), state.environ)
    found = [
        asyncio.run(read_again(each, _voting(each, options), folder / each.name if each.name else folder)) for each in kept
    ]
    if kept[0].kind == "record":
        asyncio.run(regrade_recording(run, _voting(kept[0], options), folder))
    reports = list(regraded_reports(found, folder))
    if state.json:
        print_json([_plain(regraded) for regraded in found])
        return
    for regraded in found:
        click.echo(_told(regraded, run))
    click.echo(f"report: {', '.join(map(str, reports))}", err=True)


def _voting(run: KeptRun, options: dict[str, Any]) -> Voting:
    """Return the votes' settings of a run with the options given."""
    voting = run.voting
    form = voting.form
    if options["extract"]:
        form = replace(form, extract=tuple(options["extract"]))
    if options["compare"]:
        form = replace(form, compare=options["compare"])
    given = {"measure": options["measure"], "target": options["accept"], "by": options["vote_by"]}
    return replace(voting, form=form, **{name: value for name, value in given.items() if value is not None})


def _told(found: Regraded, run: Path) -> str:
    """Return the result of one run as one line."""
    name = found.run.name or str(run)
    parts = [f"{found.rows} rows"]
    if found.after.graded or found.before.graded:
        parts.append(f"accuracy {percent(found.before.accuracy)} -> {percent(found.after.accuracy)}")
    parts.append(f"unreadable {found.before.unreadable} -> {found.after.unreadable}")
    parts.append(f"{found.changed} answers changed")
    if found.further:
        parts.append(f"{found.further} rows would have asked a further tier")
    return f"{name}: {'; '.join(parts)}"


def _plain(found: Regraded) -> dict[str, Any]:
    return {
        "run": str(found.run.path),
        "name": found.run.name,
        "rows": found.rows,
        "before": _counts(found.before),
        "after": _counts(found.after),
        "changed": found.changed,
        "further": found.further,
        "folder": str(found.journal.parent),
    }


def _counts(counts: Counts) -> dict[str, Any]:
    return {"graded": counts.graded, "accuracy": counts.accuracy, "unreadable": counts.unreadable}
