"""``workflow answer``: questions that wait for a person."""

from __future__ import annotations

import getpass
import sys
import time
from contextlib import suppress
from pathlib import Path

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.state import State


@click.command(
    "answer",
    epilog=examples(
        "workflow answer triaged.csv",
        "workflow answer triaged.csv --row 18 --step review --value benign",
    ),
)
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--row", type=click.IntRange(min=1), metavar="N", help="The row, counted from 1.")
@click.option("--step", metavar="STEP", help="The step that asks; not needed if only one does.")
@click.option("--value", metavar="ANSWER", help="The answer; it must have the form that the step's answer: says.")
@click.option("--show-private", is_flag=True, help="Print questions that may hold private text, on a terminal.")
@common_options
@click.pass_obj
def answer_command(
    state: State, /, run: Path, row: int | None, step: str | None, value: str | None, show_private: bool
) -> int:
    """List the questions of a run that wait for a person, or answer one.

    RUN is the output's path. Answers are kept beside the journal, and the next `workflow run` goes on with them; the first
    answer to a question counts. Questions are printed with --show-private on a terminal only, because they may hold private
    text.

    Exit codes: 0 done; 2 no such question, or an answer that is not allowed.
    """
    from workflow_composer.cli.output import print_json, print_table
    from workflow_composer.errors import InputError
    from workflow_composer.workflows.keeping.earlier_run import EarlierRun
    from workflow_composer.workflows.keeping.people import write_answer

    kept = EarlierRun.of(run)
    waiting = [one for one in kept.waiting() if row in (None, one.number) and step in (None, one.place, one.step)]
    if value is not None:
        if row is None:
            raise click.UsageError("--value needs --row")
        if len(waiting) != 1:
            told = "no question waits" if not waiting else f"{len(waiting)} questions wait"
            where = f"row {row}" + (f", step {step}" if step else "")
            open_now = ", ".join(f"row {one.number} {one.place}" for one in kept.waiting()[:8])
            hint = f"name one of them by --step: {open_now}" if waiting else f"waiting: {open_now or 'nothing'}"
            raise InputError(f"{where}: {told}", hint=hint)
        (question,) = waiting
        who = ""
        with suppress(OSError, KeyError):
            who = getpass.getuser()
        write_answer(kept.answers, question, question.value(value), by=who, at=time.time())
        click.echo(f"row {question.number}, {question.place}: answered; the next `workflow run` goes on with it", err=True)
        return 0
    visible = show_private and sys.stdout.isatty()
    if state.json:
        print_json({"waiting": [one.data(with_text=visible) for one in waiting]})
        return 0
    rows = [[one.number, one.place, one.allowed, one.text if visible else f"{len(one.text)} characters"] for one in waiting]
    print_table(["row", "step", "answer", "question"], rows)
    return 0
