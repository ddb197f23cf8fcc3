"""Answering a file of rows: check the input, open the output, run, sum up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.batch import Batch, Record, Tally
from workflow_composer.cli.decisions import DecisionLog
from workflow_composer.cli.interrupt import Stopped
from workflow_composer.cli.journal import Journal
from workflow_composer.cli.output import dollars, percent, print_json
from workflow_composer.cli.progress import progress_for
from workflow_composer.cli.rows import Row, RowFile
from workflow_composer.cli.state import State
from workflow_composer.cli.unread import ENDING, tell_unread
from workflow_composer.errors import InputError, WorkflowComposerError
from workflow_composer.storage.lines import encoded

if TYPE_CHECKING:
    from workflow_composer.strategy import StrategyConfig

SOME_FAILED = 1


def answer_file(
    state: State, source: Path, target: Path | None, fields: Mapping[str, Any], *, concurrency: int, limit: int | None
) -> int:
    """Answer the rows of ``source``; return the exit code. Raises `InputError` before the first row is sent."""
    from workflow_composer.contexts.library import Library

    library = Library(environ=state.environ)
    if "context" in fields:
        fields = {**fields, "context": library.pins(fields["context"])}
    salt = json.dumps({name: value for name, value in fields.items() if name != "timeout"}, sort_keys=True)
    rows = RowFile(source, salt=salt, limit=limit, pins=library.pins)
    tally = Tally(total=rows.count())
    with _output(target, source, tally) as (journal, write):
        if journal is not None:
            _check(journal, rows, whole=limit is None, total=tally.total)
        if tally.done < tally.total:
            _run(state, tally, rows, journal, write, fields, concurrency)
    _sum_up(state, tally, target)
    return SOME_FAILED if tally.errors else 0


def _run(
    state: State,
    tally: Tally,
    rows: RowFile,
    journal: Journal | None,
    write: Callable[[Record], None],
    fields: Mapping[str, Any],
    concurrency: int,
) -> None:
    state.log = log = DecisionLog()
    orchestrator = state.open(state, None)
    todo = _todo(_ordered(rows, orchestrator.config, state, fields), journal)
    try:
        with log, progress_for(tally) as progress:
            Batch(orchestrator, tally, write, progress, **fields).run(todo, min(concurrency, tally.total - tally.done))
    except (KeyboardInterrupt, Stopped):
        click.echo(f"{tally.done} of {tally.total} rows done, {dollars(tally.cost)}; {_how_to_go_on(write)}", err=True)
        raise


@contextmanager
def _output(target: Path | None, source: Path, tally: Tally) -> Iterator[tuple[Journal | None, Callable[[Record], None]]]:
    if target is None:
        yield None, _write_to_stdout
        return
    journal = Journal.open(target, source=source, each=tally.add_earlier)
    try:
        yield journal, journal.write
    finally:
        journal.close()


def _write_to_stdout(record: Record) -> None:
    try:
        sys.stdout.buffer.write(encoded(record))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WorkflowComposerError(f"cannot write to standard output: {error.strerror or error}") from error


def _check(journal: Journal, rows: RowFile, *, whole: bool, total: int) -> None:
    """Compare what is answered with the input, before anything is paid for."""
    if whole and journal.rows > total:
        raise InputError(
            f"{journal.path} answers {journal.rows} rows, and {rows.path} has {total}: the input has changed since",
            hint="name another --output for the new run",
        )
    if journal.rows:
        for row in rows:
            journal.is_done(row)


def _ordered(rows: RowFile, config: StrategyConfig, state: State, fields: Mapping[str, Any]) -> Iterable[Row]:
    """The rows in the order of sending: as they stand, or by context where they can have different ones."""
    if not rows.have_contexts and not config.task_contexts:
        return rows
    from workflow_composer.cli.grouping import together
    from workflow_composer.snapshot import contexts_of

    return together(rows, contexts_of(config, state.environ), fields)


def _todo(rows: Iterable[Row], journal: Journal | None) -> Iterator[Row]:
    return (row for row in rows if journal is None or not journal.is_done(row))


def _how_to_go_on(write: Callable[[Record], None]) -> str:
    return "run it with --output to be able to go on" if write is _write_to_stdout else "run the same command again to go on"


def _sum_up(state: State, tally: Tally, target: Path | None) -> None:
    if state.json:
        summary = {
            "rows": tally.total,
            "answered": tally.answered,
            "earlier": tally.earlier,
            "errors": tally.errors,
            "graded": tally.graded,
            "accuracy": tally.accuracy,
            "unreadable": tally.unreadable,
            "cut_off": tally.cut_off,
            "cost": tally.cost,
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
    parts += [f"cost {dollars(tally.cost)}", f"{tally.seconds:.1f} s"]
    click.echo(", ".join(parts), err=True)
    tell_unread(tally.unreadable, tally.graded, cut_off=tally.cut_off, remedy=ENDING)
    if tally.errors and target is not None:
        click.echo("hint: run the same command again to try the rows with errors again", err=True)
