"""One ``workflow run``: the checks, the run, and the report on standard error or as JSON."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from workflow_composer.batch.asking.table_output import journal_beside
from workflow_composer.batch.datasets.table import Table, read_table
from workflow_composer.cli.interrupt import run_finishing
from workflow_composer.cli.output import SOME_FAILED, dollars, print_json, print_table
from workflow_composer.cli.progress import DecisionLog, progress_for
from workflow_composer.cli.state import State
from workflow_composer.cli.workflow.scripted_models import ScriptedModels
from workflow_composer.errors import InputError, RunBudgetReached
from workflow_composer.runtime.resources import served_models
from workflow_composer.storage.lines import objects
from workflow_composer.workflows.forecast import PriceList, SampleTable, StepPrice
from workflow_composer.workflows.grading import lines_of
from workflow_composer.workflows.live_runs import RunBoard, runs_folder
from workflow_composer.workflows.opening import loaded
from workflow_composer.workflows.run import CANCELLED, RunOptions, WorkflowRun

if TYPE_CHECKING:
    from workflow_composer.cli.workflow.scripted_models import FlowTest
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.workflows.definition.model import Workflow
    from workflow_composer.workflows.keeping.run_report import RunReport

WAITING = 8
"""Exit code of a run in which persons must answer."""

_MOST_REASONS = 5


def numbers_of(text: str, most: int) -> frozenset[int]:
    """Return the numbers, from 0, of rows that are written as ``1,5-9``. Raises `InputError`.

    >>> sorted(numbers_of("1,3-4", 10))
    [0, 2, 3]
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise InputError(f"--rows: {part.strip()!r} is neither a row nor a range of rows", hint="write 1,5-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last:
            raise InputError(f"--rows: {part.strip()!r} is no range of rows", hint="rows are counted from 1")
        if first > most:
            raise InputError(f"--rows: there is no row {first}", hint=f"the table has {most} rows")
        found.update(range(first - 1, min(last, most)))
    return frozenset(found)


def labels_of(texts: Sequence[str]) -> dict[str, str]:
    """Return columns of right answers by step, written as ``STEP=COLUMN``. Raises `InputError`.

    >>> labels_of(["kind=right kind"])
    {'kind': 'right kind'}
    """
    found = {}
    for text in texts:
        name, equals, column = (part.strip() for part in text.partition("="))
        if not (name and equals and column):
            raise InputError(f"--label: {text!r} is no label", hint="write STEP=COLUMN")
        if name in found:
            raise InputError(f"--label: {name} has two columns", hint="give each step one")
        found[name] = column
    return found


class RunSession:
    """A run from the command line."""

    def __init__(self, state: State, options: Mapping[str, Any]) -> None:
        self._state, self._options = state, options
        self._target: Path = options["target"]

    def run(self) -> int:
        """Run and report; return the exit code."""
        state, options = self._state, self._options
        workflow, table, orchestrator = self._opened()
        wanted = options["rows"]
        given = {name: options[name] for name in ("concurrency", "run_budget", "row_budget", "start", "only", "redo")}
        chosen = None if wanted is None else numbers_of(wanted, table.count())
        labels = labels_of(options["labels"])
        run_options = RunOptions(rows=chosen, retry=frozenset(options["retry"]), labels=labels, **given)
        board = RunBoard(runs_folder(state.environ))
        run = WorkflowRun(workflow, table, self._target, orchestrator, run_options, board=board, served=served_models)
        with run:
            self._tell_before(run)
            self._tell_changes(run)
            code, report = self._done(run, orchestrator)
        if state.json:
            print_json(report.data | ({} if run.live is None else {"run": run.live.id}))
        self._tell(run, report)
        return code or code_of(report)

    def _opened(self) -> tuple[Workflow, Table, ModelOrchestrator]:
        """Open the table and the profile, and check the workflow against both."""
        state, options = self._state, self._options
        table = read_table(options["source"], data_dir=Path(options["data_dir"]), asks=False)
        state.log = DecisionLog(state.log_file)
        orchestrator = state.open(state, None)
        try:
            return loaded(options["file"], table, orchestrator.config, orchestrator.step_kinds), table, orchestrator
        except BaseException:
            orchestrator.close()
            raise

    def _done(self, run: WorkflowRun, orchestrator: ModelOrchestrator) -> tuple[int, RunReport]:
        found: list[RunReport] = []

        async def work(stop: asyncio.Event) -> None:
            async with orchestrator:
                found.append(await run.run(cancel=stop, progress=progress))

        log = self._state.log
        assert isinstance(log, DecisionLog)
        with log, progress_for(run.tally) as progress:
            code = run_finishing(work)
        return code, found[0]

    # --------------------------------------------------------------------------------------------------------- telling

    def _tell_before(self, run: WorkflowRun) -> None:
        counts = run.journal.counts
        click.echo(f"{run.table.name}: {len(run.source)} rows; journal: {run.journal.path}", err=True)
        for note in run.workflow.notes:
            click.echo(f"note: {note}", err=True)
        if counts.unreadable:
            entries = "entry" if counts.unreadable == 1 else "entries"
            told = f"{counts.unreadable} {entries} of {run.journal.path} cannot be read; what they kept is asked again"
            click.echo(f"warning: {told}", err=True)
        if counts.answers:
            spent = f", {dollars(counts.spent)} spent" if counts.spent else ""
            click.echo(f"{counts.answers} answers of earlier runs are kept{spent}", err=True)

    def _tell_changes(self, run: WorkflowRun) -> None:
        """Say what is asked again, and its price; on a terminal, ask whether to go on."""
        if not run.journal.counts.answers:
            return
        found = asyncio.run(run.changes())
        for note in found.notes:
            click.echo(f"note: {note}", err=True)
        lines = found.told()
        for line in lines:
            click.echo(f"  {line}", err=True)
        terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
        if lines and terminal and not self._options["yes"] and not click.confirm("Go on?", default=True, err=True):
            raise click.Abort

    def _tell(self, run: WorkflowRun, report: RunReport) -> None:
        data = report.data
        for path, step in data["steps"].items():
            self._tell_step(path, step)
        states = [f"{data[name]} {name}" for name in ("done", "partial", "failed", "waiting", "stopped") if data[name]]
        parts = [f"{report.rows} rows", *states, f"{report.calls} calls", f"{report.kept} kept"]
        if report.shared:
            parts.append(f"{report.shared} shared")
        parts += [f"cost {dollars(report.cost_now)}", f"{report.seconds:.1f} s"]
        click.echo(f"{report.state}: {', '.join(parts)}: {report.output}", err=True)
        for line in lines_of(report.accuracy) if report.accuracy is not None else ():
            click.echo(line, err=True)
        for name, path in report.tables.items():
            click.echo(f"table {name}: {path}", err=True)
        for name, models in report.served.items():
            if len(models) > 1:
                told = " and ".join(f"{model} ({number})" for model, number in models.items())
                click.echo(f"warning: {name} was answered by several models: {told}", err=True)
        self._tell_next(run, report)

    @staticmethod
    def _tell_step(path: str, step: Mapping[str, Any]) -> None:
        told = [f"{step[state]} {state.replace('_', ' ')}" for state in _STATES if step[state]]
        told += [f"{step['cheaper']} cheaper"] if step["cheaper"] else []
        told += [f"{step['calls']} calls"] if step["calls"] else []
        told += [f"{step['kept']} kept"] if step["kept"] else []
        told += [f"{step['shared']} shared"] if step["shared"] else []
        told += [dollars(step["cost"])] if step["cost"] else []
        click.echo(f"  {path}: {', '.join(told) or 'nothing to do'}", err=True)
        for why, number in _most(step["asked_again"]):
            click.echo(f"    asked again {_times(number)}: {why}", err=True)
        for why, number in _most(step["reasons"]):
            click.echo(f"    {_times(number)}: {why}", err=True)
        for note in step["notes"][:_MOST_REASONS]:
            click.echo(f"    {note}", err=True)

    def _tell_next(self, run: WorkflowRun, report: RunReport) -> None:
        if report.state == "waiting":
            number = report.by_state["waiting"]
            questions = "answer is" if number == 1 else "answers are"
            click.echo(f"{number} {questions} needed: workflow answer {self._target}", err=True)
        elif report.state == CANCELLED:
            click.echo("everything that was answered is kept; run the same command again to go on", err=True)
        elif report.state == "stopped: budget":
            limit, spent = run.account.limit, run.account.spent
            told = f"stopped at the budget of {dollars(limit)}: {dollars(spent)} spent"
            click.echo(f"{told}; a higher --run-budget goes on, and repeats nothing", err=True)
        elif report.state == "failed":
            click.echo("hint: _errors says why; run the same command again to try once more what servers failed", err=True)


_STATES = ("done", "skipped", "failed", "waiting", "withheld", "not_run")


def _most(counts: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: -pair[1])[:_MOST_REASONS]


def code_of(report: RunReport) -> int:
    """Return the exit code of a run that has ended by itself."""
    if report.state == "waiting":
        return WAITING
    if report.state == "stopped: budget":
        return RunBudgetReached.exit_code
    return 0 if report.state == "done" else SOME_FAILED


class DryRun(RunSession):
    """The forecast of a run: nothing is called, and nothing written."""

    def run(self) -> int:
        """Print the forecast; return the exit code."""
        workflow, table, orchestrator = self._opened()
        with orchestrator:
            found = PriceList(workflow, table, orchestrator.config, orchestrator.plan)
        unpriced = sorted({name for step in found.steps for name in step.unpriced})
        kept = journal_beside(self._target).exists()
        if self._state.json:
            steps = {step.path: step.data for step in found.steps}
            total = {"least": found.least, "most": found.most, "unpriced": unpriced}
            print_json({"state": "dry run", "rows": found.rows, "steps": steps, **total, "journal_exists": kept})
            return 0
        click.echo(f"{table.name}: {found.rows} rows; nothing is called", err=True)
        lines = [[one.path, _calls(one), one.prompt_tokens, dollars(one.least), dollars(one.most)] for one in found.steps]
        print_table(["step", "calls", "prompt tokens", "at least", "at most"], lines)
        click.echo(f"all steps: {dollars(found.least)} to {dollars(found.most)}, before answers are asked again")
        if unpriced:
            click.echo(f"warning: no price is known of {', '.join(unpriced)}", err=True)
        if kept:
            click.echo("answers of earlier runs are kept: what is not asked again is counted here all the same", err=True)
        return 0


def _calls(step: StepPrice) -> str:
    told = f"{step.calls:,}{' for each item' if step.items else ''}"
    return f"up to {told}" if step.conditional else told


class Trial(RunSession):
    """A run over a few rows of a table; ``report`` gets the run, the whole table, the rows written, and the run's data."""

    def __init__(self, state: State, options: Mapping[str, Any], report: Callable[..., None]) -> None:
        super().__init__(state, options)
        self._report = report

    def run(self) -> int:
        """Run and report; return the exit code."""
        options = self._options
        workflow, table, orchestrator = self._opened()
        given = {name: options[name] for name in ("concurrency", "run_budget", "row_budget")}
        sample = cast("Table", SampleTable(table, options["rows"]))
        with WorkflowRun(workflow, sample, self._target, orchestrator, RunOptions(**given)) as run:
            code, report = self._done(run, orchestrator)
            rows = [row for _, row in objects(self._target)] if self._target.exists() else []
            self._report(run, table, rows, report.data)
        for path, step in report.data["steps"].items():
            self._tell_step(path, step)
        return code or code_of(report)


class Rehearsal(RunSession):
    """A run with scripted answers; nothing is sent."""

    def __init__(self, state: State, options: Mapping[str, Any], test: FlowTest) -> None:
        super().__init__(state, options)
        self._test = test

    def rehearse(self) -> tuple[list[str], list[Mapping[str, Any]]]:
        """Run; return what is not as expected, and the rows that were written."""
        workflow, table, orchestrator = self._opened()
        with orchestrator:
            self._test.check(workflow)
            models = ScriptedModels(orchestrator.config, orchestrator.plan, self._test.answers)
            with WorkflowRun(workflow, table, self._target, models, RunOptions(concurrency=1)) as run:
                asyncio.run(run.run())
        rows = [row for _, row in objects(self._target)] if self._target.exists() else []
        return self._test.differences(rows), rows


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"
