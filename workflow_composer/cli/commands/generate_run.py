"""``generate --input``: answering the rows of a file, and the printed summary."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.batch.run.file_run import FileRun, Printed
from workflow_composer.batch.run.runner import RunBudget
from workflow_composer.cli.interrupt import run_stoppable
from workflow_composer.cli.output import (
    ENDING,
    code_of,
    cost_text,
    known_cost,
    percent,
    print_json,
    tell_no_price,
    tell_unread,
)
from workflow_composer.cli.progress import (
    DecisionLog,
    Warned,
    doubting,
    part_of_budget,
    progress_for,
    raise_if_over,
    shard_of,
    tell_spent_before,
    tell_unlimited,
)
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.batch.datasets.columns import Columns
    from workflow_composer.batch.run.answer_file import AnswerFile


def answer_file(
    state: State,
    source: Path,
    target: Path | None,
    fields: Mapping[str, Any],
    *,
    concurrency: int | None,
    limit: int | None,
    budget: RunBudget,
    columns: Columns | None = None,
    keep: tuple[str, ...] = (),
    shard: str | None = None,
    no_texts: bool = False,
) -> int:
    """Answer the rows of ``source``; return the exit code. Raises `InputError` for invalid rows, before any is sent."""
    part = shard_of(shard, state.environ)
    run = FileRun(
        source, fields, limit=limit, environ=state.environ, columns=columns, keep=keep, shard=part, keep_texts=not no_texts
    )
    if not state.json:
        click.echo(f"{source}: {run.rows.table.describe()}", err=True)
    if target is None:
        _answer(state, run, Printed(sys.stdout.buffer, "standard output"), None, concurrency, budget)
    else:
        budget = part_of_budget(budget, part)
        with run.opened(target) as file:
            tell_spent_before(budget, run.tally.cost)
            if not run.is_done:
                _answer(state, run, file, target, concurrency, budget)
            if not run.tally.stopped_by:
                asyncio.run(run.finish(file))
        target = run.target_of(target)
    _sum_up(state, run, target)
    tell_unlimited(budget, run.tally)
    raise_if_over(budget, run.tally)
    return code_of([run.tally])


def _answer(
    state: State,
    run: FileRun,
    file: AnswerFile | Printed,
    target: Path | None,
    concurrency: int | None,
    budget: RunBudget,
) -> None:
    state.log = log = DecisionLog(state.log_file)
    orchestrator, tally = state.open(state, None), run.tally
    if target is not None:
        try:
            run.bind(orchestrator.config, target)
        except BaseException:
            orchestrator.close()
            raise
    contexts = None
    if run.rows.have_contexts or orchestrator.config.task_contexts:
        from workflow_composer.runtime.snapshot import contexts_of

        contexts = contexts_of(orchestrator.config, state.environ)

    warned = Warned(orchestrator.agenerate)

    async def work(stop: asyncio.Event) -> None:
        async with orchestrator:
            await run.answer(
                warned,
                file,
                contexts=contexts,
                concurrency=concurrency,
                budget=budget,
                progress=progress,
                stop=stop,
                go_on=doubting(progress, ENDING),
            )

    def told() -> str:
        how = "use --output to be able to resume" if isinstance(file, Printed) else "run the same command again to resume"
        spent = cost_text(tally.cost_now, tally.unpriced_now)
        return f"{tally.done} of {tally.total} rows done, cost {spent}; {how}"

    with log, progress_for(tally) as progress:
        run_stoppable(work, told)
    warned.tell()


def _sum_up(state: State, run: FileRun, target: Path | None) -> None:
    tally = run.tally
    if state.json:
        summary = {
            "rows": tally.total,
            "columns": run.rows.table.describe(),
            "sha256": run.rows.sha256,
            "answered": tally.answered,
            "earlier": tally.earlier,
            "errors": tally.errors,
            "graded": tally.graded,
            "accuracy": tally.accuracy,
            "unreadable": tally.unreadable,
            "cut_off": tally.cut_off,
            "cost": known_cost(tally.cost_now, tally.unpriced_now),
            "cost_unknown_rows": tally.unpriced_now,
            "seconds": round(tally.seconds, 3),
        }
        print_json(summary, err=target is None)
        return
    parts = [f"{tally.total} rows"]
    if tally.earlier:
        parts.append(f"{tally.earlier} answered earlier")
    parts.append(f"{tally.errors} errors")
    if tally.accuracy is not None:
        parts.append(f"accuracy {percent(tally.accuracy)} of {tally.graded}")
    parts += [f"cost {cost_text(tally.cost_now, tally.unpriced_now)}", f"{tally.seconds:.1f} s"]
    click.echo(", ".join(parts), err=True)
    tell_no_price(tally.cost_now, tally.unpriced_now)
    tell_unread(tally.unreadable, tally.graded, cut_off=tally.cut_off, remedy=ENDING)
    if tally.errors and target is not None:
        click.echo("hint: run the same command again to retry the failed rows", err=True)
