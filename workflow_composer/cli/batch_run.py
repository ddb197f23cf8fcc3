"""Running planned data sets: journals, engine, progress, results and the report."""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer import __version__
from workflow_composer.answers import reader
from workflow_composer.batch.answering import Answering
from workflow_composer.batch.engine import Job, run
from workflow_composer.batch.journal import Journal, fingerprint
from workflow_composer.batch.limiter import Limiter
from workflow_composer.batch.results import records, write_results
from workflow_composer.batch.tally import Tally
from workflow_composer.cli.execution import SOME_FAILED, Options
from workflow_composer.cli.interrupt import INTERRUPTED, TERMINATED, Stopped, leave_soon
from workflow_composer.cli.output import dollars, percent, print_json
from workflow_composer.cli.progress import describe_tiers, progress_for
from workflow_composer.cli.state import State
from workflow_composer.cli.unread import ENDING, tell_unread
from workflow_composer.snapshot import contexts_of
from workflow_composer.storage.replacing import replace_file
from workflow_composer.types import ANY_TASK

if TYPE_CHECKING:
    from workflow_composer.batch.planning import PlanTable
    from workflow_composer.batch.replaying import RecordedAnswers
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.plan import Voting
    from workflow_composer.strategy import StrategyConfig

JOURNAL = "journal.jsonl"
FEWEST_IN_FLIGHT = 4
"""A server that cannot take so many lets them wait; with fewer, chance would decide about the pace."""


class BatchRun:
    """Runs every data set through every strategy that was planned for it."""

    def __init__(
        self,
        state: State,
        options: Options,
        orchestrator: ModelOrchestrator,
        recorded: RecordedAnswers | None,
        limit: int | None,
    ) -> None:
        self._state = state
        self._options = options
        self._orchestrator = orchestrator
        self._recorded = recorded
        self._limit = limit
        self._voting = _voting_of(orchestrator.config)

    def run(self, planned: Mapping[str, tuple[Any, Mapping[str, PlanTable]]]) -> int:
        """Run, write results and reports, sum up; the exit code. Raises `KeyboardInterrupt` or `Stopped`."""
        summaries: list[dict[str, Any]] = []
        for name, (rows, tables) in planned.items():
            folder = self._options.output / name
            runs = {strategy: folder / slug(strategy) for strategy in tables}
            for strategy, table in tables.items():
                tally = self.answer(rows, table, runs[strategy], label=f"{name}, {strategy}")
                summaries.append(self._summary(name, strategy, tally, runs[strategy]))
                if rows is not self._recorded:  # there the recording says what is right, whether it can be read or not
                    _tell_what_looks_wrong(f"{name}, {strategy}", tally, runs[strategy])
            self._report(name, folder, runs)
        if given_up := reader(self._voting.form).timed_out:
            click.echo(f"note: {given_up} comparisons of answers took too long and count as not the same", err=True)
        if self._state.json:
            print_json(summaries)
        return SOME_FAILED if any(summary["errors"] for summary in summaries) else 0

    def answer(self, rows: Any, table: PlanTable, folder: Path, *, label: str) -> Tally:
        """One data set through one strategy; what an earlier run has answered is kept."""
        total = len(table.frame)
        tally = Tally(total)
        folder.mkdir(parents=True, exist_ok=True)
        head = self._head(rows, table)
        with Journal.open(folder / JOURNAL, head, rows=total, each=tally.add_earlier) as journal:
            if tally.answered < total:
                asyncio.run(self._answer(rows, table, journal, tally, label))
        written = write_results(folder / JOURNAL, folder)
        tally.unreadable, tally.cut_off = written.unreadable, written.cut_off
        return tally

    async def _answer(self, rows: Any, table: PlanTable, journal: Journal, tally: Tally, label: str) -> None:
        stop, asked = asyncio.Event(), []

        def ask(number: signal.Signals) -> None:
            asked.append(number)
            leave_soon(TERMINATED if number == signal.SIGTERM else INTERRUPTED)
            stop.set()

        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, ask, number)
        most = self._options.in_flight
        limiter = Limiter(least=most, most=most, start=most) if most else Limiter(least=FEWEST_IN_FLIGHT)
        try:
            with progress_for(tally, describe_tiers, label=label) as progress:
                jobs, answering = self._jobs(rows, table), self._answering(limiter)
                await run(jobs, answering, journal, tally=tally, limiter=limiter, progress=progress, stop=stop)
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
        if asked:
            how = "run the same command again to go on"
            click.echo(f"{label}: {tally.done} of {tally.total} rows done, {dollars(tally.cost_now)}; {how}", err=True)
            raise Stopped if asked[0] == signal.SIGTERM else KeyboardInterrupt

    def journal(self, folder: Path) -> Path:
        """Where a run's journal lies."""
        return folder / JOURNAL

    def _report(self, name: str, folder: Path, runs: Mapping[str, Path]) -> None:
        """Set the runs beside one another, for people: as Markdown, and as a page that opens without a network."""
        from workflow_composer.batch.report import build_report

        sources = {strategy: partial(records, self.journal(place)) for strategy, place in runs.items()}
        config, voting = self._orchestrator.config, self._voting
        notes = [
            f"Profile {config.profile_name}; votes: {voting.measure} from {voting.target:g}, stopping: {voting.stopping}, "
            f"drawn {voting.draw.replace('_', ' ')}."
        ]
        markdown, html = build_report(sources, title=name, tiers=tuple(config.tiers), notes=notes)
        for place, text in ((folder / "report.md", markdown), (folder / "report.html", html)):
            replace_file(place, text)
        if not self._state.json:
            click.echo(f"report: {folder / 'report.md'}, {folder / 'report.html'}", err=True)

    def _summary(self, name: str, strategy: str, tally: Tally, folder: Path) -> dict[str, Any]:
        """What came of one run; printed at once, unless everything is printed as JSON in the end."""
        found = {
            "dataset": name,
            "strategy": strategy,
            "rows": tally.total,
            "answered": tally.answered,
            "earlier": tally.earlier,
            "errors": tally.errors,
            "graded": tally.graded,
            "accuracy": tally.accuracy,
            "unreadable": tally.unreadable,
            "cut_off": tally.cut_off,
            "shares": dict(tally.shares),
            "cost": tally.cost,
            "seconds": round(tally.seconds, 3),
            "folder": str(folder),
        }
        if not self._state.json:
            click.echo(_line(found))
        if tally.errors:
            failed = next(record for record in records(folder / JOURNAL) if record.error is not None)
            assert failed.error is not None  # that is what was looked for
            found["first_error"] = {"row": failed.row, "type": failed.error[0], "message": failed.error[1]}
            click.echo(f"row {failed.row} failed: {failed.error[1]}", err=True)
            click.echo("hint: run the same command again to try the rows with errors again", err=True)
        return found

    def _answering(self, limiter: Limiter) -> Answering:
        return Answering(
            self._orchestrator.agenerate,
            reader(self._voting.form),
            fields=self._options.fields,
            recorded=None if self._recorded is None else self._recorded.right,
            keep_texts=not self._options.no_texts,
            overloaded=limiter.overloaded,
        )

    def _jobs(self, rows: Any, table: PlanTable) -> Iterator[Job]:
        return (Job(row, route) for row, route in zip(islice(rows.rows(), self._limit), table.routes(), strict=True))

    def _head(self, rows: Any, table: PlanTable) -> dict[str, Any]:
        """What a journal is of: a run that differs in any of it is another run."""
        return {
            "version": __version__.rpartition(".")[0],
            "dataset": rows.name,
            "digest": rows.sha256(),
            "routes": fingerprint(table.routes()),
            "strategy": self._orchestrator.strategy,
            "models": self._models(),
            "votes": asdict(self._voting),
            "fields": self._fields(),
            "replay": None if self._recorded is None else self._recorded.digest,
        }

    def _fields(self) -> dict[str, Any]:
        """The fields of every request; the context is named by its present text, also where the profile gives it."""
        fields = self._options.fields
        contexts = contexts_of(self._orchestrator.config, self._state.environ)
        pins = contexts.of_request(fields.get("context"), ANY_TASK).pins
        return {**fields, "context": list(pins)} if pins else fields

    def _models(self) -> dict[str, str]:
        return {name: f"{spec.backend}:{spec.model}" for name, spec in self._orchestrator.config.models.items()}


def _voting_of(config: StrategyConfig) -> Voting:
    """How the profile's cascade router draws, reads and judges votes."""
    from workflow_composer.routers.cascade import CascadeSettings

    spec = next(spec for spec in config.routers if spec.name == "cascade")
    return CascadeSettings.model_validate(dict(spec.settings)).voting()


def _tell_what_looks_wrong(label: str, tally: Tally, folder: Path) -> None:
    """Explain answers that could not be read, and an accuracy of zero."""
    where = f"the texts are in {folder / 'results.jsonl'}"
    remedy = f"{ENDING}, or say with --extract where the answer stands (line, whole, json:FIELD, ...); {where}"
    tell_unread(tally.unreadable, tally.answered, cut_off=tally.cut_off, remedy=remedy, whose=label)
    if tally.graded > tally.unreadable and not tally.correct:
        read = next((record.answer for record in records(folder / JOURNAL) if record.answer is not None), None)
        click.echo(f"{label}: none of {tally.graded} answers is right; the first was read as {read!r}", err=True)
        click.echo(f"hint: compare it with its label; {where}", err=True)


def _line(found: Mapping[str, Any]) -> str:
    """One run on one line."""
    parts = [f"{found['answered']} of {found['rows']} rows"]
    if found["earlier"]:
        parts.append(f"{found['earlier']} answered before")
    if found["errors"]:
        parts.append(f"{found['errors']} errors")
    if found["accuracy"] is not None:
        parts.append(f"accuracy {percent(found['accuracy'])}")
    if len(found["shares"]) > 1:
        parts.append(", ".join(f"{tier} {share:.0%}" for tier, share in found["shares"].items()))
    parts.append(f"cost {dollars(found['cost'])}")
    return f"{found['dataset']}, {found['strategy']}: {'; '.join(parts)}"


def slug(strategy: str) -> str:
    """A folder's name for a strategy or a route: readable, and different for different ones."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", strategy).strip(".")
    if plain == strategy and len(plain) <= 120:
        return plain
    return f"{plain[:100]}-{hashlib.sha256(strategy.encode()).hexdigest()[:8]}"
