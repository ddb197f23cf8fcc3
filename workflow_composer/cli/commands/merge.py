"""``merge``: join the shards of a run into one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.batch.keeping.merging import Merged

SOME_FAILED = 1


@click.command(
    epilog=examples(
        "generate --input questions.jsonl --output answers.jsonl --shard slurm",
        "merge answers.jsonl",
        "merge results",
    )
)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--partial", is_flag=True, help="Join shards that have not finished; run the same command later for the rest.")
@click.option("--remove-shards", is_flag=True, help="Delete the shards' files after they were joined.")
@common_options
@click.pass_context
def merge(context: click.Context, run: Path, partial: bool, remove_shards: bool) -> None:
    """Join the shards of a run (--shard) into one, in the order of the input.

    RUN is the --output of `generate` (a file) or of `execute` (a folder, with all data sets and policies in it). Every shard
    must be there, must belong to the same run and must have finished; otherwise it is named, and nothing is written. The
    joined run is like one without shards: the same command without --shard retries its failed rows and, for `execute`,
    writes the report. A merge that was interrupted can be run again.

    Exit codes: 0 done; 1 rows have failed or are missing; 2 wrong usage, or a shard is missing, foreign or unfinished.
    """
    state = context.ensure_object(State)
    found = _merged(run, partial=partial, remove=remove_shards)
    if state.json:
        print_json([_plain(each) for each in found])
    else:
        for each in found:
            click.echo(_told(each), err=True)
    context.exit(SOME_FAILED if any(each.failed or each.missing for each in found) else 0)


def _merged(run: Path, *, partial: bool, remove: bool) -> list[Merged]:
    from workflow_composer.batch.keeping.merging import JOURNAL, merge_answers, merge_journals, sharded_folders

    if not run.is_dir():
        return [merge_answers(run, partial=partial, remove=remove)]
    folders = sharded_folders(run) or [run]
    found = []
    for folder in folders:
        found.append(merge_journals(folder, partial=partial, remove=remove))
        from workflow_composer.batch.report.results import write_results

        write_results(folder / JOURNAL, folder, rows=found[-1].rows)
    return found


def _plain(found: Merged) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "shards": found.shards,
        "rows": found.rows,
        "failed": found.failed,
        "missing": found.missing,
    }


def _told(found: Merged) -> str:
    parts = [f"{found.path}: {found.rows} rows of {found.shards} shards"]
    if found.failed:
        parts.append(f"{found.failed} failed")
    if found.missing:
        parts.append(f"{found.missing} missing")
    return ", ".join(parts)
