"""The run of ``execute``: each data set under each policy, the printed summary, and the report."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.answers import reader
from workflow_composer.batch.datasets.recorded_answers import RecordedAnswers, of_recording, with_votes
from workflow_composer.batch.run.planned_run import JOURNAL, PlannedRun, finish, slug, spent_in
from workflow_composer.batch.run.preparation import Options, Preparation
from workflow_composer.batch.run.runner import RunBudget
from workflow_composer.batch.run.tally import Tally
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
    describe_tiers,
    doubting,
    part_of_budget,
    progress_for,
    raise_if_over,
    shard_of,
    tell_spent_before,
    tell_unlimited,
)
from workflow_composer.cli.state import State
from workflow_composer.types import ANY_TASK

if TYPE_CHECKING:
    from workflow_composer.batch.planning.plan_table import PlanTable
    from workflow_composer.batch.planning.policies import PlanningContext
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.plugins.host import PluginHost

_REMEDY = f"{ENDING}, or set --extract to the answer's place (line, whole, json:FIELD, ...)"
Planned = Mapping[str, tuple[Any, Mapping[str, "PlanTable"]]]


class Execution:
    """One run of ``execute``. `run` returns the exit code."""

    def __init__(self, state: State, options: Options) -> None:
        self._state = state
        self._options = options
        self._plugins: PluginHost | None = None
        self._recorded = None if options.replay is None else RecordedAnswers(options.replay)
        self._shard = shard_of(options.shard, state.environ)
        self._budget = part_of_budget(RunBudget(options.budget, options.run_budget), self._shard)
        self._counted: set[Path] = set()

    def run(self) -> int:
        """Plan everything, then (unless it is a dry run) answer the rows that earlier runs have not answered.

        Raises `KeyboardInterrupt` or `Stopped` after a signal, `RunBudgetReached` if the run budget is used up.
        """
        with self._orchestrator() as orchestrator:
            preparation = Preparation(
                self._options,
                orchestrator.config,
                parse=lambda route: orchestrator.plan("?", model=route),
                factories={name: offer.value for name, offer in orchestrator.plugins.registry.batch_strategies.items()},
                recorded=self._recorded,
            )
            if self._options.train_probe:
                self._informed(preparation, preparation.context(), orchestrator.config)
                return 0
            planned = self._plan(preparation, orchestrator.config)
            if self._options.dry_run:
                self._show({name: tables for name, (_, tables) in planned.items()})
                return 0
            return self._run(orchestrator, planned)

    # ------------------------------------------------------------------------------------------------------- the plans

    def _orchestrator(self) -> ModelOrchestrator:
        """Open an orchestrator with the voting options applied, over the recording if there is one."""
        state = self._state
        if self._recorded is not None:
            config = of_recording(self._recorded.path, self._recorded.models, state.profile())
        else:
            with state.open(state, None) as chosen:
                config, self._plugins = chosen.config, chosen.plugins
        state.log = state.log or click.get_current_context().with_resource(DecisionLog(state.log_file))
        return self._voting(config)

    def _voting(self, config: StrategyConfig, **votes: Any) -> ModelOrchestrator:
        """Open an orchestrator for this profile with the voting options and ``votes`` applied."""
        from workflow_composer.orchestrator import ModelOrchestrator

        changed = with_votes(config, {**self._options.votes, **votes})
        return ModelOrchestrator(changed, plugins=self._plugins, environ=self._state.environ, log=self._state.log)

    def _plan(self, preparation: Preparation, config: StrategyConfig) -> Planned:
        sets = preparation.datasets()
        for rows in sets:
            if rows is not self._recorded and not self._state.json:
                click.echo(f"{rows.name}: {rows.describe()}", err=True)
        context = preparation.context()
        context, tokens = self._informed(preparation, context, config)
        policies = preparation.policies(context)
        return {rows.name: (rows, preparation.plan(rows, policies, context, tokens)) for rows in sets}

    def _informed(
        self, preparation: Preparation, context: PlanningContext, config: StrategyConfig
    ) -> tuple[PlanningContext, Any]:
        """Return the context with a probe's predictions, if one is given or trained, and the token averages."""
        from workflow_composer.batch.planning.plan_table import TokenAssumption

        options = self._options
        if options.probe is None and options.probing_dataset is None:
            return context, TokenAssumption()
        from dataclasses import replace

        from workflow_composer.batch.planning.probing import predictor_of

        def answer(rows: Any, table: PlanTable, folder: Path, label: str) -> None:
            with self._voting(config, stopping="fixed") as fixed:
                run = self._planned(fixed.config, options.probing_rows)
                raise_if_over(self._budget, self._answer(fixed, run, rows, table, folder, label))

        predictor, tokens = predictor_of(preparation, context, answer, lambda text: click.echo(text, err=True))
        return replace(context, predictor=predictor), tokens

    def _show(self, planned: Mapping[str, Mapping[str, PlanTable]]) -> None:
        from workflow_composer.batch.planning.plan_table import breakdown_text

        if self._state.json:
            print_json(
                {
                    name: {policy: table.breakdown.to_dict() for policy, table in tables.items()}
                    for name, tables in planned.items()
                }
            )
            return
        for name, tables in planned.items():
            click.echo(f"{name}: {len(next(iter(tables.values())).frame)} questions")
            click.echo(breakdown_text(table.breakdown for table in tables.values()))

    # -------------------------------------------------------------------------------------------------------- the runs

    def _run(self, orchestrator: ModelOrchestrator, planned: Planned) -> int:
        run = self._planned(orchestrator.config, self._options.limit)
        folders = {name: self._options.output / name for name in planned}
        if self._budget.run is not None:
            every = (folders[name] / slug(policy) for name, (_, tables) in planned.items() for policy in tables)
            self._count_earlier(map(run.folder_of, every))
        summaries: list[dict[str, Any]] = []
        tallies: list[Tally] = []
        for name, (rows, tables) in planned.items():
            runs = {policy: folders[name] / slug(policy) for policy in tables}
            for policy, table in tables.items():
                label = f"{name}, {policy}"
                tally = self._answer(orchestrator, run, rows, table, runs[policy], label)
                place = run.folder_of(runs[policy])
                tallies.append(tally)
                summaries.append(self._summary(name, policy, tally, place))
                if rows is not self._recorded:  # a recording has grades even for unreadable answers
                    _tell_what_looks_wrong(label, tally, place)
                self._end_if_over(tally, summaries)
            if self._shard is not None:
                continue  # a report compares whole runs: `merge` joins the shards first
            places = run.report(name, folders[name], runs, rows)
            if not self._state.json:
                click.echo(f"report: {', '.join(map(str, places))}", err=True)
        if not self._state.json and any(tally.unpriced and not tally.cost for tally in tallies):
            tell_no_price(0.0, 1)
        if given_up := reader(run.voting.form).timed_out:
            click.echo(f"note: {given_up} comparisons of answers timed out and count as different", err=True)
        if self._state.json:
            print_json(summaries)
        return code_of(tallies)

    def _planned(self, config: StrategyConfig, limit: int | None) -> PlannedRun:
        from workflow_composer.runtime.snapshot import contexts_of

        fields = self._options.fields
        return PlannedRun(
            config,
            fields=fields,
            pins=contexts_of(config, self._state.environ).of_request(fields.get("context"), ANY_TASK).pins,
            recorded=self._recorded,
            limit=limit,
            keep_texts=not self._options.no_texts,
            command=self._state.arguments,
            planning={name: getattr(self._options, name) for name in ("k", "k_max", "target", "probing_dataset")},
            shard=self._shard,
        )

    def _answer(
        self, orchestrator: ModelOrchestrator, run: PlannedRun, rows: Any, table: PlanTable, folder: Path, label: str
    ) -> Tally:
        """Answer one data set under one policy; keep the answers of earlier runs."""
        total = len(table.frame)
        tally = Tally(total if self._shard is None else self._shard.rows_of(total))
        with run.opened(folder, rows, table, tally) as journal:
            folder = run.folder_of(folder)
            if folder not in self._counted:
                self._counted.add(folder)
                self._budget.earlier(tally.cost)

            warned = Warned(orchestrator.agenerate)

            async def work(stop: asyncio.Event) -> None:
                await run.answer(
                    warned,
                    rows,
                    table,
                    journal,
                    tally=tally,
                    concurrency=self._options.in_flight,
                    budget=self._budget,
                    progress=progress,
                    stop=stop,
                    go_on=doubting(progress, _REMEDY, label=label),
                )

            def told() -> str:
                how = "run the same command again to resume"
                spent = cost_text(tally.cost_now, tally.unpriced_now)
                return f"{label}: {tally.done} of {tally.total} rows done, cost {spent}; {how}"

            if tally.answered < (tally.total or 0):
                with progress_for(tally, describe_tiers, label=label) as progress:
                    run_stoppable(work, told)
                warned.tell()
        finish(folder, tally, total)
        return tally

    def _count_earlier(self, folders: Any) -> None:
        """Count the cost of earlier runs in all these folders, because they share the budget."""
        spent = 0.0
        for folder in folders:
            if folder not in self._counted:
                self._counted.add(folder)
                spent += spent_in(folder / JOURNAL)
        self._budget.earlier(spent)
        tell_spent_before(self._budget, spent)

    def _end_if_over(self, tally: Tally, summaries: list[dict[str, Any]]) -> None:
        if tally.stopped_by and self._state.json:
            print_json(summaries)
        tell_unlimited(self._budget, tally)
        raise_if_over(self._budget, tally)

    def _summary(self, name: str, policy: str, tally: Tally, folder: Path) -> dict[str, Any]:
        """Return the summary of one run; print it unless all summaries are printed as JSON at the end."""
        from workflow_composer.batch.report.results import records

        found: dict[str, Any] = {
            "dataset": name,
            "policy": policy,
            "rows": tally.total,
            "answered": tally.answered,
            "earlier": tally.earlier,
            "errors": tally.errors,
            "graded": tally.graded,
            "accuracy": tally.accuracy,
            "unreadable": tally.unreadable,
            "cut_off": tally.cut_off,
            "shares": dict(tally.shares),
            "cost": known_cost(tally.cost, tally.unpriced),
            "cost_unknown_rows": tally.unpriced,
            "seconds": round(tally.seconds, 3),
            "folder": str(folder),
        }
        if not self._state.json:
            click.echo(_line(found, cost_text(tally.cost, tally.unpriced)))
        if tally.errors:
            failed = next(record for record in records(folder / JOURNAL) if record.error is not None)
            assert failed.error is not None  # by the filter above
            found["first_error"] = {"row": failed.row, "type": failed.error[0], "message": failed.error[1]}
            click.echo(f"row {failed.row} failed: {failed.error[1]}", err=True)
            click.echo("hint: run the same command again to retry the failed rows", err=True)
        return found


def _tell_what_looks_wrong(label: str, tally: Tally, folder: Path) -> None:
    """Print hints about unreadable answers and about an accuracy of zero."""
    from workflow_composer.batch.report.results import records

    where = f"the texts are in {folder / 'results.jsonl'}"
    tell_unread(tally.unreadable, tally.answered, cut_off=tally.cut_off, remedy=f"{_REMEDY}; {where}", whose=label)
    if tally.graded > tally.unreadable and not tally.correct:
        read = next((record.answer for record in records(folder / JOURNAL) if record.answer is not None), None)
        click.echo(f"{label}: none of {tally.graded} answers is right; the first one extracted is {read!r}", err=True)
        click.echo(f"hint: compare it with its label; {where}", err=True)


def _line(found: Mapping[str, Any], cost: str) -> str:
    """Return the summary of one run as one line."""
    parts = [f"{found['answered']} of {found['rows']} rows"]
    if found["earlier"]:
        parts.append(f"{found['earlier']} answered earlier")
    if found["errors"]:
        parts.append(f"{found['errors']} errors")
    if found["accuracy"] is not None:
        parts.append(f"accuracy {percent(found['accuracy'])}")
    if len(found["shares"]) > 1:
        parts.append(", ".join(f"{tier} {share:.0%}" for tier, share in found["shares"].items()))
    parts.append(f"cost {cost}")
    return f"{found['dataset']}, {found['policy']}: {'; '.join(parts)}"
