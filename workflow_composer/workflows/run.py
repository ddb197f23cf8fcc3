"""A whole run of a workflow: the rows of a table through its steps, and the steps over all rows, into a table.

Rows are computed from the journal and, where it has no answer, by asking; an answer is in the journal before it is used, so
that a run that is ended anyhow goes on where it stopped. A step over all rows waits until every row has come as far as it
can without it; then the rows that read it are computed anew, from the journal.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workflow_composer.batch.asking.table_output import journal_beside
from workflow_composer.batch.keeping.identity import meaning_of
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.runner import run as run_jobs
from workflow_composer.batch.run.tally import Tally
from workflow_composer.contexts.applying import Contexts
from workflow_composer.errors import InputError
from workflow_composer.types import ANY_TASK, EMPTY
from workflow_composer.workflows.definition.model import PromptBody, Step, Workflow
from workflow_composer.workflows.grading import RunGrades, graded
from workflow_composer.workflows.keeping.gate import Asker, CallGate, OneAtATime
from workflow_composer.workflows.keeping.journal import JournalEntry, WorkflowJournal
from workflow_composer.workflows.keeping.keys import StepMeanings, question_of, top_of
from workflow_composer.workflows.keeping.money import MoneyAccount, RowPrices, RunPurse
from workflow_composer.workflows.keeping.outcomes import OutcomeSpool, RowDone
from workflow_composer.workflows.keeping.people import OpenQuestions, PeopleAnswers, answers_beside
from workflow_composer.workflows.keeping.row_keeper import AskingRules, RowKeeper, RunCounts
from workflow_composer.workflows.keeping.rows import RowSource, RunRow, RunTable
from workflow_composer.workflows.keeping.run_report import RunReport, StepSummaries
from workflow_composer.workflows.keeping.versions import RunVersions, ServedModels, models_by_path
from workflow_composer.workflows.keeping.written import WrittenTables
from workflow_composer.workflows.live_runs import LiveRun, RunBoard, new_run_id
from workflow_composer.workflows.programs.digests import WorkflowSources
from workflow_composer.workflows.running.over_rows import run_over_rows
from workflow_composer.workflows.running.results import CHEAPER, RowOutcome, Scope, StepResult
from workflow_composer.workflows.running.row import run_row
from workflow_composer.workflows.running.servers import addresses
from workflow_composer.workflows.running.step_plans import StepPlans
from workflow_composer.workflows.running.steps import read_by
from workflow_composer.workflows.running.world import AT_ONCE, StopSign, World

if TYPE_CHECKING:
    from workflow_composer.batch.run.runner import Generate
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.plan import Plan
    from workflow_composer.workflows.keeping.answers import StepQuestion

CANCELLED = "cancelled"
_GRACE = 3.0
"""Seconds for which calls under way may end after the first Ctrl-C."""

_NOT_AMONG = "not asked: its row is not among --rows"
_NOT_ONLY = "not asked: --only names another step"


async def nothing_served(config: StrategyConfig) -> ServedModels:
    """Return nothing: no server is asked what it serves."""
    return {}


class ModelSource(Protocol):
    """Who answers: a `ModelOrchestrator`."""

    @property
    def config(self) -> StrategyConfig:
        """The active profile."""
        ...

    @property
    def agenerate(self) -> Generate:
        """Answers a request."""
        ...

    @property
    def plan(self) -> Callable[..., Plan]:
        """Returns the plan for a request."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a run is told beside its workflow. Money in dollars; ``rows`` are numbers from 0; steps are named by their names.

    ``start`` does a step and all that follow anew, ``redo`` one step, or for "cheaper" what was asked so; ``only`` asks
    nothing but one step; ``retry`` names kinds of failures that are tried again beside those that always are. ``labels`` has
    the table's columns of right answers, by step or output column.
    """

    concurrency: int | None = None
    run_budget: float | None = None
    row_budget: float | None = None
    rows: frozenset[int] | None = None
    start: str | None = None
    only: str | None = None
    redo: str | None = None
    retry: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)

    def check(self, workflow: Workflow) -> None:
        """Raise `InputError` if a step that is named does not exist."""
        from workflow_composer.errors import nearest

        for option, name in (("--from", self.start), ("--only", self.only), ("--redo", self.redo)):
            if name == CHEAPER and option == "--redo" and workflow.when_low == CHEAPER:
                continue
            if name is not None and name not in workflow.steps:
                hint = nearest(name, workflow.steps) or f"steps: {', '.join(workflow.steps)}"
                raise InputError(f"{option}: the workflow has no step {name!r}", hint=hint)


@dataclass(slots=True)
class AskedAgain:
    """What a run will ask again, by step; ``scale`` is the share of rows that were looked at, inverted.

    ``following`` answers (with their dollars) may be asked again too, if what they follow from turns out differently.
    ``notes`` say what else has changed.
    """

    scale: float = 1.0
    counts: RunCounts = field(default_factory=RunCounts)
    following: int = 0
    following_cost: float = 0.0
    notes: list[str] = field(default_factory=list)

    def follow(self, keeper: RowKeeper) -> None:
        """Count what may follow in a row, if something is asked again in it."""
        for entry in keeper.unvisited():
            self.following += 1
            self.following_cost += float(entry.fields.get("cost") or 0.0)

    def told(self) -> list[str]:
        """Return lines for people: steps, numbers, reasons and prices; empty if nothing is asked again."""
        about = "" if self.scale == 1.0 else "about "
        lines = []
        for path, counts in self.counts.items():
            number = sum(counts.why.values())
            if number:
                why = ", ".join(counts.why)
                price = f", about ${counts.again_cost * self.scale:.4g}" if counts.again_cost else ""
                lines.append(f"{path}: {about}{round(number * self.scale)} asked again ({why}){price}")
        if lines and self.following:
            price = f", about ${self.following_cost * self.scale:.4g}" if self.following_cost else ""
            lines.append(f"up to {round(self.following * self.scale)} more answers follow from these{price}")
        return lines


class RowPace(Limiter):
    """As many rows at a time as calls may be under way, and no more than the run's budget can bring to their end.

    A row costs as much as the dearest one so far. The budget thus goes to rows that have begun; the others wait until it is
    known that something is left for them.
    """

    def __init__(self, gate: CallGate, account: MoneyAccount) -> None:
        self._gate, self._account, self._dearest = gate, account, 0.0
        super().__init__()

    @property
    def limit(self) -> int:
        """Rows that may be in flight."""
        return max(1, self._gate.limit)

    @property
    def room(self) -> bool:
        """Whether another row may begin."""
        if not self.in_flight:
            return True
        return self.in_flight < self.limit and self._dearest * (self.in_flight + 1) <= self._account.own_room

    def learn(self, cost: float) -> None:
        """Take what a row has cost."""
        self._dearest = max(self._dearest, cost)


@dataclass(slots=True)
class _Pass:
    """One way over the rows."""

    rules: Callable[[int], AskingRules]
    counts: RunCounts = field(default_factory=RunCounts)


class WorkflowRun:
    """A run of a workflow over a table. Use as a context manager: it holds the journal's lock. Raises `InputError`.

    ``output`` is the table to write (None: none), ``journal`` the file of answers; None: the one beside ``output``.
    ``served`` asks one's own servers, once, which models they serve where the profile does not name one.
    ``board`` shows the run to others while it goes on; ``live`` is what it shows.
    """

    def __init__(
        self,
        workflow: Workflow,
        table: RunTable,
        output: Path | None,
        models: ModelSource,
        options: RunOptions | None = None,
        *,
        journal: Path | None = None,
        now: Callable[[], float] = time.time,
        served: Callable[[StrategyConfig], Awaitable[ServedModels]] = nothing_served,
        board: RunBoard | None = None,
    ) -> None:
        self.options = options = options or RunOptions()
        options.check(workflow)
        self.workflow = replace(
            workflow,
            run_budget=workflow.run_budget if options.run_budget is None else options.run_budget,
            row_budget=workflow.row_budget if options.row_budget is None else options.row_budget,
        )
        self.table, self.output, self.models = table, output, models
        journal = _journal_of(output) if journal is None else journal
        self.grades = RunGrades(workflow, options.labels, table) if options.labels else None
        self.written = WrittenTables(self.workflow, output, table, journal)
        self.source = RowSource(self.workflow, table.rows, typed=table.is_typed)
        self.journal = WorkflowJournal.open(journal)
        self.stopped = StopSign()
        limit = math.inf if self.workflow.run_budget is None else self.workflow.run_budget
        self.account = MoneyAccount(limit, spent=self.journal.counts.spent)
        self.gate = CallGate(options.concurrency, stop=self.stopped.is_set, address=addresses(models.config))
        self.people = PeopleAnswers(answers_beside(self.journal.path))
        self._versions, self._served, self._now = RunVersions(self.journal), served, now
        self._models_of: Mapping[str, frozenset[str]] = {}
        self.counts, self.tally = RunCounts(), Tally(len(self.source))
        self._known = self.journal.counts.answers > 0
        self._spool = OutcomeSpool()
        self._run_results: dict[str, StepResult] = {}
        sources = WorkflowSources(workflow)
        self.workflow = replace(self.workflow, notes=(*workflow.notes, *(f"not seen: {one}" for one in sources.unseen)))
        self._meanings = StepMeanings(models.config, programs=sources, context_of=_context_of(models.config))
        self._plans, self._began = StepPlans(models.plan), time.monotonic()
        self._board, self.live = board, None if board is None else self._shown()
        self.world = World(
            ask=Asker(models.agenerate, self.gate, self.stopped),
            question=self._question,
            keeper=self._keeper("", AskingRules(), RunCounts()),
            people=OpenQuestions(self.journal, now),
            purse=RunPurse(self.account),
            gate=self.gate,
            once=OneAtATime(),
            folder=workflow.folder,
            stopped=self.stopped,
            room=self._plans.room,
            first_model=self._plans.first_model,
            now=now,
            at_once=1 if options.concurrency == 1 else AT_ONCE,
        )

    def __enter__(self) -> WorkflowRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()
        self.journal.close()

    def _shown(self) -> LiveRun:
        output = "" if self.output is None else self.output.name
        return LiveRun(new_run_id(), self.workflow, self.models.config, rows=len(self.source), output=output)

    # ------------------------------------------------------------------------------------------------------------ asking

    def _question(
        self, step: Step, *, row: str, place: str, asked: Mapping[str, Any], release: bool = False
    ) -> StepQuestion:
        return question_of(step, row=row, place=place, asked=asked, meaning=self._meanings.of(step, release=release))

    def _world_of(self, keeper: RowKeeper, world: World, *, low: bool) -> World:
        """Return the world of a row; if the budget is low, or was when the row was asked, with cheaper models."""
        if self.workflow.when_low == CHEAPER and (low or (keeper.was_cheaper and self.options.redo != CHEAPER)):
            return replace(world, keeper=keeper, cheaper=self._plans.cheaper_model)
        return replace(world, keeper=keeper)

    def _keeper(self, row: str, rules: AskingRules, counts: RunCounts) -> RowKeeper:
        return RowKeeper(self.journal, row, rules, counts, known=self._known, people=self.people, versions=self._versions)

    def _rules(self) -> Callable[[int], AskingRules]:
        """Return the rules of a row by its number."""
        options, began = self.options, self.journal.began
        anew = _anew(self.workflow, options)
        paths = frozenset(path for path, _ in self.workflow.every_step())

        def redo(path: str, entry: JournalEntry) -> bool:
            return entry.offset < began and top_of(path) in anew

        def left_out(path: str) -> str:
            return _NOT_ONLY if options.only is not None and top_of(path) != options.only else ""

        def another_model(path: str, entry: JournalEntry) -> str:
            return self._versions.another_model(self._models_of.get(path, ()), entry)

        chosen = AskingRules(redo, left_out, options.retry, paths, another_model=another_model)
        others = AskingRules(left_out=lambda path: _NOT_AMONG, paths=paths)
        wanted = options.rows
        return lambda number: chosen if wanted is None or number in wanted else others

    # --------------------------------------------------------------------------------------------------------------- run

    async def run(
        self, *, cancel: asyncio.Event | None = None, progress: Callable[[Tally], None] = lambda tally: None
    ) -> RunReport:
        """Run to the end, to the budget, or until ``cancel`` is set; write the tables; return the report."""
        if self._board is not None and self.live is not None:
            async with self._board.showing(self.live) as live:
                report = await self._run(cancel, progress)
                live.end(report.state)
            return report
        return await self._run(cancel, progress)

    async def _run(self, cancel: asyncio.Event | None, progress: Callable[[Tally], None]) -> RunReport:
        kill = asyncio.Event()
        watchers = [asyncio.create_task(self._watch(cancel, kill))] if cancel is not None else []
        if self.workflow.run_deadline is not None:
            watchers.append(asyncio.create_task(self._end_after(self.workflow.run_deadline)))
        try:
            await self._look_at_versions()
            self._versions.write(self._now())
            with getattr(self.models, "gathering", _nothing_to_flush)() as self._flush:
                await self._all_steps(kill, progress)
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.to_thread(self.journal.sync)
        return await self._finish()

    async def changes(self, most: int = 1000) -> AskedAgain:
        """Find out what the run will ask although the journal has an answer to an earlier question; asks nothing.

        Of a table with more than ``most`` rows, as many are looked at, spread over it, and the numbers are scaled.
        """
        await self._look_at_versions()
        rows = len(self.source)
        chosen = frozenset(at * rows // most for at in range(most)) if rows > most else None
        rules, found = self._rules(), AskedAgain(rows / most if chosen is not None else 1.0)
        found.notes += self._versions.told()
        for row in self.source.rows((lambda number: True) if chosen is None else chosen.__contains__):
            keeper = self._keeper(row.id, replace(rules(row.number), asks=False), found.counts)
            await run_row(self.workflow, row, self._world_of(keeper, self.world, low=False))
            found.follow(keeper)
        return found

    async def _look_at_versions(self) -> None:
        """Find out, once, which models the servers serve."""
        if not self._models_of:
            self._models_of = models_by_path(self.workflow, self._names_of)
            self._versions.begin(file=self.workflow.digest, served=await self._served(self.models.config))

    def _names_of(self, model: str | None, task: str | None) -> set[str]:
        """Return the models, by the names that their servers have in the profile, of a step's target."""
        config = self.models.config
        meaning = meaning_of(config, [] if model is None else [model], [task or ANY_TASK] if model is None else [])
        return {config.models[name].endpoint or name for name in meaning["models"] if name in config.models}

    async def _watch(self, cancel: asyncio.Event, kill: asyncio.Event) -> None:
        """After ``cancel``, let no call start, and end those under way a little later."""
        await cancel.wait()
        self.stopped.stop(CANCELLED)
        self.gate.open()
        await asyncio.sleep(_GRACE)
        kill.set()

    async def _end_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.stopped.stop(f"the run's deadline of {seconds:g} s has passed")
        self.gate.open()

    async def _all_steps(self, kill: asyncio.Event, progress: Callable[[Tally], None]) -> None:
        steps, rules = self.workflow.steps, self._rules()
        await self._over_rows(_Pass(rules), kill, progress)
        fresh: set[str] = set()
        for name in self.workflow.order:
            if steps[name].level != "run" or kill.is_set():
                continue
            if self._rows_read(fresh):
                await self._over_rows(_Pass(rules), kill)
                fresh = set()
            self._run_results[name] = await self._over_all(steps[name], rules)
            fresh.add(name)
        if fresh and not kill.is_set() and (self._rows_read(fresh) or self._output_reads(fresh)):
            await self._over_rows(_Pass(rules), kill)

    def _rows_read(self, names: set[str]) -> bool:
        """Whether a step of the rows reads one of these steps of the run."""
        return any(step.level == "row" and read_by(step) & names for step in self.workflow.steps.values())

    def _output_reads(self, names: set[str]) -> bool:
        return any(reading.reads & names for reading in self.workflow.output.values())

    async def _over_rows(
        self, this: _Pass, kill: asyncio.Event, progress: Callable[[Tally], None] = lambda tally: None
    ) -> None:
        """Compute every row as far as it goes now."""
        self._spool.run_results = dict(self._run_results)
        pace = RowPace(self.gate, self.account)
        first = not self.counts
        if self.live is not None:
            self.live.pass_begins(self.counts, this.counts)
        work = _RowWork(self, this, replace(self.world, run_results=dict(self._run_results), watch=self.live), pace)
        tally = self.tally if first else Tally(len(self.source))
        await run_jobs(self._jobs(), work, work, tally=tally, limiter=pace, progress=progress, stop=kill)
        self._merge(this.counts)
        if self.live is not None:
            self.live.asks(self.counts)

    def _jobs(self) -> Iterator[RunRow]:
        for row in self.source:
            if self.stopped.is_set():
                return
            yield row

    def _merge(self, found: RunCounts) -> None:
        """Add what a pass has asked; what it found in the journal counts once."""
        for path, counts in found.items():
            known = self.counts.get(path)
            if known is None:
                self.counts[path] = counts
            else:
                known.add_asked(counts)

    async def _over_all(self, step: Step, rules: Callable[[int], AskingRules]) -> StepResult:
        counts = RunCounts()
        whole = replace(rules(-1), left_out=lambda path: "") if self.options.only is None else rules(-1)
        keeper = self._keeper("", whole, counts)
        world = replace(self.world, keeper=keeper, run_results=dict(self._run_results))
        self._spool.run_results = dict(self._run_results)  # for `keep` and `group_by`, which may read a step of the run
        result = None
        if self.live is not None:
            self.live.asks(self.counts, counts)
            self.live.begun(step.name)
        try:
            result = await run_over_rows(step, self.outcomes(), world)
        finally:
            if self.live is not None:
                self.live.ended(step.name, result)
        self._merge(counts)
        if self.live is not None:
            self.live.asks(self.counts)
        return result

    async def outcomes(self) -> AsyncIterator[RowOutcome]:
        """Yield the rows' outcomes, in order."""
        for number in range(len(self.source)):
            found = self._spool.outcome(number)
            if found is not None:
                yield found
            if not number % 256:
                await asyncio.sleep(0)

    # ------------------------------------------------------------------------------------------------------------ the end

    def take_outcomes(self) -> tuple[OutcomeSpool, Mapping[str, list[Mapping[str, Any]]]]:
        """Return the rows' outcomes, which the caller then closes, and the rows of the further tables by name."""
        spool, self._spool = self._spool, OutcomeSpool()
        return spool, self.written.further(Scope({}, self._run_results))

    async def _finish(self) -> RunReport:
        why = self.stopped.why if self.stopped.is_set() else ""
        if why != CANCELLED:
            await self._fill_up()
        steps, states = StepSummaries(), Counter[Any]()
        for number in range(len(self.source)):
            outcome = self._spool.outcome(number)
            if outcome is not None:
                states[outcome.state] += 1
                steps.add_row(outcome.steps, self.workflow.steps)
        steps.add_row(self._run_results, self.workflow.steps)
        marks = {}
        if self.grades is not None:
            marks = await graded(self.grades, self.table.rows(), self._spool.outcome)
        tables: Mapping[str, str] = {}
        if why != CANCELLED:
            tables = await asyncio.to_thread(
                self.written.write, self._spool, len(self.source), Scope({}, self._run_results), self.journal.path, marks
            )
        spent = sum(one.cost for one in self.counts.values())
        return RunReport(
            state=self._state(why, states),
            rows=len(self.source),
            by_state=states,
            steps=steps,
            counts=self.counts,
            cost=self.journal.counts.spent + spent,
            cost_now=spent,
            seconds=time.monotonic() - self._began,
            journal=str(self.journal.path),
            output="" if self.output is None else str(self.output),
            unreadable=self.journal.counts.unreadable,
            tables=tables,
            served=_served(self.counts),
            accuracy=None if self.grades is None else self.grades.data,
        )

    async def _fill_up(self) -> None:
        """Compute the rows that were not begun, from the journal alone: nothing is asked once the run is stopped."""
        missing = set(self._spool.missing(len(self.source)))
        if not missing:
            return
        self.stopped.stop("the run has ended")
        rules = self._rules()
        work = _RowWork(self, _Pass(rules), replace(self.world, run_results=dict(self._run_results)))
        for row in self.source.rows(missing.__contains__):
            work.append(await work(row, None))

    def _state(self, why: str, states: Mapping[Any, int]) -> str:
        if why == CANCELLED:
            return CANCELLED
        if self.account.is_reached:
            return "stopped: budget"
        if "deadline" in why:
            return "stopped: deadline"
        left_out = self.options.only is not None or self.options.rows is not None
        failed = states["failed"] or states["partial"] or (states["stopped"] and not left_out)
        run_failed = any(result.state in ("failed", "withheld") for result in self._run_results.values())
        if states["waiting"] or any(result.state == "waiting" for result in self._run_results.values()):
            return "waiting"
        return "failed" if failed or run_failed else "done"


def _journal_of(output: Path | None) -> Path:
    if output is None:
        raise InputError("a run needs an output or a journal", hint="name one of them")
    return journal_beside(output)


class _RowWork:
    """Computes rows, and keeps what became of them: the answers and the journal of the one runner of rows."""

    def __init__(self, run: WorkflowRun, this: _Pass, world: World, pace: RowPace | None = None) -> None:
        self._run, self._pass, self._world, self._pace = run, this, world, pace
        self._prices, self._cheaper = RowPrices(run.account, len(run.source)), set[int]()

    async def __call__(self, row: RunRow, budget: float | None) -> RowDone:
        """Compute a row."""
        run = self._run
        keeper = run._keeper(row.id, self._pass.rules(row.number), self._pass.counts)
        world = run._world_of(keeper, self._world, low=self._prices.is_low)
        if world.cheaper is not self._world.cheaper:
            self._cheaper.add(row.number)
        outcome = await run_row(run.workflow, row, world)
        return RowDone(row.number, outcome, keeper.lineage, keeper.cost)

    def failed(self, row: RunRow, error: BaseException, seconds: float) -> RowDone:
        """Raise: failures of steps are outcomes; this is the journal's, or a bug's."""
        raise error

    def append(self, record: RowDone) -> None:
        """Keep an outcome."""
        self._run._spool.put(record)
        self._prices.ended(record.cost, cheaper=record.number in self._cheaper)
        self._cheaper.discard(record.number)
        if self._run.live is not None:
            self._run.live.row(record.outcome.state)
        if self._pace is not None:
            self._pace.learn(record.cost)

    def sync(self) -> None:
        """Flush the journal of answers to disk, and write the metric lines that wait."""
        self._run.journal.sync()
        self._run._flush()


def _nothing_to_flush() -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


def _anew(workflow: Workflow, options: RunOptions) -> frozenset[str]:
    """Return the steps whose kept answers are not used."""
    found = {name for name in (options.redo, options.start) if name is not None}
    if options.start is not None:
        for name in workflow.order:
            if read_by(workflow.steps[name]) & found:
                found.add(name)
    return frozenset(found)


def _context_of(config: StrategyConfig) -> Callable[[Step], Sequence[str]]:
    """Return a function that returns the pins of the templates that are put before a step's messages."""
    contexts = Contexts.of(config.task_contexts, base=config.directory)

    def pins(step: Step) -> Sequence[str]:
        own = step.body.context if isinstance(step.body, PromptBody) else None
        return contexts.of_request(own, step.task or ANY_TASK).pins

    return pins


def _served(counts: RunCounts) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for one in counts.values():
        for (name, served), number in (one.models + one.kept_models).items():
            found.setdefault(name, Counter())[served] += number
    return {name: dict(models) for name, models in found.items()}
