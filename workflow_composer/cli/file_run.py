"""``generate --input``: what is printed about a file of rows that is answered."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.batch.run.budget import Budget
from workflow_composer.batch.run.files import FileRun, Printed
from workflow_composer.cli.decisions import DecisionLog
from workflow_composer.cli.interrupt import run_stoppable
from workflow_composer.cli.output import dollars, percent, print_json
from workflow_composer.cli.progress import progress_for
from workflow_composer.cli.spending import raise_if_over, tell_spent_before
from workflow_composer.cli.state import State
from workflow_composer.cli.unread import ENDING, tell_unread

if TYPE_CHECKING:
    from workflow_composer.batch.run.answer_file import AnswerFile

SOME_FAILED = 1


def answer_file(
    state: State,
    source: Path,
    target: Path | None,
    fields: Mapping[str, Any],
    *,
    concurrency: int | None,
    limit: int | None,
    budget: Budget,
) -> int:
    """Answer the rows of ``source``; return the exit code. Raises `InputError` before the first row is sent."""
    run = FileRun(source, fields, limit=limit, environ=state.environ)
    if target is None:
        _answer(state, run, Printed(sys.stdout.buffer, "standard output"), concurrency, budget)
    else:
        with run.opened(target) as file:
            tell_spent_before(budget, run.tally.cost)
            if not run.is_done:
                _answer(state, run, file, concurrency, budget)
    _sum_up(state, run, target)
    raise_if_over(budget, run.tally)
    return SOME_FAILED if run.tally.errors else 0


def _answer(state: State, run: FileRun, file: AnswerFile | Printed, concurrency: int | None, budget: Budget) -> None:
    state.log = log = DecisionLog()
    orchestrator, tally = state.open(state, None), run.tally
    contexts = None
    if run.rows.have_contexts or orchestrator.config.task_contexts:
        from workflow_composer.snapshot import contexts_of

        contexts = contexts_of(orchestrator.config, state.environ)

    async def work(stop: asyncio.Event) -> None:
        async with orchestrator:
            await run.answer(
                orchestrator.agenerate,
                file,
                contexts=contexts,
                concurrency=concurrency,
                budget=budget,
                progress=progress,
                stop=stop,
            )

    def told() -> str:
        how = (
            "run it with --output to be able to go on"
            if isinstance(file, Printed)
            else "run the same command again to go on"
        )
        return f"{tally.done} of {tally.total} rows done, {dollars(tally.cost_now)}; {how}"

    with log, progress_for(tally) as progress:
        run_stoppable(work, told)


def _sum_up(state: State, run: FileRun, target: Path | None) -> None:
    tally = run.tally
    if state.json:
        summary = {
            "rows": tally.total,
            "sha256": run.rows.sha256,
            "answered": tally.answered,
            "earlier": tally.earlier,
            "errors": tally.errors,
            "graded": tally.graded,
            "accuracy": tally.accuracy,
            "unreadable": tally.unreadable,
            "cut_off": tally.cut_off,
            "cost": tally.cost_now,
            "seconds": round(tally.seconds, 3),
        }
        print_json(summary, err=target is None)
        return
    parts = [f"{tally.total} rows"]
    if tally.earlier:
        parts.append(f"{tally.earlier} answered before")
    parts.append(f"{tally.errors} errors")
    if tally.accuracy is not None:
        parts.append(f"accuracy {percent(tally.accuracy)} of {tally.graded}")
    parts += [f"cost {dollars(tally.cost_now)}", f"{tally.seconds:.1f} s"]
    click.echo(", ".join(parts), err=True)
    tell_unread(tally.unreadable, tally.graded, cut_off=tally.cut_off, remedy=ENDING)
    if tally.errors and target is not None:
        click.echo("hint: run the same command again to try the rows with errors again", err=True)
